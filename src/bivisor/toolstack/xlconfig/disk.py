"""Disks as xl-disk-configuration(5) writes them: positional parameters, names with values, and the old prefixes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bivisor.errors import UsageError
from bivisor.host.how import check_format

POSITIONAL = ("target", "format", "vdev", "access")
_VDEV = re.compile(r"(xvd|sd|hd)([a-z]{1,5})([0-9]{0,3})|d([0-9]{1,7})(?:p([0-9]{1,3}))?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}|0x[0-9a-f]{1,8}")
_READ_ONLY = {"r": True, "ro": True, "w": False, "rw": False}
_FLAGS = frozenset({"discard", "no-discard", "trusted", "untrusted", "direct-io-safe", "cdrom"})
_REFUSED = {
    "script": "Bivisor runs no hotplug scripts: name an image file or a block device as the target",
    "backendtype": "Bivisor has one block back-end of its own: leave it out",
    "backend": "there are no driver domains yet: leave it out",
    "specification": "only xen's own protocol is there: leave it out",
    "colo": "COLO is not there",
}
_IGNORED_PREFIXES = ("tapdisk", "tap2", "tap", "aio", "ioemu", "file", "phy")
_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """The image or block device `target` as `vdev` of a domain; `format` is one of `host.how.FORMATS`."""

    target: Path
    vdev: str
    read_only: bool = False
    discard: bool = True
    trusted: bool = True
    format: str = "raw"
    cdrom: bool = False
    """A disc in a drive, which only an HVM domain has."""

    @property
    def params(self) -> str:
        """What its node `params` says: the image, behind its format where that is not raw (libxl's qdisk)."""
        return str(self.target) if self.format == "raw" else f"{self.format}:{self.target}"

    @property
    def device(self) -> int:
        """The number of its node under device/vbd (xen-vbd-interface(7))."""
        return vdev_number(self.vdev)

    @classmethod
    def parse(cls, text: str) -> DiskSpec:
        """From a DISKSPEC. UsageError says what would be right."""
        words = _parameters(text)
        format_ = check_format(words.get("format") or "raw", text)
        vdev, access = words.get("vdev", ""), words.get("access") or "rw"
        if not vdev:
            raise UsageError(f"disk {text!r}: it lacks vdev, as in disk.img,raw,xvda,rw")
        if access not in _READ_ONLY:
            raise UsageError(f"disk {text!r}: access {access!r} is one of r, ro, w, rw")
        if not words.get("target"):
            raise UsageError(f"disk {text!r}: it lacks the target, an image file or a block device")
        vdev_number(vdev)
        target = Path(words["target"])
        cdrom = "cdrom" in words
        read_only = _READ_ONLY[access] or cdrom
        return cls(target, vdev, read_only, "no-discard" not in words, "untrusted" not in words, format_, cdrom)

    def absolute(self, folder: Path) -> DiskSpec:
        """With its target as seen from `folder`; a bare name that is a device below /dev and no file there is that."""
        here = folder / self.target
        device = Path("/dev") / self.target
        target = device if not here.exists() and device.is_block_device() else here
        return replace(self, target=target)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"target": str(self.target)}

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> DiskSpec:
        """From what `to_json` gave. TypeError, KeyError."""
        return cls(**(dict(words) | {"target": Path(words["target"])}))


def _parameters(text: str) -> dict[str, str]:
    """Parameters by name; a flag has an empty value."""
    found: dict[str, str] = {}
    rest = _old_syntax(text, found)
    places = [name for name in POSITIONAL if name not in found]
    while rest:
        rest = rest.lstrip()
        if rest.startswith("target="):  # it takes everything that follows, commas and all
            _set(found, "target", rest.removeprefix("target="), text)
            break
        part, _, rest = rest.partition(",")
        name, equals, value = part.rstrip().partition("=")
        if equals:
            _named(found, name.rstrip(), value.lstrip(), text)
        elif name in _FLAGS or name in _REFUSED:
            _named(found, name, "", text)
        else:
            place = next((each for each in places if each not in found), None)
            if place is None:
                raise UsageError(f"disk {text!r}: {part!r} is one parameter too many (target, format, vdev, access)")
            found[place] = name
    return found


def _named(found: dict[str, str], name: str, value: str, text: str) -> None:
    if name in _REFUSED or name.startswith(("colo-", "active-", "hidden-")):
        raise UsageError(f"disk {text!r}: {name}: {_REFUSED.get(name, _REFUSED['colo'])}")
    if name == "cdrom" or (name == "devtype" and value == "cdrom"):
        _set(found, "cdrom", "cdrom", text)
        return
    if name == "devtype" and value in ("", "disk"):
        return
    if name not in POSITIONAL and name not in _FLAGS:
        names = ", ".join((*POSITIONAL, *sorted(_FLAGS)))
        raise UsageError(f"disk {text!r}: {name!r} is not one of {names}")
    _set(found, name, value, text)


def _set(found: dict[str, str], name: str, value: str, text: str) -> None:
    if found.get(name):
        raise UsageError(f"disk {text!r}: {name} is given twice")
    found[name] = value


def _old_syntax(text: str, found: dict[str, str]) -> str:
    """Take the prefixes of [FORMAT:][TARGET],VDEV[:DEVTYPE],ACCESS off; what is left is ordinary."""
    rest, had_prefix = text.lstrip(), False
    while True:
        prefix, colon, after = rest.partition(":")
        if not colon or "/" in prefix or "," in prefix or "=" in prefix:
            break
        if prefix in _SCRIPT_PREFIXES:
            raise UsageError(f"disk {text!r}: {prefix}: needs a hotplug script; {_REFUSED['script']}")
        if prefix in ("raw", "qcow2", "vhd"):
            found["format"] = prefix
        elif prefix not in _IGNORED_PREFIXES:
            break
        rest, had_prefix = after, True
    parts = rest.split(",")
    if len(parts) > 1 and _VDEV.fullmatch(parts[1].strip().partition(":")[0]):
        had_prefix = True
    if not had_prefix:
        return rest
    if len(parts) > 1 and ":" in parts[1]:
        parts[1], _, devtype = parts[1].partition(":")
        _named(found, "devtype", devtype.strip(), text)
    found.setdefault("format", "raw")
    return ",".join(parts)


def vdev_number(vdev: str) -> int:
    """The device number of xvda, xvdb1, sda, hda, d0p1 and their like (xen-vbd-interface(7)). UsageError."""
    found = _VDEV.fullmatch(vdev)
    if _NUMBER.fullmatch(vdev):
        return int(vdev, 0)
    if found is None:
        raise UsageError(f"vdev {vdev!r}: it is written xvda, xvdb1, sda or d0")
    kind, letters, digits, disk_digits, part_digits = found.groups()
    disk = int(disk_digits) if disk_digits else _letters(letters)
    partition = int((part_digits if disk_digits else digits) or 0)
    match kind:
        case "sd" if disk < 16 and partition < 16:
            return 8 << 8 | disk << 4 | partition
        case "hd" if disk < 4 and partition < 64:
            return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
        case "xvd" | None if disk < 16 and partition < 16:
            return 202 << 8 | disk << 4 | partition
        case "xvd" | None if disk < 1 << 20 and partition < 256:
            return 1 << 28 | disk << 8 | partition
    raise UsageError(f"vdev {vdev!r}: there is no such disk or partition")


def _letters(letters: str) -> int:
    """a is 0, z is 25, aa is 26."""
    value = 0
    for letter in letters:
        value = value * 26 + ord(letter) - ord("a") + 1
    return value - 1
