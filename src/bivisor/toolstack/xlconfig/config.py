"""A domain's configuration, checked: what the host is asked to create, and what it keeps to create it again."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bivisor.errors import UsageError
from bivisor.toolstack.xlconfig.disk import DiskSpec
from bivisor.toolstack.xlconfig.vif import VifSpec
from bivisor.toolstack.xlconfig.vnc import VncConfig

MIB = 1 << 20
NAME_MAX = 255
TYPES = ("pvh", "pv", "hvm")
DEFAULT_MEMORY = 256 * MIB


class Action(Enum):
    """What happens to a domain that has shut down (on_poweroff and its like)."""

    DESTROY = "destroy"
    RESTART = "restart"
    RENAME_RESTART = "rename-restart"
    PRESERVE = "preserve"


def check_name(name: str) -> str:
    """`name` if a domain can have it. UsageError."""
    if not name:
        raise UsageError("a domain's name is empty")
    if name.isdigit():
        raise UsageError(f"name {name!r}: digits alone would be taken for a domain id")
    if name == "Domain-0" or not name.isprintable() or "/" in name or len(name.encode()) > NAME_MAX or name[0] in ".-":
        raise UsageError(
            f"name {name[:40]!r}: up to {NAME_MAX} printable characters without /, that begin with neither . nor -,"
            " and not Domain-0"
        )
    return name


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """One domain. `memory` and `maxmem` are in bytes; no `kernel`: the default guest; `uuid` "": one is made up."""

    name: str
    type: str = "pvh"
    """One of TYPES."""
    kernel: Path | None = None
    ramdisk: Path | None = None
    cmdline: str = ""
    memory: int = DEFAULT_MEMORY
    maxmem: int = 0
    vcpus: int = 1
    maxvcpus: int = 0
    uuid: str = ""
    boot: str = "c"
    """Of an HVM domain: what its firmware tries, in order: c hard disk, d CD-ROM, n network, a floppy."""
    hdtype: str = "ide"
    """Of an HVM domain: the controller of its emulated disks, "ide" or "ahci"."""
    serial: str = "pty"
    """Of an HVM domain: what its COM1 is, "pty" (its console) or "none"."""
    vnc: VncConfig | None = None
    """Of an HVM domain: where VNC clients find its screen, if anywhere."""
    disks: tuple[DiskSpec, ...] = ()
    vifs: tuple[VifSpec, ...] = ()
    on_poweroff: Action = Action.DESTROY
    on_reboot: Action = Action.RESTART
    on_crash: Action = Action.DESTROY
    on_watchdog: Action = Action.DESTROY
    gdb: str = ""
    """Where gdb may attach: [HOST:]PORT[,wait]; "": nowhere."""

    def completed(self) -> DomainConfig:
        """With everything filled in that was left to us, checked. UsageError."""
        check_name(self.name)
        if self.type not in TYPES:
            raise UsageError(f"type {self.type!r} is none of {' and '.join(TYPES)}")
        most, processors = self.maxmem or self.memory, self.maxvcpus or self.vcpus
        if self.memory > most:
            raise UsageError(f"maxmem {most >> 20} MiB is less than memory {self.memory >> 20} MiB")
        if self.vcpus > processors:
            raise UsageError(f"maxvcpus {processors} is less than vcpus {self.vcpus}")
        if self.type == "hvm" and self.kernel is not None:
            raise UsageError("kernel: an HVM domain boots from its disks here")
        if self.type != "hvm" and any(disk.cdrom for disk in self.disks):
            raise UsageError(
                f"a {self.type.upper()} domain has no CD-ROM drive; give the image as a disk with access=ro"
            )
        taken: set[str] = set()
        for disk in self.disks:
            if disk.vdev in taken:
                raise UsageError(f"two disks are {disk.vdev}")
            taken.add(disk.vdev)
        macs = [vif.mac for vif in self.vifs if vif.mac]
        if len(set(macs)) < len(macs):
            raise UsageError("two vifs have the same mac")
        return replace(self, maxmem=most, maxvcpus=processors, uuid=self.uuid or str(uuids.uuid4()))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> DomainConfig:
        """From what `to_json` gave. UsageError for anything else."""
        known = {field.name for field in fields(cls)}
        if not set(words) <= known or not isinstance(words.get("name"), str):
            raise UsageError("this is not the configuration of a domain")
        try:
            return cls(**{name: _READERS.get(name, lambda value: value)(value) for name, value in words.items()})
        except (TypeError, ValueError, KeyError) as error:
            raise UsageError(f"this is not the configuration of a domain: {error}") from None


def _to_json(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case Action():
            return value.value
        case DiskSpec() | VifSpec() | VncConfig():
            return value.to_json()
        case tuple():
            return [_to_json(part) for part in value]
        case _:
            return value


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


_READERS: dict[str, Any] = {
    "kernel": _path,
    "ramdisk": _path,
    "disks": lambda parts: tuple(DiskSpec.from_json(part) for part in parts),
    "vnc": lambda words: None if words is None else VncConfig(**words),
    "vifs": lambda parts: tuple(VifSpec.from_json(part) for part in parts),
    **dict.fromkeys(("on_poweroff", "on_reboot", "on_crash", "on_watchdog"), Action),
}
