"""Pictures of a guest's screen, keys for its keyboard, and both of them together as a person has them."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bivisor.host.loop import Loop, Timer
from bivisor.platform.ps2 import Keyboard, Ps2Controller
from bivisor.platform.ps2.scancodes import CHARACTERS, keys_of
from bivisor.platform.vga import Frame, VgaCard
from bivisor.toolstack.keysyms import Keysyms

if TYPE_CHECKING:
    from PIL.Image import Image

_CAPS_LOCK_LED = 4
_MOVE_MAX = 255
_RAW = {15: "BGR;15", 16: "BGR;16", 24: "BGR", 32: "BGRX"}


def image_of(frame: Frame) -> Image:
    """`frame` as a Pillow image with eight bits a colour."""
    from PIL import Image

    size = (frame.width, frame.height)
    if frame.depth == 8:
        picture = Image.frombuffer("P", size, frame.pixels, "raw", "P", frame.stride, 1)
        picture.putpalette(frame.palette)
        return picture.convert("RGB")
    return Image.frombuffer("RGB", size, frame.pixels, "raw", _RAW[frame.depth], frame.stride, 1)


def png_of(frame: Frame) -> bytes:
    """`frame` as a PNG file, with a palette where that is enough."""
    picture = image_of(frame)
    out = io.BytesIO()
    small = picture.quantize(256) if picture.getcolors(256) is not None else picture
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


def press(keyboard: Keyboard, words: Iterable[str]) -> None:
    """Press and release each chord of `words`, such as `a`, `ret`, `ctrl-alt-delete`. UsageError for no such key."""
    for codes in [keys_of(word) for word in words]:
        for code in codes:
            keyboard.key(code, True)
        for code in reversed(codes):
            keyboard.key(code, False)


def type_text(keyboard: Keyboard, text: str) -> None:
    """Type `text` on an American keyboard; what it has no key for is left out."""
    press(keyboard, [character for character in text if character in CHARACTERS])


class KeyFeed:
    """Keys on their way to a keyboard that the guest reads as fast as it can: what it has no room for yet waits here.

    Used with the loop's lock held.
    """

    _ROOM, _WAITING_MAX, _INTERVAL_S = 64, 4096, 0.01

    def __init__(self, keyboard: Keyboard, loop: Loop) -> None:
        self._keyboard, self._loop = keyboard, loop
        self._waiting: deque[tuple[int, bool]] = deque(maxlen=self._WAITING_MAX)
        self._timer: Timer | None = None

    def key(self, code: int, pressed: bool) -> None:
        """A key goes down or up, when those before it have been read."""
        self._waiting.append((code, pressed))
        if self._timer is None:
            self._go_on()

    def _go_on(self) -> None:
        self._timer = None
        while self._waiting and len(self._keyboard.queue) < self._ROOM:
            self._keyboard.key(*self._waiting.popleft())
        if self._waiting:
            self._timer = self._loop.call_at(self._loop.now() + self._INTERVAL_S, self._go_on)

    def close(self) -> None:
        """Press nothing any more."""
        if self._timer is not None:
            self._timer.cancel()


class Display:
    """A person's screen, keyboard and mouse, for whatever machine they are plugged into at the moment; `bivisor.vnc`
    serves them. Any thread may look and type; plug in and unplug without the machine's lock."""

    def __init__(self) -> None:
        from PIL import Image

        self._lock = threading.Lock()
        self._machine: _Plugged | None = None
        self._frame: Frame | None = None
        self._image = Image.new("RGB", (640, 400))
        self._keysyms = Keysyms()

    def plug_in(self, vga: VgaCard, ps2: Ps2Controller, loop: Loop) -> None:
        """Show `vga` and type on `ps2`, whose lock is that of `loop`."""
        with self._lock:
            self._machine = _Plugged(vga, ps2, loop, KeyFeed(ps2.keyboard, loop))

    def unplug(self) -> None:
        """The machine goes; the last picture stays."""
        with self._lock:
            machine, self._machine = self._machine, None
            if machine is not None:
                with machine.loop.lock:
                    machine.keys.close()

    def look(self) -> Image:
        """See `vnc.Screen.look`."""
        with self._lock:
            machine = self._machine
            if machine is not None:
                with machine.loop.lock:
                    frame = machine.vga.frame()
                if frame != self._frame:
                    self._frame, self._image = frame, image_of(frame)
            return self._image

    def keysym(self, keysym: int, pressed: bool) -> None:
        """See `vnc.Controls.keysym`."""
        with self._lock:
            if (machine := self._machine) is not None:
                with machine.loop.lock:
                    caps_lock = bool(machine.ps2.keyboard.leds & _CAPS_LOCK_LED)
                    for event in self._keysyms.events(keysym, pressed, caps_lock=caps_lock):
                        machine.keys.key(*event)

    def scancode(self, code: int, pressed: bool) -> None:
        """See `vnc.Controls.scancode`."""
        with self._lock:
            if (machine := self._machine) is not None:
                with machine.loop.lock:
                    machine.keys.key(code, pressed)

    def pointer(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        """See `vnc.Controls.pointer`."""
        with self._lock:
            if (machine := self._machine) is not None:
                with machine.loop.lock:
                    mouse = machine.ps2.mouse
                    while abs(dx) > _MOVE_MAX or abs(dy) > _MOVE_MAX:
                        x, y = (max(-_MOVE_MAX, min(_MOVE_MAX, way)) for way in (dx, dy))
                        mouse.move(x, -y, 0, buttons)
                        dx, dy = dx - x, dy - y
                    mouse.move(dx, -dy, wheel, buttons)


@dataclass(frozen=True, slots=True)
class _Plugged:
    vga: VgaCard
    ps2: Ps2Controller
    loop: Loop
    keys: KeyFeed
