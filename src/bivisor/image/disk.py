"""A bootable disk image of a small Debian: the distribution's kernel, GRUB, and a root file system with busybox.

It is made without being root. The layout is the oldest one there is: GRUB's first sector in the MBR, its core behind
it, and an ext4 partition from 1 MiB on (GRUB manual, "BIOS installation"; e2fsprogs, mke2fs(8), option -d). UEFI finds
GRUB in a second partition at the end (UEFI 2.10, 13.3.1 "System Partition", 3.5.1.1 "Removable Media Boot Behavior").
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from bivisor.errors import HostError, UsageError
from bivisor.image import cpio, initramfs
from bivisor.image.cache import Cache
from bivisor.image.default import default_guest
from bivisor.image.fat import fat16
from bivisor.image.firmware import package_files
from bivisor.image.grub import BIOS, EFI, grub_core, grub_parts, run_tool
from bivisor.image.guest import Guest
from bivisor.image.modules import ModuleTree
from bivisor.image.packages import Apt, PackageError
from bivisor.image.progress import ProgressFactory, on_stderr

SIZE = 64 << 20
PARTITION = 1 << 20
ESP_SIZE = 4 << 20
_MIB = 1 << 20
_MOST = 2 << 40  # the MBR counts sectors with 32 bits
LABEL = "BIVISOR"
DRIVERS = (
    "ata_piix", "ahci", "sd_mod", "sr_mod", "virtio_pci", "virtio_blk", "virtio_net", "xen-blkfront", "xen-netfront",
    "e1000", "af_packet", "crc32c_generic", "ext4", "button",
)  # fmt: skip
EFI_DRIVERS = ("efivarfs",)
_MEMTEST = (("memtest86+x64.bin", "memtest"), ("memtest86+x64.efi", "memtest.efi"))
_SECTOR = 512
_MBR_CODE, _DRIVE_CHECK = 446, 0x66
_NOPS = b"\x90\x90"
_LINUX, _EFI_SYSTEM = 0x83, 0xEF
_EFI_PROGRAM = "EFI/BOOT/BOOTX64.EFI"
_FEATURES = "none,extents,filetype,dir_index,sparse_super,large_file,has_journal"
_MENU = """\
if [ "$grub_platform" = pc ]; then
	serial --unit=0 --speed=115200
	terminal_input console serial
	terminal_output console serial
fi
set timeout=1
set default=0
menuentry "Linux" { linux /boot/vmlinuz quiet console=ttyS0 console=tty0 @WORDS@ ; initrd /boot/initrd }
menuentry "Linux, and what it says" { linux /boot/vmlinuz console=ttyS0 console=tty0 @WORDS@ ; initrd /boot/initrd }
if [ "$grub_platform" = efi ]; then
	menuentry "memtest86+" { chainloader /boot/memtest.efi }
	menuentry "Firmware settings" { fwsetup }
else
	menuentry "memtest86+" { linux16 /boot/memtest }
fi
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
[ -d /sys/firmware/efi ] && read -r of_efi </modules-efi && modules="$modules $of_efi"
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
[ -d /sys/firmware/efi/efivars ] && mount -t efivarfs efivarfs /sys/firmware/efi/efivars
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
    grubs = {kind: grub_parts(kind, cache, progress) for kind in (BIOS, EFI)}
    memtest = package_files(cache, ("memtest86+",), r"boot/memtest86\+x64\.(bin|efi)", progress) / "boot"
    files = _packages(cache, packages, progress) if packages else None
    size = _size(size, files)
    modules = (grubs[kind] / "lib/grub" / kind / "normal.mod" for kind in grubs)
    sources = (Path(__file__), *(Path(__file__).with_name(f"{name}.py") for name in ("grub", "fat")))
    inputs = (guest.kernel, *modules, *sources, *(memtest / name for name, _ in _MEMTEST))
    key = f"disk {size} {words} {' '.join(sorted(packages))} " + " ".join(cache.digest(path) for path in inputs)

    def make(out: BinaryIO) -> None:
        with progress() as report, tempfile.TemporaryDirectory(prefix="bivisor-disk-") as temporary:
            report.step("building the disk image")
            work = Path(temporary)
            cores = {kind: grub_core(kind, parts, LABEL, work) for kind, parts in grubs.items()}
            if len(cores[BIOS]) > PARTITION - _SECTOR:
                raise HostError(f"GRUB's core has {len(cores[BIOS])} bytes: it does not fit before the partition")
            boot = (grubs[BIOS] / "lib/grub" / BIOS / "boot.img").read_bytes()
            _root(work / "root", guest, memtest, words, files)
            _write(out, work, boot, cores, size)

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
    if wanted > _MOST:
        raise UsageError(
            f"an image of {wanted >> 40} TiB: {_MOST >> 40} TiB are the most that its partition table knows"
        )
    return -(-(wanted or least) // _MIB) * _MIB


def _write(out: BinaryIO, work: Path, boot: bytes, cores: Mapping[str, bytes], size: int) -> None:
    """Write the image of `work`/root to `out`, which is empty."""
    partition = work / "partition"
    options = ["-q", "-t", "ext4", "-O", _FEATURES, "-L", LABEL, "-m", "0"]
    command: list[str | Path] = [*_as_root(), _tool("mke2fs"), *options, "-d", work / "root", partition]
    system = size - ESP_SIZE
    run_tool(command, f"{(system - PARTITION) >> 10}k")
    out.write(_mbr(boot, size))
    out.write(cores[BIOS])
    out.truncate(size)
    out.seek(PARTITION)
    with open(partition, "rb") as source:
        _copy_sparse(source, out)
    out.seek(system)
    out.write(fat16({_EFI_PROGRAM: cores[EFI]}, ESP_SIZE // _SECTOR, hidden=system // _SECTOR))


def _copy_sparse(source: BinaryIO, out: BinaryIO) -> None:
    zeros = bytes(1 << 16)
    while piece := source.read(len(zeros)):
        if piece == zeros:
            out.seek(len(piece), 1)
        else:
            out.write(piece)


def copy_image(image: Path, out: BinaryIO) -> None:
    """Write the image to `out` in place of what is there; what is empty takes no room. OSError."""
    out.truncate(0)
    with open(image, "rb") as source:
        _copy_sparse(source, out)
    out.truncate(image.stat().st_size)


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
    """GRUB's first sector, told to trust the drive number of the BIOS, with the root partition, active, and UEFI's."""
    sector = bytearray(boot[:_SECTOR])
    sector[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NOPS
    system = size - ESP_SIZE
    partitions = ((0x80, _LINUX, PARTITION, system), (0, _EFI_SYSTEM, system, size))
    table = b"".join(
        struct.pack("<B3sB3sII", flag, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", at // _SECTOR, (end - at) // _SECTOR)
        for flag, kind, at, end in partitions
    )
    sector[_MBR_CODE:510] = table.ljust(64, b"\0")
    sector[440:444] = b"BVSR"
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


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
    for source, name in _MEMTEST:
        shutil.copy(memtest / source, tree / "boot" / name)
    (tree / "boot/initrd").write_bytes(_initrd(guest, busybox))


def _applets(busybox: Path) -> list[str]:
    done = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise HostError(f"{busybox} does not say what is in it")
    return done.stdout.split()


def _initrd(guest: Guest, busybox: Path) -> bytes:
    modules = ModuleTree(guest.modules)
    wanted = modules.resolve([name for name in DRIVERS if name in modules])
    of_efi = modules.resolve([name for name in EFI_DRIVERS if name in modules])
    replaced = {"init", "modules"}
    entries = initramfs.entries(busybox.read_bytes(), [*wanted, *of_efi])
    entries = [each for each in entries if each.path not in replaced]
    entries.append(cpio.file("init", _INIT.encode(), 0o755))
    for name, listed in (("modules", wanted), ("modules-efi", of_efi)):
        paths = " ".join(f"/lib/modules/{module.name}.ko" for module in listed)
        entries.append(cpio.file(name, paths.encode() + b"\n"))
    return cpio.archive(entries)


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise HostError(f"building a disk image needs {name} (package e2fsprogs)")
    return found
