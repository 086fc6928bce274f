"""What only the engine `kvm` has: its ways into the kernel, its kernel's view and counters."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from bivisor.abi.linux_kvm import ExitReason, MpState
from bivisor.abi.x86 import FEATURES
from bivisor.cpu.contract import Engine
from bivisor.cpu.exits import Hlt, Interrupted, PortIo
from bivisor.cpu.kvm import KvmMachine, KvmVcpu
from bivisor.cpu.kvm.enter import EnterThunk
from bivisor.cpu.kvm.kick import kick_signal
from bivisor.errors import EngineError, UsageError
from bivisor.memory import Slot

from .guest import Guest


@pytest.fixture(autouse=True)
def only_kvm(engine: Engine) -> None:
    if engine.name != "kvm":
        pytest.skip("of the engine kvm alone")


@pytest.fixture
def through_libc(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """A guest on a host that forbids executable memory."""
    monkeypatch.setattr(EnterThunk, "_in_machine_code", lambda self, fd: None)
    with Guest(engine) as made:
        yield made


def kvm_parts(guest: Guest) -> tuple[KvmMachine, KvmVcpu]:
    assert isinstance(guest.machine, KvmMachine)
    assert isinstance(guest.vcpu, KvmVcpu)
    return guest.machine, guest.vcpu


def test_without_executable_memory_the_guest_runs_all_the_same(through_libc: Guest) -> None:
    through_libc.load("e6 80 f4")
    assert isinstance(through_libc.run(), PortIo)
    through_libc.vcpu.kick()
    assert through_libc.vcpu.run() == Interrupted()
    assert through_libc.run() == Hlt()


def test_the_kernels_view_says_why_the_guest_came_out(guest: Guest) -> None:
    _, vcpu = kvm_parts(guest)
    guest.load("fb 90 e6 80 f4")
    guest.run()
    view = vcpu.kernel_view
    assert (view.reason, view.if_flag) == (ExitReason.IO, True)


def test_counters_of_the_kernel_are_named_by_machine_and_processor(guest: Guest) -> None:
    machine, _ = kvm_parts(guest)
    guest.load("f4")
    guest.run()
    names = machine.statistics()
    assert any(name.startswith("vm.") for name in names)
    assert names["vcpu0.exits"] >= 1


def test_the_kick_signal_is_a_real_time_signal_that_python_does_not_handle() -> None:
    assert signal.SIGRTMIN <= kick_signal() <= signal.SIGRTMAX
    assert signal.getsignal(kick_signal()) in (None, signal.SIG_DFL)


def test_further_processors_wait_for_init(apic_guest: Guest) -> None:
    second = apic_guest.machine.create_vcpu(1)
    assert isinstance(second, KvmVcpu)
    assert second.mp_state == MpState.UNINITIALIZED


def test_a_processor_without_a_local_apic_does_not_claim_one(guest: Guest) -> None:
    leaf = {entry.leaf: entry for entry in guest.vcpu.get_cpuid()}[FEATURES["apic"].leaf]
    assert not leaf.edx >> FEATURES["apic"].bit & 1
    assert leaf.ecx >> FEATURES["hypervisor"].bit & 1


def test_a_slot_is_mapped_once(guest: Guest) -> None:
    with pytest.raises(UsageError, match="already"):
        guest.machine.map(guest.memory.slots[0])


def test_a_slot_over_another_is_refused_by_the_kernel(guest: Guest) -> None:
    slot = Slot(0x1000, 0x1000, guest.memory.ram)
    with pytest.raises(EngineError, match=r"KVM_SET_USER_MEMORY_REGION.*EEXIST"):
        guest.machine.map(slot)
    with pytest.raises(UsageError):
        guest.machine.unmap(slot)


def test_more_msr_ranges_than_the_kernel_takes_are_refused(guest: Guest) -> None:
    with pytest.raises(UsageError, match="16"):
        guest.machine.filter_msrs([(number << 16, 1) for number in range(17)])


def test_cpuid_exits_are_refused_with_what_to_do(guest: Guest) -> None:
    with pytest.raises(EngineError, match="set_cpuid"):
        guest.machine.exit_on_cpuid()


def test_a_signal_with_a_python_handler_does_not_end_run(guest: Guest) -> None:
    guest.load("eb fe")  # jmp to itself
    came: list[int] = []

    def on_alarm(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 3:
            guest.vcpu.kick()

    old = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        assert guest.vcpu.run() == Interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(came) >= 3


def test_an_exception_in_a_signal_handler_leaves_run(guest: Guest) -> None:
    guest.load("eb fe")  # jmp to itself

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyboardInterrupt):
            guest.vcpu.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
