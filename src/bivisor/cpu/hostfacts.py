"""What the host's files say about virtualization: processor, device, modules, memory, networking.

Each function reads below `root`, so that a test can show it any host. Nothing here opens the device or runs a guest.
Where: proc(5), sysfs, Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import grp
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Processor:
    """The first processor of /proc/cpuinfo. `usable` counts those that this process may run on."""

    vendor: str
    model: str
    vmx: bool
    svm: bool
    is_guest: bool
    usable: int


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device file: whether it is there, whose it is, and whether this process may read and write it."""

    path: str
    present: bool
    group: str = ""
    mode: str = ""
    accessible: bool = False


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded kernel module with its parameters, as far as they can be read."""

    name: str
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: of RAM, of what is available now, of swap, and the control group's limit (None: none). Huge pages: how
    many are free, and their size."""

    total: int
    available: int
    swap: int
    limit: int | None
    huge_free: int
    huge_size: int
    transparent_huge: str
    memfd: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """IOMMU groups (0: no IOMMU in use), the TAP device, and where passt is (None: not installed)."""

    iommu_groups: int
    tun: DeviceNode
    passt: str | None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _fields(text: str) -> dict[str, str]:
    """`name : value` lines; the first of a name counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def processor(root: Path = ROOT) -> Processor:
    """The host's processor."""
    fields = _fields(_text(root / "proc/cpuinfo"))
    flags = set(fields.get("flags", "").split())
    return Processor(
        vendor=fields.get("vendor_id", "unknown"),
        model=fields.get("model name", "unknown"),
        vmx="vmx" in flags,
        svm="svm" in flags,
        is_guest="hypervisor" in flags,
        usable=len(os.sched_getaffinity(0)),
    )


def device_node(path: str, root: Path = ROOT) -> DeviceNode:
    """The device file at `path`."""
    place = root / path.lstrip("/")
    try:
        status = place.stat()
    except OSError:
        return DeviceNode(path, present=False)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    accessible = os.access(place, os.R_OK | os.W_OK)
    return DeviceNode(path, True, group, stat.filemode(status.st_mode), accessible)


def kvm_modules(root: Path = ROOT) -> tuple[Module, ...]:
    """The modules whose names begin with kvm, built in or loaded."""
    found = []
    for place in sorted((root / "sys/module").glob("kvm*")):
        parameters = {file.name: _text(file) for file in sorted((place / "parameters").glob("*"))}
        found.append(Module(place.name, parameters))
    return tuple(found)


def memory(root: Path = ROOT) -> Memory:
    """What memory there is for guests."""
    fields = _fields(_text(root / "proc/meminfo"))

    def kib(name: str) -> int:
        return int((fields.get(name) or "0").split()[0]) << 10

    return Memory(
        total=kib("MemTotal"),
        available=kib("MemAvailable"),
        swap=kib("SwapTotal"),
        limit=memory_limit(root),
        huge_free=int(fields.get("HugePages_Free", "0")),
        huge_size=kib("Hugepagesize"),
        transparent_huge=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        memfd=_memfd_works(),
    )


def memory_limit(root: Path = ROOT) -> int | None:
    """The lowest limit of the control groups that this process is in, version 2 or 1."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for place in (group, *group.parents):  # a limit of a parent holds as well
            text = _text(base / place / name)
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
    return min(limits, default=None)


def _chosen(text: str) -> str:
    """The word in brackets of `always [madvise] never`."""
    return text.partition("[")[2].partition("]")[0]


def _memfd_works() -> bool:
    try:
        os.close(os.memfd_create("bivisor-check", os.MFD_CLOEXEC))
    except OSError:
        return False
    return True


def surroundings(root: Path = ROOT) -> Surroundings:
    """What devices of guests can use."""
    groups = root / "sys/kernel/iommu_groups"
    return Surroundings(
        iommu_groups=len(list(groups.iterdir())) if groups.is_dir() else 0,
        tun=device_node("/dev/net/tun", root),
        passt=shutil.which("passt"),
    )
