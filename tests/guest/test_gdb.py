"""gdb itself, attached to a stock kernel: it stops at a function of the kernel, looks around and lets it go on."""

from __future__ import annotations

import operator
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

import bivisor
from bivisor.boot.kallsyms import kernel_symbols, symbol_file
from bivisor.image import Guest
from bivisor.toolstack.gdb import gdb_server

from .conftest import Boot

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed"),
]

SYMBOLS = "grep -E ' (__x64_sys_newuname|init_uts_ns)$' /proc/kallsyms"


@pytest.fixture(scope="module")
def symbols(engine: str, guest: Guest) -> dict[str, int]:
    """Where the guest's kernel has some of its symbols: it is loaded where it was linked, each time."""
    from .harness import GuestRun

    with GuestRun(engine, guest, SYMBOLS) as run:
        return {name: int(address, 16) for address, _, name in (line.split() for line in run.run().lines())}


def gdb(port: int, *commands: str) -> str:
    words = ["set pagination off", "set confirm off", f"target remote 127.0.0.1:{port}", *commands]
    arguments = [part for word in words for part in ("-ex", word)]
    done = subprocess.run(
        ["gdb", "-q", "-nx", "-batch", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", ["soft"], indirect=True)
def test_gdb_stops_a_kernel_at_a_function_changes_its_memory_and_lets_it_go_on(
    boot: Boot, symbols: dict[str, int]
) -> None:
    newuname, names = symbols["__x64_sys_newuname"], symbols["init_uts_ns"]
    with boot("uname -s; uname -s; read line; exit 7") as run, gdb_server(run.vm, "0,wait") as server:
        run.start()
        said = gdb(
            server.port,
            f"break *{newuname:#x}",
            "continue",
            "info registers rip cs",
            "stepi",
            "info registers rip",
            f"find {names:#x}, +256, 'L', 'i', 'n', 'u', 'x'",
            f"set {{int}} $_ = {int.from_bytes(b'Byvi', 'little'):#x}",
            "delete",
            "detach",
        )
        assert re.search(rf"Breakpoint 1, {newuname:#018x} in", said), said
        rip = [int(value, 16) for value in re.findall(r"^rip\s+(0x[0-9a-f]+)", said, re.MULTILINE)]
        assert rip[0] == newuname
        assert newuname < rip[1] <= newuname + 15
        run.until(partial(operator.contains, run.stdout, ord("\n")))  # it goes on
        again = gdb(server.port, "info threads", "info registers cr3", "kill")
        assert "CPU#0" in again
        assert re.search(r"^cr3\s+0x[0-9a-f]+000", again, re.MULTILINE)
        run.vm.wait(20)
    assert run.stdout.splitlines()[0] == b"Byvix"


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("soft", "pvh"),
        ("soft", "pv"),
        pytest.param("kvm", "pvh", marks=[pytest.mark.kvm, pytest.mark.rig]),
    ],
    indirect=["engine"],
)
def test_gdb_stops_a_booting_xen_domain_at_start_kernel_and_at_a_system_call_by_name(
    engine: str, kind: str, guest: Guest, tmp_path: Path
) -> None:
    symbols = kernel_symbols(guest.kernel)
    (tmp_path / "vmlinux.sym").write_bytes(symbol_file(symbols))
    with bivisor.XenHost(engine) as host, host.create("demo", type=kind, gdb="0,wait") as domain:
        said = gdb(
            domain.gdb_port,
            f"symbol-file {tmp_path}/vmlinux.sym",
            "break start_kernel",
            "continue",
            "x/s linux_banner",
            "delete",
            "break __x64_sys_newuname",
            "continue",
            "stepi",
            "print $rip",
            "delete",
            "detach",
        )
        assert "Breakpoint 1, 0x" in said
        assert f"{symbols['start_kernel'].address:#x} in start_kernel ()" in said
        assert f'<linux_banner>:\t"Linux version {guest.release}' in said
        assert f"Breakpoint 2, {symbols['__x64_sys_newuname'].address:#x} in __x64_sys_newuname ()" in said
        # The call of __fentry__ is a NOP by then, unless a breakpoint in memory kept Linux from making it one.
        assert re.search(r"= .* <(__x64_sys_newuname\+5|__fentry__)>", said)
        domain.wait_for("~ # ")  # it goes on
        assert "killed" in gdb(domain.gdb_port, "kill")
        assert domain.wait(20) is not None


@pytest.mark.parametrize("pv_engine", [pytest.param("kvm", marks=pytest.mark.kvm)], indirect=True)
def test_gdb_steps_a_pv_domain_through_a_hypercall_and_finds_one_that_blocks(
    pv_engine: str, guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "vmlinux.sym").write_bytes(symbol_file(kernel_symbols(guest.kernel)))
    names = f"symbol-file {tmp_path}/vmlinux.sym"
    with bivisor.XenHost(pv_engine) as host, host.create("demo", type="pv", vcpus=2, gdb="0,wait") as domain:
        said = gdb(
            domain.gdb_port,
            names,
            "break start_kernel",
            "continue",
            "x/s linux_banner",
            "delete",
            "break __x64_sys_newuname",
            "continue",
            "backtrace 2",
            "delete",
            "break *xen_hypercall_pv",
            "continue",  # often both come to it: the other one waits
            "set $before = $rsp",
            "stepi",
            "stepi",
            "x/i $rip",
            "print $before - $rsp",
            "stepi",
            "print $rip",
            "delete",
            "hbreak *start_kernel",
            "delete",
            "detach",
        )
        assert re.search(r"Breakpoint 1, 0x\w+ in start_kernel \(\)", said), said
        assert f'<linux_banner>:\t"Linux version {guest.release}' in said
        assert re.search(r"Breakpoint 2, 0x\w+ in __x64_sys_newuname", said), said
        assert re.search(r"#1 +0x\w+ in do_syscall_64", said), said
        assert re.search(r"<xen_hypercall_pv\+3>:\s+syscall", said), said
        assert "= 16" in said, said  # the two registers that it has pushed, and nothing of the hypervisor's
        # An event may be waiting for it there.
        assert re.search(r"= .* <(xen_hypercall_pv\+5|xen_asm_exc_xen_hypervisor_callback)>", said), said
        domain.wait_for("~ # ", 100)  # it goes on
        said = gdb(domain.gdb_port, names, "info registers cs ss", "print $rip", "stepi", "print $rip", "detach")
        assert re.search(r"^cs\s+0xe033", said, re.MULTILINE) and re.search(r"^ss\s+0xe02b", said, re.MULTILINE), said
        assert re.search(r"\$1 = .* <xen_hypercall_pv\+5>", said), said  # SCHEDOP_block
        assert re.search(r"\$2 = .* <xen_hypercall_pv\+7>", said), said
        domain.send("echo $((40 + 2))\n")
        domain.wait_for("42\r\n", 20)
        assert "killed" in gdb(domain.gdb_port, "kill")
        assert domain.wait(20) is not None
