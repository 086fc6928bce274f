"""A disk image boots as on a PC: SeaBIOS, GRUB, Linux to a login prompt; and memtest86+, which is no Linux."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.image.disk import build_disk
from bivisor.image.progress import quiet
from bivisor.kvm import End
from bivisor.kvm.vm import MIB

from .pc_person import PATIENCE, Pc, boot

pytestmark = pytest.mark.guest
BLUE = 1


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy: Path = tmp_path_factory.mktemp("pc") / "disk.img"
    shutil.copyfile(build_disk(progress=quiet), copy)
    return copy


@pytest.fixture
def pc(image: Path) -> Iterator[Pc]:
    vm, console = boot(f"{image},if=virtio", memory=128)
    with vm:
        vm.start()
        yield Pc(vm, console)


def assert_timers_and_power_button(pc: Pc) -> None:
    """Linux counts time by the HPET and by the PM timer, and hears of the power button."""
    for source in ("hpet", "acpi_pm"):
        said = pc.run(
            f"cd /sys/devices/system/clocksource/clocksource0; echo {source} > current_clocksource; sleep 0.1; "
            "cat current_clocksource"
        )
        assert f"\n{source}\n" in said
    with pc.vm.loop.lock:
        pc.vm.board.pm.press_power_button()
    assert "\n       1" in pc.run("cat /sys/firmware/acpi/interrupts/ff_pwr_btn")


def test_a_disk_image_boots_to_a_login_prompt_and_obeys_the_keyboard(pc: Pc) -> None:
    pc.says(b"GNU GRUB")
    pc.says(b"bivisor login:")
    assert b"ACPI: parse DSDT" in pc.console.log
    pc.says(b"on /dev/ttyS0")
    pc.vm.send(b"root\n")
    pc.says(b"# ")
    pc.vm.send(b"lsmod | grep -c virtio_blk; mount | grep -o '/dev/vda1 on /'; echo end\n")
    pc.says(b"/dev/vda1 on /\r")
    assert_timers_and_power_button(pc)
    for prompt, words in (("login: ", "root\n"), ("/root # ", "poweroff -f\n")):
        pc.run(f"until grep -q '{prompt}' /dev/vcs1; do sleep 0.1; done")
        pc.sent(words)  # on the screen's own terminal
    outcome = pc.vm.wait(PATIENCE)
    assert outcome is not None
    assert outcome.end is End.POWER_OFF


def test_memtest_runs_from_the_same_image(image: Path) -> None:
    vm, console = boot(f"{image},if=virtio", memory=32)
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
    vm, console = boot(f"{image},if=ide", memory=32)
    with vm:
        pc = Pc(vm, console)
        vm.start()
        pc.says(b"executed automatically")
        pc.keys("end", "ret")
        outcome = vm.wait(PATIENCE)
        assert outcome is not None
        assert outcome.end is End.POWER_OFF
