"""The console back-end: the ring of xen/include/public/io/console.h between a guest's hvc_xen and a person.

What the guest writes goes to `sink` and into a bounded history; `send()` is what it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bivisor.dom0.control import Control
from bivisor.events import Kind, Probe, Ring
from bivisor.xen.errors import XenError

IN_SIZE, OUT_SIZE = 1024, 2048
_OUT_AT = IN_SIZE
_INDICES_AT = IN_SIZE + OUT_SIZE
_IN_PROD, _OUT_CONS = 1, 2  # of in_cons, in_prod, out_cons, out_prod
_INDICES_SIZE = 16
_U32 = 0xFFFF_FFFF
HISTORY = 64 << 10


class ConsoleRing:
    """The back-end's side of the ring in page `ring`, which stays the caller's. `bind(handler)` gives the event channel
    by which the guest is told, and has `handler` called when the guest tells."""

    def __init__(
        self,
        control: Control,
        ring: memoryview,
        bind: Callable[[Callable[[], None]], int],
        sink: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._control = control
        self._ring = ring
        # As numbers, each read and written at once: `struct` goes byte by byte, and a guest that looks meanwhile throws
        # away what it has to say.
        self._indices = ring[_INDICES_AT : _INDICES_AT + _INDICES_SIZE].cast("I")
        self.sink = sink
        self.history = bytearray()
        self._input = bytearray()
        self.broken = False
        self.on_transfer: Callable[[str, int, int], None] | None = None
        """Somebody listens: called with what was done ("write", "read"), how many bytes, and the event channel."""
        self._port = bind(self._event)

    def send(self, data: bytes) -> None:
        """Queue `data` for the guest to read. From any thread."""
        with self._control.loop.lock:
            self._input += data
            self._event()

    @property
    def untaken(self) -> int:
        """How many bytes are queued that are not in the ring yet."""
        return len(self._input)

    def _event(self) -> None:
        if self.broken:
            return
        in_cons, in_prod, out_cons, out_prod = self._indices
        waiting = out_prod - out_cons & _U32
        # a guest that claims more than the ring holds would make us read what nobody wrote
        if waiting > OUT_SIZE or in_prod - in_cons & _U32 > IN_SIZE:
            self.broken = True
            return
        if waiting:
            self._take(out_cons, waiting)
            self._indices[_OUT_CONS] = out_prod
        given = self._give(in_prod, IN_SIZE - (in_prod - in_cons & _U32))
        if self.on_transfer is not None:
            self._tell(waiting, given)
        if waiting or given:
            self._control.notify(self._port)

    def _tell(self, written: int, read: int) -> None:
        assert self.on_transfer is not None
        for op, count in (("write", written), ("read", read)):
            if count:
                self.on_transfer(op, count, self._port)

    def _take(self, start: int, count: int) -> None:
        at = start % OUT_SIZE
        first = min(count, OUT_SIZE - at)
        data = bytes(self._ring[_OUT_AT + at : _OUT_AT + at + first])
        data += bytes(self._ring[_OUT_AT : _OUT_AT + count - first])
        self.history += data
        del self.history[:-HISTORY]
        self.sink(data)

    def _give(self, start: int, room: int) -> int:
        count = min(room, len(self._input))
        if count:
            at = start % IN_SIZE
            first = min(count, IN_SIZE - at)
            self._ring[at : at + first] = self._input[:first]
            self._ring[: count - first] = self._input[first:count]
            del self._input[:count]
            self._indices[_IN_PROD] = start + count & _U32
        return count

    def close(self) -> None:
        """Take what is still in the ring, and let go of the event channel."""
        self._input.clear()
        try:
            self._event()
        except XenError:  # nobody is there to be notified
            pass
        self._control.unbind(self._port)
        self._indices.release()


class Console(ConsoleRing):
    """The console of domain `domid`, whose ring is its frame `gfn` and whose event channel is its `port`."""

    def __init__(
        self, control: Control, domid: int, gfn: int, port: int, sink: Callable[[bytes], None] = lambda _: None
    ) -> None:
        ring = control.map_foreign(domid, gfn)
        super().__init__(control, ring, lambda handler: control.bind(domid, port, handler), sink)
        self._site = control.events.site(Kind.RING, partial(self._install, domid), domid)

    def _install(self, domid: int, probe: Probe | None) -> None:
        if probe is None:
            self.on_transfer = None
            return

        def told(op: str, size: int, port: int) -> None:
            probe.tell(Ring(probe.clock(), domid, -1, 0, f"console/{domid}", "request", op, 0, size, port=port))

        self.on_transfer = told

    def close(self) -> None:
        """See `ConsoleRing.close`; the page goes too."""
        self._control.events.remove(self._site)
        super().close()
        self._ring.release()
