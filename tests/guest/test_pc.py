"""A disk image boots as on a PC: SeaBIOS, GRUB, Linux to a login prompt; memtest86+ and GNU Mach."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.errors import HostError
from bivisor.image.cache import Cache
from bivisor.image.disk import PARTITION, build_disk
from bivisor.image.firmware import package_files
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
    assert "/dev/vda1 on /\n" in pc.run("lsmod | grep -c virtio_blk; mount | grep -o '/dev/vda1 on /'")
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
        pc.until(lambda: any("Memtest86+" in line for line in pc.screen()))
        assert vm.memory.size == 32 * MIB


def test_gnu_mach_finds_the_machine_and_says_so_on_the_screen(image: Path, tmp_path: Path) -> None:
    """Debian's package of a kernel that is not Linux; without servers it ends where it would start them."""
    try:
        files = package_files(Cache(), ("gnumach-image-1.8-486",), r"boot/gnumach.*", quiet)
    except HostError as error:
        pytest.skip(f"the distribution has no GNU Mach: {error}")
    (packed,) = (files / "boot").iterdir()
    kernel, disk = tmp_path / "gnumach", tmp_path / "disk.img"
    kernel.write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.copyfile(image, disk)
    debugfs = shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin") or "debugfs"
    command = [debugfs, "-w", "-R", f"write {kernel} /boot/gnumach", f"{disk}?offset={PARTITION}"]
    subprocess.run(command, check=True, capture_output=True)
    vm, console = boot(f"{disk},if=ide", memory=64)
    with vm:
        pc = Pc(vm, console)
        vm.start()
        pc.says(b"executed automatically")
        pc.keys("c")
        for words in ("multiboot /boot/gnumach", "boot"):
            pc.until(lambda: pc.screen()[-1:] == ["grub>"])
            pc.sent(f"{words}\n")
        pc.until(lambda: "No bootstrap code loaded" in "".join(pc.screen()))
        said = "\n".join(pc.screen())
    assert "GNU Mach 1.8" in said
    assert "biosmem: 000000000000100000:000000000003fff000, available" in said
    assert "com0: at atbus0, port = 3f8" in said
    assert f"RTC time is {time.gmtime().tm_year}-" in said


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
