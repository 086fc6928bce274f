"""What a request costs in the block back-end, without a guest: microseconds, beside virtio-blk on the same image.

    python bench/xenblk.py

A front-end in Python fills its ring, and only Dom0's work on it is timed, from the event to the responses. `virtio` is
the same amount of data through `VirtioBlk`, as bench/virtio.py has it. The image is in /dev/shm.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "xenbus"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "virtio"))

from blk_front import BlkFront, disk, service
from fake_domu import FakeDomU, fake_host
from virtio_driver import bring_up

from bivisor.abi import virtio as abi
from bivisor.abi.xen.blkif import SEGMENT, BlkifOp
from bivisor.host.disk import Disk
from bivisor.host.loop import ManualLoop
from bivisor.memory import PAGE, GuestMemory
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.toolstack import xendevices
from virtio import DATA, ROUNDS, block_round

IMAGE = 64 << 20
SHAPES = (1, 11, 32)
"""Pages of a request; more than 11 need an indirect descriptor."""


def xen(image: Path, operation: int, pages: int, *, persistent: bool) -> float:
    """Seconds for one request, at best."""
    with fake_host() as host:
        block = service(host)
        domu = FakeDomU(host)
        device = disk(domu.domid, image)
        xendevices.add(host.store, device)
        host.settle()
        front = BlkFront(domu, device)
        front.connect(persistent=persistent)
        queue = front.queues[0]
        segments = [(domu.grant(domu.new_page()), 0, PAGE // 512 - 1) for _ in range(pages)]
        list_gfn = domu.new_page()
        domu.page(list_gfn)[: SEGMENT.size * pages] = b"".join(SEGMENT.pack(*segment) for segment in segments)
        list_ref = domu.grant(list_gfn)
        best = float("inf")
        count = queue.ring.size
        for _ in range(ROUNDS):
            for i in range(count):
                sector = 8 * pages * i
                if pages > 11:
                    queue.put(front.indirect(operation, sector, [list_ref], pages))
                else:
                    queue.put(front.transfer(operation, sector, segments))
            start = time.perf_counter()
            queue.push()
            host.settle()
            best = min(best, time.perf_counter() - start)
            answers = queue.responses()
            assert len(answers) == count
            assert not any(answer.status for answer in answers)
        block.close()
        return best / count


def virtio(image: Path, kind: int, pages: int) -> float:
    """The same for virtio-blk."""
    with GuestMemory(DATA + (128 << 20)) as memory, Disk(image) as opened:
        device = VirtioBlk(opened, ManualLoop())
        _, (driver,) = bring_up(device, memory, size=256)
        best = min(block_round(device, memory, driver, kind, PAGE * pages, pages) for _ in range(ROUNDS))
        device.close()
        return best / 128


def main() -> None:
    """Print a line for each kind and size."""
    print(f"{'':>24}{'kept grants':>14}{'mapped anew':>14}{'virtio':>10}")
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(IMAGE)
        image = Path(file.name)
        for name, operation, kind in (
            ("write", BlkifOp.WRITE, abi.BLK_T_OUT),
            ("read", BlkifOp.READ, abi.BLK_T_IN),
        ):
            for pages in SHAPES:
                kept = xen(image, operation, pages, persistent=True)
                anew = xen(image, operation, pages, persistent=False)
                other = virtio(image, kind, pages)
                figures = f"{kept * 1e6:11.1f} µs{anew * 1e6:11.1f} µs{other * 1e6:7.1f} µs"
                print(f"{name:>6} of {pages:2d} page(s)  {figures:>41}")


if __name__ == "__main__":
    main()
