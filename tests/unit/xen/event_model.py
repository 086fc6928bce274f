"""A guest with two processors that takes events as Linux does (drivers/xen/events), one memory access at a time.

Each processor is a generator that yields after each access to shared memory, so it can stop anywhere and go on between
two accesses of the hypervisor: the guest gets its turns before and after each atomic operation of the hypervisor. A
processor that yields a function makes a hypercall, which waits for the one that is under way.

`owed`: the ports whose pending bit the hypervisor has set and the guest not yet cleared. At rest nothing may be owed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import fields

from event_guests import Notebook, World

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen.xen import SHARED_EVTCHN_MASK, SHARED_EVTCHN_PENDING, VCPU_PENDING_SEL
from bivisor.memory.atomics import Atomics, address_of, atomics

Step = Generator["Callable[[], None] | None", None, None]

VCPUS = 2
PORTS = 6
REAL = atomics()
MOST_STEPS = 20_000


def bits_of(word: int) -> Iterator[int]:
    """The numbers of the bits that are set, from 0 on."""
    while word:
        yield (word & -word).bit_length() - 1
        word &= word - 1


class Upcalls(Notebook):
    """An interrupt controller of two processors: an edge is kept until it is taken."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    def event(self, vcpu: int) -> None:
        self._model.interrupted[vcpu] = True

    def wake(self, vcpu: int) -> None:
        self._model.poll_over[vcpu] = True


class Model:
    """The guest, domain 1; domain 2 sends to its ports. The last port is never unmasked: it is polled."""

    def __init__(self, world: World, decisions: bytes) -> None:
        self._decisions = deque(decisions)
        hooked = Atomics(**{field.name: self._hooked(field.name) for field in fields(Atomics)})
        self.domain = world.add(1, vcpus=VCPUS, operations=hooked)
        self.domain.upcall = Upcalls(self)
        self.events = self.domain.events
        self.sender = world.add(2)
        self.interrupted = [False] * VCPUS
        self.poll_over = [False] * VCPUS
        self.commands: list[deque[Callable[[int], Step]]] = [deque() for _ in range(VCPUS)]
        self.asleep = [False] * VCPUS
        self.owed: set[int] = set()
        self.seen = dict.fromkeys(range(1, PORTS + 1), 0)
        self.sent = dict.fromkeys(range(1, PORTS + 1), 0)
        self.bound = dict.fromkeys(range(1, PORTS + 1), 0)
        self.infos = [address_of(vcpu.info) for vcpu in self.domain.vcpus]
        self._in_hypervisor: int | None = None
        self._calls: list[Callable[[], None] | None] = [None] * VCPUS
        self._remote = {}
        self.prepare()
        for _ in range(PORTS):
            port = self.events.alloc_unbound(1, 2)
            self._remote[port] = self.sender.events.bind_interdomain(1, port)
        self.poll_port = PORTS
        self._processors = [self._main(vcpu) for vcpu in range(VCPUS)]

    # ------------------------------------------------------------ scheduling

    def decide(self, choices: int) -> int:
        """The next decision: less than `choices`; 0 when they have run out."""
        return self._decisions.popleft() % choices if self._decisions else 0

    def _hooked(self, name: str) -> Callable[..., int]:
        operation: Callable[..., int] = getattr(REAL, name)

        def hooked(*arguments: int) -> int:
            self._interleave()
            result = operation(*arguments)
            if name == "test_and_set_bit":
                port = self.port_of_pending_bit(*arguments)
                if port is not None:
                    self.owed.add(port)
            if name == "raise_alone":
                self.owed.add(arguments[2])
            self._interleave()
            return result

        return hooked

    def _interleave(self) -> None:
        """Guest code that runs while the hypervisor is at work; nothing that needs the hypervisor."""
        if not hasattr(self, "_processors"):
            return
        for _ in range(self.decide(6)):
            self.step(self.decide(VCPUS), nested=True)

    def hypercall(self, vcpu: int | None, function: Callable[[], None]) -> None:
        """Run `function` in the hypervisor, as `vcpu`, or as another domain."""
        self._in_hypervisor = vcpu
        function()
        self._in_hypervisor = None

    def step(self, vcpu: int, *, nested: bool = False) -> None:
        """One memory access of `vcpu`, or one hypercall."""
        if nested and self._in_hypervisor == vcpu:
            return
        call = self._calls[vcpu]
        if call is None:
            self._calls[vcpu] = next(self._processors[vcpu])
        elif not nested:
            self.hypercall(vcpu, call)
            self._calls[vcpu] = None

    def run(self) -> None:
        """Do what the decisions say, then go on until both processors are asleep and have nothing to do."""
        while self._decisions:
            vcpu, port = self.decide(VCPUS), 1 + self.decide(PORTS)
            match self.decide(8):
                case 0 | 1 | 2:
                    self.send(port)
                case 3:
                    self.commands[vcpu].append(self._command_mask(port))
                case 4:
                    self.commands[vcpu].append(self._command_unmask(port))
                case 5:
                    self.commands[vcpu].append(self._command_rebind(port, self.decide(VCPUS)))
                case 6:
                    self.commands[vcpu].append(self._poll)
                case 7:
                    self.commands[vcpu].append(self._command_other(port))
            for _ in range(self.decide(12)):
                self.step(self.decide(VCPUS))
        self._finish()
        for port in range(1, PORTS):
            if self.is_masked(port):  # any other has to be at rest by itself
                self.commands[0].append(self._command_unmask(port))
        self._finish()
        self.commands[1].append(self._poll)
        self.settle()

    def _finish(self) -> None:
        self.settle()
        for _ in range(sum(len(commands) for commands in self.commands)):
            self.send(self.poll_port)  # ends the poll that a command may wait behind
            self.settle()
        assert not any(self.commands)

    def send(self, port: int) -> None:
        """Domain 2 sends."""
        self.sent[port] += 1
        self.hypercall(None, lambda: self.sender.events.send(self._remote[port]))

    def settle(self) -> None:
        """Run both processors until they sleep."""
        for _ in range(MOST_STEPS):
            if all(self.asleep) and not any(self.interrupted) and not any(self.poll_over) and not self._has_commands():
                polled = any(vcpu.polling is not None for vcpu in self.domain.vcpus)
                assert not (polled and self.events.any_pending([self.poll_port])), "a poll goes on"
                return
            for vcpu in range(VCPUS):
                self.step(vcpu)
        raise AssertionError("the guest does not come to rest")

    def _has_commands(self) -> bool:
        return any(self.commands[vcpu] and self.domain.vcpus[vcpu].polling is None for vcpu in range(VCPUS))

    # ------------------------------------------------------------ a processor

    def _main(self, vcpu: int) -> Step:
        while True:
            if self.interrupted[vcpu]:
                self.interrupted[vcpu] = False
                yield from self._upcall(vcpu)
            elif self.commands[vcpu]:
                yield from self.commands[vcpu].popleft()(vcpu)
            else:
                yield lambda: self._block(vcpu)
                while self.asleep[vcpu] and not (self.interrupted[vcpu] or self.commands[vcpu]):
                    yield None
                self.asleep[vcpu] = False

    def _block(self, vcpu: int) -> None:
        """SCHEDOP_block."""
        self.asleep[vcpu] = not self.events.pending(vcpu)

    def _upcall(self, vcpu: int) -> Step:
        info = self.domain.vcpus[vcpu].info
        while True:
            info[0] = 0
            yield None
            yield from self.handle_events(vcpu)
            if not info[0]:
                return

    def _poll(self, vcpu: int) -> Step:
        """As a lock that waits for its event: SCHEDOP_poll until it is there, then take it. Interrupts wait."""

        def poll() -> None:
            if not self.events.any_pending([self.poll_port]):
                self.poll_over[vcpu] = False
                self.domain.vcpus[vcpu].polling = frozenset([self.poll_port])
                self.asleep[vcpu] = True

        yield poll
        while self.asleep[vcpu] and not self.poll_over[vcpu]:
            if self.interrupted[vcpu]:
                self.domain.vcpus[vcpu].polling = None
                break
            yield None
        self.asleep[vcpu] = self.poll_over[vcpu] = False
        yield from self._take(self.poll_port)

    def handle(self, port: int, vcpu: int) -> Step:
        """An even port is handled as an edge, an odd one is masked meanwhile."""
        if port % 2:
            self.set_mask(port)
            yield None
        yield from self._take(port)
        if port % 2:
            yield from self.unmask(port, vcpu)

    def _take(self, port: int) -> Step:
        if self.clear_pending(port):
            assert port in self.owed, "an event that nobody sent"
            self.owed.discard(port)
            self.seen[port] += 1
        yield None

    def _command_mask(self, port: int) -> Callable[[int], Step]:
        def mask(_: int) -> Step:
            self.set_mask(port)
            yield None

        return mask

    def _command_unmask(self, port: int) -> Callable[[int], Step]:
        return lambda vcpu: iter_nothing() if port == self.poll_port else self.unmask(port, vcpu)

    def _command_rebind(self, port: int, to: int) -> Callable[[int], Step]:
        def rebind(vcpu: int) -> Step:
            self.set_mask(port)
            yield None
            yield lambda: self._bind(port, to)
            if port != self.poll_port:
                yield from self.unmask(port, vcpu)

        return rebind

    def _bind(self, port: int, to: int) -> None:
        self.events.bind_vcpu(port, to)
        self.bound[port] = to

    def _command_other(self, port: int) -> Callable[[int], Step]:
        def other(_: int) -> Step:
            yield lambda: self.other(port)

        return other

    # ------------------------------------------------------------ what the event ABIs differ in

    def prepare(self) -> None:
        """Before the first port is there."""
        raise NotImplementedError

    def close(self) -> None:
        """Hold the memory no longer."""
        raise NotImplementedError

    def port_of_pending_bit(self, address: int, bit: int) -> int | None:
        """The port whose pending bit that is, if it is one."""
        raise NotImplementedError

    def handle_events(self, vcpu: int) -> Step:
        """Take what is pending for `vcpu`."""
        raise NotImplementedError

    def unmask(self, port: int, vcpu: int) -> Step:
        """Unmask `port` on `vcpu`."""
        raise NotImplementedError

    def set_mask(self, port: int) -> None:
        """Mask `port`: one access."""
        raise NotImplementedError

    def is_masked(self, port: int) -> bool:
        """Whether `port` is masked."""
        raise NotImplementedError

    def clear_pending(self, port: int) -> int:
        """Clear the pending bit of `port`: what it was."""
        raise NotImplementedError

    def other(self, port: int) -> None:
        """A hypercall that only this ABI has."""


def iter_nothing() -> Step:
    """No step at all."""
    yield from ()


class TwoLevelModel(Model):
    """events_2l.c."""

    def prepare(self) -> None:
        self._page = self.domain.shared_info.cast("Q")
        base = address_of(self.domain.shared_info)
        self._pending, self._mask = base + SHARED_EVTCHN_PENDING, base + SHARED_EVTCHN_MASK
        REAL.test_and_set_bit(self._mask, PORTS)

    def close(self) -> None:
        self._page.release()

    def port_of_pending_bit(self, address: int, bit: int) -> int | None:
        return bit if address == self._pending else None

    def handle_events(self, vcpu: int) -> Step:
        selector = REAL.and_u64(self.infos[vcpu] + VCPU_PENDING_SEL, 0)
        yield None
        for word in bits_of(selector):
            pending = self._page[SHARED_EVTCHN_PENDING // 8 + word]
            yield None
            masked = self._page[SHARED_EVTCHN_MASK // 8 + word]
            yield None
            for bit in bits_of(pending & ~masked):
                if self.bound[64 * word + bit] == vcpu:
                    yield from self.handle(64 * word + bit, vcpu)

    def unmask(self, port: int, vcpu: int) -> Step:
        if self.bound[port] == vcpu:
            REAL.test_and_clear_bit(self._mask, port)
            yield None
            if not self._page[SHARED_EVTCHN_PENDING // 8 + port // 64] >> port % 64 & 1:
                return
            REAL.test_and_set_bit(self._mask, port)
            yield None
        else:  # only the processor of the port looks at it again
            REAL.test_and_set_bit(self._mask, port)
            yield None
        yield lambda: self.events.unmask(port)

    def set_mask(self, port: int) -> None:
        REAL.test_and_set_bit(self._mask, port)

    def is_masked(self, port: int) -> bool:
        return bool(self._page[SHARED_EVTCHN_MASK // 8 + port // 64] >> port % 64 & 1)

    def clear_pending(self, port: int) -> int:
        return REAL.test_and_clear_bit(self._pending, port)


CONTROL, ARRAY = 4, 8
"""Guest frames: the control blocks from the first on, and the event array."""


class FifoModel(Model):
    """events_fifo.c."""

    def prepare(self) -> None:
        self._control = []
        for vcpu in range(VCPUS):
            self.events.init_control(CONTROL + vcpu, 0, vcpu)
            self._control.append(self.domain.frame(CONTROL + vcpu).cast("I"))
        frame = self.domain.frame(ARRAY)
        self._words, self._address = frame.cast("I"), address_of(frame)
        for at in range(len(self._words)):
            self._words[at] = 1 << abi.EVTCHN_FIFO_MASKED
        self.events.expand_array(ARRAY)
        for port in range(1, PORTS):
            self._words[port] = 0
        self._heads = [[0] * abi.EVTCHN_FIFO_MAX_QUEUES for _ in range(VCPUS)]

    def close(self) -> None:
        for view in (self._words, *self._control):
            view.release()

    def port_of_pending_bit(self, address: int, bit: int) -> int | None:
        is_one = address == self._address and bit % 32 == abi.EVTCHN_FIFO_PENDING
        return bit // 32 if is_one else None

    def _take_ready(self, vcpu: int) -> int:
        return REAL.and_u64(address_of(self.domain.frame(CONTROL + vcpu)), ~0xFFFF_FFFF) & 0xFFFF_FFFF

    def handle_events(self, vcpu: int) -> Step:
        ready = self._take_ready(vcpu)
        yield None
        while ready:
            queue = next(bits_of(ready))
            head = self._heads[vcpu][queue]
            if not head:
                head = self._control[vcpu][abi.CONTROL_BLOCK_HEAD + queue]
                yield None
            port = head
            while True:
                word = self._words[port]
                yield None
                unlinked = word & ~(1 << abi.EVTCHN_FIFO_LINKED | abi.EVTCHN_FIFO_LINK_MASK)
                if REAL.cmpxchg_u32(self._address + 4 * port, word, unlinked) == word:
                    break
            yield None
            head = word & abi.EVTCHN_FIFO_LINK_MASK
            if not head:
                ready &= ~(1 << queue)
            word = self._words[port]
            yield None
            if word >> abi.EVTCHN_FIFO_PENDING & 1 and not word >> abi.EVTCHN_FIFO_MASKED & 1:
                yield from self.handle(port, vcpu)
            self._heads[vcpu][queue] = head
            ready |= self._take_ready(vcpu)
            yield None

    def unmask(self, port: int, vcpu: int) -> Step:
        word = self._words[port]
        yield None
        while True:
            if not word >> abi.EVTCHN_FIFO_MASKED & 1:
                return
            if word >> abi.EVTCHN_FIFO_PENDING & 1:
                yield lambda: self.events.unmask(port)
                return
            old = word & ~(1 << abi.EVTCHN_FIFO_BUSY)
            word = REAL.cmpxchg_u32(self._address + 4 * port, old, old & ~(1 << abi.EVTCHN_FIFO_MASKED))
            yield None
            if word == old:
                return

    def set_mask(self, port: int) -> None:
        REAL.test_and_set_bit(self._address, 32 * port + abi.EVTCHN_FIFO_MASKED)

    def is_masked(self, port: int) -> bool:
        return bool(self._words[port] >> abi.EVTCHN_FIFO_MASKED & 1)

    def clear_pending(self, port: int) -> int:
        return REAL.test_and_clear_bit(self._address, 32 * port + abi.EVTCHN_FIFO_PENDING)

    def other(self, port: int) -> None:
        self.events.set_priority(port, self.decide(abi.EVTCHN_FIFO_MAX_QUEUES))
