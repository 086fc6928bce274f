"""The connection of a back-end with its front-end: who waits for whom in which state (xen/io/xenbus.h).

Both ends write their state into the store and watch the other's. This is the back-end's half, as one step that looks
at both states and does what is due. It remembers nothing that it could not find again, so that a back-end which was
killed goes on from the store and the rings alone: where the front-end is connected, it connects to the same ring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.xenbus.node import Node, Refused

_CLOSED = (XenbusState.CLOSING, XenbusState.CLOSED)


class Device(Protocol):
    """What a back-end's driver makes of a node. Called in the loop's thread with the loop's lock held."""

    def offer(self) -> Mapping[str, str | int]:
        """Open what is behind the device; the nodes that the front-end reads before it connects. Refused.

        Called again, after `close` is done, when a front-end has closed and another one begins.
        """

    def connect(self) -> Mapping[str, str | int]:
        """Map the front-end's rings and begin to serve it; the nodes that it reads when it is connected. Refused.

        The rings may be in use: then a back-end before this one was killed. After Refused `disconnect` is called too.
        """

    def disconnect(self) -> None:
        """Stop serving, give back every mapping and port, as often as it is called. It may wait for I/O to end."""

    def close(self, then: Callable[[], None]) -> bool:
        """Give back what `offer` opened, as often as it is called. `disconnect` has been called before. False where
        that goes on beside the loop: `then` is called in the loop's thread when it is done."""


class Link:
    """One device and its front-end. `step()` is called after each change that may concern it."""

    def __init__(self, node: Node, make: Callable[[Node, Callable[[Refused], None]], Device]) -> None:
        self.node = node
        self.device = make(node, self.fail)
        self.connected = False
        self._offered = False
        self._failed = False
        self._gone = False
        self._steps: dict[XenbusState, Callable[[XenbusState], None]] = {
            XenbusState.UNKNOWN: self._front_gone,
            XenbusState.INITIALISING: self._front_begins,
            XenbusState.INITIALISED: self._front_ready,
            XenbusState.CONNECTED: self._front_ready,
            XenbusState.CLOSING: self._front_closing,
            XenbusState.CLOSED: self._front_closed,
        }

    def step(self) -> None:
        """Do what the two states ask for. What waits for a device that is being closed is done by the step after."""
        if self._gone:
            return
        what = self._steps.get(self.node.front_state())
        if what is None:
            return
        try:
            what(self.node.state())
        except Refused as error:
            self.fail(error)

    def _front_begins(self, own: XenbusState) -> None:
        """A front-end that has just come, or begins anew without having closed."""
        self._disconnect()
        if own is XenbusState.CLOSING:
            # A failure is for the front-end to see; an order to close can be obeyed, for nobody is connected.
            if not self._failed or not self.node.online:
                self._end(XenbusState.CLOSED)
        elif own is not XenbusState.CLOSED or (self.node.online and not self._failed):
            self._offer(own)

    def _offer(self, own: XenbusState) -> None:
        if self._offered and own is XenbusState.INIT_WAIT:
            return
        if self._open():
            self.node.switch(XenbusState.INIT_WAIT)

    def _open(self) -> bool:
        if not self.device.close(self.step):  # its nodes may be others by now
            return False
        self.node.write(self.device.offer())
        self._offered = True
        return True

    def _front_ready(self, own: XenbusState) -> None:
        """Its rings are there."""
        if self.connected or self._failed or own is XenbusState.CLOSED:
            return
        if own is XenbusState.CLOSING and self.node.front_state() is not XenbusState.CONNECTED:
            return
        if not self._offered and not self._open():
            return
        self.connected = True
        self.node.write(self.device.connect())
        self.node.forget_error()
        if own is not XenbusState.CLOSING:
            self.node.switch(XenbusState.CONNECTED)

    def _front_closing(self, own: XenbusState) -> None:
        """It may still wait for responses, so the rings stay."""
        if own not in _CLOSED:
            self.node.switch(XenbusState.CLOSING)

    def _front_closed(self, _: XenbusState) -> None:
        self._failed = False
        if self.node.online:
            self._disconnect()
            self.node.switch(XenbusState.CLOSED)
        else:
            self._end(XenbusState.CLOSED)

    def _front_gone(self, _: XenbusState) -> None:
        """The guest has died, or removed the node in whatever state."""
        self._failed = False
        self._end(XenbusState.CLOSED)

    def fail(self, error: Refused) -> None:
        """xenbus_dev_fatal: say what is wrong, let go of the front-end and have it close. It may try again after."""
        self._failed = True
        self.node.report(error)
        self._disconnect()
        self.node.switch(XenbusState.CLOSING)

    def _end(self, state: XenbusState) -> None:
        """Nothing is held when the state says so: whoever waits for it may give the disk to another at once."""
        if self._let_go():
            self.node.switch(state)

    def _let_go(self) -> bool:
        self._disconnect()
        self._offered = False
        return self.device.close(self.step)

    def _disconnect(self) -> None:
        self.connected = False
        self.device.disconnect()

    def close(self) -> None:
        """Give everything back and tell nobody. The device may still be closing what it opened."""
        self._gone = True
        self._let_go()
