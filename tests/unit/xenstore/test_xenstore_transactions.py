from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore_client import Refused, World

from bivisor.abi.xen.xs_wire import MessageType


def test_nobody_sees_a_transaction_before_its_end() -> None:
    tool = World().tool
    tx = tool.begin()
    tool.write(b"/a", b"1", tx)
    assert tool.read(b"/a", tx) == b"1"
    with pytest.raises(Refused, match="ENOENT"):
        tool.read(b"/a")
    tool.commit(tx)
    assert tool.read(b"/a") == b"1"


def test_an_aborted_transaction_leaves_nothing() -> None:
    world = World(1)
    tx = world[1].begin()
    world[1].write(b"a/b", b"1", tx)
    world[1].abort(tx)
    with pytest.raises(Refused, match="ENOENT"):
        world[1].read(b"a")
    with pytest.raises(Refused, match="ENOENT"):
        world[1].read(b"a", tx)
    world.check()


def test_a_node_read_and_then_changed_by_another_is_a_conflict() -> None:
    tool = World().tool
    tool.write(b"/a", b"1")
    tx = tool.begin()
    tool.read(b"/a", tx)
    tool.write(b"/b", b"2", tx)
    tool.write(b"/a", b"other")
    with pytest.raises(Refused, match="EAGAIN"):
        tool.commit(tx)
    with pytest.raises(Refused, match="ENOENT"):
        tool.read(b"/b")


def test_changes_elsewhere_are_no_conflict_and_both_are_kept() -> None:
    tool = World().tool
    for path in (b"/a/x", b"/b/x"):
        tool.write(path, b"0")
    first, second = tool.begin(), tool.begin()
    tool.write(b"/a/x", b"1", first)
    tool.write(b"/b/x", b"2", second)
    tool.commit(first)
    tool.commit(second)
    assert (tool.read(b"/a/x"), tool.read(b"/b/x")) == (b"1", b"2")


def test_a_child_made_beside_what_another_changed_is_kept_and_so_is_the_change() -> None:
    tool = World().tool
    tool.write(b"/a/x/y", b"1")
    tool.write(b"/a/gone", b"1")
    tx = tool.begin()
    tool.write(b"/a/new", b"1", tx)
    tool.rm(b"/a/gone", tx)
    tool.write(b"/a/x/y", b"2")
    tool.write(b"/a/x/z", b"3")
    tool.commit(tx)
    assert tool.ls(b"/a") == [b"x", b"new"]
    assert (tool.read(b"/a/x/y"), tool.read(b"/a/x/z")) == (b"2", b"3")


def test_a_change_beside_a_child_that_another_made_is_kept_and_so_is_the_child() -> None:
    tool = World().tool
    tool.write(b"/a/x/y", b"1")
    tool.write(b"/a/gone", b"1")
    tx = tool.begin()
    tool.write(b"/a/x/y", b"2", tx)
    tool.write(b"/a/new", b"1")
    tool.rm(b"/a/gone")
    tool.commit(tx)
    assert tool.ls(b"/a") == [b"x", b"new"]
    assert tool.read(b"/a/x/y") == b"2"


def test_two_that_make_children_of_the_same_node_conflict() -> None:
    tool = World().tool
    first, second = tool.begin(), tool.begin()
    tool.write(b"/a", b"1", first)
    tool.write(b"/b", b"2", second)
    tool.commit(first)
    with pytest.raises(Refused, match="EAGAIN"):
        tool.commit(second)


def test_a_node_that_was_not_there_and_then_was_made_is_a_conflict() -> None:
    tool = World().tool
    tx = tool.begin()
    with pytest.raises(Refused, match="ENOENT"):
        tool.read(b"/a", tx)
    tool.write(b"/tool/x", b"1", tx)
    tool.write(b"/a", b"other")
    with pytest.raises(Refused, match="EAGAIN"):
        tool.commit(tx)


def test_what_others_did_before_the_first_look_is_no_conflict() -> None:
    tool = World().tool
    tool.write(b"/a", b"1")
    tool.write(b"/b", b"1")
    tx = tool.begin()
    tool.write(b"/b", b"mine", tx)
    tool.write(b"/a", b"other")
    assert tool.read(b"/a", tx) == b"other"
    assert tool.read(b"/b", tx) == b"mine"
    tool.commit(tx)
    assert (tool.read(b"/a"), tool.read(b"/b")) == (b"other", b"mine")


def test_a_long_transaction_may_write_the_same_node_for_ever_and_holds_no_more_for_it() -> None:
    world = World(1)
    tx = world[1].begin()
    for i in range(50):
        world[1].write(b"x", b"%d" % i, tx)
        world[1].chmod(b"x", b"n1", b"r%d" % (i % 10 + 2), tx=tx)
        world[1].rm(b"y", tx)
        world[1].write(b"y/z", b"", tx)
    transaction = world[1].connection.transactions[tx]
    assert len(transaction._changes) == 3
    assert all(len(change.readable_by) < 6 for change in transaction._changes.values())
    world.tool.write(b"/elsewhere", b"")
    world[1].commit(tx)
    assert world[1].read(b"x") == b"49"
    world.check()


def test_a_transaction_of_a_thousand_levels_is_merged() -> None:
    tool = World().tool
    deep = b"/a" * 1000
    tool.write(deep + b"/x", b"1")
    tool.write(deep + b"/y", b"1")
    tx = tool.begin()
    tool.write(deep + b"/x", b"2", tx)
    tool.write(deep + b"/y", b"2")
    tool.commit(tx)
    assert (tool.read(deep + b"/x"), tool.read(deep + b"/y")) == (b"2", b"2")


def test_a_conflict_frees_the_transaction() -> None:
    tool = World().tool
    tx = tool.begin()
    tool.read(b"/", tx)
    tool.write(b"/a", b"1")
    with pytest.raises(Refused, match="EAGAIN"):
        tool.commit(tx)
    with pytest.raises(Refused, match="ENOENT"):
        tool.abort(tx)


def test_what_is_no_end_of_a_transaction_is_refused() -> None:
    tool = World().tool
    tx = tool.begin()
    with pytest.raises(Refused, match="EINVAL"):
        tool.ask(MessageType.TRANSACTION_END, b"X\0", tx)
    with pytest.raises(Refused, match="ENOENT"):
        tool.ask(MessageType.TRANSACTION_END, b"T\0")
    with pytest.raises(Refused, match="EBUSY"):
        tool.ask(MessageType.TRANSACTION_START, b"\0", tx)


def test_numbers_of_transactions_are_not_used_twice_at_a_time() -> None:
    world = World(1)
    world[1].connection._next_transaction = 0xFFFF_FFFF
    assert [world[1].begin() for _ in range(3)] == [0xFFFF_FFFF, 1, 2]


def test_another_s_transaction_cannot_be_named() -> None:
    world = World(1, 2)
    tx = world[1].begin()
    with pytest.raises(Refused, match="ENOENT"):
        world[2].read(b"/", tx)


def test_permissions_are_part_of_a_transaction() -> None:
    world = World(1)
    tx = world[1].begin()
    world[1].write(b"x", b"1", tx)
    world[1].chmod(b"x", b"r1", tx=tx)
    assert world[1].perms(b"x", tx) == [b"r1"]
    world.tool.write(b"/elsewhere", b"")
    world[1].commit(tx)
    assert world.tool.perms(b"/local/domain/1/x") == [b"r1"]
    world.check()


def test_removing_in_a_transaction_conflicts_with_what_is_made_below() -> None:
    tool = World().tool
    tool.write(b"/a/b", b"1")
    tx = tool.begin()
    tool.rm(b"/a", tx)
    tool.write(b"/a/b/c", b"2")
    with pytest.raises(Refused, match="EAGAIN"):
        tool.commit(tx)
    assert tool.read(b"/a/b/c") == b"2"


PATHS = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=3).map(lambda names: b"/" + b"/".join(names))
OPERATIONS = st.tuples(st.sampled_from(["read", "write", "rm", "ls", "chmod"]), PATHS, st.sampled_from([b"1", b"2"]))
ACTIONS = st.one_of(
    st.tuples(st.just("do"), st.integers(0, 3), OPERATIONS),
    st.tuples(st.just("end"), st.integers(1, 3), st.none()),
)
Operation = tuple[str, bytes, bytes]


@dataclass
class Running:
    """A transaction, what it asked, and what it was told."""

    tx: int
    done: list[tuple[Operation, object]] = field(default_factory=list)


def carry_out(world: World, operation: Operation, tx: int) -> object:
    what, path, value = operation
    try:
        match what:
            case "read":
                return world.tool.read(path, tx)
            case "ls":
                return world.tool.ls(path, tx)
            case "write":
                world.tool.write(path, value, tx)
            case "rm":
                world.tool.rm(path, tx)
            case _:
                world.tool.chmod(path, b"r" + value, tx=tx)
    except Refused as refused:
        return str(refused)
    return None


def everything(world: World) -> dict[bytes, tuple[bytes, list[bytes], list[bytes]]]:
    found = {}
    todo = [b"/"]
    while todo:
        path = todo.pop()
        children = world.tool.ls(path)
        found[path] = world.tool.read(path), children, world.tool.perms(path)
        todo += [path.rstrip(b"/") + b"/" + child for child in children]
    return found


@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=60))
def test_what_committed_is_as_if_one_ran_after_the_other(actions: list[tuple[str, int, Operation | None]]) -> None:
    world, serial = World(), World()
    running: dict[int, Running] = {}
    committed: list[list[tuple[Operation, object]]] = []
    for what, slot, operation in actions:
        if operation is not None:
            if slot == 0:
                committed.append([(operation, carry_out(world, operation, 0))])
                continue
            transaction = running.setdefault(
                slot, Running(world.tool.begin()) if slot not in running else running[slot]
            )
            transaction.done.append((operation, carry_out(world, operation, transaction.tx)))
        elif what == "end" and slot in running:
            transaction = running.pop(slot)
            try:
                world.tool.commit(transaction.tx)
            except Refused as refused:
                assert str(refused) == "EAGAIN"
            else:
                committed.append(transaction.done)
    for transaction in running.values():
        world.tool.abort(transaction.tx)
    for done in committed:
        for operation, told in done:
            assert carry_out(serial, operation, 0) == told
    assert everything(world) == everything(serial)
    world.check()


@given(st.lists(st.tuples(st.just("do"), st.just(1), OPERATIONS), min_size=1, max_size=20))
def test_a_transaction_alone_never_conflicts(actions: list[tuple[str, int, Operation]]) -> None:
    world = World()
    tx = world.tool.begin()
    for _, _, operation in actions:
        carry_out(world, operation, tx)
    world.tool.commit(tx)
    world.check()
