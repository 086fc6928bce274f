from __future__ import annotations

import pytest
from xenstore_client import Client, Refused, World

from bivisor.abi.xen.xs_wire import MessageType


def test_a_domain_is_introduced_and_released_and_watches_hear_of_it() -> None:
    world = World()
    tool = world.tool
    tool.watch(b"@introduceDomain", b"in")
    tool.watch(b"@releaseDomain", b"out")
    assert tool.events() == [(b"@introduceDomain", b"in"), (b"@releaseDomain", b"out")]
    assert tool.ask(MessageType.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"
    tool.ask(MessageType.INTRODUCE, b"5\x00123\x007\0")
    assert world.hypervisor.attached == [(5, 123, 7)]
    assert tool.ask(MessageType.IS_DOMAIN_INTRODUCED, b"5\0") == b"T\0"
    tool.ask(MessageType.RELEASE, b"5\0")
    assert world.hypervisor.transports[5].is_closed
    assert tool.ask(MessageType.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"
    assert tool.events() == [(b"@introduceDomain", b"in"), (b"@releaseDomain", b"out")]


@pytest.mark.parametrize(
    ("type_", "payload", "error"),
    [
        (MessageType.INTRODUCE, b"5\0001\0", "EINVAL"),
        (MessageType.INTRODUCE, b"99\0001\0001\0", "ENOENT"),
        (MessageType.RELEASE, b"5\0", "ENOENT"),
        (MessageType.RELEASE, b"0\0", "EINVAL"),
        (MessageType.RESUME, b"5\0", "ENOENT"),
        (MessageType.SET_TARGET, b"5\0006\0", "ENOENT"),
        (MessageType.SET_TARGET, b"5\0", "EINVAL"),
        (MessageType.IS_DOMAIN_INTRODUCED, b"x\0", "EINVAL"),
        (MessageType.GET_DOMAIN_PATH, b"", "EINVAL"),
    ],
)
def test_what_makes_no_sense_is_refused(type_: MessageType, payload: bytes, error: str) -> None:
    with pytest.raises(Refused, match=error):
        World().tool.ask(type_, payload)


def test_a_domain_introduced_again_begins_anew() -> None:
    world = World(1)
    world[1].watch(b"x")
    tx = world[1].begin()
    world.tool.ask(MessageType.INTRODUCE, b"1\0002\0003\0")
    assert world.hypervisor.attached[-1] == (1, 2, 3)
    assert world[1].events() == [(b"x", b"t")]  # what had gone out before
    world[1].write(b"x", b"1")
    assert world[1].events() == []
    with pytest.raises(Refused, match="ENOENT"):
        world[1].read(b"x", tx)


def test_the_path_of_a_domain_is_told_to_anybody() -> None:
    assert World(1)[1].ask(MessageType.GET_DOMAIN_PATH, b"12\0") == b"/local/domain/12\0"


def test_nothing_of_a_domain_is_left_when_it_is_released() -> None:
    world = World(1, 2)
    world[1].write(b"a/b", b"1")
    world.tool.write(b"/shared", b"")
    world.tool.chmod(b"/shared", b"n2", b"b1")
    world.tool.chmod(b"/", b"n1")
    world[1].write(b"/loose", b"1")
    world.tool.watch(b"/local/domain/1/a", b"gone")
    world.tool.events()
    tx = world[1].begin()
    world[1].watch(b"/")
    world.server.release(1)
    assert world.tool.events() == [(b"/local/domain/1/a", b"gone")]
    assert world.tool.ls(b"/") == [b"tool", b"local", b"shared"]
    assert world.tool.ls(b"/local/domain") == [b"2"]
    assert world.tool.perms(b"/shared") == [b"n2"]
    assert world.tool.perms(b"/") == [b"n0"]
    world.check()
    again = Client(world.server, 1)
    with pytest.raises(Refused, match="EACCES"):
        again.read(b"/shared")
    with pytest.raises(Refused, match="ENOENT"):
        again.read(b"/", tx)


def test_a_transaction_cannot_bring_back_the_rights_of_a_domain_that_is_gone() -> None:
    world = World(1, 2)
    tx = world[2].begin()
    world[2].chmod(b"/local/domain/2", b"n2", b"b1", tx=tx)
    world.server.release(1)
    with pytest.raises(Refused, match="EAGAIN"):
        world[2].commit(tx)
    assert world.tool.perms(b"/local/domain/2") == [b"n2"]


def test_nor_can_one_that_only_changes_a_value() -> None:
    world = World(1, 2)
    world[2].write(b"x", b"1")
    world[2].chmod(b"x", b"n2", b"b1")
    tx = world[2].begin()
    for i in range(100):
        with pytest.raises(Refused, match="ENOENT"):
            world[2].read(b"no%d" % i, tx)
    world.server.release(1)
    world[2].write(b"x", b"2", tx)
    with pytest.raises(Refused, match="EAGAIN"):
        world[2].commit(tx)
    assert world.tool.perms(b"/local/domain/2/x") == [b"n2"]


def test_a_shutdown_is_told_once_until_the_domain_is_resumed() -> None:
    world = World(1)
    world.tool.watch(b"@releaseDomain", b"out")
    world.tool.events()
    world.server.shut_down(1)
    world.server.shut_down(1)
    assert world.tool.events() == [(b"@releaseDomain", b"out")]
    world.tool.ask(MessageType.RESUME, b"1\0")
    world.server.shut_down(1)
    assert world.tool.events() == [(b"@releaseDomain", b"out")]
    world.server.shut_down(9)


def test_a_watch_for_one_domain_and_one_with_a_depth_hear_which_it_is() -> None:
    world = World(1, 2)
    world.tool.watch(b"@releaseDomain/2", b"two")
    world.tool.watch(b"@releaseDomain", b"which", b"1")
    world.tool.watch(b"@releaseDomain", b"any")
    world.tool.events()
    world.server.release(1)
    assert world.tool.events() == [(b"@releaseDomain/1", b"which"), (b"@releaseDomain", b"any")]
    world.server.release(2)
    assert (b"@releaseDomain/2", b"two") in world.tool.events()


def test_a_domain_hears_of_others_only_if_dom0_lets_it() -> None:
    world = World(1, 2, 3)
    world[1].watch(b"@releaseDomain")
    world[1].events()
    world.server.release(2)
    assert world[1].events() == []
    with pytest.raises(Refused, match="EACCES"):
        world[1].chmod(b"@releaseDomain", b"r1")
    with pytest.raises(Refused, match="EINVAL"):
        world.tool.chmod(b"@nothing", b"n0")
    world.tool.chmod(b"@releaseDomain", b"n0", b"r1")
    world.server.release(3)
    assert world[1].events() == [(b"@releaseDomain", b"t")]


def test_closing_lets_go_of_every_domain() -> None:
    world = World(1, 2)
    world.server.close()
    assert all(transport.is_closed for transport in world.hypervisor.transports.values())
