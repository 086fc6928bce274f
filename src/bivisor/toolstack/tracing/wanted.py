"""What a trace is to have: kinds, domains and names, as a person says them and as a request carries them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bivisor.errors import UsageError
from bivisor.events import Events, Kind, Subscription

DEFAULT_KINDS = tuple(kind for kind in Kind if kind not in (Kind.ENTRY, Kind.DEVICE))
"""All but those that only say once more what an exit says."""
ROOM = 1 << 18
"""How many events wait for who reads a trace."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """See `Events.listen`. `domains` are names or numbers; empty tuples are all of them."""

    kinds: tuple[Kind, ...] = DEFAULT_KINDS
    domains: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, kinds: Iterable[str], domains: Iterable[str] = (), names: Iterable[str] = ()) -> Wanted:
        """From words; each may be several, with commas between them. "all" is every kind. UsageError."""
        found: list[Kind] = []
        for word in _words(kinds):
            if word == "all":
                found += Kind
                continue
            try:
                found.append(Kind(word))
            except ValueError:
                known = ", ".join(kind.value for kind in Kind)
                raise UsageError(f"kind {word!r} is none of {known}, all") from None
        return cls(tuple(dict.fromkeys(found)) or DEFAULT_KINDS, tuple(_words(domains)), tuple(_words(names)))

    def params(self) -> dict[str, list[str]]:
        """As a request carries it."""
        return {
            "kinds": [kind.value for kind in self.kinds],
            "domains": list(self.domains),
            "names": list(self.names),
        }

    def subscribe(self, events: Events) -> Subscription:
        """Ask for it. UsageError where a domain is none."""
        domains = None
        if self.domains:
            domains = {number_of(word, events.names) for word in self.domains}
        return events.subscribe(self.kinds, domains=domains, names=self.names or None, limit=ROOM)


def number_of(word: str, names: Mapping[int, str]) -> int:
    """The domain of this name or number. UsageError where there is none of that name."""
    if word.isascii() and word.isdigit() and len(word) < 6:
        return int(word)
    if word == "Domain-0":
        return 0
    for number, name in names.items():
        if name == word:
            return number
    raise UsageError(f"there is no domain {word}")


def _words(given: Iterable[str]) -> list[str]:
    return [word for text in given for word in text.split(",") if word]


def params_of(said: Mapping[str, Any]) -> Wanted:
    """What `params` made. UsageError for anything else."""
    parts = [said.get(name, []) for name in ("kinds", "domains", "names")]
    if not all(isinstance(part, list) and all(isinstance(word, str) for word in part) for part in parts):
        raise UsageError("a trace is asked for by lists of words: kinds, domains, names")
    return Wanted.of(*parts)
