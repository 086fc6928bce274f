"""Where a trace's events come from: a host or machine that runs, or a file of JSON lines that was written before."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bivisor.errors import HostError, UsageError
from bivisor.events import Event
from bivisor.events.model import from_dict
from bivisor.events.probe import Filter
from bivisor.host import local_socket
from bivisor.toolstack.hostd import messages
from bivisor.toolstack.hostd.place import place_of
from bivisor.toolstack.presence import machine_sockets
from bivisor.toolstack.tracing.wanted import Wanted, number_of

_GLANCE_S = 0.05


def socket_of(target: str | None) -> Path:
    """The socket of a machine by its name, or of a host by its folder; without `target` that of the host, or of the
    only machine where no host runs. UsageError where there is no such thing."""
    place = place_of()
    machines = machine_sockets(place)
    if target is not None:
        if target in machines:
            return machines[target]
        if (Path(target) / "host.sock").exists():
            return Path(target) / "host.sock"
        names = ", ".join(machines) or "none"
        raise UsageError(f"{target}: neither the folder of a host nor a machine that runs (there are: {names})")
    if place.socket.exists() or len(machines) != 1:
        return place.socket
    return next(iter(machines.values()))


class Asker:
    """A connection to a host or machine: one request after the other. HostError where nobody answers."""

    def __init__(self, path: Path) -> None:
        end = local_socket.connect(path)
        if end is None:
            raise HostError(
                f"nobody answers at {path}: no host and no machine runs there (bivisor host start, bivisor run)"
            )
        self._path = path
        self.end = end
        self.reader = messages.LineReader(end)

    def ask(self, method: str, **params: Any) -> Any:
        """What the request gives. What is refused is raised as it would be there."""
        try:
            self.end.sendall(messages.encode({"method": method, "params": params}))
            line = self.reader.line()
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror}") from None
        if line is None:
            raise HostError(f"{self._path}: it has ended")
        answer = messages.decode(line)
        if "error" in answer:
            messages.raise_error(answer["error"])
        return answer.get("result")

    def close(self) -> None:
        """Disconnect."""
        self.end.close()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Live:
    """The events of a running host or machine as they happen. `names` are those of its domains; `dropped` counts what
    was lost because this program was too slow. Iterating ends with what is traced, or `seconds` after the start."""

    def __init__(self, path: Path, wanted: Wanted, seconds: float | None = None) -> None:
        asker = Asker(path)
        self._end, self._reader = asker.end, asker.reader
        try:
            result = asker.ask("trace", **wanted.params())
        except BaseException:
            asker.close()
            raise
        self.names = {int(number): str(name) for number, name in result["names"].items()}
        self.dropped = 0
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def __iter__(self) -> Iterator[Event | None]:
        """Events; None now and then while there are none."""
        self._end.settimeout(_GLANCE_S)
        while self._deadline is None or time.monotonic() < self._deadline:
            try:
                line = self._reader.line()
            except TimeoutError:
                yield None
                continue
            except OSError:
                return
            if line is None:
                return
            said = messages.decode(line)
            if "dropped" in said:
                self.dropped = int(said["dropped"])
            else:
                yield from_dict(said)

    def close(self) -> None:
        """Ask for no more."""
        self._end.close()


class Recorded:
    """The events of a file of JSON lines. `names` are those of the domains, as far as the file says them."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.names: dict[int, str] = {}
        self._path = path
        self._wanted = wanted

    def __iter__(self) -> Iterator[Event]:
        """UsageError names a line that is none of a trace, or why the file cannot be read."""
        chosen: Filter | None = None
        try:
            with open(self._path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    event = self._event(number, line)
                    if event is None:
                        continue
                    chosen = chosen or self._chosen()
                    if event.kind in chosen.kinds and chosen.passes(event):
                        yield event
        except OSError as error:
            raise UsageError(f"{self._path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{self._path}: that is no file of JSON lines") from None

    def _event(self, number: int, line: str) -> Event | None:
        try:
            said = json.loads(line)
            if not isinstance(said, dict):
                raise ValueError
            if "names" in said:
                self.names |= {int(domid): str(name) for domid, name in said["names"].items()}
            elif "kind" in said:
                return from_dict(said)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(
                f"{self._path}, line {number}: that is no event (bivisor trace --json writes them)"
            ) from None
        return None

    def _chosen(self) -> Filter:
        wanted = self._wanted
        domains = [number_of(word, self.names) for word in wanted.domains]
        return Filter(wanted.kinds, domains or None, wanted.names or None)
