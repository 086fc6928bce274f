"""The screen of an HVM domain: pictures of it, keys for it, and both by VNC."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from bivisor.dom0.hvm.board import HvmBoard
from bivisor.errors import HostError
from bivisor.platform.ps2.scancodes import CHARACTERS, keys_of
from bivisor.toolstack.screen import Display, KeyFeed, png_of
from bivisor.toolstack.vnc import FIRST_PORT, VncOption, VncServer, listen
from bivisor.toolstack.xlconfig.vnc import DISPLAY_MAX, VncConfig
from bivisor.vnc import Security


class DomScreen:
    """The screen, keyboard and mouse of `board`, of a domain that is called `name`. Used without the loop's lock."""

    def __init__(self, board: HvmBoard, name: str, config: VncConfig | None) -> None:
        self._board = board
        self._display = Display()
        self._keys = KeyFeed(board.ps2.keyboard, board.loop)
        listener = None if config is None else _listener(config)
        password = config.password.encode() if config is not None and config.password else None
        self._server = VncServer(self._display, self._display, listener, Security(password), name=name)
        self.port = self._server.port
        """Where VNC clients find it, 0 where nobody listens."""
        self._display.plug_in(board.vga, board.ps2, board.loop)
        self._server.start()

    def adopt(self, end: socket.socket) -> None:
        """Serve the client at the other end of `end` by the RFB protocol. From any thread."""
        self._server.adopt(end)

    def png(self) -> bytes:
        """A picture, as a PNG file."""
        with self._board.loop.lock:
            frame = self._board.vga.frame()
        return png_of(frame)

    def press(self, words: Sequence[str]) -> None:
        """Press and release each chord of `words`, such as `ret` or `ctrl-alt-delete`. UsageError for no such key."""
        chords = [keys_of(word) for word in words]
        with self._board.loop.lock:
            for codes in chords:
                for code in codes:
                    self._keys.key(code, True)
                for code in reversed(codes):
                    self._keys.key(code, False)

    def type(self, text: str) -> None:
        """Type `text`; what an American keyboard has no key for is left out."""
        self.press([character for character in text if character in CHARACTERS])

    def close(self) -> None:
        """Hang up: the domain goes."""
        self._server.close()
        self._display.unplug()
        with self._board.loop.lock:
            self._keys.close()


def _listener(config: VncConfig) -> socket.socket:
    """A socket at the display that is wanted or, if that may be, the first free one behind it. HostError."""
    for display in range(config.display, DISPLAY_MAX + 1):
        try:
            return listen(VncOption(config.listen, FIRST_PORT + display))
        except HostError:
            if not config.unused or display >= config.display + 100:
                raise
    raise HostError(f"vnc: no display is free from {config.display} on")
