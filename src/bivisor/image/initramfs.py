"""The default guest's initramfs: busybox, the modules of virtio and of Xen, init and its helpers, and nothing else.

It stays uncompressed: it is about 3 MB, and an emulated guest inflates more slowly than it copies. The kernel unpacks
archives that stand one after the other (Documentation/driver-api/early-userspace/buffer-format.rst), so what belongs to
one run only, the command of `--exec`, comes as a second archive behind it: `append_exec`.

The guest's side of the contract, all by kernel command line (Documentation/admin-guide/kernel-parameters.rst leaves
names with a dot to modules, and this name is nobody's): `bivisor.size=ROWSxCOLS`, `bivisor.term=TERM`,
`bivisor.exit=PORT` (debug-exit port), `bivisor.dhcp=INTERFACE` (to be configured first; any number of them),
`bivisor.share=TAG[,ro]` (a virtio-fs to be mounted at /share/TAG, or at /mnt if TAG is share; any number of them) and
`bivisor.stdio=virtio`, which says that virtio-console ports called bivisor.stdin, bivisor.stdout and bivisor.stderr are
there and are worth waiting for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from bivisor.errors import UsageError
from bivisor.image import cpio, helpers
from bivisor.image.modules import Module, ModuleTree
from bivisor.image.program import Call

EXEC_PATH = "bivisor/exec"

DEFAULT_MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "pvpanic_mmio",
    "pvpanic_pci",
)
"""What a guest of this program can meet; a kernel that lacks one, or has it built in, does without the file."""

XEN_MODULES = ("xen_blkfront", "xen_netfront")
"""The same for a domain of Xen's. Elsewhere they stay files: loading one that then refuses costs time."""

SHARE_MODULES = ("virtiofs",)
"""The same for a guest that shares folders with its host: they come behind the initramfs (`append_sharing`)."""

_START = Path(__file__).with_name("start.sh")

# arch/x86/entry/syscalls/syscall_64.tbl
_OPEN, _CLOSE, _IOCTL, _SOCKET, _EXECVE, _EXIT, _MKDIR, _SETSID = 2, 3, 16, 41, 59, 60, 83, 112
_MOUNT, _SETHOSTNAME, _FINIT_MODULE = 165, 170, 313
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8  # MS_*, mount(2)
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # netdevice(7)
_LO_UP = struct.pack("<16sH22x", b"lo", _IFF_UP)
_FD = 3  # the kernel opens 0, 1 and 2 on /dev/console, and every other one is closed before the next is opened

_DHCP_SCRIPT = b"""#!/bin/sh
# What udhcpc calls with each change of its lease.
case $1 in
deconfig) ifconfig "$interface" 0.0.0.0 up ;;
bound | renew)
	ifconfig "$interface" "$ip" netmask "${subnet:-255.255.255.0}"
	for gateway in $router; do route add default gw "$gateway" dev "$interface"; done
	for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
	;;
esac
"""


def entries(busybox: bytes, modules: Sequence[Module], on_xen: Sequence[Module] = ()) -> list[cpio.Entry]:
    """The files of the initramfs; `modules` are in the order in which they load. Those `on_xen` load in any order."""
    directories = (
        "bin bivisor dev etc etc/udhcpc lib lib/modules lib/modules/xen mnt proc root run sys tmp"
        " usr usr/share usr/share/udhcpc var"
    )
    return [
        *map(cpio.directory, directories.split()),
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.file("init", helpers.init(_setup(modules), _child()), 0o755),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.symlink("sbin", "bin"),
        *(cpio.symlink(f"bin/{order}", "busybox") for order in ("poweroff", "reboot")),  # the kernel's own, for orders
        cpio.file("bin/debug-exit", helpers.debug_exit(), 0o755),
        cpio.file("bin/load-modules", helpers.load_modules(), 0o755),
        cpio.file("etc/group", b"root:x:0:\n"),
        cpio.file("etc/hosts", b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
        cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        cpio.file("etc/start", _START.read_bytes()),
        cpio.file("etc/udhcpc/default.script", _DHCP_SCRIPT, 0o755),  # where Debian's busybox looks for it
        cpio.symlink("usr/share/udhcpc/default.script", "/etc/udhcpc/default.script"),  # and where others do
        *(cpio.file(_path(module), module.image) for module in modules),
        *(cpio.file(f"lib/modules/xen/{module.name}.ko", module.image) for module in on_xen),
    ]


def append_exec(command: str, files: Iterable[tuple[str, bytes]] = ()) -> bytes:
    """An archive to put behind the initramfs: the guest runs `command` with its shell instead of an interactive one.

    `files` are (absolute path in the guest, contents) pairs that come along, executable. UsageError for a zero byte in
    the command, or a path that is not absolute.
    """
    if "\0" in command:
        raise UsageError("--exec: a command cannot contain a zero byte")
    found = [cpio.directory("bivisor"), cpio.file(EXEC_PATH, command.encode("utf-8", "surrogateescape") + b"\n")]
    for path, data in files:
        pure = PurePosixPath(path)
        if not pure.is_absolute() or ".." in pure.parts:
            raise UsageError(f"{path}: a file for the guest needs an absolute path")
        found += [cpio.directory(str(parent)[1:]) for parent in reversed(pure.parents) if parent.name]
        found.append(cpio.file(str(pure)[1:], data, 0o755))
    return cpio.archive(found)


def append_sharing(tree: ModuleTree) -> bytes:
    """An archive to put behind the initramfs: the modules that mount shared folders, numbered as they load.

    ImageError where the kernel has none.
    """
    modules = enumerate(tree.resolve(SHARE_MODULES))
    files = [cpio.file(f"lib/modules/share/{index:02}-{module.name}.ko", module.image) for index, module in modules]
    return cpio.archive([cpio.directory("lib/modules/share"), *files])


def _setup(modules: Sequence[Module]) -> list[Call]:
    return [
        Call(_MOUNT, (b"proc", b"/proc", b"proc", _NOSUID | _NODEV | _NOEXEC)),
        Call(_MOUNT, (b"sysfs", b"/sys", b"sysfs", _NOSUID | _NODEV | _NOEXEC)),
        Call(_MOUNT, (b"devtmpfs", b"/dev", b"devtmpfs", _NOSUID)),
        Call(_MKDIR, (b"/dev/pts", 0o755)),
        Call(_MOUNT, (b"devpts", b"/dev/pts", b"devpts", _NOSUID | _NOEXEC, b"mode=620,ptmxmode=666")),
        Call(_MKDIR, (b"/dev/shm", 0o1777)),
        Call(_SETHOSTNAME, (b"guest", len("guest"))),
        Call(_SOCKET, (2, 2, 0)),  # AF_INET, SOCK_DGRAM
        Call(_IOCTL, (_FD, _SIOCSIFFLAGS, _LO_UP)),
        Call(_CLOSE, (_FD,)),
        *(call for module in modules for call in _load(module)),
    ]


def _load(module: Module) -> tuple[Call, ...]:
    path = b"/" + _path(module).encode()
    return Call(_OPEN, (path, 0)), Call(_FINIT_MODULE, (_FD, b"", 0)), Call(_CLOSE, (_FD,))


def _child() -> list[Call]:
    environment = (b"PATH=/bin", b"HOME=/root", b"USER=root", b"SHELL=/bin/sh")
    return [Call(_SETSID), Call(_EXECVE, (b"/bin/busybox", (b"sh", b"/etc/start"), environment)), Call(_EXIT, (127,))]


def _path(module: Module) -> str:
    return f"lib/modules/{module.name}.ko"
