"""The default guest's own half of the contract, seen from another machine monitor: QEMU, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bivisor.errors import HostError
from bivisor.image import Guest, default_guest, quiet
from bivisor.image.initramfs import append_exec

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
]

PORTS = ("stdin", "stdout", "stderr")


@pytest.fixture(scope="module")
def guest() -> Guest:
    try:
        return default_guest(quiet)
    except HostError as error:
        pytest.skip(str(error))


def boot(guest: Guest, directory: Path, *, command: str | None, typed: str = "", append: str = "") -> int:
    """Boot in `directory`, which gets the files console, stdout and stderr; QEMU's exit status."""
    initrd = guest.initrd.read_bytes() + (b"" if command is None else append_exec(command))
    (directory / "initrd").write_bytes(initrd)
    arguments = [
        *("qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", str(guest.kernel), "-initrd", "initrd", "-append", f"console=ttyS0 quiet {append}"),
        *("-device", "isa-debug-exit,iobase=0xf4", "-device", "virtio-serial-pci"),
    ]
    if command is None:
        arguments += ["-serial", "stdio"]
    else:
        arguments += ["-serial", "file:console", "-chardev", "stdio,id=stdin,signal=off"]
        arguments += ["-chardev", "file,id=stdout,path=stdout", "-chardev", "file,id=stderr,path=stderr"]
        for port in PORTS:
            arguments += ["-device", f"virtserialport,chardev={port},name=bivisor.{port}"]
    with open(directory / "output", "wb") as output:
        done = subprocess.run(arguments, cwd=directory, input=typed.encode(), stdout=output, timeout=120, check=False)
    return done.returncode


def test_a_command_has_its_streams_and_hands_over_its_status(guest: Guest, tmp_path: Path) -> None:
    command = "read line; echo got $line; uname -r; echo wrong >&2; exit 7"
    status = boot(guest, tmp_path, command=command, typed="hello\n", append="bivisor.exit=0xf4 bivisor.stdio=virtio")
    assert status == 7 << 1 | 1  # as isa-debug-exit does it
    assert (tmp_path / "stdout").read_text() == f"got hello\n{guest.release}\n"
    assert (tmp_path / "stderr").read_text() == "wrong\n"
    assert (tmp_path / "console").read_text() == ""


def test_without_a_debug_exit_port_the_end_of_the_command_powers_off(guest: Guest, tmp_path: Path) -> None:
    assert boot(guest, tmp_path, command="echo done", append="bivisor.stdio=virtio") == 0
    assert (tmp_path / "stdout").read_text() == "done\n"


@pytest.mark.parametrize("verb", ["poweroff", "halt", "reboot"])
def test_the_usual_words_end_the_guest_at_once(guest: Guest, tmp_path: Path, verb: str) -> None:
    command = f"{verb}; sleep 30; echo too late"
    assert boot(guest, tmp_path, command=command, append="bivisor.exit=0xf4 bivisor.stdio=virtio") == 0
    assert (tmp_path / "stdout").read_text() == ""


def test_a_shell_on_the_console_has_its_size_and_its_end_powers_off(guest: Guest, tmp_path: Path) -> None:
    typed = 16 * "\n" + "stty size; echo $TERM; tty; exit\n"  # the kernel drops what the UART's FIFO holds at first
    assert boot(guest, tmp_path, command=None, typed=typed, append="bivisor.size=33x99 bivisor.term=vt220") == 0
    lines = (tmp_path / "output").read_text().splitlines()
    assert f"Linux {guest.release}. Leave with exit or Ctrl-D." in lines
    assert [line for line in lines if line in ("33 99", "vt220", "/dev/ttyS0")] == ["33 99", "vt220", "/dev/ttyS0"]
