"""Networks as xl-network-configuration(5) writes them, and where Bivisor's own kinds of network fit in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bivisor.errors import UsageError

DEFAULT_BRIDGE = "xenbr0"
MTU_MIN, MTU_MAX = 68, 65535
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_REFUSED = {
    "script": "Bivisor runs no hotplug scripts: bridge=NAME, type=user and type=tap are what there is",
    "rate": "rates are not limited: leave it out",
    "backend": "there are no driver domains yet: leave it out",
    "model": "a PVH domain has no emulated network cards: leave it out",
    "ip": "addresses are the guest's own affair: leave it out",
    "gatewaydev": "Bivisor routes nothing: type=user reaches the host's network",
    "netdev": "Bivisor routes nothing: type=user reaches the host's network",
}
_KINDS = ("vif", "user", "tap")


@dataclass(frozen=True, slots=True)
class VifSpec:
    """One network interface. `kind` is "vif" (on `bridge`, which is among this host's domains), "user" (the host's
    network in user mode) or "tap" (the TAP device `vifname`). No `mac`: one is made up."""

    kind: str = "vif"
    mac: str = ""
    bridge: str = DEFAULT_BRIDGE
    vifname: str = ""
    mtu: int = 1500
    devid: int = -1
    trusted: bool = True

    @classmethod
    def parse(cls, text: str) -> VifSpec:
        """From a NET_SPEC_STRING. UsageError says what would be right."""
        spec = cls()
        seen: set[str] = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (word.strip() for word in part.partition("="))
            if name in seen:
                raise UsageError(f"vif {text!r}: {name} is given twice")
            seen.add(name)
            spec = spec._with(name, value, text)
        if spec.kind == "tap" and not spec.vifname:
            raise UsageError(f"vif {text!r}: type=tap needs vifname, the name of the TAP device")
        return spec

    def _with(self, name: str, value: str, text: str) -> VifSpec:
        def wrong(words: str) -> UsageError:
            return UsageError(f"vif {text!r}: {name}: {words}")

        match name:
            case "mac":
                if not _MAC.fullmatch(value):
                    raise wrong(f"{value!r} is not written as in 00:16:3e:01:02:03")
                if int(value[:2], 16) & 1:
                    raise wrong(f"{value} is a group's address; the first byte of a card's is even")
                return replace(self, mac=value.lower())
            case "bridge" | "vifname":
                if not _NAME.fullmatch(value):
                    raise wrong(f"{value!r} is not the name of an interface (up to 15 letters, digits, - _ .)")
                return replace(self, bridge=value) if name == "bridge" else replace(self, vifname=value)
            case "type":
                if value not in _KINDS:
                    raise wrong(f"{value!r} is not one of {', '.join(_KINDS)}; emulated cards are for HVM")
                return replace(self, kind=value)
            case "mtu":
                return replace(self, mtu=_number(value, MTU_MIN, MTU_MAX, wrong))
            case "devid":
                return replace(self, devid=_number(value, 0, 255, wrong))
            case "trusted" | "untrusted":
                return replace(self, trusted=name == "trusted")
        if name in _REFUSED:
            raise wrong(_REFUSED[name])
        raise UsageError(f"vif {text!r}: {name!r} is not one of mac, bridge, type, vifname, mtu, devid, trusted")

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> VifSpec:
        """From what `to_json` gave. TypeError."""
        return cls(**words)


def _number(value: str, low: int, high: int, wrong: Any) -> int:
    if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
        raise wrong(f"{value!r} has to be a number from {low} to {high}")
    return int(value)
