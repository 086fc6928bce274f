"""A kernel, its modules and busybox from the distribution's own packages, as an ordinary user and without installing.

`apt-get` (apt-get(8), apt.conf(5)) keeps its lists and caches where `Dir::State` and `Dir::Cache` say, so it works in a
directory of ours and checks the archive's signatures as always. The system's package lists are used when they are
there and recent. A .deb is a tar archive to `dpkg-deb --fsys-tarfile` (deb(5)), of which only some files are wanted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bivisor.errors import HostError
from bivisor.image.progress import Progress

KERNEL_METAPACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic", "linux-image-amd64")
"""What follows a distribution's kernel, smallest first: Debian has the first and the last, Ubuntu those between."""

BUSYBOX = "busybox-static"

_SYSTEM_LISTS = Path("/var/lib/apt/lists")
_RECENT = 24 * 3600.0
_WANTED = re.compile(r"boot/(vmlinuz|config)-[^/]+|lib/modules/[^/]+/(kernel/.+|modules\.(builtin|order))|bin/busybox")
_KERNEL = re.compile(r"\blinux-image-(?:unsigned-)?(\d[\w.+~-]*)")


class PackageError(HostError):
    """The distribution's packages cannot be had."""


Fields = Mapping[str, str]
"""The fields of a package's control file (deb-control(5))."""

Show = Callable[[Iterable[str]], Mapping[str, Fields]]
"""The fields of the candidate versions of those of the named packages that there are."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The kernel release and the (package, version) pairs to get."""

    release: str
    packages: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """As apt-get takes it."""
        return " ".join(f"{name}={version}" for name, version in self.packages)


def select(show: Show, metapackages: Sequence[str] = KERNEL_METAPACKAGES) -> Selection | None:
    """What to get: the newest kernel of the distribution with its modules, and busybox. None where nothing is known.

    The kernel is that of the first of `metapackages` that there is."""
    offered = show(metapackages)
    for name in metapackages:
        kernel = _KERNEL.search(offered.get(name, {}).get("Depends", ""))
        if kernel is None:
            continue
        image, release = kernel[0], kernel[1]
        modules = f"linux-modules-{release}"
        found = show([image, modules, BUSYBOX])
        names = [image, BUSYBOX]
        if modules in found.get(image, {}).get("Depends", ""):
            names.append(modules)
        if found.keys() >= set(names):
            return Selection(release, tuple((name, found[name]["Version"]) for name in names))
    return None


def parse_control(text: str) -> dict[str, Fields]:
    """The paragraphs of `text` by package (deb-control(5)), the first of each; those without a version are left out."""
    found: dict[str, Fields] = {}
    for paragraph in text.split("\n\n"):
        fields = _parse_paragraph(paragraph)
        if fields.keys() >= {"Package", "Version"}:
            found.setdefault(fields["Package"], fields)
    return found


def _parse_paragraph(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            fields[key] = f"{fields.get(key, '')} {line.strip()}"
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return fields


class Apt:
    """apt-get with its state and caches in `workspace`. PackageError where there is none on this machine."""

    def __init__(self, workspace: Path) -> None:
        if not all(map(shutil.which, ("apt-get", "apt-cache", "dpkg-deb"))):
            raise PackageError("this is no Debian or Ubuntu: there is no apt-get, apt-cache and dpkg-deb")
        self._workspace = workspace
        self._own_lists = not _system_lists_are_recent()

    def select(
        self, progress: Progress, *, refresh: bool = False, metapackages: Sequence[str] = KERNEL_METAPACKAGES
    ) -> Selection:
        """What to get. The lists are fetched if need be or with `refresh`. PackageError where that fails."""
        stale = refresh or (self._own_lists and not self._own_lists_are_recent())
        found = None if stale else select(self._show, metapackages)
        if found is None:
            self._own_lists = True
            progress.step("fetching the distribution's package lists")
            complaint = self._apt_get(["update"], progress)
            found = select(self._show, metapackages)
            if found is None:
                raise PackageError(f"apt offers none of {', '.join(metapackages)} with {BUSYBOX}{complaint}")
        return found

    def fetch(self, selection: Selection, into: Path, progress: Progress, wanted: re.Pattern[str] = _WANTED) -> None:
        """Download the packages and unpack what is wanted of them into `into`: boot/, lib/modules/, bin/busybox."""
        with tempfile.TemporaryDirectory(dir=self._workspace, prefix="debs-") as debs:
            progress.step(f"downloading Linux {selection.release}")
            packages = str(selection).split()
            complaint = self._apt_get(["download", *packages], progress, Path(debs))
            found = sorted(Path(debs).glob("*.deb"))
            if len(found) != len(packages):
                raise PackageError(f"apt-get cannot download {' '.join(packages)}{complaint}")
            progress.step(f"unpacking Linux {selection.release}")
            for deb in found:
                unpack(deb, into, wanted)

    def fetch_files(self, names: Iterable[str], wanted: re.Pattern[str], into: Path, progress: Progress) -> None:
        """Download the candidate versions of packages and unpack the files whose names (without a leading usr/) match
        `wanted` into `into`. PackageError where a package cannot be had."""
        names = list(names)
        if not self._show(names).keys() >= set(names):
            self._own_lists = True
            progress.step("fetching the distribution's package lists")
            self._apt_get(["update"], progress)
        with tempfile.TemporaryDirectory(dir=self._workspace, prefix="debs-") as debs:
            progress.step(f"downloading {' '.join(names)}")
            complaint = self._apt_get(["download", *names], progress, Path(debs))
            found = sorted(Path(debs).glob("*.deb"))
            if len(found) != len(names):
                raise PackageError(f"apt-get cannot download {' '.join(names)}{complaint}")
            for deb in found:
                unpack(deb, into, wanted)

    def fetch_all(self, names: Sequence[str], into: Path, progress: Progress) -> None:
        """Download packages and all that they depend on, and unpack them whole, as dpkg(1) would, into `into`. Their
        scripts are not run. PackageError where one cannot be had."""
        progress.step("looking for packages")
        closure = self._closure(names)
        if closure is None:
            self._own_lists = True
            progress.step("fetching the distribution's package lists")
            complaint = self._apt_get(["update"], progress)
            closure = self._closure(names)
            if closure is None:
                raise PackageError(f"apt offers no way to install {' '.join(names)}{complaint}")
        with tempfile.TemporaryDirectory(dir=self._workspace, prefix="debs-") as debs:
            progress.step(f"downloading {len(closure)} packages")
            complaint = self._apt_get(["download", *closure], progress, Path(debs))
            found = sorted(Path(debs).glob("*.deb"))
            if len(found) != len(closure):
                raise PackageError(f"apt-get cannot download {' '.join(closure)}{complaint}")
            progress.step(f"unpacking {len(closure)} packages")
            for name in ("bin", "sbin", "lib", "lib64"):
                (into / "usr" / name).mkdir(parents=True)
                (into / name).symlink_to(f"usr/{name}")
            for deb in found:
                _unpack_whole(deb, into)

    def _closure(self, names: Sequence[str]) -> list[str] | None:
        """The packages that a system without any would need for these; None where apt does not know."""
        nothing = self._workspace / "nothing"
        nothing.touch()
        options = [*self._options(), "-o", f"Dir::State::status={nothing}", "--no-install-recommends"]
        command = ["apt-get", "-qq", *options, "install", "--print-uris", *names]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        if done.returncode:
            return None
        return [line.split()[1].partition("_")[0] for line in done.stdout.splitlines() if line.startswith("'")]

    def _show(self, names: Iterable[str]) -> dict[str, Fields]:
        command = ["apt-cache", *self._options(), "show", "--no-all-versions", *names]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        return parse_control(done.stdout)  # a package that does not exist makes it fail, and print the others

    def _apt_get(self, arguments: list[str], progress: Progress, directory: Path | None = None) -> str:
        """Run it, and return what it complained about, to put behind a message: success shows in its results, since a
        failing third party's archive makes it fail as well."""
        reader, writer = os.pipe()
        command = ["apt-get", "-qq", *self._options(), "-o", f"APT::Status-Fd={writer}", *arguments]
        with open(reader, encoding="utf-8", errors="replace") as status, tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=directory,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=[writer],
                )
            finally:
                os.close(writer)
            with process:
                for line in status:  # dlstatus:ITEM:PERCENT:TEXT
                    match line.split(":"):
                        case ["dlstatus", _, percent, *_]:
                            progress.fraction(_number(percent) / 100)
            errors.seek(0)
            lines = [line for line in errors.read().decode(errors="replace").splitlines() if line[:2] in ("E:", "W:")]
        return f": {lines[0][2:].strip()}" if lines else ""

    def _options(self) -> list[str]:
        root = self._workspace
        options: dict[str, object] = {
            "Dir::Cache": root / "cache",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "",
        }
        options |= {"Acquire::Languages": "none", "Acquire::Retries": 2, "Acquire::GzipIndexes": "true"}
        (root / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        if self._own_lists:
            (root / "state/lists/partial").mkdir(parents=True, exist_ok=True)
            (root / "status").touch()
            options |= {"Dir::State": root / "state", "Dir::State::status": root / "status"}
        if os.geteuid() == 0:
            options |= {"APT::Sandbox::User": "root"}  # the workspace is not _apt's
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def _own_lists_are_recent(self) -> bool:
        return _are_recent(self._workspace / "state/lists")


def unpack(deb: Path, into: Path, wanted: re.Pattern[str] = _WANTED) -> None:
    """Copy the wanted regular files of `deb` to `into`, /usr merged into /. PackageError where `deb` is damaged."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                copy_wanted(archive, into, wanted)
            damaged = process.wait() != 0
        except (tarfile.TarError, EOFError):
            damaged = True
        if damaged:
            process.kill()
            raise PackageError(f"{deb.name}: dpkg-deb cannot unpack this package")


def _unpack_whole(deb: Path, into: Path) -> None:
    """Everything in `deb`, links too; /bin, /sbin and /lib are links in `into`, and stay."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as archive:
        tar: list[str | Path] = ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", into]
        done = subprocess.run(tar, stdin=archive.stdout, capture_output=True, text=True, check=False)
    if done.returncode or archive.returncode:
        raise PackageError(f"{deb.name}: it cannot be unpacked: {' '.join(done.stderr.split())}")


def copy_wanted(archive: tarfile.TarFile, into: Path, wanted: re.Pattern[str] = _WANTED) -> None:
    """Copy the wanted members. No name leads out of `into`: an absolute one or one with `..` is passed over, and links
    are never made."""
    for member in archive:
        path = PurePosixPath(member.name)
        if not member.isreg() or path.is_absolute() or ".." in path.parts:
            continue
        name = str(path).removeprefix("usr/")
        source = archive.extractfile(member)
        if source is None or not wanted.fullmatch(name):
            continue
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        if member.mode & 0o111:
            target.chmod(0o755)


def _system_lists_are_recent() -> bool:
    return _are_recent(_SYSTEM_LISTS)


def _are_recent(lists: Path) -> bool:
    """Whether apt updated them within a day: it sets the directory's time, and each list's is that of the archive."""
    try:
        listed = any("_Packages" in path.name for path in lists.iterdir())
        return listed and time.time() - max(lists.stat().st_mtime, (lists / "partial").stat().st_mtime) < _RECENT
    except OSError:
        return False


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
