"""What firmware a PC is given, and what is told of what it cannot have. The files are made up: nothing boots here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bivisor.cli.main import status_of
from bivisor.errors import BivisorError, ImageError, UsageError
from bivisor.kvm.firmware import Firmware
from bivisor.toolstack import pcfirmware
from bivisor.toolstack.options import RunOptions
from bivisor.toolstack.pcfirmware import direct_kernel, load_firmware

VARS_SIZE = 128 << 10
VARS = (
    bytes(16) + bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50") + VARS_SIZE.to_bytes(8, "little") + b"_FVH"
).ljust(VARS_SIZE, b"\xff")
CODE = (b"\1" * 40 + b"_FVH").ljust((1 << 20) - VARS_SIZE, b"\2")
BIOS = bytes(1 << 17)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    contents = {"bios": BIOS, "vga": b"\x55\xaa", "MY_CODE.fd": CODE, "MY_VARS.fd": VARS, "both.fd": VARS + CODE}
    for name, content in {**contents, "alone.fd": CODE}.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(pcfirmware, "seabios", lambda: (tmp_path / "bios", tmp_path / "vga"))
    monkeypatch.setattr(pcfirmware, "ovmf", lambda: (tmp_path / "MY_CODE.fd", tmp_path / "MY_VARS.fd"))
    return tmp_path


def loaded(firmware: str | Path = "bios", kept: Path | None = None) -> Firmware:
    closers: list[Callable[[], None]] = []
    options = RunOptions.of(machine="pc", firmware=firmware, firmware_vars=kept)
    try:
        return load_firmware(options, closers.append)
    finally:
        for close in closers:
            close()


def content(firmware: Firmware) -> bytes:
    assert firmware.variables is not None
    return firmware.variables.load()


def test_without_a_word_it_is_the_bios(files: Path) -> None:
    assert loaded() == Firmware(BIOS, b"\x55\xaa")


def test_uefi_gets_fresh_variables_that_are_thrown_away(files: Path) -> None:
    made = loaded("uefi")
    assert (made.bios, content(made)) == (CODE, VARS)
    assert made.variables is not None
    made.variables.save(100, b"mine")
    assert content(loaded("uefi")) == VARS
    assert (files / "MY_VARS.fd").read_bytes() == VARS


def test_variables_are_made_in_the_file_that_is_named_and_found_there_again(files: Path) -> None:
    kept = files / "mine.fd"
    assert content(loaded("uefi", kept)) == VARS
    kept.write_bytes(VARS[:-4] + b"mine")
    assert content(loaded("uefi", kept)) == VARS[:-4] + b"mine"


@pytest.mark.parametrize("name", ["both.fd", "MY_CODE.fd"])
def test_a_file_brings_its_variables_in_itself_or_beside_it(files: Path, name: str) -> None:
    made = loaded(files / name)
    assert (made.bios, content(made)) == (CODE, VARS)


def test_a_file_without_the_signs_of_uefi_is_a_bios(files: Path) -> None:
    assert loaded(files / "bios").variables is None


def test_code_alone_wants_its_variables_named(files: Path) -> None:
    with pytest.raises(UsageError, match="it is UEFI code without variables; give --firmware-vars"):
        loaded(files / "alone.fd")
    assert content(loaded(files / "alone.fd", files / "MY_VARS.fd")) == VARS


def test_a_bios_has_no_variables(files: Path) -> None:
    with pytest.raises(UsageError, match="a BIOS keeps no variables; --firmware uefi does"):
        loaded("bios", files / "mine.fd")


def test_a_wrong_file_is_neither_taken_nor_changed(files: Path) -> None:
    with pytest.raises(ImageError, match="no file of UEFI variables"):
        loaded("uefi", files / "bios")
    assert (files / "bios").read_bytes() == BIOS
    with pytest.raises(BivisorError, match=r"nowhere\.fd: No such file"):
        loaded(files / "nowhere.fd")


def test_a_kernel_that_is_no_bzimage_is_refused(files: Path) -> None:
    sector = files / "sector"
    sector.write_bytes(b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa")
    options = RunOptions.of(machine="pc", firmware="uefi", kernel=sector)
    with pytest.raises(ImageError, match="UEFI starts a bzImage with an EFI stub"):
        direct_kernel(options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--firmware", "uefi"], "--machine pc"),
        (["--firmware-vars", "x.fd"], "--machine pc"),
        (["--machine", "pc", "--kernel", "x"], "with --firmware uefi"),
        (["--machine", "pc", "--firmware", "uefi", "--initrd", "x"], "it comes with a --kernel"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["run", *words]) == 2
    assert said in capsys.readouterr().err
