"""A PC boots from UEFI firmware: GRUB of its system partition, a kernel that is handed over; its variables stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bivisor.errors import HostError
from bivisor.image.default import default_guest
from bivisor.image.disk import build_disk
from bivisor.image.firmware import ovmf
from bivisor.image.progress import quiet
from bivisor.kvm import End
from bivisor.toolstack.options import RunOptions
from bivisor.toolstack.pc import launch_pc

from .pc_person import PATIENCE, Console, Pc

pytestmark = pytest.mark.guest
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE
EFIVARS = "/sys/firmware/efi/efivars"


@pytest.fixture(scope="module", autouse=True)
def _firmware() -> None:
    try:
        ovmf(progress=quiet)
    except HostError as error:
        pytest.skip(f"the distribution has no OVMF: {error}")


def uefi(**words: object) -> Pc:
    """A PC with UEFI that is not started yet."""
    console = Console()
    options = RunOptions.of(machine="pc", engine="soft", firmware="uefi", memory=256, **words)  # type: ignore[arg-type]
    return Pc(launch_pc(options, console, log=console.log.extend), console)


def test_linux_boots_from_the_system_partition_and_the_next_boot_does_what_it_has_asked_for(tmp_path: Path) -> None:
    disk, variables = tmp_path / "disk.img", tmp_path / "vars.fd"
    shutil.copyfile(build_disk(progress=quiet), disk)
    words = {"disks": [f"{disk},if=virtio"], "firmware_vars": variables}
    pc = uefi(**words)
    with pc.vm as vm:
        vm.start()
        pc.says(b"GNU GRUB")
        pc.says(b"executed automatically")
        vm.send(b"\r")
        pc.says(b"bivisor login:")
        vm.send(b"root\n")
        pc.says(b"# ")
        assert "\n64\n" in pc.run("cat /sys/firmware/efi/fw_platform_size")
        assert "EFI VGA" in pc.run("dmesg | grep fb0")
        assert "IO-APIC" in pc.run("grep acpi /proc/interrupts")
        # Boot0000 is the firmware's own menu
        assert "Boot0000" in pc.run(f"printf '\\7\\0\\0\\0\\0\\0' > {EFIVARS}/BootNext-{GLOBAL}; ls {EFIVARS}")
        vm.send(b"poweroff -f\n")
        outcome = vm.wait(PATIENCE)
        assert outcome is not None
        assert outcome.end is End.POWER_OFF
    assert "BootNext".encode("utf-16-le") in variables.read_bytes()
    pc = uefi(**words)
    with pc.vm as vm:
        vm.start()
        pc.says(b"Boot Maintenance Manager")
        assert b"GRUB" not in pc.console.text

        def has_the_menu() -> bool:
            with vm.loop.lock:
                frame = pc.vm.board.vga.frame()
            return (frame.width, frame.height) == (640, 480) and len(set(frame.pixels)) > 1

        pc.until(has_the_menu)


def test_uefi_starts_a_kernel_that_is_handed_over() -> None:
    guest = default_guest(quiet)
    pc = uefi(kernel=guest.kernel, initrd=guest.initrd, append="console=ttyS0 panic=-1")
    with pc.vm as vm:
        vm.start()
        pc.says(b"~ # ")
        said = pc.run("cat /proc/cmdline; dmesg | grep 'efi: EFI'")
        assert "console=ttyS0 panic=-1" in said
        assert "by EDK II" in said
