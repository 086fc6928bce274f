"""A domain that is attached as on a Xen host, with a hypervisor that is made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xenstore_client import Client, Refused

from bivisor.abi.xen import xs_wire as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.domains import XenDomains
from bivisor.dom0.xenstore.server import Server
from bivisor.dom0.xenstore.wire import Message
from bivisor.host.loop import ManualLoop
from bivisor.xen.errors import XenError


class Control:
    """Frames and ports as the test has them; `signals` are the ports that were notified."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.frames = {(1, 8): bytearray(4096), (1, 9): bytearray(4096)}
        self.handlers: dict[int, Callable[[], None]] = {}
        self.signals: list[int] = []

    def exists(self, domid: int) -> bool:
        return domid in (0, 1)

    def map_foreign(self, domid: int, gfn: int) -> memoryview:
        if (domid, gfn) not in self.frames:
            raise XenError(Errno.EINVAL)
        return memoryview(self.frames[domid, gfn])

    def bind(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        if remote_port > 100:
            raise XenError(Errno.EINVAL)
        self.handlers[remote_port + 1000] = handler
        return remote_port + 1000

    def unbind(self, port: int) -> None:
        del self.handlers[port]

    def notify(self, port: int) -> None:
        if port not in self.handlers:
            raise XenError(Errno.EINVAL)
        self.signals.append(port)


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def tool(control: Control) -> Client:
    return Client(Server(XenDomains(control)))


def introduce(tool: Client, payload: bytes) -> None:
    tool.ask(MessageType.INTRODUCE, payload)


def test_a_domain_talks_through_its_page_and_port(control: Control, tool: Client) -> None:
    introduce(tool, b"1\0008\0003\0")
    assert control.signals == [1003]
    page = control.frames[1, 8]
    request = wire.encode(Message(MessageType.GET_DOMAIN_PATH, 1, 0, b"1\0"))
    page[: len(request)] = request
    page[abi.INDICES + 4 * abi.REQ_PROD] = len(request)
    control.handlers[1003]()
    assert wire.decode(page, abi.RSP) == Message(MessageType.GET_DOMAIN_PATH, 1, 0, b"/local/domain/1\0")
    assert control.signals == [1003, 1003]


@pytest.mark.parametrize("payload", [b"1\0007\0003\0", b"1\0008\000101\0"])
def test_a_frame_or_port_that_the_domain_has_not_is_refused(control: Control, tool: Client, payload: bytes) -> None:
    with pytest.raises(Refused, match="EINVAL"):
        introduce(tool, payload)
    control.frames[1, 8].clear()  # nothing holds it
    assert tool.ask(MessageType.IS_DOMAIN_INTRODUCED, b"1\0") == b"F\0"
    assert len(tool.server.connections) == 1


def test_a_domain_introduced_again_has_the_new_page(control: Control, tool: Client) -> None:
    introduce(tool, b"1\0008\0003\0")
    introduce(tool, b"1\0009\0004\0")
    assert list(control.handlers) == [1004]
    control.frames[1, 8].clear()
    assert control.frames[1, 9][abi.INDICES + 4 * abi.SERVER_FEATURES]


def test_release_gives_page_and_port_back(control: Control, tool: Client) -> None:
    introduce(tool, b"1\0008\0003\0")
    tool.ask(MessageType.RELEASE, b"1\0")
    assert not control.handlers
    control.frames[1, 8].clear()
    control.loop.run_soon()
