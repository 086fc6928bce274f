"""The one folder that holds a host's state: sockets, log, lock, what domains said on their consoles."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "BIVISOR_HOST"


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of one host. Mode 0700; whoever can open what is in it is the host's owner."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Where commands reach the host."""
        return self.folder / "host.sock"

    @property
    def xenstored(self) -> Path:
        """Where tools reach the store (XENSTORED_PATH)."""
        return self.folder / "xenstored.sock"

    @property
    def lock(self) -> Path:
        """Locked while a host runs here; holds its process id."""
        return self.folder / "host.lock"

    @property
    def log(self) -> Path:
        """What the host has to say."""
        return self.folder / "host.log"

    @property
    def consoles(self) -> Path:
        """The folder with a log of each domain's console."""
        return self.folder / "console"

    @property
    def machines(self) -> Path:
        """The folder with a socket for each machine of the hosted architecture that runs, by its name."""
        return self.folder / "machines"

    def console_log(self, name: str) -> Path:
        """The log of one domain's console."""
        return self.consoles / f"guest-{name}.log"


def place_of(state: str | Path | None = None) -> Place:
    """`state`, or $BIVISOR_HOST, or bivisor in $XDG_RUNTIME_DIR, or /run/bivisor for root, or /tmp/bivisor-UID."""
    if state is None:
        state = os.environ.get(VARIABLE) or _default()
    return Place(Path(state).absolute())


def _default() -> Path:
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute() and runtime.is_dir():
        return runtime / "bivisor"
    return Path("/run/bivisor") if os.geteuid() == 0 else Path(f"/tmp/bivisor-{os.geteuid()}")
