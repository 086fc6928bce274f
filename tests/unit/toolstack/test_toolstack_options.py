"""What can be asked of a machine, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.host.how import HowToOpen
from bivisor.toolstack.options import DiskOption, NetOption, RunOptions, ShareOption, parse_memory

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256", 256 * MIB),
        (512, 512 * MIB),
        ("512M", 512 * MIB),
        ("2G", 2048 * MIB),
        ("2GiB", 2048 * MIB),
        ("2gb", 2048 * MIB),
        ("65536K", 64 * MIB),
        ("1025K", 2 * MIB),
        (" 1T ", MIB * MIB),
    ],
)
def test_memory_is_in_mib_or_has_a_unit(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["0", "", "-5", "M", "1.5G", "1e5", "5P", "5MM", "٣", "0x10", "100K"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_memory(text)


def test_a_disk_is_a_path_and_then_options() -> None:
    assert DiskOption.parse("a.img") == DiskOption(Path("a.img"))
    assert DiskOption.parse("a.img,ro,queues=4,serial=x=y") == DiskOption(Path("a.img"), True, 4, "x=y")
    assert DiskOption.parse("a,b.img,ro") == DiskOption(Path("a,b.img"), True)


@pytest.mark.parametrize(
    "text", ["", ",ro", "a,ro,ro", "a,queues=0", "a,queues=17", "a,queues=x", "a,ro,b", "a,serial=" + 21 * "s"]
)
def test_a_crooked_disk_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        DiskOption.parse(text)


def test_a_network_is_one_of_three_kinds() -> None:
    assert NetOption.parse("user") == NetOption("user")
    assert NetOption.parse("tap=tap0,mac=52:54:00:00:00:01") == NetOption("tap", "tap0", "52:54:00:00:00:01")
    assert NetOption.parse("socket=/tmp/a,b") == NetOption("socket", "/tmp/a,b")


@pytest.mark.parametrize("text", ["", "bridge", "tap", "tap=", "socket", "user=x", "user,mac=1,mac=2"])
def test_another_network_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        NetOption.parse(text)


@given(st.text())
def test_no_text_at_all_raises_anything_but_a_usage_error(text: str) -> None:
    for parse in (parse_memory, DiskOption.parse, NetOption.parse):
        try:
            parse(text)
        except UsageError as error:
            assert str(error)


def test_options_take_the_words_of_the_command_line() -> None:
    options = RunOptions.of(kernel="k", memory="1G", cpus=2, disks=["d,ro"], nets=["user"], command="true")
    assert options.kernel == Path("k")
    assert options.memory == 1024 * MIB
    assert options.disks == (DiskOption(Path("d"), True),)
    assert options.nets == (NetOption("user"),)
    with pytest.raises(UsageError):
        RunOptions.of(cpus=0)


def test_a_disk_says_how_its_image_is_opened() -> None:
    plain, all_of_it = DiskOption.parse("a.img"), DiskOption.parse("a.q,snapshot,format=vhd,load-snapshot=s 1,ro")
    assert plain.how == HowToOpen()
    assert all_of_it.how == HowToOpen("vpc", True, True, "s 1")
    assert DiskOption.parse("a.iso,if=cdrom,force-share").how == HowToOpen(read_only=True, force_share=True)
    options = RunOptions.of(machine="pc", disks=["a.img", "b.img,ro"], cdroms=["c.iso"], snapshot=True)
    assert [disk.throw_away for disk in options.disks] == [True] * 3
    assert [disk.interface for disk in options.disks] == ["", "", "cdrom"]
    for text, words in (("a,format=cow", "none of raw"), ("a,snapshot=x", "takes no value")):
        with pytest.raises(UsageError, match=words):
            DiskOption.parse(text)


def test_a_screen_and_a_disc_are_for_a_pc() -> None:
    for words in ({"vnc": "1"}, {"control": "socket"}, {"cdroms": ["c.iso"]}):
        with pytest.raises(UsageError, match="--machine pc"):
            RunOptions.of(**words)
        RunOptions.of(machine="pc", **words)


def test_a_share_is_a_folder_with_options() -> None:
    assert ShareOption.parse("src") == ShareOption(Path("src"), False, "share", 0.0)
    assert ShareOption.parse("a,b,ro,tag=n.1,cache=0.5") == ShareOption(Path("a,b"), True, "n.1", 0.5)
    shares = RunOptions.of(shares=["a", Path("b,tag=x"), ShareOption(Path("c"), tag="y")]).shares
    assert [share.tag for share in shares] == ["share", "x", "y"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (",ro", "a folder comes first"),
        ("src,ro=1", "ro takes no value"),
        ("src,ro,ro", "once each"),
        ("src,tag=a b", "letters, digits"),
        ("src,tag=", "letters, digits"),
        ("src,tag=" + "a" * 37, "more than 36 characters"),
        ("src,cache=long", "no number of seconds"),
        ("src,cache=-1", "no number of seconds"),
        ("src,cache=nan", "no number of seconds"),
    ],
)
def test_a_share_with_wrong_options_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ShareOption.parse(text)


def test_two_shares_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two shares are called 'share'"):
        RunOptions.of(shares=["a", "b"])
