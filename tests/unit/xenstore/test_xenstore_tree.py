from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from xenstore_client import Refused, World

from bivisor.dom0.xenstore import tree
from bivisor.dom0.xenstore.path import ROOT, Path

Model = dict[tuple[bytes, ...], bytes]

PATHS = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=4).map(tuple)
STEPS = st.lists(st.tuples(st.sampled_from(["write", "mkdir", "rm"]), PATHS, st.binary(max_size=3)), max_size=40)


def carry_out(model: Model, what: str, path: tuple[bytes, ...], value: bytes) -> str | None:
    """What the store is to do, on a flat dictionary; the error, if there is one."""
    if what == "rm":
        if path not in model:
            return None if path[:-1] in model else "ENOENT"
        for below in [each for each in model if each[: len(path)] == path]:
            del model[below]
        return None
    for depth in range(1, len(path)):
        model.setdefault(path[:depth], b"")
    if what == "write":
        model[path] = value
    else:
        model.setdefault(path, b"")
    return None


@given(STEPS)
def test_the_tree_does_as_a_flat_dictionary_does(steps: list[tuple[str, tuple[bytes, ...], bytes]]) -> None:
    world = World()
    world.tool.rm(b"/tool")
    model: Model = {(): b""}
    for what, path, value in steps:
        before = world.server.store.root
        snapshot = contents(before)
        error = None
        wire = Path(path).wire
        try:
            match what:
                case "write":
                    world.tool.write(wire, value)
                case "mkdir":
                    world.tool.mkdir(wire)
                case _:
                    world.tool.rm(wire)
        except Refused as refused:
            error = str(refused)
        assert error == carry_out(model, what, path, value)
        assert contents(world.server.store.root) == model
        assert contents(before) == snapshot, "an earlier tree has changed"
    world.check()


def contents(root: tree.Node) -> Model:
    return {tuple(path): node.value for path, node in tree.walk(root, ROOT)}


@given(STEPS)
def test_a_node_has_a_new_generation_if_and_only_if_it_was_changed(
    steps: list[tuple[str, tuple[bytes, ...], bytes]],
) -> None:
    world = World()
    for what, path, value in steps:
        before = {tuple(path): node for path, node in tree.walk(world.server.store.root, ROOT)}
        wire = Path(path).wire
        try:
            if what == "rm":
                world.tool.rm(wire)
            else:
                world.tool.write(wire, value)
        except Refused:
            pass
        for here, node in tree.walk(world.server.store.root, ROOT):
            old = before.get(tuple(here))
            written = what != "rm" and tuple(here) == path
            same = old is not None and node.names == old.names and not written
            assert same == (old is not None and node.generation == old.generation)


def test_a_walk_gives_children_before_their_parents() -> None:
    world = World()
    world.tool.write(b"/x/y/z", b"")
    assert [str(path) for path, _ in tree.walk(world.server.store.root, ROOT)] == [
        "/tool/xenstored",
        "/tool",
        "/x/y/z",
        "/x/y",
        "/x",
        "/",
    ]
