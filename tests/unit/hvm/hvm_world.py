"""Xen, Dom0 and an HVM domain without a processor: its accesses are made by the test."""

from __future__ import annotations

from types import TracebackType

from bivisor.abi.xen import domctl
from bivisor.abi.xen import xen as abi
from bivisor.dom0.control import Control
from bivisor.dom0.hvm.board import BoardOptions, HvmBoard
from bivisor.host.loop import ManualLoop
from bivisor.memory import GuestMemory, Slot
from bivisor.xen.config import DomainConfig
from bivisor.xen.hvm.ioreq import Ioreqs
from bivisor.xen.hvm.irq import Lines
from bivisor.xen.hvm.servers import IoreqServers
from bivisor.xen.hvm.state import HvmState
from bivisor.xen.hypervisor import Xen

MEMORY = 4 << 20
ROM = b"\x55\xaa\x01" + bytes(509)


class Nobody:
    """Runs no code."""

    def event(self, vcpu: int) -> None: ...

    def wake(self, vcpu: int) -> None: ...

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None: ...

    def set_timer(self, vcpu: int, deadline: int | None) -> None: ...

    def add_slot(self, slot: Slot) -> None: ...

    def populated(self, gfn: int, count: int) -> None: ...

    def released(self, gfn: int, count: int) -> None: ...

    def time_info(self) -> bytes:
        return bytes(abi.VCPU_TIME_INFO.size)


class Windows:
    """What is shown to the guest as memory."""

    def __init__(self) -> None:
        self.shown: dict[str, Slot | None] = {}

    def show_slot(self, name: str, slot: Slot | None) -> None:
        self.shown[name] = slot


class World:
    """`accesses` is the guest's processor, `irqs` what has come to its interrupt controllers."""

    stopping = False

    def __init__(self) -> None:
        self.xen = Xen()
        self.loop = ManualLoop()
        self.control = Control(self.xen, self.loop)
        self.memory = GuestMemory(MEMORY, gap=(0xA_0000, 0xC_0000))
        config = DomainConfig(emulation_flags=domctl.X86_EMU_HVM)
        self.domain = self.xen.create_domain(self.memory, upcall=Nobody(), config=config)
        self.irqs: list[tuple[int, bool]] = []
        self.messages: list[tuple[int, int]] = []
        self.lines = Lines(lambda gsi, level: self.irqs.append((gsi, level)))
        self.servers = IoreqServers(self.domain, lambda vcpu: self.accesses.answered())
        self.windows = Windows()
        self.domain.hvm = HvmState(
            self.servers,
            self.lines,
            self.windows,  # type: ignore[arg-type]
            lambda address, data: self.messages.append((address, data)),
            lambda: None,
        )
        self.accesses = Ioreqs(self, self.servers, 0)  # type: ignore[arg-type]
        self.board: HvmBoard | None = None
        self.serial = bytearray()
        self.log: list[bytes] = []

    @property
    def domid(self) -> int:
        return self.domain.domid

    def plug_in_board(self) -> HvmBoard:
        """A device model that takes the domain's accesses from now on."""
        options = BoardOptions(self.serial.extend, self.log.append, ROM, MEMORY)
        with self.loop.lock:
            self.board = HvmBoard(self.control, self.domid, options)
            self.board.start()
        return self.board

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
        self.xen.destroy(self.domain)
        self.control.close()
        self.domain.physmap.close()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
