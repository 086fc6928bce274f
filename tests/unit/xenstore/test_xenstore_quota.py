from __future__ import annotations

import logging

import pytest
from xenstore_client import Client, Refused, World

from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore.quota import QuotaHit, QuotaLog, Quotas
from bivisor.dom0.xenstore.wire import Message


def test_the_defaults_are_xen_s() -> None:
    quotas = Quotas()
    assert (quotas.nodes, quotas.watches, quotas.outstanding, quotas.transactions) == (1000, 128, 20, 10)
    assert (quotas.transaction_nodes, quotas.permissions, quotas.node_size) == (1024, 5, 2048)


def test_a_domain_may_own_so_many_nodes_and_the_record_says_who_hit_what() -> None:
    world = World(1, 2)
    for i in range(999):
        world[1].write(b"%d/%d" % (i // 90, i), b"") if i >= 12 else world[1].mkdir(b"%d" % i)
    with pytest.raises(Refused, match="ENOSPC"):
        world[1].write(b"more", b"")
    assert world.hits == [QuotaHit(1, "nodes", 1000, 1)]
    assert str(world.hits[0]) == "xenstore: domain 1 is at its quota nodes=1000"
    world[2].write(b"more", b"")
    world.tool.write(b"/local/domain/1/more", b"")
    world[1].rm(b"0")
    world[1].write(b"again", b"")
    world.check()


def test_a_request_that_would_make_too_many_nodes_makes_none() -> None:
    world = World(1, quotas=Quotas(nodes=5))
    with pytest.raises(Refused, match="ENOSPC"):
        world[1].write(b"a/b/c/d/e", b"")
    assert world[1].ls(b"/local/domain/1") == []


def test_nodes_count_in_a_transaction_and_again_at_its_end() -> None:
    world = World(1, quotas=Quotas(nodes=4))
    world[1].mkdir(b"d")
    tx = world[1].begin()
    world[1].write(b"d/1", b"", tx)
    world[1].write(b"d/2", b"", tx)
    with pytest.raises(Refused, match="ENOSPC"):
        world[1].write(b"d/3", b"", tx)
    world.tool.write(b"/x", b"")
    world.tool.chmod(b"/x", b"n1")
    with pytest.raises(Refused, match="ENOSPC"):
        world[1].commit(tx)
    assert world[1].ls(b"d") == []
    world.check()


def test_a_node_may_be_so_big() -> None:
    world = World(1)
    room = 2048 - 24 - 8
    world[1].write(b"x", b"v" * (room - 1))
    for path in (b"x", b"new"):
        with pytest.raises(Refused, match="ENOSPC"):
            world[1].write(path, b"v" * room)
    assert world.hits[0].quota == "node_size"
    world.tool.write(b"/local/domain/1/x", b"v" * 4000)


def test_the_names_of_children_count_for_the_size_of_a_node() -> None:
    world = World(1)
    with pytest.raises(Refused, match="ENOSPC"):
        for i in range(100):
            world[1].write(b"%d-" % i + b"n" * 50, b"")
    assert len(world[1].ls(b"/local/domain/1")) < 40
    world.check()


def test_a_domain_may_have_so_many_watches() -> None:
    world = World(1)
    for i in range(128):
        world[1].watch(b"x", b"%d" % i)
    with pytest.raises(Refused, match="E2BIG"):
        world[1].watch(b"x", b"more")
    assert world.hits == [QuotaHit(1, "watches", 128, 1)]
    world[1].unwatch(b"x", b"0")
    world[1].watch(b"x", b"more")
    for i in range(200):
        world.tool.watch(b"x", b"%d" % i)


def test_a_domain_may_have_so_many_transactions() -> None:
    world = World(1)
    open_ = [world[1].begin() for _ in range(10)]
    with pytest.raises(Refused, match="ENOSPC"):
        world[1].begin()
    assert world.hits == [QuotaHit(1, "transactions", 10, 1)]
    world[1].abort(open_[0])
    world[1].begin()
    for _ in range(20):
        world.tool.begin()


def test_a_transaction_may_look_at_so_many_nodes_and_cannot_end_well_then() -> None:
    world = World(1, quotas=Quotas(transaction_nodes=3))
    tx = world[1].begin()
    world[1].write(b"a", b"1", tx)
    with pytest.raises(Refused, match="ENOSPC"):
        world[1].write(b"b/c", b"1", tx)
        world[1].write(b"d", b"1", tx)
    assert world.hits[0].quota == "transaction_nodes"
    with pytest.raises(Refused, match="ENOMEM"):
        world[1].commit(tx)
    assert world[1].ls(b"/local/domain/1") == []


def test_a_node_may_have_so_many_permissions() -> None:
    world = World(1)
    world[1].chmod(b"/local/domain/1", b"n1", *(b"r%d" % i for i in range(2, 6)))
    with pytest.raises(Refused, match="ENOSPC"):
        world[1].chmod(b"/local/domain/1", b"n1", *(b"r%d" % i for i in range(2, 7)))
    assert world.hits == [QuotaHit(1, "permissions", 5, 1)]


def test_a_domain_that_takes_no_replies_may_not_ask_on() -> None:
    world = World(1)
    for i in range(20):
        assert world[1].connection.may_ask
        world.server.receive(world[1].connection, Message(MessageType.READ, i, 0, b"/\0"))
    assert not world[1].connection.may_ask
    world[1].messages()
    assert world[1].connection.may_ask


def test_a_domain_that_takes_no_events_loses_those_beyond_its_quota() -> None:
    world = World(1, 2, quotas=Quotas(output=1000))
    world.tool.chmod(b"/local/domain/2", b"r2")
    world[1].watch(b"/local/domain/2")
    world[1].events()
    for i in range(50):
        world[2].write(b"%d" % i, b"")
    assert 10 < len(world[1].events()) < 50
    assert world.hits[0] == QuotaHit(1, "output", 1000, 1)
    world[2].write(b"after", b"")
    assert world[1].events() == [(b"/local/domain/2/after", b"t")]


def test_a_guest_that_hits_a_quota_all_the_time_does_not_fill_the_log() -> None:
    hits: list[QuotaHit] = []
    log = QuotaLog(hits.append)
    for _ in range(5000):
        log.hit(3, "nodes", 1000)
    assert [hit.times for hit in hits] == [1, 10, 100, 1000]
    assert str(hits[1]) == "xenstore: domain 3 is at its quota nodes=1000 (10 times)"
    log.forget(3)
    log.hit(3, "nodes", 1000)
    assert hits[-1].times == 1


def test_without_a_listener_the_records_are_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        QuotaLog().hit(4, "watches", 128)
    assert caplog.messages == ["xenstore: domain 4 is at its quota watches=128"]


def test_an_unread_tool_overflows_and_is_marked_for_it() -> None:
    world = World(1)
    slow = Client(world.server)
    slow.connection._bytes = 16 << 20
    slow.connection.send_event(b"\x0f" + bytes(15) + b"/x\0t\0")
    assert slow.connection.overflowed
