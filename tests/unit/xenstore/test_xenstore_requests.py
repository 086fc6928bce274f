from __future__ import annotations

import pytest
from xenstore_client import Refused, World

from bivisor.abi.xen.xs_wire import XENSTORE_PAYLOAD_MAX, MessageType


def test_what_was_written_is_read() -> None:
    tool = World().tool
    tool.write(b"/a/b", b"any\0bytes\xff")
    assert tool.read(b"/a/b") == b"any\0bytes\xff"
    assert tool.read(b"/a") == b""


def test_a_new_store_has_what_xenstored_makes() -> None:
    tool = World().tool
    assert tool.ls(b"/") == [b"tool"]
    assert tool.ls(b"/tool") == [b"xenstored"]
    assert tool.perms(b"/tool/xenstored") == [b"n0"]


def test_a_tool_s_relative_paths_are_dom0_s() -> None:
    tool = World().tool
    tool.write(b"name", b"Domain-0")
    assert tool.read(b"/local/domain/0/name") == b"Domain-0"


def test_children_are_listed_in_the_order_of_their_creation() -> None:
    tool = World().tool
    for name in (b"c", b"a", b"b"):
        tool.write(b"/x/" + name, b"")
    tool.write(b"/x/c", b"again")
    assert tool.ls(b"/x") == [b"c", b"a", b"b"]


def test_mkdir_leaves_a_value_alone() -> None:
    tool = World().tool
    tool.write(b"/a", b"1")
    tool.mkdir(b"/a")
    assert tool.read(b"/a") == b"1"


def test_removing_takes_what_is_below_and_may_be_done_again_while_the_parent_is_there() -> None:
    tool = World().tool
    tool.write(b"/a/b/c", b"1")
    tool.rm(b"/a/b")
    tool.rm(b"/a/b")
    with pytest.raises(Refused, match="ENOENT"):
        tool.read(b"/a/b/c")
    with pytest.raises(Refused, match="ENOENT"):
        tool.rm(b"/a/b/c")
    with pytest.raises(Refused, match="EINVAL"):
        tool.rm(b"/")


def test_a_path_as_deep_as_can_be_is_made_watched_and_removed() -> None:
    world = World()
    deep = b"/a" * 1024
    world.tool.watch(deep)
    world.tool.write(deep, b"x")
    assert world.tool.read(deep) == b"x"
    world.tool.rm(b"/a")
    assert world.tool.events() == [(deep, b"t")] * 3
    world.check()


def test_a_long_directory_comes_in_parts_of_one_generation() -> None:
    tool = World().tool
    names = [b"child-%04d" % i for i in range(1000)]
    for name in names:
        tool.write(b"/d/" + name, b"")
    with pytest.raises(Refused, match="E2BIG"):
        tool.ls(b"/d")
    generations, listed, parts = set(), b"", 0
    while True:
        answer = tool.ask(MessageType.DIRECTORY_PART, b"/d\0%d\0" % len(listed))
        assert len(answer) <= XENSTORE_PAYLOAD_MAX
        generation, _, part = answer.partition(b"\0")
        generations.add(generation)
        parts += 1
        is_last = part.endswith(b"\0\0") or part == b"\0"
        listed += part[:-1] if is_last else part
        if is_last:
            break
    assert listed.split(b"\0")[:-1] == names
    assert len(generations) == 1
    assert parts > 2
    tool.write(b"/d/one-more", b"")
    assert tool.ask(MessageType.DIRECTORY_PART, b"/d\0000\0").partition(b"\0")[0] not in generations


def test_a_part_beyond_the_end_is_the_end() -> None:
    tool = World().tool
    assert tool.ask(MessageType.DIRECTORY_PART, b"/tool\0999\0").endswith(b"\0\0")


@pytest.mark.parametrize("type_", [MessageType.WATCH_EVENT, MessageType.ERROR, 20, 23, 0xFFFF, 0xFFFF_FFFF])
def test_what_is_no_request_is_enosys(type_: int) -> None:
    with pytest.raises(Refused, match="ENOSYS"):
        World().tool.ask(type_, b"/\0")


def test_a_transaction_that_is_not_open_is_enoent() -> None:
    with pytest.raises(Refused, match="ENOENT"):
        World().tool.read(b"/", tx=5)


def test_a_watch_cares_for_no_transaction() -> None:
    assert World().tool.ask(MessageType.WATCH, b"/\0t\0", tx=5) == b"OK\0"


@pytest.mark.parametrize(
    "type_",
    [
        MessageType.CONTROL,
        MessageType.INTRODUCE,
        MessageType.RELEASE,
        MessageType.IS_DOMAIN_INTRODUCED,
        MessageType.RESUME,
        MessageType.SET_TARGET,
    ],
)
def test_a_domain_may_not_do_what_is_dom0_s(type_: MessageType) -> None:
    with pytest.raises(Refused, match="EACCES"):
        World(1)[1].ask(type_, b"1\0001\0001\0")


def test_control_answers_and_refuses() -> None:
    world = World(3)
    assert b"quota" in world.tool.control(b"help").split(b"\n")
    assert b"transaction-nodes:" in world.tool.control(b"quota")
    assert b"Domain 3:\nnodes           :        1\n" in world.tool.control(b"quota", b"3")
    world.tool.control(b"quota", b"set", b"nodes", b"5")
    assert world.server.quotas.nodes == 5
    assert b"nodes: " in world.tool.control(b"memreport")
    for words in ((), (b"no-such",), (b"quota", b"set", b"no-such", b"1"), (b"quota", b"x"), (b"print",)):
        with pytest.raises(Refused, match="EINVAL"):
            world.tool.control(*words)
