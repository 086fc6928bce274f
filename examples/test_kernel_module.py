"""A kernel module tested from the outside, as a driver developer would: zram, the compressed RAM disk of stock kernels.

The module is loaded into a fresh guest, used by ordinary commands, and looked at where no command reaches: by
breakpoints in its code, one of which refuses the memory that it asks for. Nothing is built for it, and nothing in the
kernel is changed.
"""

from __future__ import annotations

import errno

import pytest

from bivisor import Hit, KvmGuest

pytestmark = pytest.mark.guest

MEBIBYTE = 1 << 20


@pytest.fixture
def zram(kvm_guest: KvmGuest) -> KvmGuest:
    """A guest with a zram disk of 16 MiB."""
    kvm_guest.load_module("lzo_rle")  # its compressor, which the kernel would ask modprobe for
    kvm_guest.load_module("zram", "num_devices=1")
    kvm_guest.run(f"echo {16 * MEBIBYTE} >/sys/block/zram0/disksize", check=True)
    return kvm_guest


def in_module(guest: KvmGuest, name: str) -> int:
    """The address of a function of a module, which the running kernel knows."""
    return int(guest.run(f"grep ' {name}' /proc/kallsyms", check=True).text.split()[0], 16)


def test_what_is_written_is_read_again_and_takes_less_memory_and_one_way_through_the_driver(zram: KvmGuest) -> None:
    zram.run("yes bivisor | head -c 4194304 >/tmp/data && cat /tmp/data >/dev/zram0", check=True)
    assert zram.run("head -c 4194304 /dev/zram0 | cmp - /tmp/data").status == 0
    original, compressed, *_ = map(int, zram.run("cat /sys/block/zram0/mm_stat", check=True).text.split())
    assert original >= 4 * MEBIBYTE
    assert compressed < original // 10
    with zram.breakpoint(in_module(zram, "zram_submit_bio"), lambda hit: None) as submit:
        zram.run("dd if=/dev/urandom of=/dev/zram0 bs=4096 count=1 oflag=direct", check=True)
    assert submit.hits == 1


def test_a_driver_whose_allocation_fails_says_so_and_loses_nothing(zram: KvmGuest) -> None:
    zram.run("echo kept | dd of=/dev/zram0 bs=4096 count=1 conv=sync", check=True)

    def no_memory(hit: Hit) -> None:
        """zs_malloc returns -ENOMEM at once, to whoever called it."""
        stack = hit.registers.rsp
        caller = int.from_bytes(zram.read_memory(stack, 8), "little")
        zram.set_registers(rax=(1 << 64) - errno.ENOMEM, rip=caller, rsp=stack + 8)

    write = "dd if=/dev/urandom of=/dev/zram0 bs=4096 seek=1 count=1 oflag=direct"
    with zram.breakpoint(in_module(zram, "zs_malloc"), no_memory):
        assert "Input/output error" in zram.run(write).stderr.decode()
    zram.run(write, check=True)
    assert zram.run("head -c 4 /dev/zram0").stdout == b"kept"
    assert "BUG:" not in zram.run("dmesg").text
