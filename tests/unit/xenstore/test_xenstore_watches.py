from __future__ import annotations

import pytest
from xenstore_client import Refused, World

from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore.wire import Message


def test_a_new_watch_hears_at_once_after_the_reply() -> None:
    tool = World().tool
    tool.server.receive(tool.connection, Message(MessageType.WATCH, 1, 0, b"/a\0t\0"))
    assert [message.type for message in tool.messages()] == [MessageType.WATCH, MessageType.WATCH_EVENT]


def test_a_watch_hears_of_its_node_and_of_all_below_but_of_nothing_beside() -> None:
    tool = World().tool
    tool.watch(b"/a")
    tool.events()
    for path in (b"/a", b"/a/b/c", b"/ab", b"/b"):
        tool.write(path, b"1")
    assert tool.events() == [(b"/a", b"t"), (b"/a/b/c", b"t")]


def test_a_relative_watch_hears_relative_paths() -> None:
    world = World(1)
    world[1].watch(b"device", b"r")
    world[1].watch(b"/local/domain/1/device", b"a")
    assert world[1].events() == [(b"device", b"r"), (b"/local/domain/1/device", b"a")]
    world.tool.write(b"/local/domain/1/device/vif/0", b"")
    assert world[1].events() == [(b"device/vif/0", b"r"), (b"/local/domain/1/device/vif/0", b"a")]


def test_a_watch_on_what_is_removed_with_its_parent_hears_its_own_path() -> None:
    tool = World().tool
    tool.write(b"/a/b/c", b"1")
    tool.watch(b"/a/b", b"b")
    tool.watch(b"/a/b/c", b"c")
    tool.watch(b"/", b"top")
    tool.events()
    tool.rm(b"/a")
    assert tool.events() == [(b"/a/b/c", b"c"), (b"/a/b", b"b"), (b"/a", b"top")]


def test_events_go_out_before_the_reply_to_the_request_that_made_them() -> None:
    tool = World().tool
    tool.watch(b"/a")
    tool.events()
    tool.server.receive(tool.connection, Message(MessageType.WRITE, 1, 0, b"/a\0x"))
    assert [message.type for message in tool.messages()] == [MessageType.WATCH_EVENT, MessageType.WRITE]


def test_a_transaction_s_events_come_at_its_end_and_once_for_each_node() -> None:
    tool = World().tool
    tool.watch(b"/")
    tool.events()
    tx = tool.begin()
    tool.write(b"/a", b"1", tx)
    tool.write(b"/b", b"1", tx)
    tool.write(b"/a", b"2", tx)
    assert tool.events() == []
    tool.commit(tx)
    assert tool.events() == [(b"/a", b"t"), (b"/b", b"t")]


def test_an_aborted_transaction_is_not_heard_of() -> None:
    tool = World().tool
    tool.watch(b"/")
    tool.events()
    tx = tool.begin()
    tool.write(b"/a", b"1", tx)
    tool.abort(tx)
    assert tool.events() == []


def test_an_event_that_waits_already_is_not_queued_again() -> None:
    world = World(1)
    world.tool.watch(b"/local/domain/1/x")
    world.tool.events()
    for _ in range(5):
        world[1].write(b"x", b"1")
    assert world.tool.events() == [(b"/local/domain/1/x", b"t")]
    world[1].write(b"x", b"1")
    assert world.tool.events() == [(b"/local/domain/1/x", b"t")]


def test_a_domain_hears_only_of_what_it_may_read() -> None:
    world = World(1, 2)
    world[1].watch(b"/")
    world[1].events()
    world[2].write(b"secret", b"1")
    assert world[1].events() == []
    world.tool.chmod(b"/local/domain/2/secret", b"n2", b"r1")
    assert world[1].events() == [(b"/local/domain/2/secret", b"t")]
    world[2].write(b"secret", b"2")
    assert world[1].events() == [(b"/local/domain/2/secret", b"t")]


def test_who_loses_the_right_to_read_hears_of_that_and_then_no_more() -> None:
    world = World(1, 2)
    world[2].write(b"x", b"1")
    world[2].chmod(b"x", b"n2", b"r1")
    world[1].watch(b"/local/domain/2/x")
    world[1].events()
    world[2].chmod(b"x", b"n2")
    world[2].write(b"x", b"2")
    assert world[1].events() == [(b"/local/domain/2/x", b"t")]


def test_a_node_that_could_be_read_is_heard_of_when_it_is_removed() -> None:
    world = World(1, 2)
    world[2].write(b"x", b"1")
    world[2].chmod(b"x", b"n2", b"r1")
    world[1].watch(b"/local/domain/2/x")
    world[1].events()
    world[2].rm(b"x")
    assert world[1].events() == [(b"/local/domain/2/x", b"t")]


def test_a_depth_bounds_what_a_watch_hears_of() -> None:
    tool = World().tool
    for depth in (b"0", b"1"):
        tool.watch(b"/a", b"depth" + depth, depth)
    tool.events()
    tool.write(b"/a/b/c", b"1")
    tool.write(b"/a/b", b"1")
    tool.write(b"/a", b"1")
    assert tool.events() == [(b"/a/b", b"depth1"), (b"/a", b"depth0"), (b"/a", b"depth1")]


def test_a_watch_is_taken_back_by_path_and_token() -> None:
    tool = World().tool
    tool.watch(b"/a", b"1")
    tool.watch(b"/a", b"2")
    tool.watch(b"@releaseDomain", b"3")
    tool.unwatch(b"/a", b"1")
    tool.unwatch(b"@releaseDomain", b"3")
    tool.events()
    tool.write(b"/a", b"")
    assert tool.events() == [(b"/a", b"2")]
    with pytest.raises(Refused, match="ENOENT"):
        tool.unwatch(b"/a", b"1")
    with pytest.raises(Refused, match="EEXIST"):
        tool.watch(b"/a", b"2")


def test_reset_watches_takes_back_watches_and_transactions() -> None:
    world = World(1)
    world[1].watch(b"a")
    tx = world[1].begin()
    world[1].events()
    world[1].ask(MessageType.RESET_WATCHES, b"\0")
    world[1].write(b"a", b"")
    assert world[1].events() == []
    with pytest.raises(Refused, match="ENOENT"):
        world[1].commit(tx)
    assert not world.server.watches._root.below


def test_an_event_that_would_be_too_long_is_left_out() -> None:
    tool = World().tool
    tool.watch(b"/", b"t" * 4000)
    tool.events()
    tool.write(b"/" + b"a" * 200, b"")
    assert tool.events() == []


@pytest.mark.parametrize("payload", [b"", b"/a\0", b"/a\0t", b"/a\0t\0x\0y\0", b"/a\0t\0x\0", b"/a/\0t\0"])
def test_what_is_no_watch_is_refused(payload: bytes) -> None:
    with pytest.raises(Refused, match="EINVAL"):
        World().tool.ask(MessageType.WATCH, payload)
