"""What can be asked of a machine, as one frozen record, and how the words of a command line become it.

Everything that can be told wrong without looking at the host is refused here, with one line: UsageError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bivisor.errors import UsageError
from bivisor.host.how import HowToOpen, check_format

MIB = 1 << 20
_UNITS = {"": MIB, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}
_DISK_QUEUES_MAX = 16


def parse_memory(text: str | int) -> int:
    """Bytes of "512" (MiB), "512M", "2G" or "2GiB"; a number is MiB, too. UsageError for less than 1 MiB."""
    words = str(text).strip().upper().removesuffix("IB").removesuffix("B")
    number = words.rstrip("KMGT")
    unit = _UNITS.get(words[len(number) :])
    if unit is None or not (number.isascii() and number.isdigit()):
        raise UsageError(f"memory {str(text)!r}: a number of MiB, or a number with K, M, G or T, as in 512M")
    size = int(number) * unit
    if size < MIB:
        raise UsageError(f"memory {str(text)!r}: a machine needs at least 1 MiB")
    return -(-size // MIB) * MIB


def check_machine_name(name: str) -> str:
    """`name` if a machine can have it. UsageError."""
    plain = name.replace("_", "a").replace(".", "a").replace("-", "a")
    if not (plain.isascii() and plain.isalnum() and len(name) <= 64 and name[0] not in ".-"):
        raise UsageError(f"name {name[:40]!r}: up to 64 letters, digits, _, . and -, and neither . nor - first")
    return name


_DISK_FLAGS = ("ro", "snapshot", "force-share")
_DISK_WORDS = (*_DISK_FLAGS, "queues", "serial", "if", "format", "load-snapshot")
_INTERFACES = ("ide", "ahci", "cdrom", "virtio")
MACHINES = ("direct", "pc")
DEFAULT_TAG = "share"
"""What a shared folder is called that was given no name. The default guest mounts it at /mnt."""


@dataclass(frozen=True, slots=True)
class DiskOption:
    """An image or block device; `queues` request queues (1 to 16), `serial` up to 20 bytes. `interface` is "ide",
    "ahci", "cdrom" or "virtio", "" for the machine's own choice; for the rest see `host.how.HowToOpen`."""

    path: Path
    read_only: bool = False
    queues: int = 1
    serial: str = ""
    interface: str = ""
    format: str = ""
    throw_away: bool = False
    snapshot: str = ""
    force_share: bool = False

    @classmethod
    def parse(cls, text: str) -> DiskOption:
        """PATH[,ro][,snapshot][,format=F][,load-snapshot=S][,force-share][,queues=N][,serial=S][,if=ide|ahci|cdrom|virtio].
        A comma in PATH is fine as long as no option follows it by name."""
        path, words = _split(text, _DISK_WORDS)
        queues = _number("disk", "queues", words.pop("queues", "1"), 1, _DISK_QUEUES_MAX)
        serial = words.pop("serial", "")
        if not path:
            raise UsageError(f"disk {text!r}: a path comes first, as in disk.img,ro")
        if len(serial.encode()) > 20:
            raise UsageError(f"disk {path}: the serial {serial!r} has more than 20 bytes")
        interface = words.pop("if", "")
        if interface not in ("", *_INTERFACES):
            raise UsageError(f"disk {path}: if={interface} is none of {', '.join(_INTERFACES)}")
        for flag in _DISK_FLAGS:
            if words.get(flag):
                raise UsageError(f"disk {path}: {flag} takes no value")
        return cls(
            Path(path),
            "ro" in words,
            queues,
            serial,
            interface,
            check_format(words.get("format", ""), Path(path)),
            "snapshot" in words,
            words.get("load-snapshot", ""),
            "force-share" in words,
        )

    @property
    def how(self) -> HowToOpen:
        """How its image is opened. What is in a CD-ROM drive is only read."""
        read_only = self.read_only or self.interface == "cdrom"
        return HowToOpen(self.format, read_only, self.throw_away, self.snapshot, self.force_share)


@dataclass(frozen=True, slots=True)
class NetOption:
    """A network interface. `kind` is "user" (passt), "tap" (`target` is the device) or "socket" (`target` is a path);
    without `mac` it gets one by its place. `model` is "virtio" or, in a PC, "e1000"; "" for the machine's choice."""

    kind: str
    target: str = ""
    mac: str = ""
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> NetOption:
        """user, tap=NAME or socket=PATH, each with ,mac=AA:BB:CC:DD:EE:FF and ,model=virtio|e1000 if wanted."""
        first, words = _split(text, ("mac", "model"))
        kind, _, target = first.partition("=")
        if kind not in ("user", "tap", "socket") or bool(target) == (kind == "user"):
            raise UsageError(f"net {text!r}: it is user, tap=NAME or socket=PATH, and ,mac=ADDRESS if wanted")
        model = words.get("model", "")
        if model not in ("", "virtio", "e1000"):
            raise UsageError(f"net {text!r}: model={model} is neither virtio nor e1000")
        return cls(kind, target, words.get("mac", ""), model)


_TAG_MAX = 36  # virtio 1.2 section 5.11.4
_CACHE_MAX_S = 86400.0


@dataclass(frozen=True, slots=True)
class ShareOption:
    """A folder of the host that the guest has too, under the name `tag`. `cache`: for how many seconds the guest may
    take what it knows of a file for true."""

    path: Path
    read_only: bool = False
    tag: str = DEFAULT_TAG
    cache: float = 0.0

    @classmethod
    def parse(cls, text: str) -> ShareOption:
        """PATH[,ro][,tag=NAME][,cache=SECONDS]. A comma in PATH is fine as long as no option follows it by name."""
        path, words = _split(text, ("ro", "tag", "cache"))
        if not path:
            raise UsageError(f"share {text!r}: a folder comes first, as in src,ro")
        if words.get("ro"):
            raise UsageError(f"share {path}: ro takes no value")
        tag = words.get("tag", DEFAULT_TAG)
        if len(check_machine_name(tag)) > _TAG_MAX:
            raise UsageError(f"share {path}: the tag {tag!r} has more than {_TAG_MAX} characters")
        try:
            cache = float(words.get("cache", "0"))
        except ValueError:
            cache = -1.0
        if not 0 <= cache <= _CACHE_MAX_S:
            raise UsageError(f"share {path}: cache={words['cache']} is no number of seconds from 0 to {_CACHE_MAX_S:g}")
        return cls(Path(path), "ro" in words, tag, cache)


def _shares(shares: Iterable[str | Path | ShareOption]) -> tuple[ShareOption, ...]:
    found = tuple(each if isinstance(each, ShareOption) else ShareOption.parse(str(each)) for each in shares)
    tags = [each.tag for each in found]
    for tag in tags:
        if tags.count(tag) > 1:
            raise UsageError(f"two shares are called {tag!r}: give each a name, as in src,tag=sources")
    return found


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One machine. `memory` is in bytes. No `kernel`: the default guest; no `initrd`: one that fits the kernel.
    `command` runs instead of an interactive shell. `verbose`: the guest's kernel says what it does."""

    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    protocol: str | None = None
    memory: int = 256 * MIB
    cpus: int = 1
    disks: tuple[DiskOption, ...] = ()
    nets: tuple[NetOption, ...] = ()
    shares: tuple[ShareOption, ...] = ()
    engine: str = "auto"
    command: str | None = None
    verbose: bool = False
    machine: str = "direct"
    no_reboot: bool = False
    control: Path | None = None
    vnc: str | None = None
    boot_menu: bool = False
    firmware: str = "bios"
    firmware_vars: Path | None = None

    @classmethod
    def of(
        cls,
        *,
        kernel: str | Path | None = None,
        initrd: str | Path | None = None,
        append: str = "",
        protocol: str | None = None,
        memory: str | int = 256,
        cpus: int = 1,
        disks: Iterable[str | Path | DiskOption] = (),
        nets: Iterable[str | NetOption] = (),
        shares: Iterable[str | Path | ShareOption] = (),
        engine: str = "auto",
        command: str | None = None,
        verbose: bool = False,
        machine: str = "direct",
        no_reboot: bool = False,
        control: str | Path | None = None,
        cdroms: Iterable[str | Path] = (),
        snapshot: bool = False,
        vnc: str | None = None,
        boot_menu: bool = False,
        firmware: str | Path = "bios",
        firmware_vars: str | Path | None = None,
    ) -> RunOptions:
        """The options in the words of the command line (`memory` in MiB or with a unit). `cdroms` are disks behind the
        others; `snapshot` throws away what is written to any disk; `firmware` is "bios", "uefi" or a file, and
        `firmware_vars` where UEFI keeps its variables. UsageError in one line."""
        if cpus < 1:
            raise UsageError(f"{cpus} processors: a machine has at least one")
        if machine not in MACHINES:
            raise UsageError(f"machine {machine!r}: it is {' or '.join(MACHINES)}")
        discs = list(cdroms)
        of_firmware = (
            ("firmware", str(firmware) != "bios"),
            ("firmware-vars", firmware_vars),
            ("boot-menu", boot_menu),
        )
        for name, value in (
            ("vnc", vnc),
            ("control", control),
            ("cdrom", discs),
            *of_firmware,
            ("no-reboot", no_reboot),
        ):
            if value and machine != "pc":
                raise UsageError(f"--{name}: a machine that is handed a kernel has nothing of the kind (--machine pc)")
        drives = [disk if isinstance(disk, DiskOption) else DiskOption.parse(str(disk)) for disk in disks]
        drives += [DiskOption(Path(disc), interface="cdrom") for disc in discs]
        if snapshot:
            drives = [replace(drive, throw_away=True) for drive in drives]
        return cls(
            kernel=None if kernel is None else Path(kernel),
            initrd=None if initrd is None else Path(initrd),
            append=append,
            protocol=protocol,
            memory=parse_memory(memory),
            cpus=cpus,
            disks=tuple(drives),
            nets=tuple(net if isinstance(net, NetOption) else NetOption.parse(net) for net in nets),
            shares=_shares(shares),
            engine=engine,
            command=command,
            verbose=verbose,
            machine=machine,
            no_reboot=no_reboot,
            control=None if control is None else Path(control),
            vnc=vnc,
            boot_menu=boot_menu,
            firmware=str(firmware),
            firmware_vars=None if firmware_vars is None else Path(firmware_vars),
        )


def _split(text: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The part before the first option of these `names`, and the options. UsageError for one that is given twice."""
    parts = text.split(",")
    first = [parts.pop(0)]
    while parts and parts[0].partition("=")[0] not in names:
        first.append(parts.pop(0))
    words: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in names or name in words:
            raise UsageError(f"{text!r}: {part!r} is not one of {', '.join(names)}, once each")
        words[name] = value
    return ",".join(first), words


def _number(what: str, name: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise UsageError(f"{what}: {name}={text} has to be a number from {low} to {high}")
    return int(text)
