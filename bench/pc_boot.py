"""From the firmware's first instruction to a login prompt: `bivisor run --machine pc` beside `qemu-system-x86_64`.

Both start the same disk image (`bivisor image build`) with the same memory and devices, in turns: an i440FX PC with a
VGA adapter and COM1, the disk behind each interface that is asked for. Each run is a process of its own, from its start
to the prompt on COM1. Prints medians and, run by run, the ratio; --json for scripts.

    python bench/pc_boot.py [--runs 3] [--memory 256] [--disk virtio ide ahci] [--image FILE]
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
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bivisor.image import quiet
from bivisor.image.disk import build_disk
from bivisor.image.pckernel import pc_guest

MARKERS = {"menu": b"executed automatically", "login": b" login:"}
LIMIT_S = 180.0
QEMU_DISKS = {
    "virtio": ("-drive", "if=virtio,format=raw,file={image}"),
    "ide": ("-drive", "if=ide,format=raw,file={image}"),
    "ahci": (
        *("-drive", "if=none,id=disk,format=raw,file={image}", "-device", "ich9-ahci,id=ahci"),
        *("-device", "ide-hd,drive=disk,bus=ahci.0"),
    ),
}


def seconds_to_markers(command: list[str]) -> dict[str, float]:
    """Wall seconds from the start of `command` until it says each marker, and its processor seconds ("cpu")."""
    start = time.perf_counter()
    # an end of file on standard input would be a key to whatever boots
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = b""
    found: dict[str, float] = {}
    os.set_blocking(process.stdout.fileno(), False)
    while len(found) < len(MARKERS) and time.perf_counter() - start < LIMIT_S:
        part = process.stdout.read()
        if part:
            seen += part
            found |= {
                name: time.perf_counter() - start for name, m in MARKERS.items() if name not in found and m in seen
            }
        elif process.poll() is not None:
            break
        else:
            time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    process.stdout.close()
    process.stdin.close()
    if len(found) < len(MARKERS):
        sys.exit(f"{command[0]}: no login prompt within {LIMIT_S:.0f} s; it printed {seen[-300:]!r}")
    return found | {"cpu": usage.ru_utime + usage.ru_stime}


def bivisor_command(image: Path, interface: str, memory: int, engine: str) -> list[str]:
    """The program of this checkout's environment, as a user starts it."""
    program = Path(sys.executable).with_name("bivisor")
    return [
        *([str(program)] if program.exists() else [sys.executable, "-m", "bivisor"]),
        *("run", "--machine", "pc", "--engine", engine, "--memory", str(memory)),
        *("--disk", f"{image},if={interface}"),
    ]


def qemu_command(image: Path, interface: str, memory: int) -> list[str]:
    """QEMU's own i440FX PC with the same devices, and no network card, which ours has not either."""
    return [
        *("qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", str(memory), "-display", "none"),
        *("-serial", "stdio", "-nic", "none", "-device", "virtio-rng-pci"),
        *(word.format(image=image) for word in QEMU_DISKS[interface]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", type=int, default=256, help="MiB")
    parser.add_argument("--engine", default="soft", choices=["soft", "kvm"])
    parser.add_argument("--disk", nargs="+", default=list(QEMU_DISKS), choices=list(QEMU_DISKS))
    parser.add_argument("--image", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("qemu-system-x86_64") is None:
        sys.exit("bench/pc_boot.py compares with qemu-system-x86_64, which is not installed (Debian: qemu-system-x86)")
    results = {}
    with TemporaryDirectory() as directory:
        image = Path(directory) / "disk.img"
        for interface in options.disk:
            times: dict[str, list[dict[str, float]]] = {"bivisor": [], "qemu": []}
            for _ in range(options.runs):
                for name, runs in times.items():
                    shutil.copyfile(options.image or image_for(interface), image)
                    ours = bivisor_command(image, interface, options.memory, options.engine)
                    theirs = qemu_command(image, interface, options.memory)
                    runs.append(seconds_to_markers(ours if name == "bivisor" else theirs))
            results[interface] = times
            if not options.json:
                report(interface, times)
    if options.json:
        print(json.dumps(results))


def image_for(interface: str) -> Path:
    """The image with the default guest's kernel, or with one that has a driver for `interface`."""
    return build_disk(progress=quiet, guest=pc_guest(quiet) if interface == "ahci" else None)


def report(interface: str, times: dict[str, list[dict[str, float]]]) -> None:
    """Print medians and the ratio of one interface."""
    print(
        f"disk {interface:9}{'menu':>8}{'login':>8}{'min':>8}{'max':>8}{'CPU':>8}   seconds, runs: {len(times['qemu'])}"
    )
    for name, runs in times.items():
        login = [run["login"] for run in runs]
        medians = [statistics.median(run[key] for run in runs) for key in ("menu", "login", "cpu")]
        print(f"{name:14}{medians[0]:>8.2f}{medians[1]:>8.2f}{min(login):>8.2f}{max(login):>8.2f}{medians[2]:>8.2f}")
    ratios = [ours["login"] / theirs["login"] for ours, theirs in zip(times["bivisor"], times["qemu"], strict=True)]
    print(f"bivisor / qemu to login, run by run: {statistics.median(ratios):.2f}", flush=True)


if __name__ == "__main__":
    main()
