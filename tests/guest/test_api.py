"""Guests from Python: what `bivisor.run` and `bivisor.Guest` give and raise."""

from __future__ import annotations

import threading

import pytest

import bivisor
from bivisor.image import Guest as Payload

pytestmark = pytest.mark.guest


def test_a_command_comes_back_with_all_that_it_wrote(engine: str, guest: Payload) -> None:
    done = bivisor.run("cat; echo wrong >&2; exit 3", input=bytes(range(256)), engine=engine)
    assert (done.status, done.stdout, done.stderr) == (3, bytes(range(256)), b"wrong\n")
    assert done.outcome.end is bivisor.End.EXIT_STATUS


def test_a_command_that_takes_too_long_is_an_error_and_leaves_no_thread(engine: str, guest: Payload) -> None:
    before = threading.active_count()
    with pytest.raises(bivisor.GuestTimeout, match="within 3 s"):
        bivisor.run("sleep 600", timeout=3, engine=engine)
    assert threading.active_count() == before


class Broken:
    def read(self, offset: int, size: int) -> int:
        raise RuntimeError("this device is broken")

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def test_an_exception_in_a_device_of_ones_own_is_raised_here(engine: str, guest: Payload) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="this device is broken"):
        bivisor.run("devmem 0xFED80000", engine=engine, attach=lambda vm: vm.mmio.attach(0xFED8_0000, 4096, Broken()))
    assert threading.active_count() == before


def test_a_guest_is_talked_to_and_heard(engine: str, guest: Payload) -> None:
    with bivisor.Guest(engine=engine, memory="512M") as shell:
        assert guest.release.encode() in shell.wait_for("# ")
        shell.send("echo $((6 * 7)); cat /proc/meminfo | head -1\n")
        shell.wait_for("\n42\r\n")
        shell.wait_for("MemTotal: ")
        with pytest.raises(bivisor.GuestTimeout, match=r"ran for 0\.1 s"):
            shell.wait_for("never", timeout=0.1)
        shell.send("poweroff\n")
        with pytest.raises(bivisor.GuestTimeout, match="ended"):
            shell.wait_for("never")
        assert shell.wait().end is bivisor.End.POWER_OFF


def test_what_cannot_be_is_refused_as_on_the_command_line(guest: Payload) -> None:
    with pytest.raises(bivisor.UsageError):
        bivisor.run("true", memory=0)
    with pytest.raises(bivisor.ImageError), bivisor.Guest(kernel="/dev/null", initrd="/dev/null"):
        pass
