"""What a machine takes it gives back: descriptors, mappings and threads, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bivisor.errors import UsageError
from bivisor.kvm import End, Outcome, VirtualMachine
from bivisor.platform.virtio.device import VirtioDevice

from .tiny import END, OUT_FOREVER, PATIENCE, SPIN, enter, holdings, plug_everything

CYCLES = 200
WARM_UP = 20  # until the allocator has all of its arenas and the threads' stacks are in their cache


def check(cycle: Callable[[], None], count: int = CYCLES) -> None:
    """`count` times `cycle` leaves nothing behind."""
    for _ in range(WARM_UP):
        cycle()
    before = holdings()
    for _ in range(count):
        cycle()
    assert holdings() == before


def test_many_machines_leave_nothing_behind(engine: str, tmp_path: Path) -> None:
    def cycle() -> None:
        with VirtualMachine(engine=engine) as vm:
            plug_everything(vm, tmp_path)
            enter(vm, END)
            vm.start()
            assert vm.wait(PATIENCE) == Outcome(End.EXIT_STATUS, 5)

    check(cycle)


def test_machines_that_never_ran_leave_nothing_behind(engine: str, tmp_path: Path) -> None:
    def cycle() -> None:
        with VirtualMachine(engine=engine) as vm:
            plug_everything(vm, tmp_path)

    check(cycle, 50)


def test_machines_that_are_stopped_leave_nothing_behind(engine: str, tmp_path: Path) -> None:
    def cycle() -> None:
        with VirtualMachine(engine=engine) as vm:
            plug_everything(vm, tmp_path)
            enter(vm, SPIN)
            vm.start()
            assert vm.wait(0.001) is None

    check(cycle, 50)


class Broken:
    """A port whose device has a defect."""

    def read(self, offset: int, size: int) -> int:
        raise LookupError("a defect in a device")

    def write(self, offset: int, size: int, value: int) -> None:
        self.read(offset, size)


def test_a_device_that_raises_ends_its_machine_which_leaves_nothing_behind(engine: str, tmp_path: Path) -> None:
    def cycle() -> None:
        with pytest.raises(LookupError, match="a defect"), VirtualMachine(engine=engine) as vm:
            plug_everything(vm, tmp_path)
            vm.ports.attach(0x80, 1, Broken())
            enter(vm, OUT_FOREVER)
            vm.start()
            vm.wait(PATIENCE)

    check(cycle, 50)


def test_a_callback_of_the_loop_that_raises_does_the_same(engine: str, tmp_path: Path) -> None:
    def cycle() -> None:
        with pytest.raises(LookupError), VirtualMachine(engine=engine) as vm:
            plug_everything(vm, tmp_path)
            enter(vm, SPIN)
            vm.loop.call_at(0.0, lambda: Broken().write(0, 1, 0))
            vm.start()
            vm.wait(PATIENCE)

    check(cycle, 50)


def test_a_device_that_cannot_even_be_closed_takes_nothing_else_with_it(engine: str, tmp_path: Path) -> None:
    class Unclosable(VirtioDevice):
        def close(self) -> None:
            raise LookupError("a defect in close()")

    def cycle() -> None:
        with pytest.raises(LookupError, match="a defect"), VirtualMachine(engine=engine) as vm:
            vm.add(Unclosable(0, [8]))
            plug_everything(vm, tmp_path)
            enter(vm, END)
            vm.start()
            assert vm.wait(PATIENCE) == Outcome(End.EXIT_STATUS, 5)

    check(cycle, 50)


@pytest.mark.parametrize("impossible", [{"debug_exit_port": 1 << 16}, {"cpus": 0}, {"memory": 0}], ids=str)
def test_a_machine_that_cannot_be_built_leaves_nothing_behind(engine: str, impossible: dict[str, int]) -> None:
    def cycle() -> None:
        with pytest.raises(UsageError):
            VirtualMachine(engine=engine, **impossible)  # type: ignore[arg-type]

    check(cycle, 50)


def test_ctrl_c_while_waiting_leaves_nothing_behind(engine: str, tmp_path: Path) -> None:
    def cycle() -> None:
        with pytest.raises(KeyboardInterrupt), VirtualMachine(engine=engine) as vm:
            plug_everything(vm, tmp_path)
            enter(vm, OUT_FOREVER)
            vm.start()
            timer = threading.Timer(0.005, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
            timer.start()
            try:
                vm.wait(PATIENCE)
            finally:
                timer.join()

    check(cycle, 50)


_CHILD = """
import sys
from pathlib import Path
from bivisor.kvm import VirtualMachine
from machine.tiny import *
def run(stop):
    with VirtualMachine(engine=sys.argv[1]) as vm:
        plug_everything(vm, Path(sys.argv[2]))
        enter(vm, OUT_FOREVER)
        vm.start()
        if stop:
            vm.wait(0.02)
            return
        print("running", flush=True)
        vm.wait()
for _ in range(20):
    run(True)
before = holdings()
try:
    run(False)
except KeyboardInterrupt:
    print(holdings() == before, before, holdings(), flush=True)
"""


def test_a_process_that_is_interrupted_gives_all_back_and_ends(engine: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, engine, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "running\n"
            child.send_signal(signal.SIGINT)
            output, _ = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
    assert output.startswith("True"), output
    assert child.returncode == 0
