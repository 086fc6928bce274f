from __future__ import annotations

import pytest
from xenstore_client import Refused, World

from bivisor.abi.xen.xs_wire import MessageType


def refused(error: str) -> pytest.RaisesExc[Refused]:
    return pytest.raises(Refused, match=f"^{error}$")


def test_a_domain_owns_what_it_makes_and_others_may_do_what_they_may_above() -> None:
    world = World(1, 2)
    world.tool.chmod(b"/local/domain/1", b"r1", b"n2", b"b3")
    world[1].write(b"data/x", b"1")
    assert world.tool.perms(b"/local/domain/1/data/x") == [b"r1", b"n2", b"b3"]
    assert world.tool.perms(b"/local/domain/1/data") == [b"r1", b"n2", b"b3"]


def test_what_a_tool_makes_belongs_to_the_owner_of_what_is_above() -> None:
    world = World(1)
    world.tool.write(b"/local/domain/1/console/ring-ref", b"8")
    assert world.tool.perms(b"/local/domain/1/console/ring-ref") == [b"n1"]


def test_the_first_entry_says_what_those_may_who_are_not_named() -> None:
    world = World(1, 2, 3, 4)
    world.tool.write(b"/x", b"1")
    world.tool.chmod(b"/x", b"r1", b"b2", b"n3", b"w4")
    assert world[2].read(b"/x") == b"1"
    world[2].write(b"/x", b"2")
    with refused("EACCES"):
        world[3].read(b"/x")
    with refused("EACCES"):
        world[4].read(b"/x")
    world[4].write(b"/x", b"4")
    world.tool.chmod(b"/x", b"r1")
    assert world[3].read(b"/x") == b"4"
    with refused("EACCES"):
        world[3].write(b"/x", b"no")


def test_a_domain_learns_nothing_of_names_where_it_may_not_look() -> None:
    world = World(1, 2)
    world.tool.write(b"/local/domain/2/secret", b"1")
    for name in (b"secret", b"no-such", b"no-such/at/all"):
        with refused("EACCES"):
            world[1].read(b"/local/domain/2/" + name)
        with refused("EACCES"):
            world[1].write(b"/local/domain/2/" + name, b"mine")
        with refused("EACCES"):
            world[1].rm(b"/local/domain/2/" + name)
    with refused("ENOENT"):
        world[1].read(b"no-such")


def test_only_the_owner_and_dom0_set_permissions_and_only_dom0_gives_a_node_away() -> None:
    world = World(1, 2)
    world[1].write(b"x", b"1")
    world[1].chmod(b"x", b"b1", b"r2")
    with refused("EACCES"):
        world[2].chmod(b"/local/domain/1/x", b"b2")
    with refused("EPERM"):
        world[1].chmod(b"x", b"b2")
    world.tool.chmod(b"/local/domain/1/x", b"b2")
    assert world[2].perms(b"/local/domain/1/x") == [b"b2"]
    world.check()


@pytest.mark.parametrize("entry", [b"", b"x1", b"r", b"r-1", b"rr", b"r65536", b"r" + b"9" * 3000])
def test_permissions_that_are_none_are_refused(entry: bytes) -> None:
    with refused("EINVAL"):
        World(1)[1].chmod(b"/local/domain/1", entry)


def test_an_owner_that_does_not_exist_is_enoent_and_another_entry_for_one_is_left_out() -> None:
    world = World(1)
    with refused("ENOENT"):
        world.tool.chmod(b"/tool", b"n99")
    world.tool.chmod(b"/tool", b"n0", b"r99", b"r1")
    assert world.tool.perms(b"/tool") == [b"n0", b"r1"]


def test_a_domain_acts_for_its_target_once_dom0_says_so() -> None:
    world = World(1, 2)
    world[2].write(b"x", b"1")
    with refused("EACCES"):
        world[1].read(b"/local/domain/2/x")
    world.tool.ask(MessageType.SET_TARGET, b"1\0002\0")
    world[1].write(b"/local/domain/2/x", b"2")
    world.server.release(2)
    with refused("EACCES"):
        world[1].read(b"/local/domain")
