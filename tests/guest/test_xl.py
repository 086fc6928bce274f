"""`bivisor host` and `bivisor xl`, as a person or a script uses them: the real commands, on whole guests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.image import Guest

from .xl_person import Person, Terminal

pytestmark = pytest.mark.guest

MIB = 1 << 20
PROMPT = b"~ # "
LEAVE = b"\x1d"


@pytest.fixture
def person(tmp_path: Path, guest: Guest) -> Iterator[Person]:
    person = Person(tmp_path / "host")
    yield person
    person.run("host", "stop", "--force")


def shell(terminal: Terminal) -> None:
    terminal.wait_for(b"Leave with exit")
    terminal.wait_for(PROMPT)


def test_a_domain_is_created_looked_at_paused_left_and_met_again(person: Person) -> None:
    terminal = person.terminal("create", "-c", "name=demo")
    terminal.wait_for(b"bivisor: no host was running: started one")
    terminal.wait_for(b"Linux version")  # from the first byte on
    shell(terminal)
    terminal.type(b"cat /sys/hypervisor/type; cat /sys/hypervisor/uuid\n")
    terminal.wait_for(b"\nxen\r\n")
    row = person.domain("demo")
    assert (row["domid"], row["memory_kib"], row["vcpus"]) == (1, 256 << 10, 1)
    terminal.wait_for(row["uuid"].encode())
    assert (person.xl("domid", "demo"), person.xl("domname", "1")) == ("1\n", "demo\n")

    person.xl("pause", "demo")
    assert person.domain("demo")["state"] == "--p---"
    before = person.domain("demo")["cpu_time_s"]
    terminal.type(b"echo $((40 + 2))\n")
    assert person.domain("demo")["cpu_time_s"] == before
    assert b"42" not in terminal.shown[terminal.shown.rindex(PROMPT) :]
    person.xl("unpause", "demo")
    terminal.wait_for(b"\n42\r\n")
    assert person.xl("unpause", "demo", status=2) == ""
    assert person.errors == "bivisor: domain demo is not paused\n"

    terminal.type(LEAVE)
    assert terminal.ended() == 0
    person.xl("sysrq", "demo", "h")
    again = person.terminal("console", "demo")
    again.wait_for(b"sysrq: HELP")  # what was said meanwhile
    person.xl("rename", "demo", "web")
    assert person.names() == ["web"]
    again.type(b"exit\n")
    assert again.ended() == 0
    person.until(lambda: person.names() == [], "the domain is still there")
    assert "shut down (poweroff): destroy" in (person.state / "host.log").read_text()


def test_memory_is_given_back_to_the_host_and_taken_again(person: Person) -> None:
    terminal = person.terminal("create", "-c", "-q", "name=demo", "memory=256")
    shell(terminal)
    fill = b"dd if=/dev/zero of=/tmp/fill bs=1M count=100 && rm /tmp/fill && echo filled $((1 + 1))\n"
    terminal.type(fill)
    terminal.wait_for(b"filled 2")
    assert person.guest_blocks() > 120 * MIB

    person.xl("mem-set", "demo", "96")
    person.until(lambda: person.guest_blocks() <= 96 * MIB, "the host has not got the memory back")
    person.until(lambda: person.domain("demo")["memory_kib"] <= 97 << 10, str(person.domain("demo")))
    person.xl("mem-set", "demo", "240m")
    person.until(lambda: person.domain("demo")["memory_kib"] >= 239 << 10, str(person.domain("demo")))
    terminal.type(fill)
    terminal.wait_for(b"filled 2")
    assert person.guest_blocks() > 120 * MIB

    assert person.xl("mem-set", "demo", "512", status=2) == ""
    assert person.errors == "bivisor: domain demo has at most 256 MiB (maxmem), so not 512 MiB\n"
    assert person.xl("mem-max", "demo", "100", status=2) == ""
    assert "mem-set it first" in person.errors
    person.xl("mem-set", "demo", "128")
    person.xl("mem-max", "demo", "128")


def test_a_reboot_is_a_new_domain_and_the_console_goes_on(person: Person) -> None:
    terminal = person.terminal("create", "-c", "name=demo", "memory=192")
    shell(terminal)
    person.xl("mem-set", "demo", "160")
    person.xl("config-update", "demo", "cmdline=console=hvc0 panic=-1 second=boot", "memory=128")
    person.xl("reboot", "demo")
    terminal.wait_for(b"second=boot")
    shell(terminal)
    row = person.domain("demo")
    assert (row["domid"], row["memory_kib"]) == (2, 128 << 10)
    terminal.type(b"echo c > /proc/sysrq-trigger\n")  # on_crash is destroy
    terminal.wait_for(b"sysrq triggered crash")
    assert terminal.ended() == 0
    assert person.names() == []


def test_what_a_domain_leaves_is_what_its_configuration_says(person: Person, tmp_path: Path) -> None:
    (tmp_path / "kept.cfg").write_text('name="kept"; on_crash="preserve"; on_poweroff="preserve"; memory=128\n')
    terminal = person.terminal("create", "-c", str(tmp_path / "kept.cfg"))
    shell(terminal)
    terminal.type(b"echo c > /proc/sysrq-trigger\n")
    person.until(lambda: person.domain("kept")["state"] == "----c-", "the domain did not crash")
    assert person.domain("kept")["reason"] == 3
    person.xl("shutdown", "kept", status=2)
    assert person.errors.endswith("bivisor: domain kept has shut down already\n")
    person.xl("create", "name=kept", "memory=64", status=2)
    assert person.errors.endswith("bivisor: there is a domain kept already\n")
    person.xl("destroy", "kept")
    assert terminal.ended() == 0
    assert "Kernel panic" in (person.state / "console" / "guest-kept.log").read_text()


def test_a_script_creates_types_and_waits(person: Person) -> None:
    said = person.xl("create", "-c", "-q", "name=demo", "memory=128", given=b"echo I am $((6 * 7))\npoweroff\n")
    assert "I am 42" in said
    assert person.names() == []
    assert person.xl("create", "-q", "name=a", f"kernel={__file__}", status=2) == ""
    assert "no kernel" in person.errors
    assert person.errors.count("\n") == 1
    assert person.names() == []


def test_debian_s_xenstore_tools_and_pyxs_reach_a_running_host(person: Person) -> None:
    if shutil.which("xenstore-ls") is None:
        pytest.skip("xenstore-utils is not installed")
    pyxs = pytest.importorskip("pyxs", reason="pyxs is not installed")
    person.run("host", "start", "--engine", "soft")
    terminal = person.terminal("create", "-c", "name=demo", "memory=128")
    shell(terminal)
    tools = os.environ | {"XENSTORED_PATH": str(person.state / "xenstored.sock")}

    def xenstore(tool: str, *words: str) -> str:
        done = subprocess.run(
            [f"xenstore-{tool}", *words], env=tools, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    assert xenstore("read", "/local/domain/1/name") == "demo\n"
    listed = xenstore("ls", "-f", "-p", "/local/domain/1")
    assert '/local/domain/1/memory/static-max = "131072"   (n0,r1)' in listed
    assert '/local/domain/1/control/feature-reboot = "1"   (n1)' in listed  # which the guest has written
    with subprocess.Popen(
        ["xenstore-watch", "-n", "3", "/local/domain/1/data"], env=tools, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "/local/domain/1/data\n"
        xenstore("write", "/local/domain/1/data/from-dom0", "hello")
        assert watching.stdout.readline() == "/local/domain/1/data/from-dom0\n"
        xenstore("chmod", "/local/domain/1/data/from-dom0", "n1", "b0")
        assert watching.stdout.readline() == "/local/domain/1/data/from-dom0\n"
    assert "(n1,b0)" in xenstore("ls", "-p", "/local/domain/1/data")
    with pyxs.Client(unix_socket_path=str(person.state / "xenstored.sock")) as client:
        assert client[b"/local/domain/1/data/from-dom0"] == b"hello"
        assert client.get_domain_path(1) == b"/local/domain/1"
        assert client.is_domain_introduced(1)
    person.xl("destroy", "demo")
    assert terminal.ended() == 0
    assert xenstore("list", "/local/domain") == "0\n"


def test_a_host_that_is_stopped_leaves_nothing_behind(person: Person) -> None:
    told = person.run("host", "start", "--engine", "soft")
    pid = person.pid
    assert told == f"host {pid} runs in {person.state}: soft, as asked for\n"
    person.run("host", "start", status=2)
    assert person.errors == f"bivisor: a host runs in {person.state} already\n"
    person.xl("create", "name=demo", "memory=128")
    for path in person.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    person.run("host", "stop")
    assert list(person.state.iterdir()) == []
    assert not Path(f"/proc/{pid}/maps").exists() or not Path(f"/proc/{pid}/maps").read_bytes()  # gone, or not reaped
    assert person.run("host", "status", status=1) == "not running\n"


def test_a_paused_domain_does_not_hold_up_the_end_of_its_host(person: Person) -> None:
    person.xl("create", "-p", "name=held", "memory=64")
    person.run("host", "stop", "--timeout", "1e6")
    assert "held" in person.errors
    assert person.run("host", "status", status=1) == "not running\n"


def test_a_host_that_was_killed_is_no_obstacle_for_the_next(person: Person) -> None:
    person.run("host", "start", "--engine", "soft")
    os.kill(person.pid, signal.SIGKILL)
    person.until(lambda: person.run("host", "status", status=None) == "not running\n", "the host is still there")
    assert (person.state / "host.sock").exists()
    person.xl("list", status=2)
    assert "no host runs in" in person.errors
    person.run("host", "start", "--engine", "soft")
    os.kill(pid := person.pid, signal.SIGTERM)
    person.until(lambda: not list(person.state.iterdir()), f"process {pid} leaves {list(person.state.iterdir())}")


def test_commands_that_come_at_once_start_one_host(person: Person) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bivisor", "xl", "create", f"name=d{number}", "memory=64", "-p"],
            env=person.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    told = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], told
    assert sum("started one" in words for words in told) == 1
    assert sorted(person.names()) == ["d0", "d1", "d2"]


def test_a_host_that_cannot_run_says_why(person: Person, tmp_path: Path) -> None:
    person.run("host", "start", "--engine", "nope", status=2)
    assert person.errors == "bivisor: engine 'nope': there are auto, kvm and soft\n"
    person.state.chmod(0o755)
    person.run("host", "start", status=2)
    assert "is open to others: chmod 700 it" in person.errors
    person.state.chmod(0o700)
