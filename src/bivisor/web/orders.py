"""What a person can have done from the page: one function for each order, by its name in the address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from bivisor.errors import UsageError
from bivisor.toolstack.options import parse_memory
from bivisor.toolstack.xenhost import with_kernel
from bivisor.toolstack.xlconfig import DiskSpec, DomainConfig, VifSpec
from bivisor.web.hostlink import HostLink
from bivisor.web.machines import Machines

Order = Callable[[HostLink, Machines, Mapping[str, Any]], Awaitable[Any]]
_VCPUS_MAX = 128


def _word(words: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = words.get(name, default)
    if not isinstance(value, str) or (not value and default is None):
        raise UsageError(f"{name} is missing")
    return value.strip()


async def _create(host: HostLink, _: Machines, words: Mapping[str, Any]) -> Any:
    """A DomU: name, type, memory (MiB), vcpus, kernel, ramdisk, cmdline; disks and vifs, one a line, as in xl.cfg."""
    here = Path.home()
    try:
        vcpus = int(words.get("vcpus") or 1)
    except (TypeError, ValueError):
        raise UsageError(f"vcpus {words.get('vcpus')!r} is no number") from None
    if not 1 <= vcpus <= _VCPUS_MAX:
        raise UsageError(f"vcpus {vcpus}: from 1 to {_VCPUS_MAX}")
    kernel, ramdisk = _word(words, "kernel", ""), _word(words, "ramdisk", "")
    config = DomainConfig(
        name=_word(words, "name"),
        type=_word(words, "type", "pvh"),
        kernel=Path(kernel).expanduser() if kernel else None,
        ramdisk=Path(ramdisk).expanduser() if ramdisk else None,
        cmdline=_word(words, "cmdline", ""),
        memory=parse_memory(_word(words, "memory", "256")),
        vcpus=vcpus,
        disks=tuple(DiskSpec.parse(line).absolute(here) for line in _lines(words, "disks")),
        vifs=tuple(VifSpec.parse(line) for line in _lines(words, "vifs")),
    )
    return await host.call_apart("create", config=with_kernel(config).completed().to_json())


def _lines(words: Mapping[str, Any], name: str) -> list[str]:
    return [line.strip() for line in _word(words, name, "").splitlines() if line.strip()]


def _simple(method: str) -> Order:
    async def order(host: HostLink, _: Machines, words: Mapping[str, Any]) -> Any:
        return await host.call_apart(method, domain=_word(words, "domain"))

    return order


async def _shutdown(host: HostLink, _: Machines, words: Mapping[str, Any]) -> Any:
    return await host.call_apart("order", domain=_word(words, "domain"), order=_word(words, "order", "poweroff"))


async def _stop(_: HostLink, machines: Machines, words: Mapping[str, Any]) -> Any:
    return await machines.call(_word(words, "machine"), "stop")


ORDERS: Mapping[str, Order] = {
    "create": _create,
    "pause": _simple("pause"),
    "unpause": _simple("unpause"),
    "destroy": _simple("destroy"),
    "shutdown": _shutdown,
    "stop": _stop,
}
