"""Which builder makes a domain of a configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

from bivisor.boot.cache import Cache
from bivisor.cpu.contract import Engine
from bivisor.dom0.control import Control
from bivisor.errors import UsageError
from bivisor.toolstack.hvm import Hardware, HvmDomain
from bivisor.toolstack.pv import PvDomain
from bivisor.toolstack.pvh import PvhDomain
from bivisor.toolstack.xlconfig import DomainConfig

_KERNEL_BUILDERS: dict[str, type[PvhDomain]] = {"pvh": PvhDomain, "pv": PvDomain}
_log = logging.getLogger(__name__)


def build(
    control: Control, engine: Engine, config: DomainConfig, cache: Cache | None, serial: Callable[[bytes], None]
) -> PvhDomain | HvmDomain:
    """The domain, paused. `serial` takes what an HVM domain writes to COM1. UsageError, ImageError, HostError."""
    if config.type == "hvm":
        hardware = Hardware(
            UUID(config.uuid),
            serial if config.serial != "none" else lambda _: None,
            lambda line: _log.info("device model of %s: %s", config.name, line.decode("latin-1")),
            config.boot,
        )
        return HvmDomain(control, engine, memory=config.maxmem, hardware=hardware, vcpus=config.maxvcpus)
    if config.kernel is None:
        raise UsageError("a domain needs a kernel")
    return _KERNEL_BUILDERS[config.type](
        control,
        engine,
        config.kernel,
        memory=config.maxmem,
        initrd=config.ramdisk,
        cmdline=config.cmdline,
        cache=cache,
        vcpus=config.maxvcpus,
    )
