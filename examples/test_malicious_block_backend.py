"""A block back-end that lies, against the stock front-end: xen-blkfront of an unchanged kernel must survive it.

Since Linux 5.16 blkfront does not trust its back-end: it checks what a response says, and a back-end that lies loses
its device ("disabled for further use"). Each lie below is told to a fresh disk of one running guest. What has to hold:
no program gets data that was never read, the kernel neither stops nor warns, and honest disks go on working.

Linux 6.1 survives all of it, with one defect, which the second test names: requests that a disabled device still has
are never failed. A program that waits for one cannot be killed; and where the lie comes at once, while the kernel looks
for partitions, what waits is the thread that serves XenBus: the domain gets no new device of any kind any more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import pytest

from bivisor import DomU, XenHost
from bivisor.abi.xen import blkif
from bivisor.abi.xen.ring import RSP_PROD
from bivisor.dom0.xenbus.backend import RingBackend

pytestmark = pytest.mark.guest

LAYOUT = blkif.PROTOCOLS["x86_64-abi"]
SECTORS = 2048


class HonestDisk(RingBackend):
    """A disk of zeroes: it answers every request, and leaves the pages as they are."""

    entry_size = LAYOUT.entry_size
    lies_from = 800
    """The sector; what is before it is read when the kernel looks for partitions."""

    def features(self) -> Mapping[str, str | int]:
        return {"feature-flush-cache": 1}

    def details(self) -> Mapping[str, str | int]:
        return {"sectors": SECTORS, "info": 0, "sector-size": 512}

    def request(self, request: bytes) -> bytes | None:
        operation, _, ident, sector = LAYOUT.request.unpack_from(request)
        if sector < self.lies_from:
            return LAYOUT.response.pack(ident, operation, 0)
        return self.response(ident, operation)

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        return LAYOUT.response.pack(ident, operation, status)


class WrongId(HonestDisk):
    """Answers a request that nobody made."""

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        return super().response(ident ^ 0x5A, operation)


class EnormousId(HonestDisk):
    """The number would be the index of an array in the front-end."""

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        return super().response((1 << 63) + ident, operation)


class WrongOperation(HonestDisk):
    """Says that it did something else."""

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        return super().response(ident, 0xEE)


class WrongStatus(HonestDisk):
    """A status that is not in the protocol."""

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        return super().response(ident, operation, -1234)


class TooManyResponses(HonestDisk):
    """Claims more responses than the ring has entries."""

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        struct.pack_into("<I", self.pages[0], 4 * RSP_PROD, 0x4000_0000)
        self.notify()
        return None


class EventStorm(HonestDisk):
    """Sends events without responses, and answers in the end."""

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        for _ in range(1000):
            self.notify()
        return super().response(ident, operation)


class NoAnswer(HonestDisk):
    """Answers nothing at all."""

    def response(self, ident: int, operation: int, status: int = 0) -> bytes | None:
        return None


class LiesAtOnce(WrongId):
    """Lies when the kernel looks for partitions."""

    lies_from = 0


FAILS, DISABLED, WAITS = "1", "disabled", "waits"
LIES = {
    WrongStatus: FAILS,
    WrongId: DISABLED,
    EnormousId: DISABLED,
    WrongOperation: DISABLED,
    TooManyResponses: DISABLED,
    NoAnswer: WAITS,
}
"""What a read of the disk comes to: the exit status of dd, or what blkfront does while dd waits."""


@pytest.fixture
def disk(xen_host: XenHost, domu: DomU) -> Callable[[type[HonestDisk]], str]:
    """`disk(Backend)`: a new disk of the domain with that back-end; its device node in the guest."""
    taken = iter("bcdefghijklm")

    def make(backend: type[HonestDisk]) -> str:
        letter = next(taken)
        xen_host.add_backend(f"vbd-{letter}", backend)
        number = 202 << 8 | (ord(letter) - ord("a")) << 4
        domu.plug(
            "vbd", number, backend=f"vbd-{letter}", frontend_nodes={"virtual-device": number, "device-type": "disk"}
        )
        node = f"/dev/xvd{letter}"
        domu.run(f"tries=0; until [ -b {node} ] || [ $((tries += 1)) -gt 20 ]; do sleep 0.1; done")
        return node

    return make


READ = "dd if={} of=/dev/null bs=4096 skip=100 count=1 iflag=direct"
WATCHED = """
(READ; echo $? >/tmp/status) </dev/null >/dev/null 2>&1 &
rm -f /tmp/status
for i in 1 2 3 4 5 6 7 8 9 10; do
    sleep 0.1
    if [ -s /tmp/status ]; then cat /tmp/status; exit; fi
    if dmesg | grep -q 'NAME disabled for further use'; then echo disabled; exit; fi
done
echo waits
"""


def read(domu: DomU, node: str) -> str:
    """What becomes of a program that reads the disk: see `LIES`."""
    script = WATCHED.replace("READ", READ.format(node)).replace("NAME", node.removeprefix("/dev/"))
    return domu.run(script, check=True).text


@pytest.mark.bivisor(append="panic_on_warn=1 oops=panic")
def test_the_stock_front_end_survives_a_back_end_that_lies(domu: DomU, disk: Callable[[type[HonestDisk]], str]) -> None:
    honest = disk(HonestDisk)
    found = {}
    for lie in LIES:
        found[lie] = read(domu, disk(lie))
        domu.run(READ.format(honest), check=True)
    assert found == LIES
    domu.run(READ.format(disk(EventStorm)), check=True)
    assert "Call Trace" not in domu.run("dmesg", check=True).text


def test_a_lie_at_the_first_read_stops_xenbus_for_the_whole_domain(
    domu: DomU, disk: Callable[[type[HonestDisk]], str]
) -> None:
    domu.run(READ.format(disk(HonestDisk)), check=True)
    disk(LiesAtOnce)
    late = disk(HonestDisk)
    assert domu.run(f"[ -b {late} ]").status != 0, "this kernel is mended: say so above"
    assert "D" in domu.run("cat /proc/$(ps | awk '/[x]enwatch/ { print $1 }')/stat").text.split()[2]
