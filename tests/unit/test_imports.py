"""The rooms of the house and who may enter which: imports run downward only, and there is no circle.

`bivisor.errors` is for everyone. `host` is a side room: it knows `abi` and `errors` alone, devices know of it only its
loop (a protocol that they are given an object of), and only a toolstack opens the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bivisor

SOURCE = Path(bivisor.__file__).parent

MAY_IMPORT = {
    "abi": set[str](),
    "errors": set[str](),
    "events": set[str](),
    "memory": {"abi"},
    "cpu": {"abi", "memory", "events"},
    "host": {"abi"},
    "image": set[str](),
    "boot": {"abi", "memory", "cpu"},
    "platform": {"events", "abi", "memory", "cpu", "host.loop"},
    "debug": {"abi", "memory", "cpu"},
    "vnc": {"abi"},
    "kvm": {"events", "abi", "memory", "cpu", "host.loop", "boot", "platform"},
    "xen": {"events", "abi", "memory", "cpu", "host.loop", "boot", "platform"},
    "dom0": {"events", "abi", "memory", "host.loop", "platform", "xen"},
    "toolstack": {
        "events",
        "abi",
        "memory",
        "cpu",
        "host",
        "boot",
        "platform",
        "kvm",
        "xen",
        "dom0",
        "debug",
        "image",
        "vnc",
    },
    "web": {"host", "toolstack", "vnc"},
    "testing": {"events", "toolstack"},
    "aio": {"abi", "cpu", "toolstack"},
    "cli": {"events", "cpu", "boot", "image", "toolstack", "web"},
}
"""Each room, and the rooms or single modules of other rooms that it may import. `errors` goes without saying."""

FACES = {"__init__", "__main__"}


@dataclass(frozen=True)
class Import:
    """`importer` imports `module`, both without `bivisor.`. `is_for_types`: under TYPE_CHECKING, never carried out."""

    importer: str
    module: str
    is_for_types: bool

    def __str__(self) -> str:
        return f"bivisor.{self.importer} imports bivisor.{self.module}"


def modules() -> dict[str, Path]:
    """Every module of the package by its name without `bivisor.`; a package goes by its own name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(importer: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[importer].read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {id(node) for guard in guards for node in ast.walk(guard)}
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(level=level) if level:
                raise AssertionError(f"bivisor.{importer} has a relative import: write it out")
            case ast.ImportFrom(module=str(module), names=names):
                imported = [f"{module}.{name.name}" for name in names]
            case ast.Import(names=names):
                imported = [name.name for name in names]
            case _:
                continue
        for name in imported:
            package, _, rest = name.partition(".")
            while package == "bivisor" and rest and rest not in MODULES:
                rest = rest.rpartition(".")[0]
            if package == "bivisor" and rest:
                yield Import(importer, rest, id(node) in for_types)


IMPORTS = [each for importer in MODULES for each in imports_of(importer)]


def room(module: str) -> str:
    return module.partition(".")[0]


def is_allowed(each: Import) -> bool:
    here, there = room(each.importer), room(each.module)
    return there in (here, "errors") or there in MAY_IMPORT[here] or each.module in MAY_IMPORT[here]


def test_every_room_is_in_the_plan() -> None:
    assert {room(module) for module in MODULES} - FACES <= MAY_IMPORT.keys()


def test_imports_run_downward_only() -> None:
    upward = [str(each) for each in IMPORTS if room(each.importer) not in FACES and not is_allowed(each)]
    assert not upward


def test_there_is_no_circle_among_rooms() -> None:
    graph = {here: {room(there) for there in there_} for here, there_ in MAY_IMPORT.items()}
    assert circle(graph) is None


def test_there_is_no_circle_among_modules() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in IMPORTS:
        if not each.is_for_types:
            graph[each.importer].add(each.module)
    assert circle(graph) is None


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]


@pytest.mark.parametrize("hypervisor", ["kvm", "xen"])
def test_nothing_below_a_toolstack_names_a_hypervisor(hypervisor: str) -> None:
    users = {room(each.importer) for each in IMPORTS if room(each.module) == hypervisor}
    assert users <= {hypervisor, "dom0", "toolstack", *FACES}


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle of `graph` (node to nodes), or None."""
    done: set[str] = set()

    def search(path: list[str]) -> list[str] | None:
        for following in sorted(graph.get(path[-1], ())):
            if following in path:
                return [*path[path.index(following) :], following]
            if following not in done and (found := search([*path, following])):
                return found
        done.add(path[-1])
        return None

    return next((found for node in sorted(graph) if (found := search([node]))), None)
