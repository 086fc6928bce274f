"""The ring of a domain: requests and replies through a page that it shares (io/xs_wire.h, docs/misc/xenstore-ring.txt).

The page is the domain's, so every index in it is hostile at every read. An impossible one is answered by the error
word, and the ring rests until the domain is introduced again or asks to reconnect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bivisor.abi.xen import xs_wire as abi
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.connection import Connection
from bivisor.dom0.xenstore.errors import ProtocolError
from bivisor.dom0.xenstore.server import Server

_SIZE: Final = abi.XENSTORE_RING_SIZE
_TURN: Final = 16
"""Requests of one domain that are carried out before others have their turn."""
FEATURES: Final = (
    abi.XENSTORE_SERVER_FEATURE_RECONNECTION
    | abi.XENSTORE_SERVER_FEATURE_ERROR
    | abi.XENSTORE_SERVER_FEATURE_WATCHDEPTH
)


class Ring:
    """The server's end of a domain's ring.

    `page`: the shared page, writable. `notify` signals the domain's event channel; `handle_event` is for when the
    domain signals ours. `later` calls back soon, after others had their turn. `on_close` runs once, at `close`.
    """

    def __init__(
        self,
        server: Server,
        connection: Connection,
        page: memoryview,
        notify: Callable[[], None],
        later: Callable[[Callable[[], None]], None],
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._server = server
        self._connection = connection
        self._req = page[abi.REQ : abi.REQ + _SIZE]
        self._rsp = page[abi.RSP : abi.RSP + _SIZE]
        self._words = page[abi.INDICES : abi.INTERFACE_SIZE].cast("I")
        self._notify = notify
        self._later = later
        self._on_close = on_close
        self._input = bytearray()
        self._is_broken = False
        self._is_closed = False
        self._has_turn = False
        self._is_due = False
        connection.wake = self._woken
        self._words[abi.SERVER_FEATURES] = FEATURES
        self._words[abi.ERROR] = abi.XENSTORE_ERROR_NONE
        self._words[abi.CONNECTION] = abi.XENSTORE_CONNECTED
        notify()
        self._be_due()

    @property
    def is_broken(self) -> bool:
        """Whether the domain broke the protocol, so that the ring rests."""
        return self._is_broken

    def reset(self) -> None:
        """Begin anew with an empty ring: the domain was introduced again, or asked for it."""
        self._input.clear()
        words = self._words
        for word in (abi.REQ_CONS, abi.REQ_PROD, abi.RSP_CONS, abi.RSP_PROD):
            words[word] = 0
        self._is_broken = False
        words[abi.ERROR] = abi.XENSTORE_ERROR_NONE
        words[abi.CONNECTION] = abi.XENSTORE_CONNECTED
        self._notify()

    def close(self) -> None:
        """Let go of the page. The connection is the server's to end."""
        if self._is_closed:
            return
        self._is_closed = True
        for view in (self._req, self._rsp, self._words):
            view.release()
        if self._on_close is not None:
            self._on_close()

    def handle_event(self) -> None:
        """The domain signalled: take its requests, carry them out, and give it what there is for it."""
        self._is_due = False
        if self._is_closed:
            return
        if self._words[abi.CONNECTION] == abi.XENSTORE_RECONNECT:
            self._server.reset(self._connection)
            self._connection.drop_output()
            self.reset()
            return
        if self._is_broken:
            return
        self._has_turn = True
        try:
            moved = self._flush()
            left = _TURN
            while left and not self._is_closed and self._connection.may_ask:
                taken = self._take()
                done = self._carry_out(left)
                left -= done
                moved |= taken | self._flush()
                if not taken and not done:
                    break
            if not left:
                self._be_due()
            elif not self._connection.may_ask:
                self._connection.held_up()
        except _Broken as broken:
            self._break(broken.error)
            moved = True
        except ProtocolError:
            self._break(abi.XENSTORE_ERROR_PROTO)
            moved = True
        finally:
            self._has_turn = False
        if moved and not self._is_closed:
            self._notify()

    def _woken(self) -> None:
        """An event came for the domain. One of its own making goes at the end of its turn."""
        if not self._has_turn:
            self._be_due()

    def _be_due(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._later(self.handle_event)

    def _break(self, error: int) -> None:
        self._is_broken = True
        self._input.clear()
        self._server.reset(self._connection)
        self._connection.drop_output()
        if not self._is_closed:
            self._words[abi.ERROR] = error

    def _take(self) -> bool:
        """Move requests from the ring to the input, which holds less than a message before; False if there are none."""
        words = self._words
        consumed, produced = words[abi.REQ_CONS], words[abi.REQ_PROD]
        count = (produced - consumed) & 0xFFFF_FFFF
        # Otherwise one write of an index would make the host copy the ring over and over, 4 GiB of it.
        if count > _SIZE:
            raise _Broken(abi.XENSTORE_ERROR_RINGIDX)
        # A complete message waits only where `_carry_out` was stopped: what is buffered stays below two messages.
        if not count or len(self._input) >= wire.MESSAGE_MAX:
            return False
        start = consumed % _SIZE
        first = min(count, _SIZE - start)
        self._input += self._req[start : start + first]
        self._input += self._req[: count - first]
        words[abi.REQ_CONS] = produced
        return True

    def _carry_out(self, limit: int) -> int:
        """Carry out complete messages of the input, at most `limit`, while the domain may ask; how many there were."""
        done = at = 0
        connection, receive = self._connection, self._server.receive
        while done < limit and connection.may_ask and (message := wire.decode(self._input, at)) is not None:
            at += wire.HEADER_SIZE + len(message.payload)
            done += 1
            receive(connection, message)
            if self._is_closed:
                return done
        del self._input[:at]
        return done

    def _flush(self) -> bool:
        """Move output to the ring as far as there is room; whether any moved."""
        if self._is_closed:
            return False
        words, connection = self._words, self._connection
        moved = False
        while connection.has_output:
            consumed, produced = words[abi.RSP_CONS], words[abi.RSP_PROD]
            waiting = (produced - consumed) & 0xFFFF_FFFF
            # As above; a negative room would besides slice the wrong bytes.
            if waiting > _SIZE:
                raise _Broken(abi.XENSTORE_ERROR_RINGIDX)
            room = _SIZE - waiting
            if not room:
                break
            data = connection.peek(room)[:room]
            start = produced % _SIZE
            first = min(len(data), _SIZE - start)
            self._rsp[start : start + first] = data[:first]
            self._rsp[: len(data) - first] = data[first:]
            words[abi.RSP_PROD] = (produced + len(data)) & 0xFFFF_FFFF
            connection.sent(len(data))
            moved = True
        return moved


class _Broken(Exception):
    """The domain broke the protocol in the way that `error` (XENSTORE_ERROR_*) says."""

    def __init__(self, error: int) -> None:
        super().__init__(error)
        self.error = error
