"""Tiny guests on a whole machine: raw code in real, protected or long mode, with every device plugged in."""

from __future__ import annotations

import struct
from pathlib import Path

from bivisor.cpu.registers import DescriptorTable, Regs, Segment, Sregs
from bivisor.host.disk import Disk
from bivisor.host.falloc import punch_hole
from bivisor.host.link import cable
from bivisor.host.memstream import MemoryStream
from bivisor.kvm import VirtualMachine
from bivisor.platform.virtio.balloon import VirtioBalloon
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.platform.virtio.net import VirtioNet
from bivisor.platform.virtio.rng import VirtioRng
from holdings import holdings as holdings

MIB = 1 << 20
PATIENCE = 30.0  # seconds until a machine that does not come back is taken for hung
CODE, STACK = 0x1_0000, 0x8000
TABLES = 0x2_0000  # PML4, page-directory-pointer table and four page directories
GDT = 0x6000

END = bytes.fromhex("b0 05 e6 f4 f4")  # mov al, 5; out 0xf4, al; hlt
SPIN = bytes.fromhex("eb fe")
OUT_FOREVER = bytes.fromhex("e6 80 eb fc")


def plug_everything(vm: VirtualMachine, folder: Path) -> None:
    """One of each virtio device. `folder` gets the disk's image."""
    loop = vm.loop
    image = folder / "disk"
    if not image.exists():
        image.write_bytes(bytes(MIB))
    disk = Disk(image)
    vm.on_close(disk.close)
    vm.add(VirtioBlk(disk, loop, queues=2))
    near, far = cable(loop, loop)
    vm.on_close(near.close)
    vm.on_close(far.close)
    vm.add(VirtioNet(near, "52:54:00:12:34:56"))
    streams = [MemoryStream(loop) for _ in range(3)]
    for stream in streams:
        stream.send(b"typed" * 100)
    vm.add(VirtioConsole([Port(stream, name) for stream, name in zip(streams, ("", "a", "b"), strict=True)]))
    vm.add(VirtioBalloon(loop, punch_hole, reporting=True))
    vm.add(VirtioRng(loop))


def decode(vm: VirtualMachine) -> None:
    """Place the devices and let them answer, as firmware and a guest's PCI driver do."""
    vm.pc.finish()
    with vm.loop.lock:
        for slot in range(32):
            vm.ports.write(0xCF8, 4, 1 << 31 | slot << 11 | 4)
            vm.ports.write(0xCFC, 2, 7)  # the command register: I/O space, memory space, bus master


def enter(vm: VirtualMachine, code: bytes, bits: int = 16) -> None:
    """Put `code` at `CODE` and processor 0 before it: in real mode (16), protected mode (32) or long mode (64)."""
    decode(vm)
    memory = vm.memory
    memory.write(CODE, code)
    memory.write(GDT, struct.pack("<4Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF))
    vcpu = vm.vcpus[0]
    sregs = vcpu.get_sregs()
    match bits:
        case 16:
            _real(sregs)
        case 32:
            _flat(sregs, long=False)
            sregs.cr0 = 0x11
        case _:
            _flat(sregs, long=True)
            memory.write(TABLES, struct.pack("<Q", TABLES + 0x1000 | 3))
            memory.write(TABLES + 0x1000, struct.pack("<4Q", *(TABLES + 0x2000 + 0x1000 * i | 3 for i in range(4))))
            memory.write(TABLES + 0x2000, struct.pack("<2048Q", *(i << 21 | 0x83 for i in range(2048))))
            sregs.cr3, sregs.cr4, sregs.efer, sregs.cr0 = TABLES, 0x20, 0x500, 0x8000_0011
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=0 if bits == 16 else CODE, rsp=STACK, rflags=2))


def _real(sregs: Sregs) -> None:
    sregs.cr0, sregs.cr4, sregs.efer = 0x10, 0, 0
    sregs.cs = Segment.real(CODE >> 4, code=True)
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = Segment.real(0)
    sregs.idt = DescriptorTable(0, 0x3FF)


def _flat(sregs: Sregs, *, long: bool) -> None:
    sregs.cs = Segment.flat(24 if long else 8, code=True, long=long)
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = Segment.flat(16, code=False)
    sregs.gdt, sregs.idt = DescriptorTable(GDT, 31), DescriptorTable(0, 0)
    sregs.cr4 = sregs.efer = 0
