"""The machine code of near.S, whose comments are its documentation. A test assembles that file and compares."""

from __future__ import annotations

import struct
from typing import Final

from bivisor.abi.x86 import Vector
from bivisor.xen.pv import fast
from bivisor.xen.pv.ring3.stub import ENTRIES, ENTRY_SIZE

OWN: Final = bytes.fromhex(
    "00020000cccccccccccccccccccccccc807c242b00743b807c24280074344883f801743d4883f81a74374883f8190f84b6000000"
    "4883f8030f84160100004883f8110f843d0100004883f8180f844e010000488b0c244c8b5c2410ff250f0600004883ec60488904"
    "244889542410488974243048897c24384c894424404c894c24484c895424504889e7488db42408010000e8d90100004889c1488b"
    "0424488b542410488b742430488b7c24384c8b4424404c8b4c24484c8b5424504883c4604883f901728c0f84fb0000000f22d948"
    "894c2440488b8c24d000000048c1e10c48894c2448e9dd0000004989f349c1fb2f49ffc34983fb010f8754ffffffb9000100c048"
    "85ff742eb9020100c04883ff017423b9010100c04883ff0274184883ff030f852affffffb9020100c04989d331c031d2eb0d4989"
    "d34889f04889f248c1ea200f304c89da31c048ff842408010000eb734889f148c1e92081e90080ffff81f9000800000f82e5feff"
    "ff4889f14883e1f048894c243831c048ff842410010000eb424885ff0f85c4feffff488b84240001000048ff842418010000eb27"
    "4883ff030f85a8feffff483bb424f80000000f829afeffff48c7c0feffffff48ff842420010000488b0c244c8b5c24306641833b"
    "0141bb020200007408488b642418480f074c895c241048c744240833e0000048c74424202be0000041535141bb00010000ff256d"
    "040000cccccccccc80bc2430f8ffff00744848833c24007541f644241003743af6442419017533514153488b4c24184989cb49c1"
    "fb2f49ffc34983fb0177188a0980e1fe80f9fa750e48ff442418415b594883c40848cf415b59ff2518040000cccccccccccccccc"
)
_PLACES: Final = 1024
SYSTEM_CALL: Final = 16
"""Where system calls come in, in the code."""
PROTECTION: Final = SYSTEM_CALL + struct.unpack_from("<I", OWN)[0]
"""Where exception 13 does."""


def code(stub: int) -> bytes:
    """What is entered instead of the stub, which is at linear address `stub`, for those two."""
    places = struct.pack("<3Q", stub + ENTRIES.system_call, stub + ENTRIES.without, stub + ENTRY_SIZE * Vector.GP)
    return OWN + fast.CODE.ljust(_PLACES, b"\xcc") + places
