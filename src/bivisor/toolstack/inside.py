"""What can be done inside of a guest that runs, by its agent: commands, files, folders."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from bivisor.errors import UsageError
from bivisor.image.modules import Module, ModuleTree, decompress, parse
from bivisor.image.prepare import find_modules, release_of
from bivisor.toolstack.agent import Agent, Result, quoted

BOOT_S = 120.0
_COPY_S = 120.0
_NO_AGENT = "this guest was started without an agent, so it runs no commands (agent=True)"


class Inside:
    """The part of a guest's interface that its agent answers. UsageError where it has none."""

    kernel: Path | None
    """The file of its kernel, where it has one."""
    _agent: Agent | None = None

    def wait_until_up(self, timeout: float = BOOT_S) -> None:
        """Wait until it takes commands. GuestTimeout."""
        if self._agent is None:
            raise UsageError(_NO_AGENT)
        self._agent.wait_ready(timeout)

    def run(self, command: str, *, input: bytes | str = b"", timeout: float = 60.0, check: bool = False) -> Result:
        """Run `command` in the guest's shell, with `input` as its standard input, and wait for it.

        GuestTimeout after `timeout` seconds, when it is killed, or where the guest ends. With `check`, CommandFailed
        for a status other than 0. One command runs at a time.
        """
        if self._agent is None:
            raise UsageError(_NO_AGENT)
        data = input.encode() if isinstance(input, str) else input
        return self._agent.run(command, input=data, timeout=timeout, check=check)

    def read_file(self, path: str) -> bytes:
        """The contents of a file in the guest. CommandFailed."""
        return self.run(f"cat {quoted(path)}", timeout=_COPY_S, check=True).stdout

    def write_file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Make the file `path` in the guest, and the folders that it is in. CommandFailed."""
        folder = quoted(str(PurePosixPath(path).parent))
        command = f"mkdir -p {folder} && cat >{quoted(path)} && chmod {mode:o} {quoted(path)}"
        self.run(command, input=data, timeout=_COPY_S, check=True)

    def put(self, source: str | Path, target: str) -> None:
        """Copy the file or folder `source` of the host to the path `target` in the guest."""
        source = Path(source)
        if source.is_file():
            self.write_file(target, source.read_bytes(), source.stat().st_mode & 0o777)
            return
        if not source.is_dir():
            raise UsageError(f"{source}: there is no such file or folder")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
            archive.add(source, ".")
        folder = quoted(target)
        self.run(f"mkdir -p {folder} && tar x -C {folder}", input=packed.getvalue(), timeout=_COPY_S, check=True)

    def get(self, source: str, target: str | Path) -> None:
        """Copy the file or folder `source` of the guest to the path `target` on the host.

        Of a folder, files and folders come along and nothing else; what would lie outside of `target` is an error.
        """
        target = Path(target)
        word = quoted(source)
        packed = self.run(f"if [ -d {word} ]; then tar c -C {word} .; else exit 9; fi", timeout=_COPY_S)
        if packed.status == 9:
            target.write_bytes(self.read_file(source))
            return
        with tarfile.open(fileobj=io.BytesIO(packed.stdout), mode="r:") as archive:
            for member in archive:
                _extract(archive, member, target)

    def load_module(self, module: str | Path, parameters: str = "") -> None:
        """Load a module into the guest's kernel: one of its own by name, with those that it needs, or the file of one
        that was built for it. ImageError where there is none, CommandFailed where the kernel refuses it."""
        if self.kernel is None:
            raise UsageError("this guest's kernel is on its disk, so its modules are not known")
        release = release_of(self.kernel)
        folder = find_modules(self.kernel, release)
        if folder is None:
            raise UsageError(f"{self.kernel}: no modules of Linux {release} beside it")
        tree = ModuleTree(folder)
        if isinstance(module, Path) or "/" in module:
            wanted = parse(decompress(Path(module)), Path(module))
        else:
            wanted = tree.load(module)
        for needed in tree.resolve(wanted.depends):
            self._insert(needed)
        self._insert(wanted, parameters)

    def _insert(self, module: Module, parameters: str = "") -> None:
        place = f"/lib/modules/{module.name}.ko"
        self.write_file(place, module.image)
        self.run(f"grep -q '^{module.name} ' /proc/modules || insmod {place} {parameters}", check=True)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Unpack one thing that a guest has packed, which may have any name."""
    parts = PurePosixPath(member.name).parts
    place = target.joinpath(*parts)
    inside = place.parent.resolve().is_relative_to(target.resolve()) or not parts
    if member.name.startswith("/") or ".." in parts or not inside:
        raise UsageError(f"the guest packed {member.name!r}, which lies outside of the folder")
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
    elif member.isfile():
        place.parent.mkdir(parents=True, exist_ok=True)
        content = archive.extractfile(member)
        assert content is not None
        with content, open(place, "wb") as out:
            shutil.copyfileobj(content, out)
