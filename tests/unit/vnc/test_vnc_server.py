"""The VNC server on real sockets: a stock client sees the screen, TLS and passwords keep others out."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageStat

from bivisor.errors import BivisorError, UsageError
from bivisor.image.cache import Cache
from bivisor.image.firmware import package_files
from bivisor.image.progress import quiet
from bivisor.toolstack.vnc import VncOption, VncServer, listen
from bivisor.vnc import Security
from bivisor.vnc.security import answer

CERTIFICATE = Path(__file__).with_name("self-signed.pem")
# What vncpasswd(1) hides a password in a file with.
FILE_KEY = bytes((23, 82, 107, 6, 35, 78, 88, 7))
PATIENCE_S = 20.0


class Desk:
    def __init__(self) -> None:
        self.picture = Image.new("RGB", (400, 300), (0, 40, 90))
        draw = ImageDraw.Draw(self.picture)
        draw.rectangle((20, 20, 200, 120), (250, 250, 250))
        draw.text((30, 30), "some words on a screen", (0, 0, 0))
        for step in range(100):
            draw.line((220, 150 + step, 390, 150 + step), (step * 2, 255 - step, 128))
        self.keys: list[tuple[int, bool]] = []
        self.news = threading.Condition()

    def look(self) -> Image.Image:
        return self.picture

    def keysym(self, keysym: int, pressed: bool) -> None:
        with self.news:
            self.keys.append((keysym, pressed))
            self.news.notify_all()

    def scancode(self, code: int, pressed: bool) -> None:
        raise AssertionError

    def pointer(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        raise AssertionError

    def wait_for(self, count: int) -> list[tuple[int, bool]]:
        with self.news:
            assert self.news.wait_for(lambda: len(self.keys) >= count, PATIENCE_S)
            return list(self.keys)


@contextmanager
def serving(desk: Desk, security: Security | None = None) -> Iterator[VncServer]:
    with VncServer(desk, desk, listen(VncOption("127.0.0.1", 0)), security, name="a screen") as server:
        yield server


def exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = end.recv(size - len(data))
        assert piece, data
        data += piece
    return data


@pytest.fixture(scope="session")
def vncsnapshot() -> str:
    """The distribution's client that takes pictures."""
    return shutil.which("vncsnapshot") or str(
        package_files(Cache(), ("vncsnapshot",), "bin/vncsnapshot", quiet) / "bin/vncsnapshot"
    )


@pytest.mark.parametrize("encodings", ["raw", "hextile copyrect", "tight copyrect"])
def test_a_stock_client_with_the_password_sees_the_screen(vncsnapshot: str, tmp_path: Path, encodings: str) -> None:
    desk = Desk()
    hidden = tmp_path / "passwd"
    from Crypto.Cipher import DES

    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in FILE_KEY)
    hidden.write_bytes(DES.new(key, DES.MODE_ECB).encrypt(b"secret\0\0"))
    with serving(desk, Security(b"secret")) as server:
        target = f"127.0.0.1:{server.port - 5900}"
        options = ["-quiet", "-nojpeg", "-passwd", str(hidden), "-encodings", encodings]
        command = [vncsnapshot, *options, target, str(tmp_path / "a.jpg")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done
    seen = Image.open(tmp_path / "a.jpg").convert("RGB")
    assert seen.size == desk.picture.size
    assert max(ImageStat.Stat(ImageChops.difference(seen, desk.picture)).mean) < 3


def test_inside_tls_with_a_password_a_client_types_and_what_it_holds_is_let_go() -> None:
    desk = Desk()
    option = VncOption("127.0.0.1", 0, certificate=CERTIFICATE)
    security = Security(b"secret", option.security().tls)
    with serving(desk, security) as server:
        plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        assert exactly(plain, 12) == b"RFB 003.008\n"
        plain.sendall(b"RFB 003.008\n")
        assert exactly(plain, 2) == b"\1\x13"
        plain.sendall(b"\x13")
        assert exactly(plain, 2) == b"\0\2"
        plain.sendall(b"\0\2")
        assert exactly(plain, 6) == b"\0\1" + struct.pack(">I", 261)
        plain.sendall(struct.pack(">I", 261))
        assert exactly(plain, 1) == b"\1"
        context = ssl.create_default_context(cafile=str(CERTIFICATE))
        with context.wrap_socket(plain, server_hostname="localhost") as end:
            end.sendall(answer(b"secret", exactly(end, 16)))
            assert exactly(end, 4) == bytes(4)
            end.sendall(b"\1")
            assert exactly(end, 4) == struct.pack(">HH", 400, 300)
            assert exactly(end, 20)[16:] == struct.pack(">I", 8)
            assert exactly(end, 8) == b"a screen"
            end.sendall(struct.pack(">BBxxI", 4, 1, 0x41))
            assert desk.wait_for(1) == [(0x41, True)]
        assert desk.wait_for(2)[1] == (0x41, False)


def test_a_connection_that_is_handed_over_needs_no_password() -> None:
    desk = Desk()
    ours, theirs = socket.socketpair()
    with ours, VncServer(desk, desk, None, Security(b"secret")) as server:
        server.adopt(theirs)
        ours.settimeout(PATIENCE_S)
        ours.sendall(b"RFB 003.008\n\1\1" + struct.pack(">BBxxI", 4, 1, 0x42))
        assert desk.wait_for(1) == [(0x42, True)]
        assert server.port == 0
    assert desk.wait_for(2)[1] == (0x42, False)


def test_rubbish_instead_of_tls_and_too_many_clients_are_hung_up_on() -> None:
    security = VncOption("127.0.0.1", 0, certificate=CERTIFICATE).security()
    with serving(Desk(), security) as server:
        end = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        end.sendall(b"RFB 003.008\n\x13\0\2" + struct.pack(">I", 260) + b"no hello at all, but some other words")
        while end.recv(1000):
            pass
        end.close()
        old = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        old.sendall(b"RFB 003.003\n")
        assert b"TLS" in b"".join(iter(lambda: old.recv(1000), b""))
        old.close()
        ends = [socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) for _ in range(16)]
        for each in ends:
            assert exactly(each, 12)
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as late:
            assert late.recv(12) == b""
        for each in ends:
            each.close()


def test_what_vnc_is_told_is_understood_or_refused_in_one_line(tmp_path: Path) -> None:
    assert VncOption.parse("3") == VncOption("127.0.0.1", 5903)
    assert VncOption.parse("[::1]:auto,tls-cert=c,tls-key=k") == VncOption("::1", 0, None, Path("c"), Path("k"))
    public = VncOption.parse("0.0.0.0:1,password-file=p")
    assert (public.host, public.port, public.password_file) == ("0.0.0.0", 5901, Path("p"))
    for text, words in (
        ("0.0.0.0:1", "add password-file"),
        ("x", "a display is a number"),
        ("60000", "a display is a number"),
        ("1,password=x", "behind"),
        ("1,tls-key=k", "without tls-cert"),
        ("1,password-file=", "behind"),
    ):
        with pytest.raises(UsageError, match=words):
            VncOption.parse(text)
    password = tmp_path / "password"
    for content, words in ((None, "No such file"), (b"\n", "empty"), (b"123456789\n", "at most 8")):
        if content is not None:
            password.write_bytes(content)
        with pytest.raises(BivisorError, match=words):
            VncOption("", 0, password).security()
    password.write_bytes(b"12345678\r\nmore")
    assert VncOption("", 0, password).security().password == b"12345678"
    with pytest.raises(BivisorError, match="no certificate"):
        VncOption("", 0, None, password).security()
