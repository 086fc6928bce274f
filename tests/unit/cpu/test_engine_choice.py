"""Which engine `auto` takes, and the sentence that says why."""

from __future__ import annotations

import subprocess
import sys
from typing import cast

import pytest

from bivisor.cpu.contract import Engine
from bivisor.cpu.select import open_engine
from bivisor.errors import EngineError, HostError, UsageError


class FakeEngine:
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def close(self) -> None:
        self.closed = True


def fake(name: str) -> Engine:
    return cast("Engine", FakeEngine(name))


def refuse(text: str) -> Engine:
    raise HostError(text)


def test_a_fast_device_is_taken() -> None:
    engine, why = open_engine(kvm=lambda: fake("kvm"), soft=lambda: fake("soft"), speed=lambda engine: 2e9)
    assert engine.name == "kvm"
    assert why == "kvm: /dev/kvm runs CPL0 code at 2,000 million instructions/s"


def test_an_interpreting_device_is_closed_and_soft_is_taken() -> None:
    device = FakeEngine("kvm")
    engine, why = open_engine(kvm=lambda: cast("Engine", device), soft=lambda: fake("soft"), speed=lambda engine: 1.7e6)
    assert engine.name == "soft"
    assert device.closed
    assert why == "soft: /dev/kvm interprets CPL0 code (1.7 million instructions/s)"


def test_without_a_device_soft_is_taken() -> None:
    engine, why = open_engine(kvm=lambda: refuse("/dev/kvm: not there"), soft=lambda: fake("soft"))
    assert (engine.name, why) == ("soft", "soft: /dev/kvm: not there")


def test_a_device_that_runs_nothing_is_closed() -> None:
    device = FakeEngine("kvm")

    def fail(engine: Engine) -> float:
        raise EngineError("KVM_RUN failed")

    engine, why = open_engine(kvm=lambda: cast("Engine", device), soft=lambda: fake("soft"), speed=fail)
    assert engine.name == "soft"
    assert device.closed
    assert "KVM_RUN failed" in why


def test_a_slow_device_is_better_than_nothing() -> None:
    engine, why = open_engine(kvm=lambda: fake("kvm"), soft=lambda: refuse("no unicorn"), speed=lambda engine: 1e6)
    assert engine.name == "kvm"
    assert "no unicorn" in why


def test_without_any_engine_both_reasons_are_told() -> None:
    with pytest.raises(HostError, match=r"not there.*no unicorn"):
        open_engine(kvm=lambda: refuse("not there"), soft=lambda: refuse("no unicorn"))


def test_an_engine_of_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="auto, kvm and soft"):
        open_engine("xen")


def test_what_was_asked_for_is_not_measured() -> None:
    def never(engine: Engine) -> float:
        raise AssertionError

    assert open_engine("kvm", kvm=lambda: fake("kvm"), speed=never)[0].name == "kvm"


@pytest.mark.parametrize(("module", "stranger"), [("bivisor.cpu.kvm", "unicorn"), ("bivisor.cpu.select", "unicorn")])
def test_the_engine_kvm_does_not_import_the_other(module: str, stranger: str) -> None:
    program = f"import sys, {module}; sys.exit({stranger!r} in sys.modules or 'bivisor.cpu.soft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
