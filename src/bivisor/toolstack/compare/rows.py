"""The rows of a comparison, in the order in which they are shown: from all emulated to nothing emulated."""

from __future__ import annotations

from dataclasses import dataclass

from bivisor.errors import UsageError
from bivisor.toolstack.compare import machines
from bivisor.toolstack.compare.machines import Starter


@dataclass(frozen=True, slots=True)
class Row:
    """One way of running a guest. `start` makes it; `needs_cpl0`: its kernel runs at CPL 0 of the processor;
    `is_emulated`: its disk and network are devices of a PC. `disk_copies` and `network_copies` are how often this
    program (the host's kernel and the guest aside) copies a byte on its way, which follows from how the device is
    built."""

    key: str
    title: str
    start: Starter
    disk_copies: str
    network_copies: str
    needs_cpl0: bool = True
    is_emulated: bool = False


ROWS = (
    Row("kvm-emulated", "KVM, emulated devices", machines.kvm_emulated, "0", "2", is_emulated=True),
    Row("kvm-virtio", "KVM, virtio", machines.kvm_virtio, "0", "0"),
    Row("xen-hvm", "Xen HVM", machines.xen_hvm, "0", "2", is_emulated=True),
    Row("xen-hvm-pv", "Xen HVM, PV drivers", machines.xen_hvm_pv, "0", "1"),
    Row("xen-pvh", "Xen PVH", machines.xen_pvh, "0", "1"),
    Row("xen-pv", "Xen PV", machines.xen_pv, "0", "1", needs_cpl0=False),
)


def parse_only(text: str) -> tuple[str, ...]:
    """The keys in "KEY,KEY". UsageError where one is none."""
    keys = tuple(filter(None, (word.strip() for word in text.split(","))))
    known = {row.key for row in ROWS}
    for key in keys:
        if key not in known:
            raise UsageError(f"--only {key}: the rows are {', '.join(row.key for row in ROWS)}")
    return keys
