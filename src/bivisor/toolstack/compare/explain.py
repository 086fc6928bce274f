"""Why a row's figures are what they are: a paragraph for each, with the numbers that were counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bivisor.toolstack.compare import workload
from bivisor.toolstack.compare.counter import DOORBELL, TO_BACKEND, TO_GUEST
from bivisor.toolstack.compare.result import BOOT, Comparison, Counts, RowResult

_NOTHING = Counts()


def explain(comparison: Comparison, result: RowResult) -> str:
    """The paragraph of `result`; its reason where it could not be."""
    if result.missing:
        return f"Not measured here: {result.missing}."
    words = _PARAGRAPHS[result.key](_Facts(comparison, result))
    lacks = "".join(f" No figure for its {workload.title(phase)}: {why}." for phase, why in result.notes.items())
    return " ".join(words.split()) + lacks


class _Facts:
    """The counts of one row in words, and how it compares with another."""

    def __init__(self, comparison: Comparison, result: RowResult) -> None:
        self._comparison = comparison
        self._result = result

    def counts(self, phase: str) -> Counts:
        """What was counted in a phase, nothing where it was not run."""
        return self._result.counts(phase) or _NOTHING

    def each(self, phase: str, number: int) -> str:
        """So many for one unit of a phase."""
        measured = self._result.phases.get(phase)
        return f"{number / measured.units:,.1f}" if measured is not None else "no"

    def most(self, phase: str, field: str, how_many: int = 2) -> str:
        """The most frequent of them: "34,681 PortIo PCI configuration and 616 Mmio I/O APIC"."""
        found: Mapping[str, int] = getattr(self.counts(phase), field)
        names = sorted(found, key=lambda name: (-found[name], name))[:how_many]
        return " and ".join(f"{found[name]:,} {name}" for name in names) or "none"

    def times(self, other: str, phase: str) -> str:
        """How long a phase takes beside another row: "2.2 times Xen PVH's", "" where that is not there."""
        mine = self._result.phases.get(phase)
        base = next((row.phases.get(phase) for row in self._comparison.rows if row.key == other), None)
        return "" if mine is None or base is None or not base.seconds else f"{mine.seconds / base.seconds:.1f} times"


def _kvm_emulated(facts: _Facts) -> str:
    disk, network = facts.counts("requests"), facts.counts(workload.SEND)
    words = f"""
    The guest drives an IDE controller and an e1000 as if they were there. A read is a dance of registers (task file,
    bus master, interrupt status): {facts.each("requests", disk.switches)} exits for each,
    {facts.most("requests", "exits", 3)}, and an exit is all that a register is. The data itself is not copied: the
    controller's DMA is a preadv into the guest's pages. Time to user space is that of a PC: firmware, boot loader and
    in-guest decompression come before the kernel, and {facts.counts(BOOT).switches:,} switches, most of them
    {facts.most(BOOT, "exits")}.
    """
    if not network.switches:
        return words
    return (
        words
        + f"""
    Sending takes {facts.each(workload.SEND, network.switches)} exits a MiB, {facts.most(workload.SEND, "exits")}; the
    card copies each packet out of the guest to cut it into segments, as hardware would have done.
    """
    )


def _kvm_virtio(facts: _Facts) -> str:
    disk, network = facts.counts("requests"), facts.counts(workload.SEND)
    return f"""
    Driver and device share a ring in memory, and the only register that matters is a doorbell:
    {facts.each("requests", disk.exits.get(DOORBELL, 0))} for a read, {facts.each(workload.SEND, network.switches)}
    switches for a MiB sent, since one packet is up to 64 KiB and one doorbell rings for several. The doorbell is an
    eventfd: the processor goes on at once while the device works in another thread, with the guest's own pages in
    preadv and writev. The kernel is handed over decompressed, so nothing comes before it; of its
    {facts.counts(BOOT).switches:,} exits until user space {facts.most(BOOT, "exits", 1)} are its search of the PCI bus.
    """


def _xen_hvm(facts: _Facts) -> str:
    disk = facts.counts("requests")
    return f"""
    The same emulated PC, but the hypervisor has no devices: an access leaves the guest for the hypervisor, which puts
    it into a page shared with the device model in Dom0, sends an event, and waits for the answer the same way. So each
    of the {facts.each("requests", disk.switches)} exits of a read is two switches between domains on top of what KVM's
    takes{_beside(facts.times("kvm-emulated", "requests"), "KVM's time with the same devices")}.
    Until user space the device model answers {facts.counts(BOOT).events.get(TO_GUEST, 0):,} times, mostly for
    {facts.most(BOOT, "exits")} accesses.
    """


def _xen_hvm_pv(facts: _Facts) -> str:
    disk = facts.counts("requests")
    return f"""
    The same PC as it boots, until the kernel finds Xen, unplugs the emulated disk and network by a write to the
    platform device and connects to the back-ends of Dom0 instead. From then on its I/O is a PVH domain's:
    {facts.each("requests", disk.all_hypercalls)} hypercalls for a read, {facts.most("requests", "hypercalls")}. What is
    left of emulation is the way there: {facts.counts(BOOT).all_exits:,} exits until user space.
    """


def _xen_pvh(facts: _Facts) -> str:
    disk, network = facts.counts("requests"), facts.counts(workload.SEND)
    return f"""
    No emulated device is left. A read is a request in a ring that Dom0 has mapped, one event there and one back:
    {facts.each("requests", disk.events.get(TO_BACKEND, 0))} sent and
    {facts.each("requests", disk.events.get(TO_GUEST, 0))} received, where the sending is the hypercall. Grants of disk
    pages stay mapped; what is sent to the network is copied out of granted pages by Dom0,
    {facts.each(workload.SEND, network.grants.get("copy", 0))} copies a MiB. The timer is a hypercall too
    (set_singleshot_timer), where a local APIC would be none here. The kernel still looks for a PCI bus that is not
    there: {facts.most(BOOT, "exits", 1)} exits until user space.
    """


def _xen_pv(facts: _Facts) -> str:
    programs, disk = facts.counts("programs"), facts.counts("requests")
    calls, started = facts.times("xen-pvh", "calls"), facts.times("xen-pvh", "programs")
    return f"""
    Devices are a PVH domain's, but the kernel itself has no privilege: page tables, segments and stacks are changed by
    asking. A program started and ended takes {facts.each("programs", programs.all_hypercalls)} hypercalls,
    {facts.most("programs", "hypercalls")}, because the tables of a process in being are read-only to their
    owner{_beside(started, "PVH's time")}. Each change of the task is hypercalls as well, and so a read that waits takes
    {facts.each("requests", disk.all_hypercalls)} of them instead of one; xen_version among them is how Linux has
    events delivered that came while it had them masked. A system call enters the hypervisor's code first, and is passed
    on to the kernel{_beside(calls, "PVH's time")}. Until user space it is
    {facts.counts(BOOT).all_hypercalls:,} hypercalls, {facts.most(BOOT, "hypercalls")}.
    """


def _beside(times: str, what: str) -> str:
    return f", and it takes {times} {what}" if times else ""


_PARAGRAPHS: dict[str, Callable[[_Facts], str]] = {
    "kvm-emulated": _kvm_emulated,
    "kvm-virtio": _kvm_virtio,
    "xen-hvm": _xen_hvm,
    "xen-hvm-pv": _xen_hvm_pv,
    "xen-pvh": _xen_pvh,
    "xen-pv": _xen_pv,
}
