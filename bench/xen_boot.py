"""From `xl create` to user space: `bivisor xl` on the engine soft beside Xen's own xl on the reference machine.

Kernel, initramfs, memory and command line are the same, a PVH domain in both; both hypervisors and their daemons run
already. Ours is the time from the command's start to the first line of user space at the console; real Xen's is the
same, taken inside of its Dom0, which runs in QEMU's TCG as the domain does. Prints both and the ratio. Usage:

    python bench/xen_boot.py [--runs 5] [--rig ../shared/rig/xen-host] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bivisor.image import default_guest, quiet
from bivisor.image.initramfs import append_exec

MARKER = "user-space-is-here"
CMDLINE = "console=hvc0 quiet panic=-1 mitigations=off"
LIMIT_S = 150

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
cat > /tmp/u1.cfg <<C
name="u1"
type="pvh"
kernel="%s"
ramdisk="%s"
cmdline="%s"
memory=256
C
cat "%s" "%s" > /dev/null
began=$(date +%%s%%N)
xl create /tmp/u1.cfg >&2
until grep -qs %s /var/log/xen/guest-u1.log; do sleep 0.02; done
echo "nanoseconds $(( $(date +%%s%%N) - began ))"
"""


def on_xen(rig: Path, kernel: Path, initrd: Path) -> float:
    """Seconds on the reference machine."""
    script = ON_XEN % (kernel, initrd, CMDLINE, kernel, initrd, MARKER)
    environment = os.environ | {"RIG_TIMEOUT": str(LIMIT_S), "RIG_SMP": "1"}
    done = subprocess.run(
        [rig, "bash", "-c", script], env=environment, capture_output=True, text=True, timeout=LIMIT_S + 20, check=False
    )
    words = done.stdout.split()
    if "nanoseconds" not in words:
        raise SystemExit(f"{rig}: status {done.returncode}\n{done.stderr[-800:]}")
    return int(words[words.index("nanoseconds") + 1]) / 1e9


def ours(command: list[str], environment: dict[str, str], kernel: Path, initrd: Path) -> float:
    """Seconds with this program, whose host runs already."""
    words = [f"kernel={kernel}", f"ramdisk={initrd}", f"cmdline={CMDLINE}", "memory=256", "name=u1"]
    began = time.monotonic()
    with subprocess.Popen(
        [*command, "xl", "create", "-c", *words], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        seen = b""
        while MARKER.encode() not in seen:
            part = os.read(run.stdout.fileno(), 65536)
            if not part:
                raise SystemExit(f"{shlex.join(command)} xl create ended early:\n{seen.decode(errors='replace')}")
            seen += part
        seconds = time.monotonic() - began
        subprocess.run([*command, "xl", "destroy", "u1"], env=environment, check=True, timeout=60)
        run.stdout.read()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rig", type=Path, default=Path(__file__).parents[2] / "shared/rig/xen-host")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    guest = default_guest(quiet)
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory, "initrd")
        initrd.write_bytes(guest.initrd.read_bytes() + append_exec(f"echo {MARKER}; sleep 1000"))
        environment = os.environ | {"BIVISOR_HOST": str(Path(directory, "host"))}
        command = [sys.executable, "-m", "bivisor"]
        subprocess.run([*command, "host", "start", "--engine", "soft", "--quiet"], env=environment, check=True)
        try:
            times = [ours(command, environment, guest.kernel, initrd) for _ in range(options.runs + 1)][1:]
        finally:
            subprocess.run([*command, "host", "stop", "--force"], env=environment, check=True)
        xen = on_xen(options.rig.resolve(), guest.kernel, initrd)
    mine = statistics.median(times)
    if options.json:
        print(json.dumps({"bivisor_s": mine, "xen_s": xen, "ratio": mine / xen, "runs": times}))
    else:
        print(f"bivisor xl create to user space: {mine:.2f} s (median of {len(times)}); xl on Xen: {xen:.2f} s")
        print(f"ratio {mine / xen:.2f}")


if __name__ == "__main__":
    main()
