"""The keys of xl.cfg(5): which there are, what their values have to be, and which Bivisor does not have, and why."""

from __future__ import annotations

import difflib
import uuid as uuids
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bivisor.errors import UsageError
from bivisor.toolstack.gdbplace import parse as parse_gdb
from bivisor.toolstack.xlconfig import vnc
from bivisor.toolstack.xlconfig.config import MIB, Action, DomainConfig, check_name
from bivisor.toolstack.xlconfig.disk import DiskSpec
from bivisor.toolstack.xlconfig.syntax import ConfigError, Value, number, parse
from bivisor.toolstack.xlconfig.unsupported import UNSUPPORTED
from bivisor.toolstack.xlconfig.vif import VifSpec

VCPUS_MAX = 128
MEMORY_MAX_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Parsed:
    """A configuration, and what a person should hear about it."""

    config: DomainConfig
    warnings: tuple[str, ...]


def read_config(file: Path | None, overrides: Iterable[str] = (), *, folder: Path | None = None) -> Parsed:
    """The configuration in `file` (none: the defaults), with key=value texts from the command line on top.

    Relative paths are seen from `folder`, the current one if None. UsageError names key and line.
    """
    keys: dict[str, Value] = {}
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a text file"
            raise UsageError(f"{file}: {why}") from None
        keys = parse(text, str(file))
    for words in overrides:
        keys |= parse(_quoted(words), "command line")
    return config_of(keys, Path.cwd() if folder is None else folder)


def _quoted(words: str) -> str:
    """`name=demo` as a shell hands it over: a value that is a bare word or path gets its quotes back."""
    key, equals, value = words.partition("=")
    value = value.strip()
    if equals and value and value[0] not in "\"'[" and ";" not in value and not _is_number(value):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{key}="{escaped}"'
    return words


def _is_number(text: str) -> bool:
    try:
        number(text)
    except ValueError:
        return False
    return True


def config_of(keys: dict[str, Value], folder: Path) -> Parsed:
    """The configuration that assignments make. UsageError names key and line."""
    for key, value in keys.items():
        _check_known(key, value)
        if key in _CHECKED:
            _read(key, value, _CHECKED[key])
    _check_type(keys)
    if "name" not in keys:
        raise UsageError('the configuration lacks name, as in name="demo"')
    warnings: list[str] = []
    fields: dict[str, Any] = {}
    for key, (field, reader) in _READERS.items():
        if key in keys:
            fields[field] = _read(key, keys[key], reader)
    if "cmdline" in keys:
        if "root" in keys or "extra" in keys:
            warnings.append("cmdline is given, so root and extra are ignored")
    else:
        fields["cmdline"] = " ".join(filter(None, (_root(keys), _text(keys["extra"]) if "extra" in keys else "")))
    fields["vnc"] = _vnc(keys)
    config = _absolute(DomainConfig(**fields), folder)
    try:
        return Parsed(config.completed(), tuple(warnings))
    except UsageError as error:
        source = keys["name"].place.source
        raise UsageError(f"{source}: {error}") from None


def _vnc(keys: dict[str, Value]) -> vnc.VncConfig | None:
    given = {key: value for key, value in keys.items() if key in vnc.KEYS}
    try:
        return vnc.VncConfig.of({key: _text(value) for key, value in given.items()})
    except UsageError as error:
        raise next(iter(given.values())).place.error(str(error)) from None


def _read(key: str, value: Value, reader: Callable[[Value], Any]) -> Any:
    """What `reader` makes of the value of `key`. UsageError names key and line."""
    try:
        return reader(value)
    except ConfigError as error:
        raise error.place.error(f"{key}: {error.words}") from None
    except UsageError as error:
        raise value.place.error(str(error)) from None


def _check_known(key: str, value: Value) -> None:
    if key in _READERS or key in _ALSO:
        return
    if key in UNSUPPORTED:
        raise value.place.error(f"{key} is not supported: {UNSUPPORTED[key]}")
    near = difflib.get_close_matches(key, [*_READERS, *_ALSO], 1)
    meant = f"; is it {near[0]}?" if near else f" (there are {', '.join(sorted({*_READERS, *_ALSO}))})"
    raise value.place.error(f"{key} is not a key that Bivisor knows{meant}")


def _check_type(keys: dict[str, Value]) -> None:
    if "builder" in keys:
        _check_builder(keys)
    if "type" not in keys:
        return
    match _text(keys["type"]):
        case "pvh" | "pv" | "hvm":
            return
        case other:
            raise keys["type"].place.error(f'type "{other}" is none of pvh, pv and hvm')


def _check_builder(keys: dict[str, Value]) -> None:
    """The older word for the type: "hvm", or "generic" for a PV domain."""
    match _text(keys["builder"]):
        case "hvm":
            kind = "hvm"
        case "generic":
            kind = "pv"
        case other:
            raise keys["builder"].place.error(f'builder "{other}" is neither "hvm" nor "generic"; type says it as well')
    said = keys.setdefault("type", Value(keys["builder"].place, kind))
    if _text(said) != kind:
        raise keys["builder"].place.error(f'builder "{_text(keys["builder"])}" contradicts type "{_text(said)}"')


def _absolute(config: DomainConfig, folder: Path) -> DomainConfig:
    return replace(
        config,
        kernel=None if config.kernel is None else folder / config.kernel,
        ramdisk=None if config.ramdisk is None else folder / config.ramdisk,
        disks=tuple(disk.absolute(folder) for disk in config.disks),
    )


def _text(value: Value) -> str:
    if isinstance(value.content, tuple):
        raise value.place.error("a string is expected, not a list")
    return str(value.content)


def _gdb(value: Value) -> str:
    text = _text(value)
    parse_gdb(text)
    return text


def _root(keys: dict[str, Value]) -> str:
    return f"root={_text(keys['root'])}" if "root" in keys else ""


def _number(low: int, high: int, scale: int = 1) -> Callable[[Value], int]:
    def read(value: Value) -> int:
        content = value.content
        if isinstance(content, str) and _is_number(content):
            content = number(content)
        if not isinstance(content, int) or not low <= content <= high:
            raise value.place.error(f"{_shown(value)} has to be a number from {low} to {high}")
        return content * scale

    return read


def _shown(value: Value) -> str:
    return "a list" if isinstance(value.content, tuple) else repr(value.content)


def _action(value: Value) -> Action:
    text = _text(value)
    if text.startswith("coredump-"):
        raise value.place.error(f"{text}: Bivisor writes no core dumps; preserve keeps the domain to be looked at")
    try:
        return Action(text)
    except ValueError:
        raise value.place.error(f"{text!r} is none of {', '.join(action.value for action in Action)}") from None


def _boot(value: Value) -> str:
    text = _text(value)
    if not text or set(text) - set("acdn") or len(set(text)) < len(text):
        raise value.place.error(f"{text!r}: each of c (hard disk), d (CD-ROM), n (network) and a (floppy) at most once")
    return text


def _serial(value: Value) -> str:
    content = value.content[:1] if isinstance(value.content, tuple) else (value,)
    text = _text(content[0]) if content else "none"
    if text not in ("pty", "none"):
        raise value.place.error(f'{text!r}: COM1 is "pty", which xl console shows, or "none"')
    return text


def _hdtype(value: Value) -> str:
    text = _text(value)
    if text not in ("ide", "ahci"):
        raise value.place.error(f'{text!r} is neither "ide" nor "ahci"')
    return text


def _choice(*allowed: str) -> Callable[[Value], None]:
    """For keys of HVM domains with one way to be here."""

    def check(value: Value) -> None:
        text = _text(value)
        if text not in allowed:
            raise value.place.error(f"{text!r} is not there: {' or '.join(allowed)} is what an HVM domain has here")

    return check


def _uuid(value: Value) -> str:
    try:
        return str(uuids.UUID(_text(value)))
    except ValueError:
        raise value.place.error(f"{_text(value)!r} is not written as in {uuids.UUID(int=0x1234)}") from None


def _list_of(parse_one: Callable[[str], Any]) -> Callable[[Value], tuple[Any, ...]]:
    def read(value: Value) -> tuple[Any, ...]:
        if not isinstance(value.content, tuple):
            raise value.place.error('a list is expected, as in ["..."]')
        found = []
        for part in value.content:
            try:
                found.append(parse_one(_text(part)))
            except UsageError as error:
                raise error if isinstance(error, ConfigError) else part.place.error(str(error)) from None
        return tuple(found)

    return read


_MIB = _number(1, MEMORY_MAX_MIB, MIB)
_READERS: dict[str, tuple[str, Callable[[Value], Any]]] = {
    "name": ("name", lambda value: check_name(_text(value))),
    "type": ("type", _text),
    "kernel": ("kernel", lambda value: Path(_text(value))),
    "ramdisk": ("ramdisk", lambda value: Path(_text(value))),
    "cmdline": ("cmdline", _text),
    "memory": ("memory", _MIB),
    "maxmem": ("maxmem", _MIB),
    "vcpus": ("vcpus", _number(1, VCPUS_MAX)),
    "maxvcpus": ("maxvcpus", _number(1, VCPUS_MAX)),
    "uuid": ("uuid", _uuid),
    "boot": ("boot", _boot),
    "serial": ("serial", _serial),
    "hdtype": ("hdtype", _hdtype),
    "disk": ("disks", _list_of(DiskSpec.parse)),
    "vif": ("vifs", _list_of(VifSpec.parse)),
    "on_poweroff": ("on_poweroff", _action),
    "on_reboot": ("on_reboot", _action),
    "on_crash": ("on_crash", _action),
    "on_watchdog": ("on_watchdog", _action),
    "gdb": ("gdb", _gdb),
}
_CHECKED: dict[str, Callable[[Value], None]] = {
    "acpi": _choice("1"),
    "apic": _choice("1"),
    "pae": _choice("0", "1"),
    "hap": _choice("0", "1"),
    "bios": _choice("seabios"),
    "firmware": _choice("bios", "seabios"),
    "device_model_version": _choice("qemu-xen"),
    "xen_platform_pci": _choice("1"),
    "stdvga": _choice("1"),
    "vga": _choice("stdvga"),
    "videoram": _choice("16"),
    "localtime": _choice("0"),
    "sdl": _choice("0"),
    "usb": _choice("0"),
    "viridian": _choice("0"),
}
"""Keys that stock configurations of HVM domains have, of which nothing has to be kept."""
_ALSO = frozenset({"builder", "root", "extra", *vnc.KEYS, *_CHECKED})
