"""Exits of a soft processor one by one: accesses that are made twice, code and tables that are not in memory, what an
observer sees, and threads that come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.abi.x86 import ExitReason, Rflags
from bivisor.cpu.contract import Engine
from bivisor.cpu.exits import (
    Direction,
    Exit,
    Hlt,
    Hypercall,
    InternalError,
    Interrupted,
    Mmio,
    PortIo,
    RdMsr,
    Shutdown,
)
from bivisor.cpu.registers import DescriptorTable
from bivisor.cpu.select import open_soft
from bivisor.cpu.soft.vcpu import SoftVcpu
from bivisor.cpu.vmx import VmEntry, VmExit
from bivisor.errors import EngineError
from bivisor.memory import PAGE, MemoryRegion, Slot

from .guest import CODE, DATA, DONE, MMIO, RAM, Guest

PATIENCE = 20.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_soft() as opened:
        yield opened


@pytest.fixture
def guest(engine: Engine) -> Iterator[Guest]:
    with Guest(engine) as made:
        yield made


@pytest.fixture
def apic_guest(engine: Engine) -> Iterator[Guest]:
    with Guest(engine, irqchip=True) as made:
        yield made


def soft(guest: Guest) -> SoftVcpu:
    assert isinstance(guest.vcpu, SoftVcpu)
    return guest.vcpu


# ---------------------------------------------------------------- several accesses of one instruction

R4, W4, R2, W2, R1, W1 = ((size, write) for size in (4, 2, 1) for write in (False, True))
INSTRUCTIONS = {
    "mov rax, [rbx]": ("488b03", [(0, R4), (4, R4)]),
    "mov [rbx], rax": ("488903", [(0, W4), (4, W4)]),
    "mov [rbx + 1], ax": ("66894301", [(1, W1), (2, W1)]),
    "inc dword [rbx]": ("ff03", [(0, R4), (0, W4)]),
    "lock inc dword [rbx]": ("f0ff03", [(0, R4), (0, W4)]),
    "xchg [rbx], eax": ("8703", [(0, R4), (0, W4)]),
    "lock cmpxchg8b [rbx]": ("f00fc70b", [(0, R4), (4, R4), (0, W4), (4, W4)]),
    "push qword [rbx]": ("ff33", [(0, R4), (4, R4)]),
    "fld tword [rbx]": ("db2b", [(0, R4), (4, R4), (8, R2)]),
    "movsd": ("4889de 4889df a5", [(0, R4), (0, W4)]),
    "rep movsw, of two": ("4889de 4889df b902000000 f366a5", [(0, R2), (0, W2), (2, R2), (2, W2)]),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("in_place", ["never", "always", "reads", "writes"])
def test_every_access_of_an_instruction_is_made_once(guest: Guest, name: str, in_place: str) -> None:
    code, accesses = INSTRUCTIONS[name]
    guest.load(f"{code} f4", rbx=MMIO)
    seen: list[tuple[int, tuple[int, bool]]] = []

    def handle(exit_: Exit) -> bool:
        if not isinstance(exit_, Mmio):
            return False
        mine = {"never": False, "always": True, "reads": not exit_.is_write, "writes": exit_.is_write}[in_place]
        if mine:
            seen.append((exit_.address - MMIO, (exit_.length, exit_.is_write)))
        return mine

    while not isinstance(exit_ := guest.run(handle), Hlt):
        assert isinstance(exit_, Mmio)
        seen.append((exit_.address - MMIO, (exit_.length, exit_.is_write)))
        assert len(seen) <= 2 * len(accesses)
    if in_place in ("never", "always"):
        assert seen == accesses
    else:  # what was handled in place before the first that was not may be asked for again
        assert set(seen) == set(accesses)


def test_both_halves_of_eight_bytes_arrive(guest: Guest) -> None:
    guest.load("488b03 488983 =0x10 f4", rbx=MMIO)
    for half in (b"abcd", b"efgh"):
        exit_ = guest.run()
        assert isinstance(exit_, Mmio)
        exit_.data[:] = half
    written = b""
    while isinstance(exit_ := guest.run(), Mmio):
        written += bytes(exit_.data)
    assert written == b"abcdefgh"


def test_an_access_across_the_end_of_memory_keeps_what_is_in_memory(guest: Guest) -> None:
    guest.load("8903 f4", rbx=RAM - 2, rax=0x44332211)
    written: list[tuple[int, bytes]] = []
    while isinstance(exit_ := guest.run(), Mmio):
        written.append((exit_.address - RAM, bytes(exit_.data)))
    assert isinstance(exit_, Hlt)
    assert written == [(0, b"\x33"), (1, b"\x44")]
    assert guest.memory.read(RAM - 2, 2) == b"\x11\x22"


def test_the_same_access_in_a_loop_is_a_new_one_each_time(guest: Guest) -> None:
    guest.load("again: 8b03 0145 00 ffc9 75 @again f4", rbx=MMIO, rcx=5, rbp=DATA)
    for number in range(5):
        exit_ = guest.run()
        assert isinstance(exit_, Mmio)
        exit_.data[:] = bytes([1 << number, 0, 0, 0])
    assert isinstance(guest.run(), Hlt)
    assert guest.memory.read(DATA, 1) == b"\x1f"


def test_insb_to_a_device_puts_what_it_read_there(guest: Guest) -> None:
    guest.load("66ba8000 6c f4", rdi=MMIO)
    last = b""
    while not isinstance(exit_ := guest.run(), Hlt):
        if isinstance(exit_, PortIo):
            assert exit_.direction is Direction.IN
            exit_.data[0] = 0x5A
        elif isinstance(exit_, Mmio):
            last = bytes(exit_.data)
    assert last == b"\x5a"


# ---------------------------------------------------------------- what is not in memory


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("thread", [False, True], ids=["main", "other"])
def test_code_outside_memory_is_an_internal_error_at_its_address(guest: Guest, bits: int, thread: bool) -> None:
    guest.load("90", bits)
    regs = guest.vcpu.get_regs()
    regs.rip = MMIO + 8
    found: list[Exit] = []
    guest.vcpu.set_regs(regs)
    runner = threading.Thread(target=lambda: found.append(guest.run())) if thread else None
    if runner is None:
        found.append(guest.run())
    else:
        runner.start()
        runner.join(PATIENCE)
    assert isinstance(found[0], InternalError)
    assert guest.vcpu.get_regs().rip == MMIO + 8


@pytest.mark.parametrize("cr3", [MMIO, 0xFEE0_0000, (1 << 40) - 0x1000, (1 << 52) - 0x1000])
def test_page_tables_outside_memory_map_nothing(guest: Guest, cr3: int) -> None:
    guest.load("0f22d8 8b03 f4", rax=cr3, rbx=DATA)
    assert isinstance(guest.run(), Shutdown)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("table", ["idt", "gdt"])
def test_descriptor_tables_outside_memory_hold_nothing(guest: Guest, bits: int, table: str) -> None:
    guest.load("0f0b", bits)
    sregs = guest.vcpu.get_sregs()
    setattr(sregs, table, DescriptorTable(MMIO, 0xFFF))
    guest.vcpu.set_sregs(sregs)
    assert isinstance(guest.run(), Shutdown)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_triple_fault_is_a_shutdown(guest: Guest, bits: int) -> None:
    guest.load("0f0b", bits)
    sregs = guest.vcpu.get_sregs()
    sregs.idt = DescriptorTable(MMIO, 0)
    guest.vcpu.set_sregs(sregs)
    assert isinstance(guest.run(), Shutdown)


def test_a_frame_that_is_pushed_outside_memory_is_lost(guest: Guest) -> None:
    guest.load("0f0b", rsp=MMIO)
    exit_ = guest.run()
    assert isinstance(exit_, PortIo)
    assert bytes(exit_.data) == b"\x06"


# ---------------------------------------------------------------- the observer

OBSERVED = [
    ("e690", "out 0x90, al", ExitReason.IO_INSTRUCTION, 0x0090_0000, None),
    ("66ba3412 66ed", "in ax, dx", ExitReason.IO_INSTRUCTION, 0x1234_0009, None),
    ("8b03", "mov eax, [rbx]", ExitReason.EPT_VIOLATION, 1, MMIO),
    ("8903", "mov [rbx], eax", ExitReason.EPT_VIOLATION, 2, MMIO),
    ("b977070000 0f32", "rdmsr", ExitReason.RDMSR, 0, None),
    ("b977070000 0f30", "wrmsr", ExitReason.WRMSR, 0, None),
    ("0f01c1", "vmcall", ExitReason.VMCALL, 0, None),
]


@pytest.mark.parametrize(("code", "name", "reason", "qualification", "address"), OBSERVED, ids=[o[1] for o in OBSERVED])
def test_the_observer_sees_the_exit_and_the_state_at_its_instruction(
    guest: Guest, code: str, name: str, reason: ExitReason, qualification: int, address: int | None
) -> None:
    before, _, last = code.rpartition(" ")
    # the flags of this comparison are computed when somebody asks: 1 - 2 borrows
    text = f"{before} 4883f802\nat: {last} f4"
    labels = guest.load(text, rax=1, rbx=MMIO, rflags=2)
    events: list[VmExit | VmEntry] = []
    soft(guest).observer = events.append
    assert isinstance(guest.run(lambda exit_: not isinstance(exit_, Hlt)), Hlt)
    left, entered = events[0], events[1]
    assert isinstance(left, VmExit)
    assert (left.reason, left.qualification, left.guest_physical) == (reason, qualification, address)
    assert left.saved is not None
    assert left.saved.regs.rip == labels["at"]
    assert left.saved.regs.rflags & (Rflags.CF | Rflags.ZF) == Rflags.CF
    assert isinstance(entered, VmEntry)


def test_without_an_observer_the_handler_is_called_itself(guest: Guest) -> None:
    guest.load("e690 f4")
    handlers: list[object] = []

    def handle(exit_: Exit) -> bool:
        handlers.append(soft(guest).callbacks.handler)
        return True

    guest.run(handle)
    assert handlers == [handle]


def test_an_exception_in_the_handler_leaves_a_guest_that_can_be_closed(guest: Guest) -> None:
    guest.load("8b03 f4", rbx=MMIO)

    def fail(exit_: Exit) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guest.run(fail)


def test_an_unknown_msr_and_a_hypercall_are_answered_after_they_came_out(guest: Guest) -> None:
    guest.load("b977070000 0f32 e690 0f01c1 e690 f4")
    exit_ = guest.run()
    assert isinstance(exit_, RdMsr)
    exit_.data[0] = 0x41
    assert guest.out(0x90) == 0x41
    exit_ = guest.run()
    assert isinstance(exit_, Hypercall)
    exit_.result[0] = 0x42
    assert guest.out(0x90) == 0x42


# ---------------------------------------------------------------- threads


def test_a_message_is_never_lost_while_the_processor_goes_to_sleep_and_wakes(apic_guest: Guest) -> None:
    count = 20_000
    # enable the APIC, take vector 0x50 in a loop of HLT; the handler adds one to EDI and leaves at `count`
    code = apic_guest.load(
        f"""b91b000000 b8 =4:0xfee00d00 31d2 0f30
            b90f080000 b8 =4:0x1ff 31d2 0f30
            e690
        again: fb f4 eb @again
        handler: 50 51 52 ffc7 b90b080000 31c0 31d2 0f30 5a 59 58
            81ff =4:{count} 7504 e6{DONE:02x} 9090 48cf"""
    )
    apic_guest.handle(0x50, code["handler"])
    assert apic_guest.out(0x90) >= 0
    vcpu = soft(apic_guest)
    taken = threading.Semaphore(0)

    def send() -> None:
        for _ in range(count):
            apic_guest.machine.signal_msi(0xFEE0_0000, 0x50)
            if not taken.acquire(timeout=PATIENCE):
                return

    real = vcpu.apic.eoi

    def eoi() -> None:
        real()
        taken.release()

    vcpu.apic.eoi = eoi  # type: ignore[method-assign]
    sender = threading.Thread(target=send)
    sender.start()
    exit_ = vcpu.run()
    taken.release()
    sender.join(PATIENCE)
    assert isinstance(exit_, PortIo)
    assert exit_.port == DONE
    assert vcpu.get_regs().rdi & 0xFFFF_FFFF == count


def test_a_storm_of_kicks_does_not_keep_the_guest_from_going_on(guest: Guest) -> None:
    guest.load(f"again: 8b03 ffc9 75 @again e6{DONE:02x}", rbx=MMIO, rcx=500)
    over = threading.Event()

    def storm() -> None:
        while not over.wait(0):
            guest.vcpu.kick()

    kicker = threading.Thread(target=storm)
    kicker.start()
    kicks = 0
    try:
        while not isinstance(exit_ := guest.vcpu.run(), PortIo):
            kicks += isinstance(exit_, Interrupted)
    finally:
        over.set()
        kicker.join(PATIENCE)
    assert exit_.port == DONE
    assert kicks > 0


@pytest.mark.parametrize("code", ["ebfe", "fb f4 ebfc", "e690 ebfc", "8b03 ebfc"])
def test_closing_takes_the_processor_out_of_its_thread(engine: Engine, code: str) -> None:
    inside = threading.Event()
    with Guest(engine, irqchip=True) as guest:
        guest.load(f"e691 {code}", rbx=MMIO)
        refused: list[EngineError] = []

        def handle(exit_: Exit) -> bool:
            inside.set()
            return True

        def run() -> None:
            try:
                while True:
                    guest.vcpu.run(handle)
            except EngineError as error:
                refused.append(error)

        runner = threading.Thread(target=run)
        runner.start()
        assert inside.wait(PATIENCE)
        guest.machine.close()
        runner.join(PATIENCE)
        assert not runner.is_alive()
        assert refused
        guest.vcpu.kick()
        with pytest.raises(EngineError, match="closed"):
            guest.vcpu.get_regs()


def test_a_handler_cannot_close_the_machine_under_its_feet(guest: Guest) -> None:
    guest.load("e690 f4")

    def handle(exit_: Exit) -> bool:
        guest.machine.close()
        return True

    with pytest.raises(EngineError, match="inside"):
        guest.run(handle)


def test_only_one_thread_runs_a_processor(guest: Guest) -> None:
    guest.load("e690 f4")
    refused: list[str] = []

    def handle(exit_: Exit) -> bool:
        with pytest.raises(EngineError) as caught:
            guest.vcpu.run()
        refused.append(str(caught.value))
        return True

    guest.run(handle)
    assert len(refused) == 1


def test_machines_run_in_threads_side_by_side(engine: Engine) -> None:
    counts: dict[int, int] = {}

    def work(number: int) -> None:
        with Guest(engine) as guest:
            guest.load("again: e690 ffc9 75 @again f4", rcx=5000 + number)
            counts[number] = 0

            def handle(exit_: Exit) -> bool:
                if isinstance(exit_, PortIo):
                    counts[number] += 1
                    return True
                return False

            guest.vcpu.run(handle)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert counts == {number: 5000 + number for number in range(4)}


def test_closed_machines_give_their_memory_back(engine: Engine) -> None:
    def cycle() -> None:
        with Guest(engine) as guest:
            guest.load("e690 f4")
            guest.run()

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("\n")

    for _ in range(20):
        cycle()
    before = mappings()
    for _ in range(200):
        cycle()
    assert mappings() <= before + 10


# ---------------------------------------------------------------- memory that comes later


def test_memory_that_comes_later_marks_no_page_as_code(guest: Guest) -> None:
    """Stores to a page that is taken for code go a slow way: a PC whose screen appeared booted at half its speed."""
    guest.load("f4", rbx=DATA)  # hlt
    assert guest.run() == Hlt()
    with MemoryRegion(16 * PAGE) as region:
        slot = Slot(0x80_0000, region.size, region)
        guest.machine.map(slot)
        marks = soft(guest).machine._code_map
        assert [page for page, marked in enumerate(marks) if marked] == [CODE // PAGE]
        assert len(marks) >= (RAM + region.size) // PAGE
        guest.machine.unmap(slot)
