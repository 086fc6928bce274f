"""A guest on each engine uses its flash: what it reads after a command is what the command is for, at once."""

from __future__ import annotations

import struct

from bivisor.host.variables import Variables
from bivisor.kvm import End
from bivisor.kvm.firmware import Firmware, FirmwareMachine, PcSettings
from bivisor.platform.flash import BLOCK

from .tiny import END, MIB, PATIENCE, enter

BIOS = bytes(1 << 16)
SIZE = 2 * BLOCK
PLACE = (1 << 32) - len(BIOS) - SIZE + 0x10
SEEN = 0x2_0000
CODE = (
    f"bb {struct.pack('<I', PLACE).hex()}"  # mov ebx, PLACE
    f"bf {struct.pack('<I', SEEN).hex()}"  # mov edi, SEEN
    "8a 03 aa"  # mov al, [ebx]; stosb
    "c6 03 50 8a 03 aa"  # clear the status: the array is there
    "c6 03 70 8a 03 aa"  # the status
    "c6 03 40 c6 03 0f 8a 03 aa"  # program a byte: the status
    "c6 03 ff 8a 03 aa"  # the array
    "c6 03 20 c6 03 d0 8a 03 aa"  # erase: the status
    "c6 03 ff 8a 03 aa"  # the array
    "b9 10 00 00 00"  # mov ecx, 16
    "c6 03 40 88 0b 43 e2 f8"  # again: program cl; inc ebx; loop again
    "c6 03 ff"  # the array
    f"be {struct.pack('<I', PLACE).hex()} b9 10 00 00 00 f3 a4"  # mov esi, PLACE; mov ecx, 16; rep movsb
)


def test_commands_and_the_array_take_turns_and_what_is_programmed_is_kept(engine: str) -> None:
    kept = Variables(bytes(0x10) + b"\x3c" + bytes(SIZE - 0x11))
    settings = PcSettings(Firmware(BIOS, b"\x55\xaa" + bytes(510), kept))
    with FirmwareMachine(settings, memory=8 * MIB, engine=engine) as vm:
        enter(vm, bytes.fromhex(CODE) + END, 32)
        vm.start()
        outcome = vm.wait(PATIENCE)
        assert outcome is not None
        assert (outcome.end, outcome.status) == (End.EXIT_STATUS, 5)
        seen = vm.memory.read(SEEN, 7 + 16)
    assert seen[:7].hex(" ") == "3c 3c 00 80 0c 80 ff"
    assert seen[7:] == bytes(range(16, 0, -1))
    assert kept.load() == (b"\xff" * 0x10 + seen[7:]).ljust(BLOCK, b"\xff") + bytes(BLOCK)
