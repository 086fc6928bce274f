"""The guest that is booted when nobody names another: the distribution's kernel with our initramfs.

Preparing it takes seconds and once the network; afterwards `guest.json` in the cache names the two files, and finding
them costs a few milliseconds and no import that is worth mentioning.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from bivisor.errors import HostError
from bivisor.image.guest import Guest, recipe_files
from bivisor.image.place import default_root, shape
from bivisor.image.progress import ProgressFactory, on_stderr


def default_guest(progress: ProgressFactory = on_stderr, *, root: Path | None = None, refresh: bool = False) -> Guest:
    """The default guest, prepared if need be; with `refresh` the distribution is asked for a newer kernel.

    `root` is the cache's directory. HostError, with what to do, where no kernel can be had.
    """
    root = default_root() if root is None else root
    known = None if refresh else _read(root)
    if known is not None and known.is_current:
        return known.guest
    from bivisor.image.cache import Cache
    from bivisor.image.prepare import prepare, prepare_again

    with progress() as report:
        if known is not None:
            guest = prepare_again(Cache(root), report, known.guest)
        else:
            guest = prepare(Cache(root), report, refresh=refresh)
    _remember(root, guest)
    return guest


def known_guest(root: Path | None = None) -> Guest | None:
    """The default guest if it has been prepared before, and nothing else."""
    known = _read(default_root() if root is None else root)
    return None if known is None else known.guest


@dataclass(frozen=True, slots=True)
class _Known:
    guest: Guest
    is_current: bool


def _read(root: Path) -> _Known | None:
    """The guest of `guest.json`, if its kernel is still the same file. It is current if its initramfs is, too, and the
    program that made it."""
    try:
        text = json.loads((root / "guest.json").read_bytes())
        guest = Guest(Path(text["kernel"]), Path(text["initrd"]), text["release"], Path(text["modules"]))
        if text["kernel shape"] == shape(guest.kernel) and guest.modules.is_dir():
            return _Known(guest, text["seal"] == _seal(guest))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _remember(root: Path, guest: Guest) -> None:
    text = {name: str(value) for name, value in asdict(guest).items()}
    seals = {"kernel shape": shape(guest.kernel), "seal": _seal(guest)}
    temporary = root / f"guest.json.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(text | seals, indent=1))
        temporary.rename(root / "guest.json")
    except OSError as error:
        raise HostError(f"cannot write to the cache: {error} (set BIVISOR_CACHE to another directory)") from error


def _seal(guest: Guest) -> list[list[int]]:
    """Changes with the initramfs and with the program that makes it."""
    return [shape(path) for path in (guest.initrd, *recipe_files()) if path.exists()]
