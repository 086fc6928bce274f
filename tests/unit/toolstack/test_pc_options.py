"""What `bivisor run --machine pc` is asked for, and what it refuses before anything is started."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bivisor.errors import UsageError
from bivisor.kvm import End, Outcome
from bivisor.toolstack.launch import Payload
from bivisor.toolstack.options import DiskOption, NetOption, RunOptions
from bivisor.toolstack.pc import run_pc
from bivisor.toolstack.run import View, not_run


def test_a_disk_says_which_controller_it_is_behind() -> None:
    assert DiskOption.parse("a.img").interface == ""
    assert DiskOption.parse("a.iso,if=cdrom").interface == "cdrom"
    with pytest.raises(UsageError, match="ide, ahci, cdrom, virtio"):
        DiskOption.parse("a.img,if=floppy")


def test_a_network_says_which_card_it_has() -> None:
    assert NetOption.parse("user,model=e1000").model == "e1000"
    with pytest.raises(UsageError, match="neither virtio nor e1000"):
        NetOption.parse("user,model=ne2k")


def test_a_machine_of_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="direct or pc"):
        RunOptions.of(machine="q35")


def test_a_pc_without_a_disk_or_with_a_kernel_is_refused() -> None:
    with ExitStack() as stack:
        with pytest.raises(UsageError, match="give --disk"):
            run_pc(RunOptions.of(machine="pc"), View(), stack)
        with pytest.raises(UsageError, match="--kernel"):
            run_pc(RunOptions.of(machine="pc", disks=["a.img"], kernel="vmlinuz"), View(), stack)


@pytest.mark.parametrize("words", [{"boot_menu": True}, {"no_reboot": True}, {"vnc": "1"}, {"firmware": "uefi"}])
def test_what_only_a_pc_has_is_refused_elsewhere(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--machine pc"):
        RunOptions.of(**words)


@pytest.mark.parametrize(
    ("ours", "command", "end", "suspicious"),
    [
        (False, "true", End.POWER_OFF, True),
        (False, "true", End.EXIT_STATUS, False),
        (False, None, End.POWER_OFF, False),
        (True, "poweroff", End.POWER_OFF, False),
    ],
)
def test_a_command_that_an_initramfs_of_others_never_ran_is_noticed(
    ours: bool, command: str | None, end: End, suspicious: bool
) -> None:
    found = Payload(Path("kernel"), Path("initrd"), ours)
    assert not_run(RunOptions.of(command=command), found, Outcome(end)) is suspicious
