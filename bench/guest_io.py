"""What a guest gets done with its disk, its network and its own system calls, beside QEMU's TCG.

The same kernel, initramfs, command and devices (virtio-blk-pci, virtio-net-pci on a stream socket without offloads,
virtio-serial-pci) run on Bivisor's `soft` and on `qemu-system-x86_64 -accel tcg`, one after the other, in alternating
rounds. The guest says on its standard output when a job begins and ends, and the host looks at its own clock; of the
network counts what arrives at the other end of the wire. A ratio above 1 is better than QEMU. Usage:

    python bench/guest_io.py [--rounds 3] [--engine soft] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bivisor.host.disk import Disk
from bivisor.host.framed import FramedStream
from bivisor.host.memstream import MemoryStream
from bivisor.image import Guest, default_guest
from bivisor.image.initramfs import append_exec
from bivisor.kvm import VirtualMachine
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.platform.virtio.net import VirtioNet
from tcp_sink import TcpSink

MIB = 1 << 20
MEMORY = 256
DISK = 96
SENT = 512  # times 64 KiB
SYSCALLS = 200_000
PROCESSES = 100
PATIENCE = 300.0
MAC = "52:54:00:12:34:56"
STREAMS = ("stdin", "stdout", "stderr")
WORDS = "console=ttyS0 quiet panic=-1 mitigations=off bivisor.exit=0xf4 bivisor.stdio=virtio"


@dataclass(frozen=True, slots=True)
class Job:
    """A shell command of the guest; `amount` of `unit` is what it gets done."""

    name: str
    command: str
    amount: float
    unit: str


JOBS = (
    Job("disk write", f"dd if=/dev/zero of=/dev/vda bs=1M count={DISK} conv=fsync", DISK * MIB / 1e6, "MB/s"),
    Job("disk read", f"dd if=/dev/vda of=/dev/null bs=1M count={DISK}", DISK * MIB / 1e6, "MB/s"),
    Job("net send", f"dd if=/dev/zero bs=64k count={SENT} | nc 10.0.0.1 9", 0, "MB/s"),
    Job("system calls", f"dd if=/dev/zero of=/dev/null bs=1 count={SYSCALLS // 2}", SYSCALLS / 1000, "thousand/s"),
    Job(
        "fork and exec",
        f"i=0; while [ $i -lt {PROCESSES} ]; do /bin/busybox true; i=$((i + 1)); done",
        PROCESSES,
        "processes/s",
    ),
)
SETUP = "ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up; arp -s 10.0.0.1 52:54:00:00:00:01\n"
NET = next(number for number, job in enumerate(JOBS) if job.name == "net send")


def command() -> str:
    """What the guest runs: `begin N` and `end N` around each job, with the disk's cache dropped before it."""
    fresh = "sync; echo 3 > /proc/sys/vm/drop_caches"
    jobs = (
        f"{fresh}; echo begin {number}; ({job.command}) >/dev/null 2>&1; echo end {number}"
        for number, job in enumerate(JOBS)
    )
    return SETUP + "\n".join(jobs)


class Clock:
    """Hears what the guest says, and notes when."""

    def __init__(self) -> None:
        self._text = b""
        self.at: dict[str, float] = {}

    def hear(self, data: bytes) -> None:
        now = time.perf_counter()
        self._text += data
        for mark in re.findall(rb"(?:begin|end) \d+(?=\n)", self._text):
            self.at.setdefault(mark.decode(), now)


def rates(clock: Clock, sink: TcpSink) -> dict[str, float]:
    """What got done in a second, by job."""
    found = {job.name: job.amount / (clock.at[f"end {n}"] - clock.at[f"begin {n}"]) for n, job in enumerate(JOBS)}
    found[JOBS[NET].name] = sink.size / 1e6 / (sink.last - clock.at[f"begin {NET}"])
    return found


def bivisor(engine: str, guest: Guest, initrd: Path, image: Path) -> dict[str, float]:
    clock = Clock()
    near, far = socket.socketpair()
    near.setblocking(False)
    with VirtualMachine(engine=engine, memory=MEMORY * MIB) as vm:
        sink = TcpSink(far)
        wire = FramedStream(vm.loop, near.detach())
        disk = Disk(image)
        vm.on_close(wire.close)
        vm.on_close(disk.close)
        streams = [MemoryStream(vm.loop, clock.hear if name == "stdout" else None) for name in STREAMS]
        vm.add(VirtioBlk(disk, vm.loop))
        vm.add(VirtioNet(wire, MAC))
        vm.add(VirtioConsole([Port(stream, f"bivisor.{name}") for stream, name in zip(streams, STREAMS, strict=True)]))
        vm.load(guest.kernel, initrd=initrd, cmdline=WORDS)
        vm.start()
        if vm.wait(PATIENCE) is None:
            raise TimeoutError("the guest did not end")
        vm.drain()
    sink.close()
    return rates(clock, sink)


def qemu(guest: Guest, initrd: Path, image: Path) -> dict[str, float]:
    clock = Clock()
    near, far = socket.socketpair()
    arguments = [
        *("qemu-system-x86_64", "-accel", "tcg", "-m", str(MEMORY), "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", str(guest.kernel), "-initrd", str(initrd), "-append", WORDS, "-serial", "null"),
        *("-device", "isa-debug-exit,iobase=0xf4", "-device", "virtio-serial-pci"),
        *("-chardev", "null,id=stdin", "-chardev", "file,id=stdout,path=/dev/stdout", "-chardev", "null,id=stderr"),
        *("-drive", f"file={image},format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk"),
        *("-netdev", f"socket,id=net,fd={near.fileno()}", "-device", f"virtio-net-pci,netdev=net,mac={MAC}"),
    ]
    for name in STREAMS:
        arguments += ["-device", f"virtserialport,chardev={name},name=bivisor.{name}"]
    child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=[near.fileno()])
    near.close()
    sink = TcpSink(far)
    watchdog = threading.Timer(PATIENCE, child.kill)
    watchdog.start()
    with child:
        assert child.stdout is not None
        while data := child.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            clock.hear(data)
    watchdog.cancel()
    sink.close()
    return rates(clock, sink)


def measure(engine: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """The rates by job and by who ran it."""
    guest = default_guest()
    found: dict[str, dict[str, list[float]]] = {job.name: {} for job in JOBS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        initrd, image = folder / "initrd", folder / "disk"
        initrd.write_bytes(guest.initrd.read_bytes() + append_exec(command()))
        image.write_bytes(bytes(DISK * MIB))
        for _ in range(rounds):
            results = {engine: bivisor(engine, guest, initrd, image)}
            if shutil.which("qemu-system-x86_64"):
                results["qemu"] = qemu(guest, initrd, image)
            for who, result in results.items():
                for job, rate in result.items():
                    found[job].setdefault(who, []).append(rate)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=("soft", "kvm"), default="soft")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.engine, options.rounds)
    middle = {job: {who: statistics.median(rates) for who, rates in by.items()} for job, by in found.items()}
    ratios = {job: by[options.engine] / by["qemu"] for job, by in middle.items() if "qemu" in by}
    if options.json:
        print(json.dumps({"rates": found, "median": middle, "ratio": ratios}, indent=2))
        return 0
    for job in JOBS:
        words = [f"{who} {rate:9.1f}" for who, rate in middle[job.name].items()]
        ratio = f"   ratio {ratios[job.name]:.2f}" if job.name in ratios else ""
        print(f"{job.name:14} {'   '.join(words)} {job.unit}{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
