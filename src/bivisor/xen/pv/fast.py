"""The machine code of fast.S, whose comments are its documentation, and the state that it works on."""

from __future__ import annotations

from typing import Final

from bivisor.memory.atomics import address_of
from bivisor.xen.pv.pages import Pages

WORDS, FRAMES, KIND, COUNT, ROOT, USER_ROOT, INFO, UPDATES, SWITCHES, EXTRA = range(10)
_SIZE: Final = 10
_MASKED = b"\0\1"


class FastState:
    """What fast.S knows of one processor: `values` are its 64-bit fields, of which ROOT and USER_ROOT are the
    processor's level-4 tables and UPDATES and SWITCHES count."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._own = memoryview(bytearray(8 * _SIZE))
        self._no_info = memoryview(bytearray(_MASKED))
        self.values = self._own.cast("Q")
        self.values[WORDS] = address_of(pages.words)
        self.values[FRAMES] = pages.frames
        self.values[KIND] = address_of(memoryview(pages.kind))
        self.values[COUNT] = address_of(pages.count)
        self.values[INFO] = address_of(self._no_info)
        self.address: Final = address_of(self._own)

    def set_info(self, info: memoryview) -> None:
        """`info` is the processor's `struct vcpu_info`. Whoever takes that away says so before."""
        self.values[INFO] = address_of(info)

    def forget(self) -> None:
        """The domain's memory goes, and no code of the guest runs any more."""
        self.values[FRAMES] = 0
        self.values[INFO] = address_of(self._no_info)


CODE: Final = bytes.fromhex(
    "488b46308078010075058038007524488b0748837f1000751a48817f50f07f000075104883f801740d4883f81a0f8468"
    "01000031c0c348837f300175f64c8b473841f6c00775ec4489c025ff0f00003df00f000077dde83f0200004885c074d3"
    "4c8b084c8b500841f6c10575c64589cb4983e1f84c89c948c1e90c483b4e0873b2488b56100fb60c0a4c030e83f9010f"
    "85e2000000498b0141f6c302740889c183e1604909ca41f6c201747d4c0b564848b998000000000000404985ca0f8570"
    "ffffff4889c14c31d149b89bf0ffffffffff7f4c85c10f848700000048b900f0ffffffff0f004c21d148c1e90c483b4e"
    "080f833cffffff440fb6040a4180f8070f842dffffff41f6c202741d4c8b5e184180f806740f41833c8b000f8512ffff"
    "ffc6040a0641ff048b4d891189c183e10383f903753048b900f0ffffffff0f004821c148c1e90c483b4e087319803c0a"
    "0675134c8b5e1841ff0c8b7509c6040a00eb034d891148ff463848c70700000000b801000000c383f9010f82b3feffff"
    "83f9040f83aafeffff498b014409d04409d8a80374cde998feffff48837f30020f858dfeffff4c8b47384489c025ff0f"
    "00003dd00f00000f8776feffffe8d80000004885c00f8468feffff8338050f855ffeffff8378180f0f8555feffff4c8b"
    "40084c8b48204c8b5628488b4e20488b56104c8b5e184d85c00f8434feffff4939c80f842bfeffff4c3b46080f8321fe"
    "ffff42803c02040f8516feffff31c04d39d174304c3b4e080f8305feffff4d85c9740b42803c0a040f85f5fdffff4d85"
    "d2741143833c93010f86e5fdffff4939ca0f94c0ffc04139048b0f86d3fdffff43ff048341ff0c8b4c8946204d39d174"
    "164d85c9740443ff048b4d85d2740443ff0c934c894e2848ff464048c707000000004c89c048c1e00cc34c89c048c1f8"
    "2f48ffc04883f801775649ba00f0ffffffff0f00488b462048c1e00cb9270000004c89c248d3ea81e2ff010000480306"
    "488b04d0a80174284c21d04889c248c1ea0c483b5608731883e90983f90375d14489c281e2ff0f00004801d0480306c3"
    "31c0c3"
)
