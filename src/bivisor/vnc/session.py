"""One client of a screen: what it says is fed in, what it is told is taken out, and `tick()` looks at the screen.

The conversation is a generator that asks for so many bytes and goes on when they are there, so it reads as the
specification does: RFC 6143, 7.1 to 7.6. A client gets a picture when it has asked for one and something has changed,
and nobody looks at the screen before that.
"""

from __future__ import annotations

import os
import ssl
import struct
from collections.abc import Callable, Generator
from typing import ClassVar

from bivisor.abi import rfb
from bivisor.vnc.changes import around, meet
from bivisor.vnc.contract import Box, Controls, ProtocolError, Screen
from bivisor.vnc.pixels import COLOUR_MAP, NATIVE, Packer, PixelFormat, colour_map
from bivisor.vnc.pointer import Pointer
from bivisor.vnc.security import Security, TlsPipe
from bivisor.vnc.update import Updates

Script = Generator[int, bytes, None]
_CUT_TEXT_PIECE = 1 << 16
_NO_TLS = b"this server wants TLS"


class Session:
    """A session that shows `screen` and works `controls`. `random(n)` gives n bytes that nobody can guess.

    `is_open`: the client may look. `ended`: there will be nothing more; take the rest and hang up.
    """

    def __init__(
        self,
        screen: Screen,
        controls: Controls,
        security: Security | None = None,
        *,
        name: str = "Bivisor",
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._screen, self._controls = screen, controls
        self._security = security or Security()
        self._name = name.encode()
        self._random = random
        self._in, self._out = bytearray(), bytearray()
        self._tls: TlsPipe | None = None
        self._wanted: tuple[Box, bool] | None = None
        self._pointer = Pointer(controls)
        self._updates = Updates()
        self.ended = False
        self.is_open = False
        self._script = self._conversation()
        self._need = next(self._script)

    # What the owner of a wire calls

    def feed(self, data: bytes) -> None:
        """Hear `data`, in pieces of any size. Nothing that a client says raises."""
        try:
            self._hear(data)
        except (ProtocolError, ssl.SSLError):
            self.ended = True
        except StopIteration:
            self.ended = True

    def take(self) -> bytes:
        """What the client is to be told."""
        out, self._out = bytes(self._out), bytearray()
        return out

    @property
    def is_waiting(self) -> bool:
        """Whether the client waits for a picture."""
        return self._wanted is not None and not self.ended

    def tick(self) -> None:
        """Look at the screen, if the client waits for that, and tell what has changed."""
        if self._wanted is None or self.ended:
            return
        picture = self._screen.look()
        data = self._updates.make(picture, *self._wanted)
        if data:
            self._wanted = None
            self._say(data)

    def close(self) -> None:
        """The wire is gone: let go of the keys and buttons that are held."""
        self.ended = True
        self._pointer.release()

    # Bytes

    def _hear(self, data: bytes) -> None:
        if self._tls is not None:
            data = self._through_tls(self._tls, data)
        self._in += data
        at = 0
        while len(self._in) - at >= self._need and not self.ended:
            piece = bytes(self._in[at : at + self._need])
            at += self._need
            had_tls = self._tls is not None
            self._need = self._script.send(piece)
            if self._tls is not None and not had_tls:  # what follows is no plain text any more
                rest = bytes(self._in[at:])
                self._in.clear()
                self._hear(rest)
                return
        del self._in[:at]

    def _through_tls(self, tls: TlsPipe, data: bytes) -> bytes:
        try:
            return tls.feed(data)
        finally:
            self._out += tls.take()

    def _say(self, data: bytes) -> None:
        if self._tls is None:
            self._out += data
        else:
            self._tls.write(data)
            self._out += self._tls.take()

    # 7.1: the handshake

    def _conversation(self) -> Script:
        self._say(rfb.VERSION)
        version = rfb.VERSIONS.get((yield len(rfb.VERSION)))
        if version is None:
            raise ProtocolError("no version of the protocol")
        yield from self._secure(version)
        yield 1  # ClientInit: others may always look as well
        self.is_open = True
        picture = self._screen.look()
        self._updates.begin(picture)
        self._say(rfb.SERVER_INIT.pack(*picture.size, NATIVE.pack(), len(self._name)) + self._name)
        while True:
            (kind,) = yield 1
            message = self._messages.get(kind)
            if message is None:
                raise ProtocolError(f"message {kind} is not known")
            yield from message(self)

    def _secure(self, version: tuple[int, int]) -> Script:
        kind = self._security.kind
        if version == (3, 3):
            if kind == rfb.SECURITY_VENCRYPT:
                self._say(struct.pack(">II", rfb.SECURITY_INVALID, len(_NO_TLS)) + _NO_TLS)
                raise ProtocolError(_NO_TLS.decode())
            self._say(struct.pack(">I", kind))
        else:
            self._say(bytes((1, kind)))
            if (yield 1)[0] != kind:
                raise ProtocolError("a security type that was not offered")
        if kind == rfb.SECURITY_VENCRYPT:
            yield from self._start_tls()
        if self._security.password is not None:
            yield from self._ask_password(version)
        elif version == (3, 8) or kind == rfb.SECURITY_VENCRYPT:
            self._say(struct.pack(">I", rfb.RESULT_OK))

    def _start_tls(self) -> Script:
        self._say(rfb.VENCRYPT_VERSION)
        if (yield 2) != rfb.VENCRYPT_VERSION:
            self._say(b"\1")
            raise ProtocolError("another version of VeNCrypt")
        self._say(b"\0" + struct.pack(">BI", 1, self._security.subtype))
        (subtype,) = struct.unpack(">I", (yield 4))
        if subtype != self._security.subtype:
            self._say(b"\0")
            raise ProtocolError("a kind of TLS that was not offered")
        self._say(b"\1")
        assert self._security.tls is not None
        self._tls = TlsPipe(self._security.tls)

    def _ask_password(self, version: tuple[int, int]) -> Script:
        challenge = self._random(rfb.CHALLENGE_BYTES)
        self._say(challenge)
        response = yield rfb.CHALLENGE_BYTES
        if self._security.proves(challenge, response):
            self._say(struct.pack(">I", rfb.RESULT_OK))
            return
        why = b"wrong password, or too many wrong ones before: wait a minute"
        self._say(struct.pack(">I", rfb.RESULT_FAILED))
        if version == (3, 8):
            self._say(struct.pack(">I", len(why)) + why)
        raise ProtocolError("a wrong password")

    # 7.5: messages of the client

    def _set_pixel_format(self) -> Script:
        wanted = PixelFormat.parse((yield 19)[3:])
        self._updates.packer = Packer(wanted)
        if wanted is COLOUR_MAP:
            colours = colour_map()
            entries = b"".join(struct.pack(">HHH", *colour) for colour in colours)
            self._say(rfb.COLOUR_MAP_HEADER.pack(rfb.SET_COLOUR_MAP, 0, len(colours)) + entries)

    def _set_encodings(self) -> Script:
        (count,) = struct.unpack(">xH", (yield 3))
        told = (yield 4 * count) if count else b""
        self._updates.set_encodings([number for (number,) in struct.iter_unpack(">i", told)])

    def _update_request(self) -> Script:
        incremental, x, y, width, height = rfb.UPDATE_REQUEST_BODY.unpack((yield rfb.UPDATE_REQUEST_BODY.size))
        box: Box | None = meet((x, y, x + width, y + height), (0, 0, *self._updates.size))
        if box is None:  # of a screen that has another size now; the next one will fit
            box = (0, 0, *self._updates.size)
        if self._wanted is not None:
            box, incremental = around(box, self._wanted[0]), incremental and self._wanted[1]
        self._wanted = (box, bool(incremental))

    def _key_event(self) -> Script:
        pressed, keysym = rfb.KEY_EVENT_BODY.unpack((yield rfb.KEY_EVENT_BODY.size))
        self._pointer.keysym(keysym, bool(pressed))

    def _pointer_event(self) -> Script:
        buttons, x, y = rfb.POINTER_EVENT_BODY.unpack((yield rfb.POINTER_EVENT_BODY.size))
        self._pointer.moved(x, y, buttons, is_relative=self._updates.pointer_is_relative)

    def _cut_text(self) -> Script:
        """There is nobody to paste it, so it is only passed over."""
        (left,) = struct.unpack(">3xI", (yield 7))
        while left:
            left -= len((yield min(left, _CUT_TEXT_PIECE)))

    def _qemu(self) -> Script:
        if (yield 1)[0] != rfb.QEMU_KEY:
            raise ProtocolError("an extension that was not offered")
        pressed, keysym, code = rfb.QEMU_KEY_BODY.unpack((yield rfb.QEMU_KEY_BODY.size))
        if code:
            self._pointer.scancode(code, bool(pressed))
        else:
            self._pointer.keysym(keysym, bool(pressed))

    _messages: ClassVar[dict[int, Callable[[Session], Script]]] = {
        rfb.SET_PIXEL_FORMAT: _set_pixel_format,
        rfb.SET_ENCODINGS: _set_encodings,
        rfb.UPDATE_REQUEST: _update_request,
        rfb.KEY_EVENT: _key_event,
        rfb.POINTER_EVENT: _pointer_event,
        rfb.CLIENT_CUT_TEXT: _cut_text,
        rfb.QEMU: _qemu,
    }
