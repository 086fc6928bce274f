"""A disk image boots as on a PC: SeaBIOS, GRUB, Linux to a login prompt; and memtest86+, which is no Linux."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bivisor.image.disk import build_disk
from bivisor.image.progress import quiet
from bivisor.kvm import End
from bivisor.kvm.firmware import FirmwareMachine
from bivisor.kvm.vm import MIB
from bivisor.toolstack.options import RunOptions
from bivisor.toolstack.pc import launch_pc
from bivisor.toolstack.screen import press, type_text

pytestmark = pytest.mark.guest
PATIENCE = 120.0
BLUE = 1


class Console:
    """What the guest says on COM1 and in its firmware's log."""

    command: str | None = None

    def __init__(self) -> None:
        self.text = bytearray()
        self.log = bytearray()

    def com1(self, data: bytes) -> None:
        self.text += data

    def words(self) -> str:
        return ""

    def connect(self, vm: object) -> None:
        pass

    def drain(self, vm: object) -> None:
        pass


class Pc:
    def __init__(self, vm: FirmwareMachine, console: Console) -> None:
        self.vm, self.console = vm, console

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.vm.wait(0.02) is None, bytes(self.console.text[-800:])
            assert time.monotonic() < deadline, bytes(self.console.text[-800:] + self.console.log[-800:])

    def says(self, words: bytes) -> None:
        self.until(lambda: words in self.console.text)

    def keys(self, *words: str) -> None:
        with self.vm.loop.lock:
            press(self.vm.board.ps2.keyboard, words)

    def sent(self, text: str) -> None:
        for character in text:
            self.until(lambda: not self.vm.board.ps2.keyboard.queue)
            with self.vm.loop.lock:
                type_text(self.vm.board.ps2.keyboard, character)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy: Path = tmp_path_factory.mktemp("pc") / "disk.img"
    shutil.copyfile(build_disk(progress=quiet), copy)
    return copy


def boot(disk: str, memory: int) -> tuple[FirmwareMachine, Console]:
    console = Console()
    options = RunOptions.of(machine="pc", disks=[disk], engine="soft", memory=memory)
    return launch_pc(options, console, log=console.log.extend), console


@pytest.fixture
def pc(image: Path) -> Iterator[Pc]:
    vm, console = boot(f"{image},if=virtio", 128)
    with vm:
        vm.start()
        yield Pc(vm, console)


def test_a_disk_image_boots_to_a_login_prompt_and_obeys_the_keyboard(pc: Pc) -> None:
    pc.says(b"GNU GRUB")
    pc.says(b"bivisor login:")
    assert b"ACPI: parse DSDT" in pc.console.log
    pc.says(b"on /dev/ttyS0")
    pc.vm.send(b"root\n")
    pc.says(b"# ")
    pc.vm.send(b"lsmod | grep -c virtio_blk; mount | grep -o '/dev/vda1 on /'; echo end\n")
    pc.says(b"/dev/vda1 on /\r")
    pc.sent("root\npoweroff -f\n")  # on the screen's own terminal
    outcome = pc.vm.wait(PATIENCE)
    assert outcome is not None
    assert outcome.end is End.POWER_OFF


def test_memtest_runs_from_the_same_image(image: Path) -> None:
    vm, console = boot(f"{image},if=virtio", 32)
    with vm:
        pc = Pc(vm, console)
        vm.start()
        pc.says(b"executed automatically")
        pc.keys("down", "down", "ret")

        def is_blue() -> bool:
            with vm.loop.lock:
                frame = vm.board.vga.frame()
            return frame.width == 720 and frame.pixels.count(BLUE) > 100_000

        pc.until(is_blue)
        assert vm.memory.size == 32 * MIB


def test_the_boot_menu_is_reached_from_an_ide_disk_and_powers_off(image: Path) -> None:
    vm, console = boot(f"{image},if=ide", 32)
    with vm:
        pc = Pc(vm, console)
        vm.start()
        pc.says(b"executed automatically")
        pc.keys("end", "ret")
        outcome = vm.wait(PATIENCE)
        assert outcome is not None
        assert outcome.end is End.POWER_OFF
