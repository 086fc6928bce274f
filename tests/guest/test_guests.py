"""What programs do with guests: commands, files, memory, breakpoints, faults, under both architectures, and asyncio."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

import bivisor
import bivisor.aio
from bivisor import Answer, Corrupt, Deny
from bivisor.events import Event, Exit, Hypercall
from bivisor.image import Guest

pytestmark = pytest.mark.guest


Either = bivisor.KvmGuest | bivisor.DomU


def work_inside(guest: Either, tmp_path: Path) -> None:
    result = guest.run("cat; echo wrong >&2; exit 3", input=bytes(range(256)))
    assert result == bivisor.Result(3, bytes(range(256)), b"wrong\n")
    assert guest.run("echo $((6 * 7))").text == "42"
    with pytest.raises(bivisor.CommandFailed, match=r"'cat /nothing' ended with status 1: .*No such file"):
        guest.run("cat /nothing", check=True)
    with pytest.raises(bivisor.GuestTimeout, match="did not finish 'sleep 600' within 1 s"):
        guest.run("sleep 600", timeout=1)

    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "data").write_bytes(bytes(range(256)) * 300)
    (folder / "script").write_text("#!/bin/sh\necho ran\n")
    (folder / "script").chmod(0o755)
    guest.put(folder, "/mnt/it's here")
    assert guest.run("'/mnt/it'\\''s here/script'").text == "ran"
    guest.run("ln -s /etc/passwd '/mnt/it'\\''s here/link'", check=True)
    guest.get("/mnt/it's here", tmp_path / "again")
    assert (tmp_path / "again" / "below" / "data").read_bytes() == bytes(range(256)) * 300
    assert not (tmp_path / "again" / "link").exists()
    guest.get("/proc/sys/kernel/ostype", tmp_path / "ostype")
    assert (tmp_path / "ostype").read_text() == "Linux\n"
    guest.write_file("/tmp/new/file", "text", 0o600)
    assert guest.read_file("/tmp/new/file") == b"text"


def look_inside(guest: Either, release: str) -> None:
    assert release.encode() in guest.read_memory("linux_banner", 60)
    with pytest.raises(bivisor.UsageError, match="no symbol 'nothing'"):
        guest.read_memory("nothing", 1)
    with pytest.raises(bivisor.UsageError, match="0xdead00000000 is not mapped"):
        guest.read_memory(0xDEAD_0000_0000, 1)
    guest.write_memory("init_uts_ns+0x45", b"python\0")
    assert "python" in guest.run("uname -n").text

    newuname = guest.symbols["__x64_sys_newuname"]
    seen: list[int] = []
    with guest.breakpoint("__x64_sys_newuname", lambda hit: seen.append(hit.registers.rip)) as counted:
        guest.run("uname")
    assert seen == [newuname] * counted.hits != []
    with guest.breakpoint(newuname) as held:
        thread = threading.Thread(target=guest.run, args=("uname",))
        thread.start()
        assert held.wait().registers.rip == guest.registers().rip == newuname
        assert newuname < guest.step().rip < newuname + 16
    thread.join()
    with pytest.raises(ZeroDivisionError), guest.breakpoint(newuname, lambda _: 1 // 0):
        guest.run("uname")


def test_a_kvm_guest(engine: str, guest: Guest, tmp_path: Path) -> None:
    with bivisor.kvm_guest(engine=engine) as kvm:
        work_inside(kvm, tmp_path)
        if engine == "soft":
            look_inside(kvm, guest.release)
        kvm.load_module("null_blk", "nr_devices=2")
        assert kvm.run("ls /sys/block").text.split().count("nullb1") == 1
        with kvm.inject("exit", Answer(0x42), names="Mmio", when=is_ours, times=1) as fault:
            assert kvm.run("devmem 0xFED80000 8; devmem 0xFED80000 8").text.split() == ["0x42", "0xFF"]
        assert (fault.seen, fault.done) == (2, 1)
        kvm.wait_for("# ")
        kvm.send("poweroff\n")
        assert kvm.wait(60).end is bivisor.End.POWER_OFF
        with pytest.raises(bivisor.GuestTimeout, match="ended"):
            kvm.run("true")


def is_ours(event: Event) -> bool:
    return isinstance(event, Exit) and event.address == 0xFED8_0000


@pytest.mark.parametrize("kind", ["pvh", "pv"])
def test_a_xen_domain(kind: str, guest: Guest, tmp_path: Path) -> None:
    with bivisor.xen_host("soft") as host, host.create("demo", type=kind, agent=True) as domain:
        work_inside(domain, tmp_path)
        look_inside(domain, guest.release)
        if kind == "pvh":
            break_things(domain)
        domain.wait_for("# ")
        domain.shutdown()
        assert domain.wait(60) is not None


def break_things(domain: bivisor.DomU) -> None:
    version = domain.run("cat /sys/hypervisor/version/major").text

    def lie(event: Event) -> None:
        assert isinstance(event, Hypercall)
        event.result = 99 << 16

    with domain.inject("hypercall", Corrupt(lie, after=True), names="xen_version.version"):
        assert domain.run("cat /sys/hypervisor/version/major").text == "99"
    with domain.inject("hypercall", Deny(errno.EPERM), names="xen_version.*") as fault:
        assert domain.run("cat /sys/hypervisor/version/major").text != version
    assert fault.done
    assert domain.run("cat /sys/hypervisor/version/major").text == version
    with pytest.raises(bivisor.UsageError, match="'nothing' is none of"):
        domain.inject("nothing", Deny())


def test_guests_of_both_architectures_side_by_side_in_asyncio(guest: Guest) -> None:
    async def both() -> tuple[str, str, int]:
        async with (
            bivisor.aio.kvm_guest(engine="soft") as kvm,
            bivisor.aio.xen_host("soft") as host,
            await host.create("demo", agent=True) as domain,
        ):
            results = await asyncio.gather(kvm.run("uname -r"), domain.run("cat /sys/hypervisor/type"))
            async with await domain.breakpoint("__x64_sys_newuname") as stop:
                running = asyncio.create_task(domain.run("uname"))
                hit = await stop.wait()
            await running
            return results[0].text, results[1].text, hit.registers.rip - domain.sync.symbols["__x64_sys_newuname"]

    assert asyncio.run(both()) == (guest.release, "xen", 0)


def test_a_guest_without_an_agent_says_so(guest: Guest) -> None:
    with (
        bivisor.xen_host("soft") as host,
        host.create("demo", paused=True) as domain,
        pytest.raises(bivisor.UsageError, match="without an agent"),
    ):
        domain.run("true")
