"""HVM domains: the disk image that a PC boots from, under Xen, with PV drivers after unplug and without them."""

from __future__ import annotations

import os
import shutil
import threading
from itertools import zip_longest
from pathlib import Path

import pytest

from bivisor.abi.xen.xen import ShutdownReason
from bivisor.dom0.net.wire import Wire
from bivisor.image.disk import build_disk
from bivisor.image.pckernel import pc_guest
from bivisor.image.progress import quiet
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.hvm import HvmDomain
from bivisor.toolstack.xenhost import XenHost
from bivisor.toolstack.xlconfig import read_config

from . import ask_hvm
from .traffic import disks, move

pytestmark = pytest.mark.guest

PATIENCE = 150.0
MIB = 1 << 20
ENGINE = "soft"
"""On `kvm` SeaBIOS and GRUB are carried out one exit at a time in Python, which takes minutes in the rig."""
MAC = ask_hvm.MAC
OTHERWISE = ["lspci: Address: 00000000fee00000", "lspci: 80: 05", "dmidecode: ID: B1"]
"""The message of the SATA controller, which real Xen has the guest take as an event, and the processor's features."""


SIZE = int(os.environ.get("BIVISOR_TRAFFIC_MIB", "32")) * MIB
"""What goes each way by disk and by network. 256 MiB take minutes, so a person asks for them."""
NEEDS_PASST = pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")


def image(folder: Path, **options: object) -> Path:
    """The disk image, made with `options`."""
    copy = folder / "disk.img"
    shutil.copyfile(build_disk(progress=quiet, **options), copy)  # type: ignore[arg-type]
    return copy


class Person:
    """Somebody at the serial console of a domain."""

    def __init__(self, domain: DomU) -> None:
        self.domain = domain

    def log_in(self) -> None:
        self.domain.wait_for("bivisor login:", PATIENCE)
        self.domain.send("root\n")
        self.domain.wait_for("/root # ", PATIENCE)

    def run(self, command: str) -> list[str]:
        """What a command prints, line by line."""
        self.domain.send(f"echo st''art; {command}; echo; echo en''d\n")
        self.domain.wait_for("start\r\n", PATIENCE)
        said = self.domain.wait_for("\r\nend\r\n", PATIENCE).decode(errors="replace")
        self.domain.wait_for("/root # ", PATIENCE)
        return said.removesuffix("\r\nend\r\n").split("\r\n")[:-1] or [said.removesuffix("\r\nend\r\n")]


def create(host: XenHost, *keys: str) -> Person:
    config = read_config(None, ["name=hvm", "type=hvm", "memory=192", 'on_reboot="preserve"', *keys]).config
    return Person(host.create_from(config, feed=Feed()))


def different_from_real_xen(person: Person) -> list[str]:
    """The first words of the lines that are not the same, and how many an answer has more or less."""
    found = []
    for name, expected in ask_hvm.recorded().items():
        said = ask_hvm.lines("\n".join(person.run(ask_hvm.QUESTIONS[name])))
        pairs = zip_longest(said, expected, fillvalue="")
        found += [f"{name}: {' '.join(ours.split()[:2])}" for ours, theirs in pairs if ours != theirs]
    return found


@NEEDS_PASST
def test_pv_drivers_take_over_from_the_emulated_devices_and_move_data(tmp_path: Path) -> None:
    disk, (full, empty) = image(tmp_path), disks(tmp_path, SIZE)
    disc = tmp_path / "disc.iso"
    disc.write_bytes(b"a disc".ljust(4096, b"."))
    with XenHost(ENGINE) as host:
        person = create(
            host,
            f'disk=["{disk},raw,hda,rw", "{full},raw,hdb,ro", "{disc},raw,hdc,cdrom", "{empty},raw,hdd,rw"]',
            f'vif=["mac={MAC},type=user"]',
            "hdtype=ahci",
        )
        domain = person.domain
        person.log_in()
        assert person.run("echo $(ls /sys/block)")[0].split() == ["sr0", "xvda", "xvdb", "xvdd"]
        move(person, "/dev/xvdb", "/dev/xvdd", full, empty)
        assert person.run("echo $(head -c 6 /dev/sr0)") == ["a disc"]
        (driver,) = person.run("readlink /sys/class/net/eth0/device/driver")
        assert driver.endswith("/bus/xen/drivers/vif")
        names = person.run("(cd /sys/class/dmi/id; cat sys_vendor product_name bios_vendor /sys/hypervisor/type)")
        assert names == ["Xen", "HVM domU", "Xen", "xen"]
        functions = person.run("cd /sys/bus/pci/devices; for f in *; do echo $f $(cat $f/vendor $f/device); done; cd")
        assert functions == [  # as on real Xen: the card has gone, and the controllers are there
            "0000:00:00.0 0x8086 0x1237",
            "0000:00:01.0 0x8086 0x7000",
            "0000:00:01.1 0x8086 0x7010",
            "0000:00:01.3 0x8086 0x7113",
            "0000:00:02.0 0x5853 0x0001",
            "0000:00:03.0 0x1234 0x1111",
            "0000:00:05.0 0x8086 0x2922",
        ]
        masters = person.run("sed -n 5p /sys/bus/pci/devices/0000:00:01.1/resource")  # placed again after a reset
        assert masters == ["0x0000000000001000 0x000000000000100f 0x0000000000040101"]
        built = domain._built
        assert isinstance(built, HvmDomain) and built.board is not None
        with host.loop.lock:
            frame = built.board.vga.frame()
        assert (frame.width, frame.height) == (720, 400) and any(frame.pixels)
        assert any(b"(d1) Booting from Hard Disk" in line for line in bytes(host.xen.log).splitlines())
        domain.shutdown()
        assert domain.wait(PATIENCE) is ShutdownReason.POWEROFF
        assert host.error is None


@NEEDS_PASST
def test_the_emulated_devices_stay_where_the_guest_wants_them_and_move_data(tmp_path: Path) -> None:
    """With a kernel that has drivers of hardware, for which lspci, dmidecode and the ACPI tables say what they say on
    real Xen. What it writes to its devices' ports in the end harms nobody else."""
    disk = image(tmp_path, guest=pc_guest(quiet), words=ask_hvm.WORDS, packages=ask_hvm.PACKAGES)
    full, empty = disks(tmp_path, SIZE)
    with XenHost(ENGINE) as host:
        drives = f'disk=["{disk},raw,xvda,rw", "{full},raw,xvdb,ro", "{empty},raw,xvdc,rw"]'
        facts = (f"memory={ask_hvm.RAM_MIB}", f'uuid="{ask_hvm.UUID}"')
        person = create(host, "hdtype=ahci", drives, f'vif=["mac={MAC},type=user"]', *facts)
        domain = person.domain
        person.log_in()
        assert different_from_real_xen(person) == OTHERWISE
        assert person.run("echo $(ls /sys/block)")[0].split() == ["sda", "sdb", "sdc"]
        # libata may find them in any order
        find = "echo $(for id in 2 3; do grep -l BV0000$id /sys/block/sd?/device/vpd_pg80 | cut -d/ -f4; done)"
        source, target = person.run(find)[0].split()
        move(person, f"/dev/{source}", f"/dev/{target}", full, empty)
        assert person.run("grep -c ahci /proc/interrupts") == ["1"]
        written = person.run("dd if=/dev/zero of=/root/x bs=1M count=8 2>/dev/null; sync; wc -c </root/x")
        assert written == [str(8 << 20)]
        (driver,) = person.run("readlink /sys/class/net/eth0/device/driver")
        assert driver.endswith("/bus/pci/drivers/e1000")
        with host.loop.lock:
            network = host.networks.bridge(f"vif{domain.domid}.0")
            assert isinstance(network.where(bytes.fromhex(MAC.replace(":", ""))), Wire)
        # Not at 0xb000, where the registers of power management are: one byte in 16 would turn the machine off.
        person.run("dd if=/dev/urandom of=/dev/port bs=1 seek=45312 count=19744 2>/dev/null")
        domain.send("echo b >/proc/sysrq-trigger\n")
        assert domain.wait(PATIENCE) is ShutdownReason.REBOOT
        assert domain.error is None and host.error is None


def test_a_destroyed_domain_gives_everything_back(tmp_path: Path) -> None:
    disk, disc = tmp_path / "disk.img", tmp_path / "disc.iso"
    disk.write_bytes(bytes(1 << 20))
    disc.write_bytes(bytes(4096))
    drives = f'disk=["{disk},raw,hda,rw", "{disc},raw,hdc,cdrom"]'
    config = read_config(None, ["name=hvm", "type=hvm", "memory=32", drives, 'vif=[""]']).config
    with XenHost(ENGINE) as host:
        left = []
        for _ in range(3):
            host.create_from(config, feed=Feed(), paused=True).destroy()
            left.append((len(list(Path("/proc/self/fd").iterdir())), threading.active_count()))
        assert left[1] == left[2]
