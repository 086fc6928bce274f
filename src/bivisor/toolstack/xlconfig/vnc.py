"""The keys vnc, vnclisten, vncdisplay, vncunused and vncpasswd of xl.cfg(5): the screen of an HVM domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bivisor.errors import UsageError

DISPLAY_MAX = 59635
PASSWORD_MAX = 8
KEYS = ("vnc", "vnclisten", "vncdisplay", "vncunused", "vncpasswd")
_LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class VncConfig:
    """VNC clients find the screen at `listen`, display `display`, or with `unused` at the next one that is free."""

    listen: str = "127.0.0.1"
    display: int = 0
    unused: bool = True
    password: str = ""

    @classmethod
    def of(cls, words: Mapping[str, str]) -> VncConfig | None:
        """From the values of KEYS; None where there is to be no server. UsageError names the key."""
        if not _flag("vnc", words.get("vnc", "0")):
            return None
        listen, colon, display = words.get("vnclisten", "127.0.0.1").rpartition(":")
        if not colon or (listen.count(":") and not listen.endswith("]")):  # no display behind it, or an IPv6 address
            listen, display = words.get("vnclisten", "127.0.0.1"), ""
        if display and "vncdisplay" in words:
            raise UsageError("vncdisplay: vnclisten names a display, too")
        password = words.get("vncpasswd", "")
        if len(password.encode()) > PASSWORD_MAX:
            raise UsageError(f"vncpasswd: a VNC password has at most {PASSWORD_MAX} bytes")
        listen = listen.strip("[]") or "127.0.0.1"
        if not listen.startswith(_LOOPBACK) and not password:
            raise UsageError(f"vnclisten: anybody could come to {listen} from other hosts: add vncpasswd")
        number = display or words.get("vncdisplay", "0")
        if not (number.isascii() and number.isdigit() and int(number) <= DISPLAY_MAX):
            raise UsageError(f"vncdisplay: {number!r} is no number from 0 to {DISPLAY_MAX}")
        return cls(listen, int(number), _flag("vncunused", words.get("vncunused", "1")), password)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def _flag(key: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise UsageError(f"{key}: {text!r} is neither 0 nor 1")
    return text == "1"
