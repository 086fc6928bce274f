"""A PV domain on an ordinary KVM, whose hypercalls hardly leave the guest: about a minute in the rig, as PVH."""

from __future__ import annotations

from pathlib import Path

import pytest

from bivisor import boot
from bivisor.abi.xen.xen import ShutdownReason
from bivisor.image import Guest
from bivisor.image.initramfs import append_exec
from bivisor.image.place import default_root
from bivisor.toolstack.xenhost import XenHost

from . import pv_traps
from .test_xen_pvh import CMDLINE

pytestmark = [pytest.mark.guest, pytest.mark.kvm, pytest.mark.rig, pytest.mark.timeout(400)]

PATIENCE_S = 300
MOST_EXITS = 15_000
"""With every hypercall an exit there would be 90,000; there are 5,000, and more where the host is so slow that it ticks
all the time."""
COMMAND = """
    cat /sys/hypervisor/guest_type
    for i in $(seq 30); do (true) || echo lost; done; echo forked $((6 * 7))
    echo "warnings $(dmesg | grep -c 'unchecked MSR\\|WARNING\\|BUG:')"
    /traps
    poweroff -f
"""


@pytest.mark.parametrize("engine", ["kvm"], indirect=True)
def test_a_stock_kernel_reaches_user_space_and_hardly_leaves_the_guest(
    engine: str, guest: Guest, tmp_path: Path
) -> None:
    initrd, output = tmp_path / "initrd", bytearray()
    initrd.write_bytes(guest.initrd.read_bytes() + append_exec(COMMAND, [("/traps", pv_traps.program(tmp_path))]))
    cache = boot.PayloadCache(Path(default_root()) / "kernels")
    with XenHost(engine) as host:
        domain = host.create(
            "u1", guest.kernel, type="pv", initrd=initrd, cmdline=CMDLINE, console=output.extend, cache=cache
        )
        assert domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF, output[-2000:].decode(errors="replace")
        lines = output.decode(errors="replace").replace("\r", "").splitlines()
        assert {"PV", "forked 42", "warnings 0"} <= set(lines)
        emulated = "QEMU TCG" in Path("/proc/cpuinfo").read_text()  # which soft's library is made of
        assert pv_traps.ends(bytes(output)) == pv_traps.ENDS | (pv_traps.OF_THE_LIBRARY if emulated else {})
        assert b"Oops" not in output
        assert sum(domain.counters.values()) < MOST_EXITS
