"""xl.cfg files: what they mean, and that whatever is wrong in one is told with its key and its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.toolstack.xlconfig import Action, DomainConfig, read_config
from bivisor.toolstack.xlconfig.syntax import parse
from bivisor.toolstack.xlconfig.vnc import VncConfig

MIB = 1 << 20
SAMPLE = """
# a domain as xl.cfg(5) would have it
name = "u1"; type = 'pvh'
kernel = "/boot/vmlinuz"      # absolute
ramdisk = "initrd.img"
root = "/dev/xvda ro"
extra = "console=hvc0"
memory = 512
maxmem = "0x400"
vcpus = 02
disk = [ 'disk.img,raw,xvda,rw',   # the first
         "format=raw, vdev=xvdb, access=ro, target=/with,comma.img",
       ]
vif = [ 'mac=00:16:3E:01:02:03,bridge=xenbr0', '' ]
on_crash = "preserve"
on_reboot = 'destroy'
"""


def config(text: str, *overrides: str, folder: Path = Path("/work")) -> DomainConfig:
    file = folder / "u1.cfg"
    file.write_text(text)
    return read_config(file, overrides, folder=folder).config


def test_a_configuration_means_what_xl_means_by_it(tmp_path: Path) -> None:
    made = config(SAMPLE, folder=tmp_path)
    assert (made.name, made.memory, made.maxmem, made.vcpus, made.maxvcpus) == ("u1", 512 * MIB, 1024 * MIB, 2, 2)
    assert (made.kernel, made.ramdisk) == (Path("/boot/vmlinuz"), tmp_path / "initrd.img")
    assert made.cmdline == "root=/dev/xvda ro console=hvc0"
    assert [(str(disk.target), disk.vdev, disk.read_only) for disk in made.disks] == [
        (f"{tmp_path}/disk.img", "xvda", False),
        ("/with,comma.img", "xvdb", True),
    ]
    assert [(vif.mac, vif.bridge) for vif in made.vifs] == [("00:16:3e:01:02:03", "xenbr0"), ("", "xenbr0")]
    assert (made.on_poweroff, made.on_crash) == (Action.DESTROY, Action.PRESERVE)
    assert (made.on_reboot, made.on_watchdog) == (Action.DESTROY, Action.DESTROY)


def test_the_defaults_are_those_of_xl(tmp_path: Path) -> None:
    made = config('name="u1"', folder=tmp_path)
    assert (made.on_poweroff, made.on_reboot, made.on_crash) == (Action.DESTROY, Action.RESTART, Action.DESTROY)
    assert (made.memory, made.vcpus, made.kernel) == (256 * MIB, 1, None)
    assert made.uuid != config('name="u1"', folder=tmp_path).uuid


def test_the_command_line_comes_on_top_of_the_file_and_needs_no_quotes(tmp_path: Path) -> None:
    words = ("name=u2", "memory=128", 'vcpus=2; on_crash="restart"', "kernel=vmlinuz", "cmdline=a=b c")
    made = config(SAMPLE, "maxmem=128", *words, folder=tmp_path)
    assert (made.name, made.memory, made.vcpus, made.on_crash) == ("u2", 128 * MIB, 2, Action.RESTART)
    assert (made.kernel, made.cmdline) == (tmp_path / "vmlinuz", "a=b c")
    assert read_config(None, ["name=demo"]).config.name == "demo"


def test_cmdline_beats_root_and_extra_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "u1.cfg").write_text('name="u1"\ncmdline="quiet"\nroot="/dev/xvda"\n')
    parsed = read_config(tmp_path / "u1.cfg")
    assert parsed.config.cmdline == "quiet"
    assert parsed.warnings == ("cmdline is given, so root and extra are ignored",)


def test_a_stock_configuration_of_an_hvm_domain_is_understood(tmp_path: Path) -> None:
    text = """
name = "u1"
builder = "hvm"
boot = "dc"
disk = ["disk.img,raw,hda,rw", "disc.iso,raw,hdc,cdrom"]
serial = "pty"
vga = "stdvga"
vnc = 1
"""
    made = config(text, folder=tmp_path)
    assert (made.type, made.boot, made.kernel) == ("hvm", "dc", None)
    assert [(disk.vdev, disk.cdrom, disk.read_only) for disk in made.disks] == [
        ("hda", False, False),
        ("hdc", True, True),
    ]
    assert DomainConfig.from_json(made.to_json()) == made


@pytest.mark.parametrize("kind", ["pvh", "pv"])
def test_only_an_hvm_domain_has_a_cdrom_drive(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"a {kind.upper()} domain has no CD-ROM drive"):
        config(f'name="u1"\ntype="{kind}"\ndisk=["a.img,hdc:cdrom,r"]\n', folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("pci = ['01:00.0']", 2, "pci is not supported: Bivisor hands no devices of the host to domains"),
        ("memry = 5", 2, "memry is not a key that Bivisor knows; is it memory?"),
        ("zzzzzz = 5", 2, "zzzzzz is not a key that Bivisor knows (there are acpi, apic, bios,"),
        ("gdb = '1,w'", 2, "gdb 1,w: [HOST:]PORT, and ,wait if"),
        ("memory = ['x']", 2, "memory: a list has to be a number from 1"),
        ("memory = 'lots'", 2, "memory: 'lots' has to be a number from 1"),
        ("vcpus = 0", 2, "vcpus: 0 has to be a number from 1 to 128"),
        ("builder = 'xen'", 2, 'builder "xen" is neither "hvm" nor "generic"'),
        ("type = 'pvh'\nbuilder = 'hvm'", 3, 'builder "hvm" contradicts type "pvh"'),
        ("boot = 'cx'", 2, "boot: 'cx': each of c (hard disk), d (CD-ROM)"),
        ("serial = 'tcp::4'", 2, "serial: 'tcp::4': COM1 is"),
        ("type = 'vm'", 2, 'type "vm" is none of pvh, pv and hvm'),
        ("vga = 'qxl'", 2, "vga: 'qxl' is not there: stdvga"),
        ("\n\non_crash = 'coredump-restart'", 4, "on_crash: coredump-restart: Bivisor writes no core dumps"),
        ("on_crash = 'explode'", 2, "on_crash: 'explode' is none of destroy, restart, rename-restart, preserve"),
        ("uuid = 'x'", 2, "uuid: 'x' is not written as in 00000000-0000-0000-0000-000000001234"),
        ("disk = ['a.img,raw,xvda,w',\n'b.img,cow,xvdb,w']", 3, "disk: disk b.img,cow,xvdb,w: format 'cow' is none of"),
        ("disk = 'a.img,raw,xvda,w'", 2, 'disk: a list is expected, as in ["..."]'),
        ("vif = ['rate=1MB/s']", 2, "vif: vif 'rate=1MB/s': rate: rates are not limited"),
        ("name = '17'", 2, "name '17': digits alone"),
        ("name = 'a/b'", 2, "name 'a/b': up to 255 printable characters"),
    ],
)
def test_what_is_wrong_is_told_with_key_and_line(text: str, line: int, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        config(f'name="u1"\n{text}\n', folder=tmp_path)
    place, _, words = str(caught.value).partition(": ")
    assert place == f"{tmp_path}/u1.cfg:{line}"
    assert words.startswith(told)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("name\n", 1, "the end of the line after name, where = is expected"),
        ("name = u1", 1, 'u1: a string goes in quotes, as in "u1"'),
        ("name = 'u1", 1, "the string 'u1 does not end on its line"),
        ("a = 1 b = 2", 1, "b after the value of a: the next key goes on a new line or after ;"),
        ("a = [1, 2\nb = 3", 2, "b in a list, where , or ] is expected"),
        ("= 3", 1, "= where the name of a key is expected"),
        ("a = ]", 1, "] where a value is expected"),
        ("a = 1\nb = 1.5", 2, "'1.5' is neither"),
        ("a = '\\q'", 1, "\\q in '\\q': a backslash itself is written \\\\"),
        ("a = '\\x00'", 1, "'\\x00': a string has no zero byte"),
        ("a = 1\na += 'x'", 2, "a += adds a list to a list or a string to a string"),
        ("a = " + "[" * 99, 1, "[ where a value is expected"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(text: str, line: int, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "u1.cfg")
    assert str(caught.value).startswith(f"u1.cfg:{line}: {told}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("memory=512; maxmem=256", "maxmem 256 MiB is less than memory 512 MiB"),
        ("vcpus=4; maxvcpus=2", "maxvcpus 2 is less than vcpus 4"),
        ("disk=['a,,xvda', 'b,,xvda']", "two disks are xvda"),
        ("vif=['mac=00:16:3e:00:00:01', 'mac=00:16:3E:00:00:01']", "two vifs have the same mac"),
    ],
)
def test_what_does_not_fit_together_is_refused(words: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_config(None, ["name=u1", words])


def test_a_file_that_is_not_there_or_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, told in (("nope", "No such file or directory"), ("binary", "it is not a text file")):
        with pytest.raises(UsageError, match=told):
            read_config(tmp_path / name)
    with pytest.raises(UsageError, match='the configuration lacks name, as in name="demo"'):
        read_config(None, ["memory=5"])


def test_lists_and_strings_grow_by_plus_equals() -> None:
    found = parse("a = [1]; a += [2, [3]]\nb += 'x'\nb += \"y\"", "x")
    assert {key: value.plain for key, value in found.items()} == {"a": [1, 2, [3]], "b": "xy"}


def quoted(text: str) -> str:
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or c in "\\\"'" else c for c in text).join('""')


def rendered(value: Any) -> str:
    match value:
        case str():
            return quoted(value)
        case list():
            return "[" + ",\n ".join(map(rendered, value)) + ("," if value else "") + "] # a list\n"
        case _:
            return str(value)


STRINGS = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(STRINGS | st.integers(-(2**40), 2**40), lambda inner: st.lists(inner, max_size=4), max_leaves=8)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES), st.sampled_from(["\n", " ;\n", "\r\n", ' # words = "nothing"\n']))
def test_every_value_that_is_written_is_read_back(keys: dict[str, Any], separator: str) -> None:
    text = separator.join(f"{key} = {rendered(value)}" for key, value in keys.items())
    assert {key: value.plain for key, value in parse(text, "x").items()} == keys


@given(st.text(st.sampled_from("ab=+[],;'\"\\\n #019x-") | st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_read_or_refused_with_a_line_that_it_has(text: str) -> None:
    try:
        parse(text, "x")
    except UsageError as error:
        source, line, _ = str(error).split(":", 2)
        assert source == "x"
        assert 1 <= int(line) <= text.count("\n") + 1


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    made = config(SAMPLE, folder=tmp_path)
    assert DomainConfig.from_json(json.loads(json.dumps(made.to_json()))) == made
    for wrong in (
        {},
        {"name": "a", "zzz": 1},
        {"name": 5},
        {"name": "a", "on_crash": "?"},
        {"name": "a", "disks": [1]},
    ):
        with pytest.raises(UsageError, match="not the configuration of a domain"):
            DomainConfig.from_json(wrong)


def test_the_keys_of_a_screen_say_where_vnc_clients_find_it() -> None:
    def vnc(*keys: str) -> VncConfig | None:
        return read_config(None, ["name=h", "type=hvm", *keys]).config.vnc

    assert vnc() is None
    assert vnc("vnc=0", "vncdisplay=5") is None
    assert vnc("vnc=1") == VncConfig("127.0.0.1", 0, True, "")
    assert vnc("vnc=1", "vnclisten='0.0.0.0:3'", "vncpasswd='geheim'", "vncunused=0") == VncConfig(
        "0.0.0.0", 3, False, "geheim"
    )
    assert vnc("vnc=1", "vnclisten='[::1]:2'") == VncConfig("::1", 2)
    assert vnc("vnc=1", "vnclisten='::1'", "vncdisplay=4") == VncConfig("::1", 4)
    config = read_config(None, ["name=h", "type=hvm", "vnc=1"]).config
    assert DomainConfig.from_json(config.to_json()) == config
    for keys, words in (
        (("vnc=1", "vnclisten='0.0.0.0'"), "add vncpasswd"),
        (("vnc=1", "vncpasswd='123456789'"), "at most 8"),
        (("vnc=1", "vnclisten='127.0.0.1:1'", "vncdisplay=1"), "names a display, too"),
        (("vnc=2",), "neither 0 nor 1"),
        (("vnc=1", "vncdisplay=x"), "no number from 0"),
    ):
        with pytest.raises(UsageError, match=words):
            vnc(*keys)
