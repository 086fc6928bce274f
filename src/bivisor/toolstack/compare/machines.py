"""The six ways of running the one guest, each with the same disk and the same peer on its network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivisor.cpu.contract import Engine
from bivisor.events import Events
from bivisor.host.disk import Disk
from bivisor.host.memstream import MemoryStream
from bivisor.image import Guest, quiet
from bivisor.image.disk import build_disk
from bivisor.image.firmware import seabios
from bivisor.kvm import VirtualMachine
from bivisor.kvm.firmware import Firmware, FirmwareMachine, PcSettings
from bivisor.platform.e1000 import E1000
from bivisor.platform.ide import AtaDisk
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.platform.virtio.net import VirtioNet
from bivisor.toolstack.compare.console import Console
from bivisor.toolstack.compare.peer import GUEST_MAC, Peer
from bivisor.toolstack.compare.workload import DISK_BYTES, SENT_BYTES
from bivisor.toolstack.xenhost import DEFAULT_CMDLINE, XenHost

MEMORY = 256
MIB = 1 << 20
BRIDGE = "compare"
WORDS = "quiet panic=-1"
_PC_WORDS = "panic=-1"
_NO_UNPLUG = "xen_emul_unplug=never"
"""Linux, Documentation/admin-guide/kernel-parameters.txt: keep emulated devices, and do without Xen's front-ends."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What every row is given: an engine, the guest, and a directory for its files."""

    engine: Engine
    guest: Guest
    place: Path

    def scratch(self) -> Path:
        """The disk that is read, made anew."""
        path = self.place / "disk.img"
        with open(path, "wb") as file:
            file.truncate(DISK_BYTES)
        return path

    def boot_disk(self, also: str = "") -> Path:
        """A disk that a PC boots from, of its own, whose kernel is told `also`."""
        path = self.place / "boot.img"
        words = " ".join(filter(None, (_PC_WORDS, also)))
        shutil.copyfile(build_disk(None, quiet, self.guest, words=words), path)
        return path


@dataclass(frozen=True, slots=True)
class Subject:
    """A guest that is ready to start. `domain` is its number among the events' domains, `disk` the name of its disk;
    `login` is whether it asks for a name first."""

    console: Console
    peer: Peer
    events: Events
    send: Callable[[str], None]
    start: Callable[[], None]
    counters: Callable[[], Mapping[str, int]]
    """The engine's own counters of the guest's processors."""
    disk: str
    domain: int = 0
    login: bool = False


Starter = Callable[[Setting, Console, ExitStack], Subject]


def kvm_emulated(setting: Setting, console: Console, stack: ExitStack) -> Subject:
    """A PC with IDE disks and an e1000, from its firmware on."""
    bios, vga = seabios()
    firmware = Firmware(bios.read_bytes(), vga.read_bytes())
    vm = FirmwareMachine(PcSettings(firmware), memory=MEMORY * MIB, engine=setting.engine, console=console.hear)
    stack.callback(vm.close)
    for place, path in enumerate((setting.boot_disk(), setting.scratch())):
        disk = Disk(path)
        vm.on_close(disk.close)
        vm.add_drive(AtaDisk(disk, serial=f"BV{place:05}"), place)
    vm.board.boot_order.append("/pci@i0cf8/ide@1,1/drive@0/disk@0")
    peer = Peer(vm.loop, SENT_BYTES)
    vm.on_close(peer.close)
    vm.pc.add(E1000(vm.memory, peer, GUEST_MAC, vm.loop))
    vm.power_on()
    return _hosted(vm, console, peer, lambda text: vm.send(text.encode()), "/dev/sdb", login=True)


def kvm_virtio(setting: Setting, console: Console, stack: ExitStack) -> Subject:
    """A kernel that is handed over, with virtio for everything."""
    vm = VirtualMachine(memory=MEMORY * MIB, engine=setting.engine)
    stack.callback(vm.close)
    disk = Disk(setting.scratch())
    vm.on_close(disk.close)
    peer = Peer(vm.loop, SENT_BYTES)
    vm.on_close(peer.close)
    stream = MemoryStream(vm.loop, console.hear)
    vm.add(VirtioConsole([Port(stream)]))
    vm.add(VirtioBlk(disk, vm.loop))
    vm.add(VirtioNet(peer, GUEST_MAC))
    words = f"console=ttyS0 console=hvc0 bivisor.term=dumb {WORDS}"
    vm.load(setting.guest.kernel, initrd=setting.guest.initrd, cmdline=words)
    return _hosted(vm, console, peer, lambda text: stream.send(text.encode()), "/dev/vda")


def _hosted(
    vm: VirtualMachine, console: Console, peer: Peer, send: Callable[[str], None], disk: str, *, login: bool = False
) -> Subject:
    console.has_ended = lambda: vm.wait(0) is not None
    return Subject(console, peer, vm.events, send, vm.start, lambda: vm.counters, disk, login=login)


def xen_hvm(setting: Setting, console: Console, stack: ExitStack) -> Subject:
    """An HVM domain whose guest stays with the emulated devices."""
    return _hvm(setting, console, stack, setting.boot_disk(_NO_UNPLUG), "/dev/sdb")


def xen_hvm_pv(setting: Setting, console: Console, stack: ExitStack) -> Subject:
    """An HVM domain whose guest unplugs them and uses its PV drivers."""
    return _hvm(setting, console, stack, setting.boot_disk(), "/dev/xvdb")


def _hvm(setting: Setting, console: Console, stack: ExitStack, boot: Path, disk: str) -> Subject:
    disks = [f"{boot},raw,xvda,rw", f"{setting.scratch()},raw,xvdb,rw"]
    return _domain(setting, console, stack, disk, login=True, type="hvm", disks=disks)


def xen_pvh(setting: Setting, console: Console, stack: ExitStack) -> Subject:
    """A PVH domain."""
    return _loaded(setting, console, stack, "pvh")


def xen_pv(setting: Setting, console: Console, stack: ExitStack) -> Subject:
    """A PV domain."""
    return _loaded(setting, console, stack, "pv")


def _loaded(setting: Setting, console: Console, stack: ExitStack, kind: str) -> Subject:
    """A domain whose kernel the builder loads."""
    return _domain(
        setting,
        console,
        stack,
        "/dev/xvda",
        type=kind,
        kernel=setting.guest.kernel,
        initrd=setting.guest.initrd,
        cmdline=f"{DEFAULT_CMDLINE} {WORDS}",
        disks=[f"{setting.scratch()},raw,xvda,rw"],
    )


def _domain(
    setting: Setting, console: Console, stack: ExitStack, disk: str, *, login: bool = False, **config: Any
) -> Subject:
    host = stack.enter_context(XenHost(setting.engine))
    peer = Peer(host.loop, SENT_BYTES)
    with host.loop.lock:
        host.networks.plug(BRIDGE, peer)
    vifs = [f"mac={GUEST_MAC},bridge={BRIDGE}"]
    domain = host.create("compare", memory=MEMORY, vifs=vifs, console=console.hear, paused=True, **config)
    console.has_ended = domain.stopped.is_set

    def counters() -> Mapping[str, int]:
        return domain.counters

    def send(text: str) -> None:
        with host.loop.lock:
            domain.feed.input(text.encode())

    return Subject(console, peer, host.events, send, domain.start, counters, disk, domain.domid, login)
