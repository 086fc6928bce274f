"""From the command's start to user space: `bivisor run` beside `qemu-system-x86_64 -accel tcg`.

Both boot the same kernel and initramfs with the same memory and command line, in turns; each run is a process of its
own, from its start to the line that the first user program prints on the serial console. Prints medians and the ratio;
--json for scripts.

    python bench/boot.py [--runs 5] [--memory 256] [--kernel FILE --initrd FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bivisor.image import default_guest, quiet
from bivisor.image.initramfs import append_exec

MARKER = b"user-space-is-here"
CMDLINE = "console=ttyS0 quiet panic=-1 mitigations=off bivisor.exit=0xf4"
LIMIT_S = 120.0


def time_to_marker(command: list[str]) -> tuple[float, float]:
    """(wall seconds until the marker, CPU seconds of the whole process) of one run."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    seen, found = b"", 0.0
    os.set_blocking(process.stdout.fileno(), False)
    while not found and time.perf_counter() - start < LIMIT_S:
        part = process.stdout.read()
        if part:
            seen += part
            if MARKER in seen:
                found = time.perf_counter() - start
        elif process.poll() is not None:
            break
        else:
            time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    process.stdout.close()
    if not found:
        sys.exit(f"{command[0]}: no {MARKER.decode()!r} within {LIMIT_S:.0f} s; it printed {seen[-300:]!r}")
    return found, usage.ru_utime + usage.ru_stime


def bivisor_command(kernel: Path, initrd: Path, memory: int, engine: str) -> list[str]:
    """The program of this checkout's environment, as a user starts it."""
    program = Path(sys.executable).with_name("bivisor")
    return [
        *([str(program)] if program.exists() else [sys.executable, "-m", "bivisor"]),
        *("run", "--engine", engine, "--kernel", str(kernel), "--initrd", str(initrd)),
        *("--memory", str(memory), "--append", CMDLINE),
    ]


def qemu_command(kernel: Path, initrd: Path, memory: int) -> list[str]:
    """QEMU as its users start a kernel, with no device that the comparison does not need."""
    return [
        *("qemu-system-x86_64", "-accel", "tcg", "-m", str(memory), "-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", CMDLINE),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", type=int, default=256, help="MiB")
    parser.add_argument("--engine", default="soft", choices=["soft", "kvm"])
    parser.add_argument("--kernel", type=Path)
    parser.add_argument("--initrd", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("qemu-system-x86_64") is None:
        sys.exit("bench/boot.py compares with qemu-system-x86_64, which is not installed (Debian: qemu-system-x86)")
    guest = default_guest(quiet)
    with tempfile.NamedTemporaryFile(suffix=".cpio") as file:
        initrd = options.initrd or Path(file.name)
        if options.initrd is None:
            file.write(guest.initrd.read_bytes() + append_exec(f"echo {MARKER.decode()}; sleep 60"))
            file.flush()
        kernel = options.kernel or guest.kernel
        commands = {
            "bivisor": bivisor_command(kernel, initrd, options.memory, options.engine),
            "qemu": qemu_command(kernel, initrd, options.memory),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(options.runs + 1):
            for name, command in commands.items():
                result = time_to_marker(command)
                if turn:  # the first warms caches on both sides
                    times[name].append(result)
    report(times, options.json)


def report(times: dict[str, list[tuple[float, float]]], as_json: bool) -> None:
    """Print medians and ratios."""
    wall = {name: [run[0] for run in runs] for name, runs in times.items()}
    cpu = {name: statistics.median(run[1] for run in runs) for name, runs in times.items()}
    median = {name: statistics.median(runs) for name, runs in wall.items()}
    ratio = statistics.median(a / b for a, b in zip(wall["bivisor"], wall["qemu"], strict=True))
    if as_json:
        print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "ratio": ratio}))
        return
    print(f"{'':10}{'median':>10}{'min':>10}{'max':>10}{'CPU':>10}   seconds, {len(wall['qemu'])} runs each")
    for name, runs in wall.items():
        print(f"{name:10}{median[name]:>10.2f}{min(runs):>10.2f}{max(runs):>10.2f}{cpu[name]:>10.2f}")
    print(f"bivisor / qemu, run by run: {ratio:.2f}")


if __name__ == "__main__":
    main()
