"""The machines of the hosted architecture that run now: processes that tell of themselves at their control sockets."""

from __future__ import annotations

from typing import Any

from bivisor.toolstack.hostd.place import Place


class Machines:
    """Those whose control sockets are in the host's folder."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def look(self) -> list[dict[str, Any]]:
        """What each says of itself, by name."""
        return []
