"""A VNC session: what a client is told makes the picture that is on the screen, and nothing that it says raises."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from viewer import COPY_RECT, DESKTOP_SIZE, FORMATS, HEXTILE, RAW, TIGHT, ZRLE, Viewer

from bivisor.vnc import Guard, Security, Session
from bivisor.vnc.security import answer

SIZE = (90, 70)


class Desk:
    """A screen that a test paints on, and controls that remember."""

    def __init__(self, size: tuple[int, int] = SIZE) -> None:
        self.picture = Image.new("RGB", size)
        self.looks = 0
        self.events: list[tuple[object, ...]] = []

    def look(self) -> Image.Image:
        self.looks += 1
        return self.picture

    def paint(self, box: tuple[int, int, int, int], what: Image.Image | tuple[int, int, int]) -> None:
        self.picture = self.picture.copy()
        self.picture.paste(what, box)

    def keysym(self, keysym: int, pressed: bool) -> None:
        self.events.append(("keysym", keysym, pressed))

    def scancode(self, code: int, pressed: bool) -> None:
        self.events.append(("scancode", code, pressed))

    def pointer(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        self.events.append(("pointer", dx, dy, wheel, buttons))


def viewer_of(desk: Desk, *encodings: int, format_: str = "32 little") -> Viewer:
    viewer = Viewer(Session(desk, desk), format_)
    viewer.open()
    viewer.encodings(*encodings)
    return viewer


def expected(desk: Desk, format_: str) -> list[list[tuple[int, ...]]]:
    tops = FORMATS[format_][4:7]
    width, height = desk.picture.size
    data = desk.picture.tobytes()
    seen = [
        tuple((value * top + 127) // 255 for value, top in zip(data[at : at + 3], tops, strict=True))
        for at in range(0, len(data), 3)
    ]
    return [seen[row * width : (row + 1) * width] for row in range(height)]


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("encoding", [RAW, HEXTILE, TIGHT, ZRLE])
def test_the_client_sees_what_is_on_the_screen(encoding: int, format_: str) -> None:
    desk = Desk()
    desk.paint((0, 0, 70, 40), noise((70, 40), 1))
    desk.paint((80, 3, 81, 60), (255, 128, 7))
    viewer = viewer_of(desk, encoding, format_=format_)
    viewer.ask(incremental=False)
    assert viewer.update()
    assert set(viewer.kinds) == {encoding}
    assert viewer.colours() == expected(desk, format_)
    desk.paint((3, 2, 5, 3), (1, 2, 250))
    desk.paint((40, 30, 89, 69), noise((49, 39), 2))
    viewer.ask()
    assert viewer.update()
    assert viewer.colours() == expected(desk, format_)


BOXES = st.tuples(st.integers(0, 89), st.integers(0, 69), st.integers(1, 90), st.integers(1, 70)).map(
    lambda box: (box[0], box[1], min(90, box[0] + box[2]), min(70, box[1] + box[3]))
)
COLOURS = st.sampled_from([(0, 0, 0), (255, 255, 255), (170, 170, 170), (1, 2, 3)])
PAINT = st.tuples(BOXES, COLOURS | st.integers(0, 3))


@settings(max_examples=15, deadline=None)
@given(
    turns=st.lists(st.lists(PAINT, max_size=4), max_size=5),
    encoding=st.sampled_from([RAW, HEXTILE, TIGHT, ZRLE]),
    part=st.none() | BOXES,
)
def test_the_picture_is_right_after_any_changes(
    turns: list[list[tuple[tuple[int, int, int, int], object]]],
    encoding: int,
    part: tuple[int, int, int, int] | None,
) -> None:
    desk = Desk()
    viewer = viewer_of(desk, encoding, COPY_RECT)
    viewer.ask(incremental=False)
    viewer.update()
    for turn in turns:
        for box, what in turn:
            size = (box[2] - box[0], box[3] - box[1])
            desk.paint(box, noise(size, what) if isinstance(what, int) else what)  # type: ignore[arg-type]
        if part is not None:
            viewer.ask(box=(part[0], part[1], part[2] - part[0], part[3] - part[1]))
            viewer.update()
            seen = viewer.colours()
            wanted = expected(desk, "32 little")
            for row in range(part[1], part[3]):
                assert seen[row][part[0] : part[2]] == wanted[row][part[0] : part[2]]
        viewer.ask()
        viewer.update()
        assert viewer.colours() == expected(desk, "32 little")


def test_nobody_looks_while_no_picture_is_wanted_and_nothing_is_said_while_nothing_changes() -> None:
    desk = Desk()
    viewer = viewer_of(desk, ZRLE)
    before = desk.looks
    for _ in range(5):
        assert not viewer.update()
    assert desk.looks == before
    viewer.ask()
    assert viewer.update()
    viewer.ask()
    assert not viewer.update()
    assert viewer.session.is_waiting
    desk.paint((5, 6, 8, 9), (1, 1, 1))
    assert viewer.update()
    assert not viewer.session.is_waiting


def test_a_console_that_scrolls_is_copied_by_the_client() -> None:
    desk = Desk((160, 320))
    text = noise((160, 320), 3)
    desk.paint((0, 0, 160, 320), text)
    viewer = viewer_of(desk, HEXTILE, COPY_RECT)
    viewer.ask(incremental=False)
    viewer.update()
    scrolled = Image.new("RGB", (160, 320))
    scrolled.paste(text.crop((0, 16, 160, 320)), (0, 0))
    scrolled.paste((9, 9, 9), (0, 306, 80, 310))
    desk.picture = scrolled
    viewer.ask()
    viewer.update()
    assert viewer.kinds[0] == COPY_RECT
    assert viewer.colours() == expected(desk, "32 little")


def test_a_new_size_is_told_to_who_understands_it_and_cut_to_fit_for_who_does_not() -> None:
    desk = Desk()
    fine, plain = viewer_of(desk, ZRLE, DESKTOP_SIZE), viewer_of(desk, RAW)
    for viewer in (fine, plain):
        viewer.ask(incremental=False)
        viewer.update()
    desk.picture = noise((120, 50), 4)
    for viewer in (fine, plain):
        viewer.ask()
        assert viewer.update()
    assert (fine.width, fine.height) == (120, 50)
    fine.ask(incremental=False)
    fine.update()
    assert fine.colours() == expected(desk, "32 little")
    assert [row[:90] for row in plain.colours()[:50]] == [row[:90] for row in expected(desk, "32 little")]
    assert not any(any(pixel) for row in plain.colours()[50:] for pixel in row)


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n"])
def test_old_versions_are_spoken_too(version: bytes) -> None:
    desk = Desk()
    viewer = Viewer(Session(desk, desk, name="a screen"))
    viewer.open(version)
    assert (viewer.width, viewer.height, viewer.name) == (*SIZE, b"a screen")


def test_a_client_with_a_colour_map_gets_one() -> None:
    desk = Desk()
    desk.paint((0, 0, 90, 70), (255, 0, 85))
    viewer = viewer_of(desk, RAW)
    viewer.session.feed(b"\0\0\0\0" + struct.pack(">BBBBHHHBBB3x", 8, 8, 0, 0, 0, 0, 0, 0, 0, 0))
    assert viewer.take(6) == struct.pack(">BxHH", 1, 0, 256)
    colours = list(struct.iter_unpack(">HHH", viewer.take(6 * 256)))
    viewer.ask(incremental=False)
    viewer.session.tick()
    viewer.take(4)
    *_, kind = struct.unpack(">HHHHi", viewer.take(12))
    assert kind == RAW
    red, green, blue = colours[viewer.number(1)]
    assert (red, green) == (65535, 0)
    assert abs(blue - 85 * 257) < 0x10


def proof(viewer: Viewer, password: bytes) -> bytes:
    assert viewer.take(12)
    viewer.session.feed(b"RFB 003.008\n")
    assert viewer.take(2) == b"\1\2"
    viewer.session.feed(b"\2")
    viewer.session.feed(answer(password, viewer.take(16)))
    return viewer.take(4)


def test_the_right_password_opens_and_a_wrong_one_does_not_and_makes_everybody_wait() -> None:
    desk, now = Desk(), [100.0]
    security = Security(b"secret", guard=Guard(lambda: now[0]))

    def new() -> Viewer:
        return Viewer(Session(desk, desk, security))

    right = new()
    assert proof(right, b"secret") == bytes(4)
    right.session.feed(b"\1")
    right.begin()
    assert right.session.is_open
    wrong = new()
    assert proof(wrong, b"Secret") == b"\0\0\0\1"
    assert b"wrong password" in wrong.take(wrong.number(4))
    assert wrong.session.ended
    assert not wrong.session.is_open
    assert proof(new(), b"secret") == b"\0\0\0\1", "too early"
    now[0] += 1.5
    assert proof(new(), b"secret") == bytes(4)
    assert desk.looks == 1


def test_who_was_not_offered_no_security_does_not_get_it() -> None:
    desk = Desk()
    session = Session(desk, desk, Security(b"secret"))
    session.feed(b"RFB 003.008\n\1\1" + bytes(100))
    assert session.ended
    assert desk.looks == 0


def test_the_answer_to_a_challenge_is_that_of_other_programs() -> None:
    # RFC 6143 names no example; this one was made with OpenSSL's triple DES, all of whose keys were the same.
    assert answer(b"password", bytes(range(16))).hex() == DES_EXAMPLE
    assert answer(b"passwordXYZ", bytes(16)) == answer(b"password", bytes(16))


DES_EXAMPLE = "b866924125c8eebb9debc1db61c538e2"


def test_keys_and_buttons_arrive_and_are_let_go_with_the_client() -> None:
    desk = Desk()
    viewer = viewer_of(desk, RAW, -258)
    feed = viewer.session.feed
    feed(struct.pack(">BBxxI", 4, 1, 0x61) + struct.pack(">BBxxI", 4, 0, 0x61) + struct.pack(">BBxxI", 4, 1, 0xFFE3))
    feed(struct.pack(">BBHII", 255, 0, 1, 0xFF52, 0xC8) + struct.pack(">BBHII", 255, 0, 0, 0xFF52, 0xC8))
    feed(struct.pack(">BBHH", 5, 0, 10, 10) + struct.pack(">BBHH", 5, 0b101, 13, 8) + struct.pack(">BBHH", 5, 8, 13, 8))
    feed(struct.pack(">BBHH", 5, 2, 13, 8))
    viewer.session.close()
    assert desk.events == [
        ("keysym", 0x61, True),
        ("keysym", 0x61, False),
        ("keysym", 0xFFE3, True),
        ("scancode", 0xE048, True),
        ("scancode", 0xE048, False),
        ("pointer", 3, -2, 0, 3),
        ("pointer", 0, 0, 1, 0),
        ("pointer", 0, 0, 0, 4),
        ("keysym", 0xFFE3, False),
        ("pointer", 0, 0, 0, 0),
    ]


def test_a_mouse_that_moves_by_distances_is_offered_and_understood() -> None:
    desk = Desk()
    viewer = viewer_of(desk, RAW, -257)
    viewer.ask()
    viewer.update()
    assert viewer.kinds[0] == -257
    viewer.session.feed(struct.pack(">BBHH", 5, 1, 0x7FFF + 4, 0x7FFF - 9))
    assert desk.events == [("pointer", 4, -9, 0, 1)]


def test_text_that_is_cut_is_passed_over_however_long_it_is() -> None:
    desk = Desk()
    viewer = viewer_of(desk, RAW)
    viewer.session.feed(struct.pack(">B3xI", 6, 1 << 20) + bytes(1 << 20) + struct.pack(">BBxxI", 4, 1, 0x62))
    assert desk.events == [("keysym", 0x62, True)]


@pytest.mark.parametrize("message", [b"\x09", b"\xff\x07", b"\0\0\0\0" + bytes(16), struct.pack(">B3xI", 1, 5)])
def test_what_the_protocol_does_not_know_ends_the_session(message: bytes) -> None:
    viewer = viewer_of(Desk(), RAW)
    viewer.session.feed(message + bytes(30))
    assert viewer.session.ended
    viewer.session.feed(b"more")
    viewer.session.tick()


MESSAGES = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda raw: b"\0\0\0\0" + raw, st.binary(min_size=16, max_size=16)),
    st.builds(lambda words: struct.pack(f">BxH{len(words)}i", 2, len(words), *words),
              st.lists(st.sampled_from([0, 1, 5, 7, 16, -223, -257, -258, 6, -1]), max_size=9)),
    st.builds(lambda *words: struct.pack(">BBHHHH", 3, *words), *[st.integers(0, 255)] + [st.integers(0, 65535)] * 4),
    st.builds(lambda *words: struct.pack(">BBHII", 255, 0, *words), st.integers(0, 65535),
              *[st.integers(0, (1 << 32) - 1)] * 2),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(messages=st.lists(MESSAGES, max_size=12), cut=st.integers(1, 50), handshake=st.booleans())
def test_nothing_that_a_client_says_raises_or_is_kept_without_bound(
    messages: list[bytes], cut: int, handshake: bool
) -> None:
    desk = Desk((40, 30))
    session = Session(desk, desk)
    data = (b"RFB 003.008\n\1\1" if handshake else b"") + b"".join(messages)
    for at in range(0, len(data), cut):
        session.feed(data[at : at + cut])
        session.tick()
        assert len(session.take()) < 100_000
    session.close()
