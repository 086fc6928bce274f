"""`bivisor run`, as a person or a script runs it: the real command, on a whole guest."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bivisor.host.tty import terminal_size
from bivisor.image import Guest

pytestmark = pytest.mark.guest

PATIENCE = 90


def command(engine: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "bivisor", "run", "--engine", engine, *words]


def run(engine: str, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(engine, *words), input=given, capture_output=True, timeout=PATIENCE, check=False)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_command_prints_and_its_status_is_ours(engine: str, guest: Guest) -> None:
    done = run(engine, "--exec", "uname -r")
    assert (done.returncode, done.stdout, done.stderr) == (0, guest.release.encode() + b"\n", b"")
    assert run(engine, "--exec", "exit 7").returncode == 7


def test_standard_output_and_error_stay_apart(engine: str, guest: Guest) -> None:
    done = run(engine, "--exec", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_a_megabyte_of_anything_passes_through_unchanged(engine: str, guest: Guest) -> None:
    data = os.urandom(1 << 20)
    done = run(engine, "--exec", "cat", given=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_what_was_written_last_arrives_though_the_reader_is_slow(engine: str, guest: Guest) -> None:
    with subprocess.Popen(command(engine, "--exec", "seq 100000"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(10)
        time.sleep(0.5)  # it fills the pipe and waits
        rest = process.stdout.read()
        assert process.wait(PATIENCE) == 0
    assert (first + rest).split()[-1] == b"100000"


def test_a_reader_that_goes_ends_the_guest(engine: str, guest: Guest) -> None:
    with subprocess.Popen(command(engine, "--exec", "yes"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ("poweroff; sleep 60", 0, ""),
        ("reboot; sleep 60", 80, "bivisor: the guest asked for a reset"),
        ("echo c >/proc/sysrq-trigger; sleep 60", 81, "bivisor: the guest's kernel panicked: sysrq triggered crash"),
        ("/bin/debug-exit 42 244", 42, ""),
    ],
)
def test_each_end_has_a_status_and_a_reason(engine: str, guest: Guest, words: str, status: int, told: str) -> None:
    done = run(engine, "--exec", words)
    assert done.returncode == status
    last = done.stderr.decode().splitlines()[-1:] or [""]
    assert last[0].startswith(told)
    assert bool(last[0]) == bool(told)


def test_the_kernels_words_are_shown_when_it_fails_or_when_asked_for(engine: str, guest: Guest) -> None:
    failed = run(engine, "--exec", "true", "--append", "rdinit=/nothing")
    assert failed.returncode == 81
    assert b"VFS: Unable to mount root fs" in failed.stderr
    assert len(failed.stderr.splitlines()) <= 21
    loud = run(engine, "--exec", "true", "--verbose")
    assert b"Linux version" in loud.stderr
    assert f"bivisor: engine {engine}".encode() in loud.stderr


def test_a_guest_that_takes_too_long_is_stopped(engine: str, guest: Guest) -> None:
    done = run(engine, "--exec", "echo here; sleep 60", "--timeout", "8")
    assert (done.returncode, done.stdout) == (124, b"here\n")
    assert done.stderr == b"bivisor: the guest did not end within 8 s\n"


def test_statistics_and_a_trace_are_written(engine: str, guest: Guest, tmp_path: Path) -> None:
    done = run(engine, "--exec", "true", "--json", "--trace", str(tmp_path / "trace"))
    assert done.returncode == 0
    figures = json.loads(done.stderr)
    assert figures["inside_seconds"] > 0
    assert any(row["device"] == "debug exit" for row in figures["exits"])
    lines = (tmp_path / "trace").read_text().splitlines()
    assert lines[-1].endswith("out 0x00f4/1 <- 0x0  debug exit")
    assert len(lines) == sum(row["count"] for row in figures["exits"])
    assert b"inside the guest" in run(engine, "--exec", "true", "--stats").stderr


def test_a_kernel_of_ones_own_gets_an_initramfs(engine: str, guest: Guest) -> None:
    done = run(engine, "--kernel", str(guest.kernel), "--exec", "uname -r")
    assert done.stdout == guest.release.encode() + b"\n"


def test_lines_on_standard_input_are_typed_at_the_console(engine: str, guest: Guest) -> None:
    done = run(engine, given=b"uname -r\n")
    assert done.returncode == 0
    assert f"\r\n{guest.release}\r\n".encode() in done.stdout
    serial = run(engine, "--append", "console=ttyS0", given=b"uname -r; tty\n")
    assert serial.returncode == 0
    assert f"\r\n{guest.release}\r\n/dev/ttyS0\r\n".encode() in serial.stdout


@pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")
def test_a_user_network_is_configured_and_reaches_the_host(engine: str, guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"gateway=$(route -n | awk '/UG/ {{print $2}}'); wget -qO- http://$gateway:{port}/"
        with subprocess.Popen(command(engine, "--net", "user", "--exec", script), stdout=subprocess.PIPE) as process:
            server.settimeout(PATIENCE)
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1000).startswith(b"GET / HTTP/1")
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello from the host\n")
            output, _ = process.communicate(timeout=PATIENCE)
    assert output == b"hello from the host\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(engine: str, guest: Guest, tmp_path: Path, number: signal.Signals) -> None:
    wire = tmp_path / "wire"
    process = subprocess.Popen(
        command(engine, "--exec", "echo up; sleep 600", "--net", f"socket={wire}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"up\n"
        assert wire.is_socket()
        os.killpg(process.pid, number)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b""
    assert not wire.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


class Terminal:
    """`bivisor run` on a terminal of 33 rows and 99 columns, in a session of its own, as a shell would start it."""

    def __init__(self, engine: str, *words: str) -> None:
        self.ours, self.theirs = os.openpty()
        termios.tcsetwinsize(self.theirs, (33, 99))
        self.before = termios.tcgetattr(self.theirs)
        starter = (
            "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", starter, *command(engine, *words)],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
        )
        self.said = b""

    def wait_for(self, words: bytes) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.ours], [], [], 0.1)[0]:
                self.said += os.read(self.ours, 4096)
            else:
                assert self.process.poll() is None, self.said
        before, found, self.said = self.said.partition(words)
        return before + found

    def type(self, words: bytes) -> None:
        os.write(self.ours, words)

    @property
    def is_restored(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(engine: str, guest: Guest) -> Iterator[Terminal]:
    opened = Terminal(engine)
    yield opened
    opened.close()


def test_a_shell_on_a_terminal_knows_its_size_and_hears_of_another(terminal: Terminal) -> None:
    terminal.wait_for(b"# ")
    assert not terminal.is_restored
    terminal.type(b"stty size\n")
    terminal.wait_for(b"\n33 99\r\n")
    terminal.wait_for(b"# ")
    termios.tcsetwinsize(terminal.ours, (40, 120))
    assert terminal_size(terminal.theirs) == (120, 40)
    terminal.type(b"while [ \"$(stty size)\" = '33 99' ]; do sleep 0.1; done; stty size\n")
    terminal.wait_for(b"\n40 120\r\n")
    terminal.type(b"exit\n")
    assert terminal.process.wait(PATIENCE) == 0
    assert terminal.is_restored


def test_ctrl_c_is_the_guests_and_ctrl_bracket_leaves(terminal: Terminal) -> None:
    terminal.wait_for(b"# ")
    terminal.type(b"trap 'echo woken' INT; echo asleep; sleep 600\n")
    terminal.wait_for(b"\nasleep")
    terminal.type(b"\x03")
    terminal.wait_for(b"woken")
    terminal.type(b"\x1d")
    assert terminal.process.wait(PATIENCE) == 130
    assert terminal.is_restored


def test_ctrl_bracket_leaves_a_guest_that_has_not_come_up(terminal: Terminal) -> None:
    terminal.wait_for(b"Ctrl-] leaves")
    while terminal.is_restored:  # until the terminal is raw the key is nothing special
        time.sleep(0.01)
    terminal.type(b"\x1d")
    assert terminal.process.wait(PATIENCE) == 130
    assert terminal.is_restored
