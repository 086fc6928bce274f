"""The back-end's half of the connection: every order in which front-ends, toolstack and killers can come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from fake_domu import FakeDomU, FakeHost, Nodes, fake_host
from hypothesis import given
from hypothesis import strategies as st

from bivisor.abi.xen.xenbus import XenbusState as S
from bivisor.dom0.xenbus.node import Node, Refused
from bivisor.dom0.xenbus.service import Service
from bivisor.toolstack import xendevices
from bivisor.toolstack.xendevices import XenDevice


class Recorder:
    """A device that does nothing and notices what is done in a wrong order. Node trouble says what it
    refuses to do, or to do at once."""

    def __init__(self, node: Node, fail: Callable[[Refused], None]) -> None:
        self.node = node
        self.fail = fail
        self.open = self.connected = False
        self.connects = 0
        self.late = False
        self.closing: Callable[[], None] | None = None

    def offer(self) -> Mapping[str, str | int]:
        assert not self.open
        if self.node.get("trouble") == "offer":
            raise Refused("no such disk")
        self.open = True
        self.late = self.node.get("trouble") == "close"
        return {"feature-something": 1}

    def connect(self) -> Mapping[str, str | int]:
        assert self.open
        assert not self.connected
        if self.node.get("trouble") == "connect":
            raise Refused("no such ring")
        self.connected = True
        self.connects += 1
        return {"sectors": 5}

    def disconnect(self) -> None:
        self.connected = False

    def close(self, then: Callable[[], None]) -> bool:
        assert not self.connected
        if self.open and self.late:
            self.closing = then
        self.open = False
        return self.closing is None

    def closed(self) -> None:
        assert self.closing is not None
        then, self.closing = self.closing, None
        then()


class Bench:
    """A host with a service of recorders and a domain with one device of theirs."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.devices: list[Recorder] = []
        self.service = self.start()
        self.domu = FakeDomU(host)
        self.device = XenDevice("vbd", self.domu.domid, 51712, {"params": "/disk"})
        self.front = Nodes(self.domu, self.device)

    def start(self) -> Service:
        def make(node: Node, fail: Callable[[Refused], None]) -> Recorder:
            self.devices.append(Recorder(node, fail))
            return self.devices[-1]

        return Service(self.host.control, self.host.store, "vbd", make)

    def kill(self) -> None:
        self.service.close()

    def add(self, **nodes: str) -> None:
        xendevices.add(
            self.host.store,
            XenDevice("vbd", self.domu.domid, 51712, {"params": "/disk", **nodes}),
        )
        self.host.settle()

    def front_to(self, *states: S) -> S:
        for state in states:
            self.front.switch(state)
            self.host.settle()
        return self.front.state

    @property
    def recorder(self) -> Recorder:
        return self.devices[-1]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with fake_host() as host:
        bench = Bench(host)
        yield bench
        bench.service.close()


def test_both_ends_reach_connected_by_the_states_of_the_header(bench: Bench) -> None:
    bench.add()
    assert bench.front.state is S.INIT_WAIT
    assert bench.front.backend("feature-something") == "1"
    assert not bench.recorder.connected
    assert bench.front_to(S.INITIALISED) is S.CONNECTED
    assert bench.front.backend("sectors") == "5"
    assert bench.front_to(S.CONNECTED) is S.CONNECTED
    assert bench.recorder.connects == 1


def test_a_front_end_that_closes_and_begins_again_is_connected_again(bench: Bench) -> None:
    bench.add()
    assert bench.front_to(S.INITIALISED, S.CONNECTED, S.CLOSING) is S.CLOSING
    assert bench.recorder.connected, "requests may be on their way"
    assert bench.front_to(S.CLOSED) is S.CLOSED
    assert not bench.recorder.connected
    assert bench.front_to(S.INITIALISING) is S.INIT_WAIT
    assert bench.front_to(S.INITIALISED) is S.CONNECTED
    assert bench.recorder.connects == 2


def test_a_front_end_that_begins_again_without_closing_is_connected_again(bench: Bench) -> None:
    bench.add()
    assert bench.front_to(S.INITIALISED, S.CONNECTED, S.INITIALISING) is S.INIT_WAIT
    assert bench.front_to(S.INITIALISED) is S.CONNECTED
    assert bench.recorder.connects == 2


def test_a_device_that_is_pulled_out_closes_when_its_front_end_has(bench: Bench) -> None:
    bench.add()
    bench.front_to(S.INITIALISED, S.CONNECTED)
    xendevices.order_to_close(bench.host.store, bench.device)
    bench.host.settle()
    assert bench.front.state is S.CLOSING
    assert bench.recorder.connected
    assert bench.front_to(S.CLOSING, S.CLOSED) is S.CLOSED
    assert not bench.recorder.open
    xendevices.remove(bench.host.store, bench.device)
    bench.host.settle()
    assert not bench.service.links


def test_a_device_is_closed_only_when_what_is_behind_it_is(bench: Bench) -> None:
    bench.add(trouble="close")
    bench.front_to(S.INITIALISED, S.CONNECTED)
    xendevices.order_to_close(bench.host.store, bench.device)
    bench.host.settle()
    assert bench.front_to(S.CLOSING, S.CLOSED) is S.CLOSING
    assert bench.front_to(S.INITIALISING, S.CLOSED) is S.CLOSING
    assert not bench.recorder.open
    bench.recorder.closed()
    assert bench.front.state is S.CLOSED


def test_a_front_end_that_comes_back_waits_until_the_old_disk_is_closed(bench: Bench) -> None:
    bench.add(trouble="close")
    bench.front_to(S.INITIALISED, S.CONNECTED)
    assert bench.front_to(S.INITIALISING) is S.CONNECTED
    assert not bench.recorder.open
    assert not bench.recorder.connected
    bench.recorder.closed()
    assert bench.front.state is S.INIT_WAIT
    assert bench.front_to(S.INITIALISED) is S.CONNECTED


def test_a_disk_that_is_closed_late_touches_nothing_of_its_successor(bench: Bench) -> None:
    bench.add(trouble="close")
    bench.front_to(S.INITIALISED, S.CONNECTED)
    gone = bench.recorder
    xendevices.remove(bench.host.store, bench.device)
    bench.host.settle()
    bench.add()
    assert bench.front_to(S.INITIALISED, S.CONNECTED) is S.CONNECTED
    gone.closed()
    bench.host.settle()
    assert bench.front.state is S.CONNECTED
    assert bench.recorder.connected


def test_a_device_that_nobody_uses_closes_at_once(bench: Bench) -> None:
    bench.add()
    xendevices.order_to_close(bench.host.store, bench.device)
    bench.host.settle()
    assert bench.front.state is S.CLOSED
    assert not bench.recorder.open


def test_a_disk_that_cannot_be_opened_is_told_in_the_error_node(bench: Bench) -> None:
    bench.add(trouble="offer")
    assert bench.front.state is S.CLOSING
    assert bench.front.error() == "22 no such disk"
    assert bench.front_to(S.CLOSED) is S.CLOSED
    bench.host.store.write(f"{bench.device.backend_path}/trouble", "none")
    assert bench.front_to(S.INITIALISING) is S.INIT_WAIT
    assert bench.front_to(S.INITIALISED) is S.CONNECTED
    assert bench.front.error() is None


def test_a_front_end_whose_ring_cannot_be_had_is_told_to_close_and_may_try_again(bench: Bench) -> None:
    bench.add(trouble="connect")
    assert bench.front_to(S.INITIALISED) is S.CLOSING
    assert bench.front.error() == "22 no such ring"
    assert bench.front_to(S.CONNECTED) is S.CLOSING
    bench.host.store.write(f"{bench.device.backend_path}/trouble", "none")
    assert bench.front_to(S.CLOSED, S.INITIALISING, S.INITIALISED) is S.CONNECTED


def test_a_killed_back_end_says_nothing_and_its_successor_connects_to_the_same_rings(bench: Bench) -> None:
    bench.add()
    bench.front_to(S.INITIALISED, S.CONNECTED)
    old = bench.recorder
    bench.kill()
    assert not old.connected
    assert not old.open
    assert bench.front.state is S.CONNECTED
    bench.service = bench.start()
    bench.host.settle()
    assert bench.recorder is not old
    assert bench.recorder.connected
    assert bench.front.state is S.CONNECTED


STEPS: tuple[tuple[S, ...], ...] = (
    (),
    (S.INITIALISED,),
    (S.INITIALISED, S.CONNECTED),
    (S.INITIALISED, S.CONNECTED, S.CLOSING),
    (S.INITIALISED, S.CONNECTED, S.CLOSING, S.CLOSED),
)


@pytest.mark.parametrize("steps", STEPS)
def test_a_domain_that_dies_at_any_step_leaves_nothing_open(bench: Bench, steps: tuple[S, ...]) -> None:
    bench.add()
    bench.front_to(*steps)
    bench.domu.die()
    bench.host.settle()
    assert not bench.recorder.connected
    assert not bench.recorder.open
    assert bench.front.state is S.CLOSED
    xendevices.remove(bench.host.store, bench.device)
    bench.host.settle()
    assert not bench.service.links


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("while_dead", [(), (S.CLOSING,), (S.CLOSING, S.CLOSED)])
def test_a_back_end_killed_at_any_step_lets_its_front_end_finish(
    bench: Bench, steps: tuple[S, ...], while_dead: tuple[S, ...]
) -> None:
    bench.add()
    bench.front_to(*steps)
    bench.kill()
    if steps:
        bench.front_to(*while_dead)
    bench.service = bench.start()
    bench.host.settle()
    closed = S.CLOSED in (*steps, *(while_dead if steps else ()))
    if not closed and S.CLOSING in (*steps, *(while_dead if steps else ())):
        assert bench.front_to(S.CLOSED) is S.CLOSED
        closed = True
    if closed:
        assert bench.front_to(S.INITIALISING) is S.INIT_WAIT
    if not bench.recorder.connected:
        assert bench.front_to(S.INITIALISED) is S.CONNECTED
    assert bench.front_to(S.CONNECTED) is S.CONNECTED
    assert bench.recorder.connected


def test_a_back_end_directory_that_is_no_device_is_left_alone(bench: Bench) -> None:
    bench.host.store.write("/local/domain/0/backend/vbd/rubbish/x/frontend", "/local/domain/1/device/vbd/x")
    bench.host.store.write("/local/domain/0/backend/vbd/rubbish/x/state", "1")
    bench.host.store.write("/local/domain/0/backend/vbd/7/8/state", "1")
    bench.host.settle()
    assert not bench.service.links


ACTIONS = st.one_of(
    st.sampled_from(["add", "remove", "order", "kill", "start", "settle", "break", "vanish"]),
    st.sampled_from([str(int(state)) for state in S] + ["", "x", "99", "-1", "4" * 50]),
)


@given(st.lists(ACTIONS, max_size=30))
def test_no_order_of_events_confuses_a_back_end(actions: list[str]) -> None:
    with fake_host() as host:
        bench = Bench(host)
        path = bench.device.frontend_path
        for action in actions:
            match action:
                case "add":
                    xendevices.add(host.store, bench.device)
                case "remove":
                    xendevices.remove(host.store, bench.device)
                case "order":
                    if host.store.get(f"{bench.device.backend_path}/state") is not None:
                        xendevices.order_to_close(host.store, bench.device)
                case "kill":
                    bench.kill()
                case "start":
                    bench.kill()
                    bench.service = bench.start()
                case "settle":
                    host.settle()
                case "break":
                    for link in bench.service.links.values():
                        link.fail(Refused("a broken ring"))
                case "vanish":
                    host.store.remove(path)
                case state:
                    host.store.write(f"{path}/state", state)
            assert sum(device.open for device in bench.devices) <= 1
        bench.kill()
        bench.service = bench.start()
        host.store.remove(path)
        host.settle()
        if host.store.get(f"{bench.device.backend_path}/state") is not None:
            assert bench.front.state is S.CLOSED
        assert not any(device.open or device.connected for device in bench.devices)
        # whatever has been, a device that is made anew works
        xendevices.remove(host.store, bench.device)
        bench.add()
        assert bench.front_to(S.INITIALISED, S.CONNECTED) is S.CONNECTED
        assert bench.recorder.connected
        bench.kill()
