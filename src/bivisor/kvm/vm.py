"""A virtual machine of the hosted architecture: the machine is this process, each virtual processor a thread of it.

The kernel's part (or the soft engine's) runs guest code; whatever the guest may not do itself arrives here as an exit
and is carried by one table to the bus that the device sits on. When the guest ends, everything it used is given back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from bivisor import boot
from bivisor.cpu.contract import Engine, ExitHandler, Machine, Vcpu
from bivisor.cpu.exits import Debug
from bivisor.cpu.runcontrol import RunControl
from bivisor.cpu.select import open_engine
from bivisor.cpu.topology import guest_cpuid
from bivisor.errors import UsageError
from bivisor.events import Events, Life
from bivisor.events.probe import now
from bivisor.host.loop import EventLoop
from bivisor.kvm.dispatch import Dispatcher
from bivisor.kvm.outcome import End, Outcome
from bivisor.memory import GuestMemory
from bivisor.platform import events
from bivisor.platform.board import Board
from bivisor.platform.bus import mmio_bus, port_bus
from bivisor.platform.pc import Pc, PcOptions
from bivisor.platform.virtio.console import VirtioConsole
from bivisor.platform.virtio.device import VirtioDevice
from bivisor.platform.virtio.pci import VirtioPci
from bivisor.platform.watched import watch_buses, watch_interrupts, watch_virtio

MIB = 1 << 20
_PANIC = b"Kernel panic - not syncing"
Wrapper = Callable[[ExitHandler, Vcpu], ExitHandler]


class VirtualMachine:
    """A PC with `memory` bytes of RAM and `cpus` processors.

    Make it, add devices (`add`, or `ports.attach` and `mmio.attach`), `load()` a kernel, `start()` it and `wait()`; or
    `run()` for the last two. `with` closes it. `console` gets what the guest writes to COM1; `send()` is what it reads.
    `events` is the stream of what happens in it (docs/events.md).
    `wrap(handler, vcpu)` may put something around the handler of every exit: a trace, a stopwatch, a test's hook.
    """

    def __init__(
        self,
        *,
        memory: int = 256 * MIB,
        cpus: int = 1,
        engine: Engine | str = "auto",
        console: Callable[[bytes], None] | None = None,
        debug_exit_port: int = 0xF4,
        wrap: Wrapper | None = None,
    ) -> None:
        self._owns_engine = isinstance(engine, str)
        self.why = ""
        if isinstance(engine, str):
            self.engine, self.why = open_engine(engine)
        else:
            self.engine = engine
        self._held = ExitStack()
        self._behind_devices = ExitStack()
        self._wrap = wrap
        self.events = Events()
        self._console = console or (lambda _: None)
        self._tail = b""
        self._panicked = False
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._stopping = False
        try:
            self._build(memory, cpus, debug_exit_port)
        except BaseException:
            self.close()
            raise

    def _build(self, memory: int, cpus: int, debug_exit_port: int) -> None:
        if self._owns_engine:
            self._held.callback(self.engine.close)
        if not 1 <= cpus <= self.engine.max_vcpus:
            limit = f"the engine {self.engine.name} has 1" + (
                f" to {self.engine.max_vcpus}" if self.engine.max_vcpus > 1 else ""
            )
            raise UsageError(f"{cpus} processors: {limit}")
        self.memory = self._make_memory(memory)
        self._held.callback(self.memory.close)
        self.machine: Machine = self.engine.create_machine()
        self._held.callback(self.machine.close)
        for slot in self.memory.slots:
            self.machine.map(slot)
        self.machine.create_irqchip()
        self.memory.listen(self.machine.invalidate)
        self.loop = EventLoop(self._failed)
        self._held.callback(self.loop.close)
        self.ports = port_bus()
        self.mmio = mmio_bus()
        self.pc: Board = self._make_board(cpus, debug_exit_port)
        self._held.callback(self._close_board)
        self.vcpus: list[Vcpu] = []
        for index in range(cpus):
            self.vcpus.append(self.machine.create_vcpu(index))
        self.control = RunControl(self.vcpus)
        self._has_cpuid = False
        self.devices: list[VirtioDevice] = []
        self._functions: list[VirtioPci] = []
        self.dispatcher = Dispatcher(self.ports, self.mmio, self.loop.lock)
        watch_buses(self.events, 0, (self.ports, self.mmio))
        watch_interrupts(self.events, 0, self.machine)

    # ---------------------------------------------------------------- building

    def _make_memory(self, size: int) -> GuestMemory:
        return GuestMemory(size)

    def _make_board(self, cpus: int, debug_exit_port: int) -> Board:
        return Pc(
            self.machine,
            self.memory,
            self.ports,
            self.mmio,
            self.loop,
            console=self._com1,
            on_event=self._event,
            options=PcOptions(cpus=cpus, debug_exit_port=debug_exit_port),
        )

    def add(self, device: VirtioDevice) -> VirtioPci:
        """Plug `device` into the PCI bus, before `load()`. Closing the machine closes it."""
        function = VirtioPci(device, self.memory)
        self.pc.add(function)
        self.devices.append(device)
        watch_virtio(self.events, 0, device, f"{device.name}-{len(self.devices)}")
        self._functions.append(function)
        return function

    def on_close(self, closer: Callable[[], None]) -> None:
        """Call `closer`, with the device lock held, when the machine is closed: after the devices, before the loop and
        the memory go. The place for what is behind a device."""
        self._behind_devices.callback(closer)

    def set_irq(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line `gsi`, for a device of one's own."""
        self.machine.set_irq(gsi, level)

    def load(
        self,
        kernel: Path,
        *,
        initrd: Path | None = None,
        initrd_tail: bytes = b"",
        cmdline: str = "",
        protocol: str | None = None,
        modules: Sequence[boot.Module] = (),
        cache: boot.Cache | None = None,
    ) -> boot.Entry:
        """Load `kernel` and set processor 0 to its entry. ImageError says what is wrong with a file."""
        tables = self.pc.finish()
        entry = boot.load(
            self.memory,
            kernel,
            initrd=initrd,
            initrd_tail=initrd_tail,
            cmdline=cmdline,
            protocol=protocol,
            modules=modules,
            rsdp=0 if tables is None else tables.rsdp,
            cache=cache,
        )
        self._set_cpuid()  # before the registers, which KVM holds to it
        vcpu = self.vcpus[0]
        vcpu.set_sregs(entry.sregs)
        vcpu.set_regs(entry.regs)
        return entry

    def _set_cpuid(self) -> None:
        """Late, so that the engine has had time to measure its clock."""
        if not self._has_cpuid:
            self._has_cpuid = True
            for index, vcpu in enumerate(self.vcpus):
                vcpu.set_cpuid(guest_cpuid(self.engine, index, len(self.vcpus), vcpu))

    # ---------------------------------------------------------------- running

    def start(self) -> None:
        """Start the I/O thread and one thread for each processor."""
        if self._threads:
            raise UsageError("this machine has been started already")
        self._set_cpuid()
        for function in self._functions:
            function.attach_notifiers(self.machine, self.loop)
        self.loop.start()
        self.events.tell(Life(now(), 0, -1, 0, "started"))
        for vcpu in self.vcpus:
            thread = threading.Thread(
                target=self._run_vcpu, args=(vcpu,), name=f"bivisor-vcpu-{vcpu.index}", daemon=True
            )
            self._threads.append(thread)
            self.control.enter_thread()
            thread.start()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Wait until the guest ends; None after `timeout` seconds. An exception in a device is raised here."""
        if not self._ended.wait(timeout):
            return None
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._outcome

    def run(self) -> Outcome:
        """Start, and wait until the guest ends."""
        self.start()
        outcome = self.wait()
        assert outcome is not None
        return outcome

    def stop(self) -> None:
        """End the guest from outside, as pulling the plug would. From any thread."""
        self._end(Outcome(End.STOPPED))

    def power_button(self) -> None:
        """Press the power button: a guest that listens shuts down in order."""
        with self.loop.lock:
            self.pc.pm.press_power_button()

    def send(self, data: bytes) -> None:
        """Give the guest `data` to read on COM1. From any thread."""
        with self.loop.lock:
            self.pc.com1.receive(data)

    def _run_vcpu(self, vcpu: Vcpu) -> None:
        exits = self.dispatcher.processor()
        exits.watch(self.events, 0, vcpu.index)
        handler: ExitHandler = exits.handle
        if self._wrap is not None:
            handler = self._wrap(handler, vcpu)
        try:
            while not self._stopping:
                self.control.gate(vcpu)
                exits.entering()
                exit_ = vcpu.run(handler)
                exits.left(exit_)
                if type(exit_) is Debug and self.control.hit(vcpu, exit_):
                    continue
                outcome = self.dispatcher.final(exit_)
                if outcome is not None:
                    self._end(self._known(outcome))
        except BaseException as error:
            self._failed(error)
        finally:
            self.control.leave_thread()

    def _known(self, outcome: Outcome) -> Outcome:
        """What looks like the end of a reset or a halt may be the end of a panic."""
        if self._panicked and outcome.end in (End.RESET, End.SHUTDOWN, End.DEAD):
            return Outcome(End.PANIC)
        return outcome

    def _event(self, event: events.Event) -> None:
        match event:
            case events.PowerOff():
                self._end(Outcome(End.POWER_OFF))
            case events.Reset(source=source):
                self._end(self._known(Outcome(End.RESET, detail=f"by {source}")))
            case events.ExitStatus(status=status):
                self._end(Outcome(End.EXIT_STATUS, status))
            case events.Panic(loaded_crash_kernel=False):
                self._end(Outcome(End.PANIC))

    def _failed(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._end(Outcome(End.ENGINE, detail=str(error)))

    def _end(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self.events.tell(Life(now(), 0, -1, 0, "ended", str(outcome)))
        self._stopping = True
        self.control.end()
        for vcpu in self.vcpus:
            vcpu.kick()
        self._ended.set()

    def _join(self) -> None:
        current = threading.current_thread()
        for thread in self._threads:
            if thread is not current:
                thread.join()

    def _com1(self, data: bytes) -> None:
        if not self._panicked:
            self._panicked = _PANIC in self._tail + data
            self._tail = (self._tail + data)[-len(_PANIC) :]
        self._console(data)

    # ---------------------------------------------------------------- ending

    @property
    def processor_threads(self) -> tuple[threading.Thread, ...]:
        """The thread of each processor; none before the start."""
        return tuple(self._threads)

    @property
    def counters(self) -> dict[str, int]:
        """Exits by reason, summed over the processors."""
        total: dict[str, int] = {}
        for vcpu in self.vcpus:
            for name, count in vcpu.counters.items():
                total[name] = total.get(name, 0) + count
        return total

    def drain(self) -> None:
        """Hand on what the guest has written to its consoles and nobody has looked at yet."""
        with self.loop.lock:
            for device in self.devices:
                if isinstance(device, VirtioConsole):
                    for index in range(len(device.queues)):
                        device.notify(index)

    def _close_board(self) -> None:
        with self.loop.lock, self._behind_devices:
            self.pc.close()

    def close(self) -> None:
        """Stop the guest and give back every descriptor, mapping and thread. A second call does nothing.

        Where something cannot be closed, everything else is, before its error is raised.
        """
        if self._threads and not self._ended.is_set():
            self.stop()
        self._join()
        self._held.close()

    def __enter__(self) -> VirtualMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
