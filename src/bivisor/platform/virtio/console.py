"""The virtio console device: virtio 1.2 section 5.3.

A device with one port is a console whose size is in the configuration space. With more ports it offers F_MULTIPORT, and
named ports show up in Linux as /dev/virtio-ports/NAME. The message that resizes a console there has its two fields
swapped in many Linux releases (fixed by 5326ab737a47), so a terminal is best a device of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import CONSOLE_CONFIG, CONSOLE_CONTROL, CONSOLE_RESIZE_SIZE, bit
from bivisor.errors import UsageError
from bivisor.platform.virtio.device import Chain, VirtioDevice, VirtQueue, gather, scatter

if TYPE_CHECKING:
    from bivisor.host.loop import Callback

QUEUE_SIZE = 64
PORTS_MAX = 31
INPUT_MAX = 16 << 10
OUTPUT_MAX = 64 << 10
TURN_CHAINS = 64
CONTROL_RECEIVEQ = 2
CONTROL_TRANSMITQ = 3


class Stream(Protocol):
    """The host's side of a port. Nothing here blocks."""

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """Call back, again and again, while there is input and while output is taken; None ends it."""

    def read(self, limit: int) -> bytes | None:
        """Up to `limit` bytes of input; b"" where there is none now, None where none will ever come again."""

    def write(self, data: memoryview) -> int:
        """How many bytes were taken: fewer than all means that there is no room now."""


class Port:
    """One port. `name` is what the guest sees; a port without one is a console.

    `guest_open` says whether a program in the guest has it open, `ended` whether its stream has no more input.
    """

    def __init__(self, stream: Stream, name: str = "", *, on_open: Callable[[bool], None] | None = None) -> None:
        self.stream = stream
        self.name = name
        self.on_open = on_open
        self.guest_open = not name
        self._ready = False
        self.ended = False
        self._chain: Chain | None = None
        self._sent = 0

    @property
    def is_console(self) -> bool:
        """Whether the guest makes it a terminal (hvc)."""
        return not self.name

    @property
    def live(self) -> bool:
        """Whether the driver is there, and has not broken the rules."""
        return self._ready and self._device.active

    def place(self, device: VirtioConsole, number: int, receiveq: VirtQueue, transmitq: VirtQueue) -> None:
        """Called by the device: where the port lives."""
        self._device = device
        self.number = number
        self._receiveq = receiveq
        self._transmitq = transmitq

    def reset(self) -> None:
        """Forget the driver."""
        self.stream.watch(None, None)
        self._chain = None
        self._sent = 0
        self.guest_open = self.is_console
        self._ready = False

    @property
    def drained(self) -> bool:
        """Whether all output that the guest has offered so far has gone to the stream."""
        return not self.live or (self._chain is None and not self._transmitq.listen())

    def start(self) -> None:
        """The driver is there: watch the stream and serve what is in the queues."""
        self._ready = True
        self.output()
        self.input()

    def opened(self, is_open: bool) -> None:
        """The guest opened or closed its end."""
        changed, self.guest_open = self.guest_open != is_open, is_open
        if changed and self.on_open is not None:
            self.on_open(is_open)
        self.input()

    def input(self) -> None:
        """Move input to the guest as long as it has it open and offers buffers; otherwise leave it with the stream."""
        queue = self._receiveq
        queue.hush()
        for _ in range(TURN_CHAINS):
            if not self.live or not self.guest_open or self.ended:
                break
            chain = queue.pop()
            if chain is None:
                if queue.listen():
                    continue
                break
            data = self.stream.read(min(chain.writable_size, INPUT_MAX))
            if not data:
                queue.unpop()
                if data is None:
                    self.ended = True
                    self._device.host_closed(self)
                break
            scatter(chain.writable, data)
            queue.push(chain, len(data))
        self._device.finish(queue)
        self._watch()

    def output(self) -> None:
        """Move the guest's output to the stream as long as that takes it; the rest waits in the ring."""
        queue = self._transmitq
        queue.hush()
        for _ in range(TURN_CHAINS):
            if not self.live:
                break
            if self._chain is None:
                self._chain = queue.pop()
                self._sent = 0
            if self._chain is None:
                if queue.listen():
                    continue
                break
            if not self._drain(self._chain):
                break
            queue.push(self._chain)
            self._chain = None
        self._device.finish(queue)
        self._watch()

    def _drain(self, chain: Chain) -> bool:
        """Write what is left of `chain`; whether all of it went."""
        at = 0
        for view in chain.readable:
            end = at + len(view)
            if self._sent < end:
                start = self._sent - at
                self._sent += self.stream.write(view[start : start + OUTPUT_MAX])
                if self._sent < end:
                    return False
            at = end
        return True

    def _watch(self) -> None:
        """Watch for just what can be acted upon, or a level-triggered loop would spin."""
        wants_input = self.live and self.guest_open and not self.ended and self._receiveq.listen()
        wants_output = self.live and (self._chain is not None or self._transmitq.listen())
        self.stream.watch(self.input if wants_input else None, self.output if wants_output else None)


class VirtioConsole(VirtioDevice):
    """A console device with `ports`; `size` is (columns, rows) of the first one's terminal."""

    device_id = abi.ID_CONSOLE
    pci_class = 0x078000
    name = "virtio-console"

    def __init__(self, ports: Sequence[Port], *, size: tuple[int, int] = (80, 25)) -> None:
        if not 0 < len(ports) <= PORTS_MAX:
            raise UsageError(f"{len(ports)} console ports: one to {PORTS_MAX} are possible")
        self.ports = tuple(ports)
        self.size = size
        self.multiport = len(ports) > 1 or not ports[0].is_console
        features = bit(abi.CONSOLE_F_SIZE) | (bit(abi.CONSOLE_F_MULTIPORT) if self.multiport else 0)
        queues = 2 * len(ports) + 2 if self.multiport else 2
        super().__init__(features, [QUEUE_SIZE] * queues, CONSOLE_CONFIG.pack(*size, len(ports), 0))
        # The newest message of each kind for each port: a guest that does not read them cannot make the host hoard.
        self._control: dict[tuple[int, int], bytes] = {}

    def activate(self) -> None:
        """Place the ports; with F_MULTIPORT they start when the driver says that it is ready for them."""
        for number, port in enumerate(self.ports):
            at = 2 * number if number == 0 else 2 * number + 2
            port.place(self, number, self.queues[at], self.queues[at + 1])
        if not self.has(abi.CONSOLE_F_MULTIPORT):
            self.ports[0].start()

    def notify(self, index: int) -> None:
        """Input buffers, output, or control messages."""
        if not self.active:
            return
        if self.multiport and index in (CONTROL_RECEIVEQ, CONTROL_TRANSMITQ):
            if self.has(abi.CONSOLE_F_MULTIPORT):
                self._take_control()
                self._send_control()
            return
        port = self.ports[index // 2 if index < CONTROL_RECEIVEQ else index // 2 - 1]
        if index & 1:
            port.output()
        else:
            port.input()

    def resize(self, columns: int, rows: int) -> None:
        """The terminal of the first port has another size now."""
        self.size = (columns, rows)
        self.change_config(0, "<HH", columns, rows)
        if self.active and self.has(abi.CONSOLE_F_MULTIPORT) and self.ports[0].is_console:
            self._say(0, abi.CONSOLE_RESIZE, 0, CONSOLE_RESIZE_SIZE.pack(columns, rows))
            self._send_control()

    def host_closed(self, port: Port) -> None:
        """The stream of `port` has no more input."""
        if self.has(abi.CONSOLE_F_MULTIPORT) and not port.is_console:
            self._say(port.number, abi.CONSOLE_PORT_OPEN, 0)
            self._send_control()

    def reset(self) -> None:
        """See `VirtioDevice.reset`."""
        if self.queues:
            for port in self.ports:
                port.reset()
        self._control.clear()
        super().reset()

    def _say(self, port: int, event: int, value: int, extra: bytes = b"") -> None:
        self._control[port, event] = CONSOLE_CONTROL.pack(port, event, value) + extra

    def _send_control(self) -> None:
        queue = self.queues[CONTROL_RECEIVEQ]
        while self._control:
            chain = queue.pop()
            if chain is None:
                if queue.listen():
                    continue
                break
            message = self._control.pop(next(iter(self._control)))
            queue.push(chain, scatter(chain.writable, message))
        self.finish(queue)

    def _take_control(self) -> None:
        queue = self.queues[CONTROL_TRANSMITQ]
        for _ in range(queue.size):  # a guest that keeps sending has to notify again
            chain = queue.pop()
            if chain is None:
                if queue.listen():
                    continue
                break
            message = gather(chain.readable, CONSOLE_CONTROL.size)
            if len(message) == CONSOLE_CONTROL.size:
                self._controlled(*CONSOLE_CONTROL.unpack(message))
            queue.push(chain)
        self.finish(queue)

    def _controlled(self, number: int, event: int, value: int) -> None:
        if event == abi.CONSOLE_DEVICE_READY:
            if value:
                for port in self.ports:
                    self._say(port.number, abi.CONSOLE_DEVICE_ADD, 1)
            return
        if number >= len(self.ports):  # a port that is not there
            return
        port = self.ports[number]
        match event:
            case abi.CONSOLE_PORT_READY if value:
                if port.is_console:
                    self._say(number, abi.CONSOLE_CONSOLE_PORT, 1)
                    self._say(number, abi.CONSOLE_RESIZE, 0, CONSOLE_RESIZE_SIZE.pack(*self.size))
                else:
                    self._say(number, abi.CONSOLE_PORT_NAME, 1, port.name.encode())
                self._say(number, abi.CONSOLE_PORT_OPEN, int(not port.ended))
                port.start()
            case abi.CONSOLE_PORT_OPEN:
                port.opened(bool(value))
