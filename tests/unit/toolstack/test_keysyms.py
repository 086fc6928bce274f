"""Keysyms become keys of an American keyboard, and keys wait until a guest reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bivisor.host.loop import ManualLoop
from bivisor.platform.ps2 import Keyboard
from bivisor.platform.ps2.scancodes import SHIFT
from bivisor.toolstack.keysyms import Keysyms
from bivisor.toolstack.screen import KeyFeed


def typed(*events: tuple[int, bool], caps_lock: bool = False) -> list[tuple[int, bool]]:
    keysyms = Keysyms()
    return [event for keysym, pressed in events for event in keysyms.events(keysym, pressed, caps_lock=caps_lock)]


def test_a_character_is_made_whatever_shift_the_clients_keyboard_needs_for_it() -> None:
    assert typed((ord("a"), True), (ord("a"), False)) == [(0x1E, True), (0x1E, False)]
    assert typed((ord("A"), True), (ord("A"), False)) == [(SHIFT, True), (0x1E, True), (SHIFT, False), (0x1E, False)]
    held = [(SHIFT, True), (0x1E, True)]
    assert typed((0xFFE1, True), (ord("A"), True)) == held
    # A German keyboard has / above 7.
    assert typed((0xFFE1, True), (ord("/"), True)) == [(SHIFT, True), (SHIFT, False), (0x35, True), (SHIFT, True)]
    assert typed((ord("A"), True), caps_lock=True) == [(0x1E, True)]
    assert typed((ord("1"), True), caps_lock=True) == [(0x02, True)]


def test_named_keys_have_their_codes_and_what_has_no_key_makes_nothing() -> None:
    assert typed((0xFF0D, True), (0xFF52, True), (0xFFC9, True)) == [(0x1C, True), (0xE048, True), (0x58, True)]
    assert typed((0x20AC, True), (0x20AC, False), (0xFFFF_FFFF, True)) == []


@given(st.lists(st.tuples(st.integers(0x1F, 0x80) | st.integers(0xFE00, 0xFFFF), st.booleans())), st.booleans())
def test_what_goes_down_comes_up(events: list[tuple[int, bool]], caps_lock: bool) -> None:
    keysyms, down = Keysyms(), set[int]()
    for keysym, pressed in [*events, *((keysym, False) for keysym, _ in events)]:
        for code, goes_down in keysyms.events(keysym, pressed, caps_lock=caps_lock):
            (down.add if goes_down else down.discard)(code)
    assert not down


def test_keys_wait_until_the_guest_reads_them_and_none_is_lost() -> None:
    loop, keyboard = ManualLoop(), Keyboard(lambda: None)
    feed = KeyFeed(keyboard, loop)
    for _ in range(200):
        feed.key(0x1E, True)
        feed.key(0x1E, False)
    read = bytearray()
    for _ in range(300):
        assert len(keyboard.queue) < 100
        read += bytes(keyboard.queue)
        keyboard.queue.clear()
        loop.advance(0.011)
    assert bytes(read) == b"\x1c\xf0\x1c" * 200
    feed.key(0x1E, True)
    feed.close()
