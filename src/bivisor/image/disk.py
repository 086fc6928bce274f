"""A bootable disk image of a small Debian: the distribution's kernel, GRUB, and a root file system with busybox.

It is made without being root. The layout is the oldest one there is: GRUB's first sector in the MBR, its core behind
it, and one ext4 partition from 1 MiB on (GRUB manual, "BIOS installation"; e2fsprogs, mke2fs(8), option -d).
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from bivisor.errors import HostError, UsageError
from bivisor.image import cpio, initramfs
from bivisor.image.cache import Cache
from bivisor.image.default import default_guest
from bivisor.image.firmware import package_files
from bivisor.image.guest import Guest
from bivisor.image.modules import ModuleTree
from bivisor.image.packages import Apt, PackageError
from bivisor.image.progress import ProgressFactory, on_stderr

SIZE = 64 << 20
PARTITION = 1 << 20
_MIB = 1 << 20
LABEL = "BIVISOR"
DRIVERS = (
    "ata_piix", "ahci", "sd_mod", "sr_mod", "virtio_pci", "virtio_blk", "virtio_net", "xen-blkfront", "xen-netfront",
    "e1000", "af_packet", "crc32c_generic", "ext4", "button",
)  # fmt: skip
_SECTOR = 512
_MBR_CODE, _DRIVE_CHECK = 446, 0x66
_NOPS = b"\x90\x90"
_LINUX = 0x83
_FEATURES = "none,extents,filetype,dir_index,sparse_super,large_file,has_journal"
_GRUB_MODULES = (
    "biosdisk part_msdos ext2 normal configfile linux linux16 multiboot search search_label echo cat ls test reboot "
    "halt serial terminal minicmd vbe vga gfxterm all_video font loadenv sleep keystatus"
).split()
_EARLY = f"search --no-floppy --set=root --label {LABEL}\nset prefix=($root)/boot/grub\n"

_MENU = """\
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=1
set default=0
menuentry "Linux" { linux /boot/vmlinuz quiet console=ttyS0 console=tty0 @WORDS@ ; initrd /boot/initrd }
menuentry "Linux, and what it says" { linux /boot/vmlinuz console=ttyS0 console=tty0 @WORDS@ ; initrd /boot/initrd }
menuentry "memtest86+" { linux16 /boot/memtest }
menuentry "Restart" { reboot }
menuentry "Power off" { halt }
"""

_INIT = f"""\
#!/bin/busybox sh
# Finds the root file system by its label and goes there.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
read -r modules </modules
/bin/load-modules $modules
tries=0
until root=$(/bin/busybox findfs LABEL={LABEL} 2>/dev/null) || [ $((tries += 1)) -gt 500 ]; do
	/bin/busybox sleep 0.02
done
/bin/busybox mount -t ext4 "$root" /mnt || exec /bin/busybox sh
for dir in proc sys dev; do /bin/busybox mount -o move /$dir /mnt/$dir; done
exec /bin/busybox switch_root /mnt /sbin/init
"""

_INITTAB = """\
::sysinit:/etc/rc
tty1::respawn:/sbin/getty 38400 tty1
ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
"""

_RC = """\
#!/bin/sh
hostname -F /etc/hostname
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts -o mode=620,ptmxmode=666
mount -o remount,rw /
ip link set lo up
"""


WORDS = "panic=-1"


def build_disk(
    cache: Cache | None = None,
    progress: ProgressFactory = on_stderr,
    guest: Guest | None = None,
    words: str = WORDS,
    *,
    packages: Sequence[str] = (),
    size: int = 0,
) -> Path:
    """The image, made or from the cache. It is the cache's: whoever boots it writable makes a copy first. The kernel
    is that of `guest`, which has to come from the distribution's packages (the default guest's without it), and is told
    `words`. `packages` are unpacked into it with what they depend on; it has `size` bytes, or as many as it needs.
    HostError."""
    cache = cache or Cache()
    guest = guest or default_guest(progress)
    grub = _grub(cache, progress)
    memtest = package_files(cache, ("memtest86+",), r"boot/memtest86\+x64\.bin", progress) / "boot/memtest86+x64.bin"
    files = _packages(cache, packages, progress) if packages else None
    size = _size(size, files)
    inputs = (guest.kernel, grub / "lib/grub/i386-pc/boot.img", Path(__file__), memtest)
    key = f"disk {size} {words} {' '.join(sorted(packages))} " + " ".join(cache.digest(path) for path in inputs)

    def make(out: BinaryIO) -> None:
        with progress() as report, tempfile.TemporaryDirectory(prefix="bivisor-disk-") as temporary:
            report.step("building the disk image")
            work = Path(temporary)
            boot, core = _grub_images(work, grub)
            _root(work / "root", guest, memtest, words, files)
            _write(out, work, boot, core, size)

    return cache.file(key, make)


def _packages(cache: Cache, names: Sequence[str], progress: ProgressFactory) -> Path:
    def fetch(into: Path) -> None:
        with progress() as report:
            Apt(cache.workspace("apt")).fetch_all(sorted(names), into, report)

    try:
        return cache.tree(f"packages with what they need, {' '.join(sorted(names))}", fetch)
    except PackageError as error:
        raise HostError(f"{error}; connect to the network once") from error


def _size(wanted: int, files: Path | None) -> int:
    """Bytes of the image, in whole MiB: as wanted, or what the files need with room to spare."""
    held = 0 if files is None else sum(path.lstat().st_size + 2048 for path in files.rglob("*") if not path.is_dir())
    least = SIZE + (held * 5 // 4)
    if wanted and wanted < least:
        raise UsageError(f"an image of {wanted >> 20} MiB: it needs {-(-least >> 20)} MiB at least")
    return -(-(wanted or least) // _MIB) * _MIB


def _write(out: BinaryIO, work: Path, boot: bytes, core: bytes, size: int) -> None:
    """Write the image of `work`/root to `out`, which is empty."""
    partition = work / "partition"
    options = ["-q", "-t", "ext4", "-O", _FEATURES, "-L", LABEL, "-m", "0"]
    command: list[str | Path] = [*_as_root(), _tool("mke2fs"), *options, "-d", work / "root", partition]
    _run(command, f"{(size - PARTITION) >> 10}k")
    out.write(_mbr(boot, size))
    out.write(core)
    out.truncate(size)
    out.seek(PARTITION)
    with open(partition, "rb") as source:
        _copy_sparse(source, out)


def _copy_sparse(source: BinaryIO, out: BinaryIO) -> None:
    zeros = bytes(1 << 16)
    while piece := source.read(len(zeros)):
        if piece == zeros:
            out.seek(len(piece), 1)
        else:
            out.write(piece)


def copy_image(image: Path, target: Path) -> None:
    """Copy an image; what is empty takes no room. HostError."""
    try:
        with open(image, "rb") as source, open(target, "wb") as out:
            _copy_sparse(source, out)
            out.truncate(image.stat().st_size)
    except OSError as error:
        raise HostError(f"cannot write {target}: {error.strerror}") from error


def _as_root() -> list[str | Path]:
    """What to put before a command that is to see our own files as root's; nothing where that is not possible."""
    if os.geteuid() == 0:
        return []
    probe = ["unshare", "--map-root-user", "true"]
    try:
        done = subprocess.run(probe, capture_output=True, check=False)
    except OSError:
        return []
    return [] if done.returncode else ["unshare", "--map-root-user"]


def _mbr(boot: bytes, size: int) -> bytes:
    """GRUB's first sector, told to trust the drive number of the BIOS, with a table of one active partition."""
    sector = bytearray(boot[:_SECTOR])
    sector[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NOPS
    first, count = PARTITION // _SECTOR, (size - PARTITION) // _SECTOR
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", _LINUX, b"\xfe\xff\xff", first, count)
    sector[_MBR_CODE:510] = entry.ljust(64, b"\0")
    sector[440:444] = b"BVSR"
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def _grub(cache: Cache, progress: ProgressFactory) -> Path:
    """A directory with GRUB's parts for BIOS machines (lib/grub/i386-pc) and, if the host has none, grub-mkimage."""
    installed = Path("/usr/lib/grub/i386-pc")
    if (installed / "boot.img").is_file() and shutil.which("grub-mkimage"):
        return Path("/usr")
    wanted = r"lib/grub/i386-pc/.+|bin/grub-mkimage"
    return package_files(cache, ("grub-pc-bin", "grub-common"), wanted, progress)


def _grub_images(work: Path, grub: Path) -> tuple[bytes, bytes]:
    """The first sector, and the core that it loads from the sectors behind it."""
    parts = grub / "lib/grub/i386-pc"
    early, core = work / "early.cfg", work / "core.img"
    early.write_text(_EARLY)
    mkimage = grub / "bin/grub-mkimage"
    command = [mkimage if mkimage.exists() else "grub-mkimage", "-d", parts, "-O", "i386-pc", "-p", "/boot/grub"]
    _run([*command, "-c", early, "-o", core], *_GRUB_MODULES)
    image = core.read_bytes()
    if len(image) > PARTITION - _SECTOR:
        raise HostError(f"GRUB's core has {len(image)} bytes: it does not fit before the partition")
    return (parts / "boot.img").read_bytes(), image


def _root(tree: Path, guest: Guest, memtest: Path, words: str, packages: Path | None) -> None:
    """The root file system: the files of the packages, and busybox for all that they lack."""
    if packages is not None:
        shutil.copytree(packages, tree, symlinks=True)
    for name in "bin boot/grub dev etc mnt proc root run sbin sys tmp usr var".split():
        (tree / name).mkdir(parents=True, exist_ok=True)
    busybox = guest.kernel.parent.parent / "bin/busybox"
    shutil.copy(busybox, tree / "bin/busybox")
    for name in _applets(busybox):
        place = tree / ("sbin" if name in ("init", "getty", "reboot", "poweroff", "halt") else "bin") / name
        if not place.is_symlink() and not place.exists():
            place.symlink_to("/bin/busybox")
    files = {
        "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "etc/hostname": "bivisor\n",
        "etc/issue": "Bivisor disk image, \\s \\r on \\l\n\n",
        "etc/inittab": _INITTAB,
        "etc/fstab": "",
        "etc/profile": "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n",
        "etc/rc": _RC,
        "boot/grub/grub.cfg": _MENU.replace("@WORDS@", words),
    }
    for name, text in files.items():
        (tree / name).write_text(text)
    (tree / "etc/rc").chmod(0o755)
    shutil.copy(guest.kernel, tree / "boot/vmlinuz")
    shutil.copy(memtest, tree / "boot/memtest")
    (tree / "boot/initrd").write_bytes(_initrd(guest, busybox))


def _applets(busybox: Path) -> list[str]:
    done = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise HostError(f"{busybox} does not say what is in it")
    return done.stdout.split()


def _initrd(guest: Guest, busybox: Path) -> bytes:
    modules = ModuleTree(guest.modules)
    wanted = modules.resolve([name for name in DRIVERS if name in modules])
    names = " ".join(f"/lib/modules/{module.name}.ko" for module in wanted)
    replaced = {"init", "modules"}
    entries = [each for each in initramfs.entries(busybox.read_bytes(), wanted) if each.path not in replaced]
    entries += [cpio.file("init", _INIT.encode(), 0o755), cpio.file("modules", names.encode() + b"\n")]
    return cpio.archive(entries)


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise HostError(f"building a disk image needs {name} (package e2fsprogs)")
    return found


def _run(command: list[str | Path], *more: str) -> None:
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(done.stderr.split())
        raise HostError(f"{Path(command[0]).name} failed: {words}")
