"""The board's bridges, firmware configuration, PS/2 controller and VGA, by the accesses that a guest makes."""

from __future__ import annotations

import struct

import pytest
from board_bench import SIZE, Bench, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.platform.events import PowerOff, Reset
from bivisor.platform.pci import Identity, PciFunction
from bivisor.platform.ps2.scancodes import keys_of
from bivisor.toolstack.screen import image_of, png_of, press, type_text


def dma(made: Bench, control: int, length: int, address: int) -> int:
    made.memory.write(0x500, struct.pack(">IIQ", control, length, address))
    made.write(0x514, 0, 4)
    made.write(0x518, int.from_bytes(struct.pack(">I", 0x500), "little"), 4)
    return int(struct.unpack(">I", made.memory.read(0x500, 4))[0])


def file_of(made: Bench, wanted: str) -> bytes:
    """A file, as firmware reads it."""
    dma(made, 0x19 << 16 | 8 | 2, 4, 0x600)
    for _ in range(int(struct.unpack(">I", made.memory.read(0x600, 4))[0])):
        dma(made, 2, 64, 0x700)
        size, key, _, name = struct.unpack(">IHH56s", made.memory.read(0x700, 64))
        if name.rstrip(b"\0").decode() == wanted:
            assert dma(made, key << 16 | 8 | 2, size, 0x1000) == 0
            return made.memory.read(0x1000, size)
    raise AssertionError(f"no file {wanted}")


def test_firmware_reads_items_by_bytes_and_by_dma() -> None:
    with bench() as made:
        made.write(0x510, 0, 2)
        assert bytes(made.read(0x511) for _ in range(5)) == b"QEMU\0"
        assert dma(made, 0x19 << 16 | 8 | 2, 4, 0x600) == 0
        files = int(struct.unpack(">I", made.memory.read(0x600, 4))[0])
        names = {}
        for _ in range(files):
            assert dma(made, 2, 64, 0x700) == 0
            size, key, _, name = struct.unpack(">IHH56s", made.memory.read(0x700, 64))
            names[name.rstrip(b"\0").decode()] = (key, size)
        assert {"etc/e820", "etc/table-loader", "etc/acpi/tables", "etc/smbios/smbios-tables"} <= names.keys()
        key, size = names["etc/e820"]
        assert dma(made, key << 16 | 8 | 2, size, 0x800) == 0
        assert struct.unpack("<QQI", made.memory.read(0x800, 20)) == (0, SIZE, 1)


def test_a_dma_transfer_to_what_is_not_memory_is_an_error() -> None:
    with bench() as made:
        assert dma(made, 0x19 << 16 | 8 | 2, 1 << 31, 0x600) == 1
        assert dma(made, 0x10, 4, 0x600) == 1
        made.write(0x518, 0xFFFFFFFF, 4)  # the request itself is nowhere


def test_the_table_loader_allocates_before_it_points_and_checks_at_the_end() -> None:
    with bench() as made:
        script = made.board.fw_cfg._items  # the script is the board's own; the guest reads the same bytes
        loader = next(d for d in script.values() if len(d) % 128 == 0 and d[4:19] == b"etc/acpi/tables")
        kinds = [struct.unpack_from("<I", loader, at)[0] for at in range(0, len(loader), 128)]
        assert kinds[:2] == [1, 1]
        assert kinds[-1] == 3
        assert set(kinds) == {1, 2, 3}


def test_pins_reach_the_lines_that_the_pirq_registers_name() -> None:
    with bench() as made:
        card = PciFunction(Identity(1, 2, 0), name="card", pin=1)
        made.board.add(card, 5)  # slot 5, pin A: PIRQ A
        card.set_intx(True)
        assert not any(made.lines.values())
        made.config(1, 0, 0x60, 0x0B, 1)
        assert made.lines == {11: True}
        made.config(1, 0, 0x60, 0x0A, 1)
        assert made.lines == {11: False, 10: True}
        card.set_intx(False)
        assert made.lines == {11: False, 10: False}


def test_the_guest_places_the_power_management_registers_and_powers_off() -> None:
    with bench() as made:
        made.config(1, 3, 0x40, 0x601)
        assert made.read(0x608, 4) == 0xFFFFFFFF
        made.config(1, 3, 0x80, 1, 1)
        assert made.read(0x608, 4) != 0xFFFFFFFF
        made.write(0x604, 0x2000, 2)
        assert made.events == [PowerOff()]
        made.config(1, 3, 0x40, 0x60)  # over the keyboard: it stays the keyboard's
        assert made.read(0x64) & 0x10


@pytest.mark.parametrize(("port", "value"), [(0xCF9, 6), (0x92, 1), (0x64, 0xFE)])
def test_each_way_to_reset_is_heard(port: int, value: int) -> None:
    with bench() as made:
        made.write(port, value)
        assert isinstance(made.events[0], Reset)


def test_a20_is_gated_by_port_92_and_by_the_keyboard_controller() -> None:
    with bench() as made:
        made.write(0x92, 0)
        made.write(0x64, 0xD1)
        made.write(0x60, 0x01)
        made.write(0x64, 0xDF)
        assert made.a20 == [False, False, True]


def test_a_key_arrives_as_scan_codes_of_set_one_with_an_interrupt_each() -> None:
    with bench() as made:
        press(made.board.ps2.keyboard, ["a", "up"])
        got = []
        while made.read(0x64) & 1:
            assert made.lines[1]
            got.append(made.read(0x60))
        assert got == [0x1E, 0x9E, 0xE0, 0x48, 0xE0, 0xC8]
        assert not made.lines[1]
        type_text(made.board.ps2.keyboard, "B")
        assert [made.read(0x60) for _ in range(4)] == [0x2A, 0x30, 0xB0, 0xAA]


def test_a_mouse_reports_what_it_did_through_the_second_port() -> None:
    with bench() as made:
        made.write(0x64, 0x60)
        made.write(0x60, 0x47)
        made.write(0x64, 0xD4)
        made.write(0x60, 0xF4)
        assert made.lines[12]
        assert made.read(0x60) == 0xFA
        made.board.ps2.mouse.move(5, -3, buttons=1)
        assert made.read(0x64) & 0x21 == 0x21
        assert [made.read(0x60) for _ in range(3)] == [0x29, 5, 0xFD]


def test_an_unknown_key_is_a_usage_error_with_what_would_be_right() -> None:
    assert keys_of("ctrl-alt-delete") == [0x1D, 0x38, 0xE053]
    assert keys_of("-") == [0x0C]
    with pytest.raises(UsageError, match="backspace"):
        keys_of("hyper-x")


def test_the_debug_port_hands_on_lines() -> None:
    with bench() as made:
        assert made.read(0x402) == 0xE9
        for byte in b"hello\nwor":
            made.write(0x402, byte)
        assert made.log == [b"hello\n"]


# VGA


def set_registers(made: Bench, index_port: int, values: dict[int, int]) -> None:
    for index, value in values.items():
        made.write(index_port, index | value << 8, 2)


def text_mode(made: Bench) -> None:
    made.write(0x3C2, 0x67)
    set_registers(made, 0x3C4, {1: 0, 2: 3, 3: 0, 4: 2})
    set_registers(made, 0x3CE, {1: 0, 5: 0x10, 6: 0x0E, 8: 0xFF})
    set_registers(made, 0x3D4, {0x11: 0, 1: 79, 7: 0x1F, 9: 0x4F, 0x0A: 0x20, 0x12: 0x8F, 0x13: 40})
    made.read(0x3DA)
    for index in range(16):
        made.write(0x3C0, index)
        made.write(0x3C0, index)
    made.write(0x3C0, 0x20)


def test_text_is_shown_as_memory_and_survives_the_loading_of_a_font() -> None:
    with bench() as made:
        text_mode(made)
        assert made.windows.places["VGA"] == (0xB8000, 0, 0x8000)
        made.mmio.write(0xB8000, 2, 0x0741)
        set_registers(made, 0x3C4, {2: 4, 4: 7})
        set_registers(made, 0x3CE, {5: 0, 6: 4})
        assert made.windows.places["VGA"] is None
        for line in range(16):
            made.mmio.write(0xA0000 + 32 * 0x41 + line, 1, 0xFF)
        text_mode(made)
        assert made.mmio.read(0xB8000, 2) == 0x0741
        frame = made.board.vga.frame()
        assert (frame.width, frame.height) == (720, 400)
        assert frame.pixels[:9] == bytes((7,)) * 8 + bytes((0,))
        assert frame.pixels[9:18] == bytes(9)
        assert made.board.vga.text()[0] == "A"


def test_planes_are_written_through_latches_and_masks() -> None:
    with bench() as made:
        text_mode(made)
        set_registers(made, 0x3C4, {2: 0x0F, 4: 6})
        set_registers(made, 0x3CE, {0: 0, 1: 0, 3: 0, 5: 2, 6: 5, 8: 0xF0})
        made.mmio.read(0xA0000, 1)
        made.mmio.write(0xA0000, 1, 0x05)
        assert bytes(made.board.vga.memory.view[:4]) == bytes((0xF0, 0, 0xF0, 0))
        set_registers(made, 0x3CE, {4: 2, 5: 0})
        assert made.mmio.read(0xA0000, 1) == 0xF0


def test_a_linear_mode_has_the_size_and_depth_that_were_asked_for() -> None:
    with bench() as made:
        for index, value in ((1, 64), (2, 32), (3, 32), (4, 0x41)):
            made.write(0x1CE, index, 2)
            made.write(0x1CF, value, 2)
        made.config(2, 0, 0x10, 0xE0000000)
        made.config(2, 0, 0x04, 7, 2)
        assert made.windows.places["frame buffer"] == (0xE0000000, 0, 16 << 20)
        made.mmio.write(0xE0000000 + 4 * 64, 4, 0x00112233)
        frame = made.board.vga.frame()
        assert (frame.width, frame.height, frame.depth, frame.stride) == (64, 32, 32, 256)
        assert image_of(frame).getpixel((0, 1)) == (0x11, 0x22, 0x33)
        assert png_of(frame)[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_mode_that_does_not_fit_into_the_memory_is_not_entered() -> None:
    with bench() as made:
        for index, value in ((1, 2560), (2, 1600), (3, 32), (4, 1), (6, 60000), (9, 60000)):
            made.write(0x1CE, index, 2)
            made.write(0x1CF, value, 2)
        frame = made.board.vga.frame()
        assert len(frame.pixels) == frame.stride * frame.height


VGA_PORTS = [*range(0x3B0, 0x3E0), 0x1CE, 0x1CF]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(VGA_PORTS), st.integers(0xA0000, 0xBFFFF)),
            st.sampled_from([1, 2, 4]),
            st.one_of(st.none(), st.integers(0, 2**32 - 1), st.integers(0, 31)),
        ),
        max_size=80,
    ),
)
def test_whatever_is_written_to_the_adapter_there_is_a_picture(accesses: list[tuple[int, int, int | None]]) -> None:
    with bench() as made:
        text_mode(made)
        for place, size, value in accesses:
            bus = made.mmio if place >= 0xA0000 else made.ports
            if value is None:
                bus.read(place, size)
            else:
                bus.write(place, size, value & (1 << 8 * size) - 1)
        frame = made.board.vga.frame()
        assert len(frame.pixels) >= frame.stride * frame.height > 0
        png_of(frame)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [0x60, 0x64, 0x92, 0x510, 0x511, 0x514, 0x518, 0xCF8, 0xCFC, 0xCFE, 0x402, 0x08, 0xD0, 0x81]
            ),
            st.sampled_from([1, 2, 4]),
            st.one_of(st.none(), st.integers(0, 2**32 - 1), st.integers(0, 255)),
        ),
        max_size=80,
    )
)
def test_no_sequence_of_accesses_to_the_board_raises(accesses: list[tuple[int, int, int | None]]) -> None:
    with bench() as made:
        for port, size, value in accesses:
            if value is None:
                made.read(port, size)
            else:
                made.write(port, value & (1 << 8 * size) - 1, size)


def test_the_tables_say_where_the_firmware_has_put_power_management() -> None:
    with bench() as made:

        def told() -> int:
            image = file_of(made, "etc/acpi/tables")
            return int.from_bytes(image[image.index(b"FACP") + 56 :][:4], "little")

        assert told() == 0x600
        made.config(1, 3, 0x40, 0xB000)
        made.config(1, 3, 0x80, 1, 1)
        assert told() == 0xB000
        assert made.read(0xB004, 2) & 1  # SCI_EN: ACPI is on
