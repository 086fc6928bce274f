"""A socket by which a running PC is asked for pictures and given keys: one command a connection, a line of words.

    screenshot            the answer is a PNG file
    keys WORD...          chords, pressed one after the other
    type TEXT             the rest of the line, and Return
    power                 the power button
    stop                  as pulling the plug

The answer begins with a line: `ok`, or `error` and what was wrong. A slow guest gets its keys as it reads them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from bivisor.errors import BivisorError, HostError, UsageError
from bivisor.host import local_socket
from bivisor.kvm.firmware import FirmwareMachine
from bivisor.platform.ps2.scancodes import CHARACTERS, keys_of
from bivisor.toolstack.screen import png_of, press

_LINE_MAX = 4096
_PATIENCE = 10.0
_KEY_INTERVAL = 0.03
_KEY_ROOM = 16


class ControlSocket:
    """Listens at `path` while the context lasts, for the user who runs the machine. HostError where it cannot."""

    def __init__(self, path: Path, vm: FirmwareMachine) -> None:
        self._path = path
        self._vm = vm
        self._keys: deque[str] = deque()
        self._ending = threading.Event()

    def __enter__(self) -> ControlSocket:
        if (other := local_socket.connect(self._path)) is not None:
            other.close()
            raise HostError(f"{self._path}: another machine listens there; give each a socket of its own")
        self._end = local_socket.listen(self._path)
        self._end.settimeout(0.2)
        self._threads = [
            threading.Thread(target=work, name="bivisor-control", daemon=True) for work in (self._serve, self._type)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._end.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._ending.is_set():
            try:
                end, _ = self._end.accept()
            except TimeoutError:
                continue
            with end:
                end.settimeout(_PATIENCE)
                try:
                    if local_socket.peer_uid(end) == local_socket.own_uid():
                        self._answer(end)
                except OSError:
                    continue  # whoever asked has gone

    def _answer(self, end: socket.socket) -> None:
        line = b""
        while not line.endswith(b"\n") and len(line) < _LINE_MAX and (piece := end.recv(_LINE_MAX)):
            line += piece
        try:
            answer = b"ok\n" + self._obey(line.decode("utf-8", "replace").rstrip("\n"))
        except BivisorError as error:
            answer = f"error {error}\n".encode()
        end.sendall(answer)

    def _obey(self, line: str) -> bytes:
        word, _, rest = line.partition(" ")
        vm = self._vm
        match word:
            case "screenshot":
                with vm.loop.lock:
                    frame = vm.board.vga.frame()
                return png_of(frame)
            case "keys":
                self._keys.extend(rest.split())
            case "type":
                self._keys.extend(character for character in rest + "\n" if character in CHARACTERS)
            case "power":
                vm.power_button()
            case "stop":
                vm.stop()
            case _:
                raise UsageError(f"{word!r} is none of screenshot, keys, type, power, stop")
        return b""

    def _type(self) -> None:
        """Press keys, as fast as the guest reads them."""
        keyboard = self._vm.board.ps2.keyboard
        while not self._ending.wait(_KEY_INTERVAL):
            with self._vm.loop.lock:
                while self._keys and len(keyboard.queue) < _KEY_ROOM:
                    try:
                        press(keyboard, [self._keys.popleft()])
                    except UsageError:
                        continue


def check_keys(words: Sequence[str]) -> None:
    """UsageError where one of `words` is not a key or a chord of keys."""
    for word in words:
        keys_of(word)


def ask(path: Path, line: str) -> bytes:
    """Send `line` to the machine that listens at `path`; what it answered. UsageError with its words where it refused,
    HostError where nobody listens."""
    end = local_socket.connect(path)
    if end is None:
        raise HostError(f"{path}: no machine listens there (bivisor run --machine pc --control {path})")
    with end:
        end.settimeout(_PATIENCE)
        end.sendall(line.encode() + b"\n")
        answer = bytearray()
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and (piece := end.recv(1 << 16)):
            answer += piece
    status, _, rest = bytes(answer).partition(b"\n")
    if status != b"ok":
        raise UsageError(status.decode("utf-8", "replace").removeprefix("error ") or "no answer")
    return rest
