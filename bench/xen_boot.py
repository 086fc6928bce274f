"""From `xl create` to user space: PVH and PV domains on each engine, beside Xen's own xl on the reference machine.

Kernel, initramfs, memory and command line are the same everywhere; hypervisors and their daemons run already. Ours is
the time from the command's start to the first line of user space at the console, medians of rounds in which PVH and PV
take turns; real Xen's is the same, taken inside of its Dom0, which runs in QEMU's TCG as its domains do. What cannot
run on this host is named with its reason. Usage:

    python bench/xen_boot.py [--runs 5] [--engine soft|kvm|all] [--rig ../shared/rig/xen-host | --no-rig] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bivisor.cpu.measure import cpl0_speed
from bivisor.cpu.select import INTERPRETING_BELOW, millions, open_engine
from bivisor.errors import HostError
from bivisor.image import default_guest, quiet
from bivisor.image.initramfs import append_exec

MARKER = "user-space-is-here"
CMDLINE = "console=hvc0 quiet panic=-1 mitigations=off"
LIMIT_S = 150
MEMORY = 256
TYPES = ("pvh", "pv")
XEN = "Xen 4.17 in TCG"

ON_XEN = """
set -e
for module in xen-evtchn xen-privcmd xen-gntdev xen-gntalloc xenfs/xenfs
do busybox insmod "$RIG_HOME"/gen/lib/modules/*/kernel/drivers/xen/$module.ko; done
mount -t xenfs xenfs /proc/xen
cp -a "$RIG_HOME"/tools/usr "$RIG_HOME"/tools/etc / 2>/dev/null || true
export LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib/xen-4.17/lib/x86_64-linux-gnu PATH=/usr/lib/xen-4.17/bin:$PATH
rm -f /var/run; ln -s /run /var/run
mkdir -p /var/lib/xen /var/log/xen /run/xen /run/xenstored /var/lib/xenstored
{ xenstored --pid-file /run/xenstored.pid; sleep 1; xen-init-dom0
  xenconsoled --log=all --log-dir=/var/log/xen; } >&2
cat "%(kernel)s" "%(initrd)s" > /dev/null
for run in $(seq 0 %(runs)d); do for type in %(types)s; do
cat > /tmp/u1.cfg <<C
name="u$type$run"
type="$type"
kernel="%(kernel)s"
ramdisk="%(initrd)s"
cmdline="%(cmdline)s"
memory=%(memory)d
C
began=$(date +%%s%%N)
xl create /tmp/u1.cfg >&2
until grep -qs %(marker)s /var/log/xen/guest-u$type$run.log; do sleep 0.02; done
echo "nanoseconds $type $(( $(date +%%s%%N) - began ))"
xl destroy u$type$run >&2
done; done
"""

Seconds = dict[str, list[float]]


def on_xen(rig: Path, kernel: Path, initrd: Path, runs: int) -> Seconds:
    """Seconds on the reference machine, by type of domain; the first round is not counted."""
    words = {"kernel": kernel, "initrd": initrd, "runs": runs, "types": " ".join(TYPES), "cmdline": CMDLINE}
    script = ON_XEN % (words | {"memory": MEMORY, "marker": MARKER})
    limit = LIMIT_S * (runs + 1)
    environment = os.environ | {"RIG_TIMEOUT": str(limit), "RIG_SMP": "1"}
    done = subprocess.run(
        [rig, "bash", "-c", script], env=environment, capture_output=True, text=True, timeout=limit + 20, check=False
    )
    found: Seconds = {}
    for line in done.stdout.splitlines():
        match line.split():
            case ["nanoseconds", type_, number]:
                found.setdefault(type_, []).append(int(number) / 1e9)
    if set(found) != set(TYPES):
        raise HostError(f"{rig}: status {done.returncode}: {done.stderr[-800:]}")
    return {type_: seconds[1:] or seconds for type_, seconds in found.items()}


def ours(command: list[str], environment: dict[str, str], type_: str, kernel: Path, initrd: Path) -> float:
    """Seconds with this program, whose host runs already. HostError where the domain does not get there."""
    words = [f"type={type_}", f"kernel={kernel}", f"ramdisk={initrd}", f"cmdline={CMDLINE}", f"memory={MEMORY}"]
    began = time.monotonic()
    with subprocess.Popen(
        [*command, "xl", "create", "-c", *words, "name=u1", 'on_crash="preserve"'],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        watchdog = threading.Timer(LIMIT_S, run.kill)
        watchdog.start()
        seen = b""
        while MARKER.encode() not in seen:
            part = os.read(run.stdout.fileno(), 65536)
            if not part:
                break
            seen += part
        seconds = time.monotonic() - began
        watchdog.cancel()
        subprocess.run([*command, "xl", "destroy", "u1"], env=environment, capture_output=True, timeout=60, check=False)
        rest = run.stderr.read()
        run.stdout.read()
    if MARKER.encode() not in seen:
        last = (rest or seen).decode(errors="replace").strip().split("\n")[-1]
        raise HostError(last.removeprefix("bivisor: ") or "it said nothing")
    return seconds


def on_engine(engine: str, kernel: Path, initrd: Path, runs: int, place: Path) -> tuple[Seconds, dict[str, str]]:
    """Seconds by type of domain, and why a type is missing; the first round is not counted."""
    environment = os.environ | {"BIVISOR_HOST": str(place / f"host-{engine}")}
    command = [sys.executable, "-m", "bivisor"]
    started = subprocess.run(
        [*command, "host", "start", "--engine", engine, "--quiet"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if started.returncode:
        return {}, dict.fromkeys(TYPES, started.stderr.strip().removeprefix("bivisor: "))
    found: Seconds = {}
    missing = slow_kernels(engine)
    try:
        for turn in range(runs + 1):
            for type_ in TYPES:
                if type_ in missing:
                    continue
                try:
                    seconds = ours(command, environment, type_, kernel, initrd)
                except HostError as error:
                    missing[type_] = str(error)
                    continue
                print(f"{type_} on {engine}: {seconds:.2f} s", file=sys.stderr, flush=True)
                if turn:
                    found.setdefault(type_, []).append(seconds)
    finally:
        subprocess.run([*command, "host", "stop", "--force"], env=environment, check=True)
    return found, missing


def slow_kernels(engine: str) -> dict[str, str]:
    """Why PVH, whose kernel runs at CPL 0, would take minutes on this host's engine, if it would."""
    with open_engine(engine)[0] as opened:
        speed = cpl0_speed(opened)
    if speed >= INTERPRETING_BELOW:
        return {}
    return {"pvh": f"this {engine} interprets kernel code ({millions(speed)}): it would take minutes"}


def report(rows: dict[tuple[str, str], list[float]], missing: dict[tuple[str, str], str]) -> None:
    """Print the table: medians, their ratio to our PVH on soft, and to real Xen's domain of the same type."""
    middle = {key: statistics.median(seconds) for key, seconds in rows.items()}
    print(f"{'domain':<8}{'under':<20}{'seconds':>9}{'least':>9}{'runs':>6}{'/ PVH, soft':>13}{'/ real Xen':>12}")
    for (type_, where), seconds in middle.items():
        runs = rows[type_, where]
        bases = middle.get(("pvh", "bivisor, soft")), middle.get((type_, XEN))
        ratios = ["" if base is None else f"{seconds / base:.2f}" for base in bases]
        print(
            f"{type_.upper():<8}{where:<20}{seconds:>9.2f}{min(runs):>9.2f}{len(runs):>6}{ratios[0]:>13}{ratios[1]:>12}"
        )
    for (type_, where), why in missing.items():
        print(f"{type_.upper():<8}{where:<20} not here: {why}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--engine", choices=("soft", "kvm", "all"), default="all")
    parser.add_argument("--rig", type=Path, default=Path(__file__).parents[2] / "shared/rig/xen-host")
    parser.add_argument("--no-rig", action="store_true", help="leave real Xen out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    guest = default_guest(quiet)
    rows: dict[tuple[str, str], list[float]] = {}
    missing: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        initrd = place / "initrd"
        initrd.write_bytes(guest.initrd.read_bytes() + append_exec(f"echo {MARKER}; sleep 1000"))
        for engine in ("soft", "kvm") if options.engine == "all" else (options.engine,):
            found, without = on_engine(engine, guest.kernel, initrd, options.runs, place)
            rows |= {(type_, f"bivisor, {engine}"): seconds for type_, seconds in found.items()}
            missing |= {(type_, f"bivisor, {engine}"): why for type_, why in without.items()}
        if not options.no_rig:
            try:
                found = on_xen(options.rig.resolve(), guest.kernel, initrd, options.runs)
                rows |= {(type_, XEN): seconds for type_, seconds in found.items()}
            except (HostError, OSError, subprocess.TimeoutExpired) as error:
                missing |= {(type_, XEN): str(error) for type_ in TYPES}
    if options.json:
        named = {f"{type_} under {where}": seconds for (type_, where), seconds in rows.items()}
        reasons = {f"{type_} under {where}": why for (type_, where), why in missing.items()}
        print(json.dumps({"seconds": named, "missing": reasons}, indent=2))
    else:
        report(rows, missing)


if __name__ == "__main__":
    main()
