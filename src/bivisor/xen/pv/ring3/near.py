"""The machine code of near.S, whose comments are its documentation. A test assembles that file and compares."""

from __future__ import annotations

import struct
from typing import Final

from bivisor.abi.x86 import Vector
from bivisor.xen.pv import fast
from bivisor.xen.pv.ring3.stub import ENTRIES, ENTRY_SIZE

OWN: Final = bytes.fromhex(
    "5002000040000000cccccccccccccccc48890c24807c242b0074284883f8190f84050100004883f8030f84650100004883f8110f"
    "848c0100004883f8180f84a7010000488b0c24ff258b060000cccccc807c242b00743b807c24280074344883f801743d4883f81a"
    "74374883f8190f84b60000004883f8030f84160100004883f8110f843d0100004883f8180f844e010000488b0c244c8b5c2410ff"
    "251f0600004883ec60488904244889542410488974243048897c24384c894424404c894c24484c895424504889e7488db4240801"
    "0000e8e90100004889c1488b0424488b542410488b742430488b7c24384c8b4424404c8b4c24484c8b5424504883c4604883f901"
    "728c0f84050100000f22d948894c2440488b8c24d000000048c1e10c48894c2448e9e70000004989f349c1fb2f49ffc34983fb01"
    "0f8705ffffffb9000100c04885ff742eb9020100c04883ff017423b9010100c04883ff0274184883ff030f85dbfeffffb9020100"
    "c04989d331c031d2eb0d4989d34889f04889f248c1ea200f304c89da31c048ff842408010000eb7d4889f148c1e92081e90080ff"
    "ff81f9000800000f8296feffff4889f14883e1f048894c243831c048ff842410010000eb4c4885ff0f8575feffff488b84240001"
    "000048ff842418010000eb314883ff030f85a8feffff4883ff030f854ffeffff483bb424f80000000f8241feffff48c7c0feffff"
    "ff48ff842420010000488b0c244c8b5c24306641833b0141bb020200007408488b642418480f074c895c241048c744240833e000"
    "0048c74424202be0000041535141bb00010000ff2573040000cccccccccccccccccccccc80bc2430f8ffff00744848833c240075"
    "41f644241003743af6442419017533514153488b4c24184989cb49c1fb2f49ffc34983fb0177188a0980e1fe80f9fa750e48ff44"
    "2418415b594883c40848cf415b59ff2518040000cccccccccccccccc"
)
_PLACES: Final = 1024
_SOME: Final = 16
PROTECTION, SYSTEM_CALL = (_SOME + offset for offset in struct.unpack_from("<2I", OWN))
"""Where exception 13 comes in, in the code, and where system calls do."""


def code(stub: int) -> bytes:
    """What is entered instead of the stub, which is at linear address `stub`, for those two."""
    places = (ENTRIES.system_call, ENTRIES.without, ENTRY_SIZE * Vector.GP, ENTRIES.come_out)
    return OWN + fast.CODE.ljust(_PLACES, b"\xcc") + struct.pack("<4Q", *(stub + place for place in places))
