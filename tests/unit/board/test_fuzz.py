"""No device model can be broken by what a guest does: random programs of accesses, and what once broke one.

The same programs as `python -m fuzz` finds under atheris, which knows what code they reach; here they are Hypothesis's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzz
from fuzz.machine import GAP, FuzzMachine
from fuzz.targets import TARGETS, play

CORPUS = Path(fuzz.__file__).with_name("corpus")


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=500))
def test_a_device_stands_whatever_is_done_to_it(name: str, data: bytes) -> None:
    play(name, data)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name[:16]}")
def test_what_once_broke_a_device_does_not_any_more(path: Path) -> None:
    play(path.parent.name, path.read_bytes())


def test_every_target_is_there_to_be_hit() -> None:
    for name, target in TARGETS.items():
        machine = FuzzMachine(target.function)
        target.prepare(machine)
        assert any(machine.claims(target.names)), name
        machine.close()


def test_a_write_beyond_guest_memory_would_be_seen() -> None:
    machine = FuzzMachine()
    machine.memory.ram.view[GAP[0]] = 0
    with pytest.raises(AssertionError, match="left guest memory"):
        machine.check()
    machine.close()
