"""Images of a PC: one with packages, as a qcow2 file that is not changed, looked at and typed at by VNC; and a disc."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bivisor.image.cache import Cache
from bivisor.image.disk import build_disk
from bivisor.image.firmware import package_files
from bivisor.image.progress import quiet
from bivisor.kvm import End
from bivisor.kvm.firmware import FirmwareMachine
from bivisor.toolstack.options import RunOptions
from bivisor.toolstack.pc import launch_pc
from bivisor.toolstack.screen import Display
from bivisor.toolstack.vnc import VncOption, VncServer, listen

from .pc_person import PATIENCE, Console, Pc, boot

pytestmark = pytest.mark.guest
QemuImg = Callable[..., str]


class Viewer:
    """As much of a VNC client as typing takes."""

    def __init__(self, port: int) -> None:
        self.end = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.end.sendall(b"RFB 003.008\n\1\1")
        greeting = b""
        while len(greeting) < 12 + 2 + 4 + 24:
            greeting += self.end.recv(1000)
        self.size = struct.unpack_from(">HH", greeting, 18)

    def type(self, text: str) -> None:
        for character in text:
            keysym = 0xFF0D if character == "\n" else ord(character)
            self.end.sendall(struct.pack(">BBxxI", 4, 1, keysym) + struct.pack(">BBxxI", 4, 0, keysym))


def screen_of(vm: FirmwareMachine) -> bytes:
    """The characters on a screen of text."""
    with vm.loop.lock:
        return bytes(vm.board.vga.text_view()[::2])


def test_a_qcow2_image_with_packages_boots_is_typed_at_by_vnc_and_stays_as_it_was(
    tmp_path: Path, qemu_img: QemuImg
) -> None:
    base, disk = build_disk(progress=quiet, packages=("dmidecode", "pciutils")), tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", disk)
    before = disk.read_bytes()
    display = Display()
    vm, console = boot(f"{disk},if=virtio,format=qcow2,snapshot", memory=192)
    with vm, VncServer(display, display, listen(VncOption("127.0.0.1", 0))) as server:
        pc = Pc(vm, console)
        display.plug_in(vm.board.vga, vm.board.ps2, vm.loop)
        vm.start()
        pc.says(b"on /dev/ttyS0")
        pc.says(b"bivisor login:")
        vm.send(b"root\n")
        pc.says(b"# ")
        said = pc.run("lspci -n | grep -c 1af4:; dmidecode -s system-manufacturer; echo changed >/root/it; sync")
        viewer = Viewer(server.port)
        assert viewer.size == display.look().size == (720, 400)
        pc.until(lambda: b"login: " in screen_of(vm))
        viewer.type("root\n")
        pc.until(lambda: b"/root # " in screen_of(vm))
        viewer.type("echo By_VNC: >/dev/ttyS0; cat /root/it >/dev/ttyS0; poweroff -f\n")
        outcome = vm.wait(PATIENCE)
        assert outcome is not None, bytes(console.text[-800:])
        display.unplug()
        viewer.end.close()
    assert outcome.end is End.POWER_OFF
    assert "\n2\nBivisor\n" in said
    assert b"By_VNC:\r\nchanged\r\n" in console.text
    assert disk.read_bytes() == before


def test_a_disc_boots_behind_a_disk_that_does_not(tmp_path: Path) -> None:
    files = package_files(Cache(), ("grub-rescue-pc",), r"lib/grub-rescue/grub-rescue-cdrom\.iso", quiet)
    empty = tmp_path / "empty.img"
    with empty.open("wb") as file:
        file.truncate(1 << 20)
    disc = files / "lib/grub-rescue/grub-rescue-cdrom.iso"
    options = RunOptions.of(machine="pc", disks=[str(empty)], cdroms=[disc], engine="soft", memory=64)
    console = Console()
    vm = launch_pc(options, console, log=console.log.extend)
    with vm:
        pc = Pc(vm, console)
        vm.start()
        pc.until(lambda: b"Booting from DVD/CD" in console.log)

        pc.until(lambda: b"GNU GRUB  version" in screen_of(vm))


COUNTS_ITS_STARTS = bytes.fromhex(
    "31c0 8ed8 8ec0"  # ds = es = 0
    "bb007e b80102 b90200 30f6 cd13"  # read the second sector to 0000:7e00
    "fe06007e b80103 cd13"  # one more, and write it back
    "803e007e03 7307"  # less than three:
    "b0fe e664 f4 ebfd"  # reset by the keyboard controller
    "a0007e e6f4 ebfe"  # otherwise end with that status
)


def test_what_a_pc_wrote_with_snapshot_outlives_its_resets_and_not_the_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(COUNTS_ITS_STARTS.ljust(510, b"\0") + b"\x55\xaa" + bytes(2 << 20))  # some cylinders
    before = disk.read_bytes()
    words = ["run", "--machine", "pc", "--engine", "soft", "--memory", "16", "--snapshot", "--vnc", "auto"]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "bivisor", *words, "--disk", str(disk)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 3, done
        assert done.stderr.startswith("bivisor: VNC at 127.0.0.1:")
        assert disk.read_bytes() == before
