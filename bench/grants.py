"""What grants cost without a guest: microseconds for a map with its unmap, and for a copy.

python bench/grants.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "xen"))

from grant_guests import UOP, Guest, world

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.grant_table import GrantTableOp
from bivisor.abi.xen.xen import DOMID_SELF
from bivisor.memory import PAGE
from bivisor.xen.grant_ops import GrantEnd, copy_from, copy_to, map_grant_ref, unmap_grant_ref
from bivisor.xen.table import hypercall

COUNT, ROUNDS = 1000, 20
REF = 9


def report(name: str, work: Callable[[], None], count: int = COUNT) -> None:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    print(f"{name}: {best / count * 1e6:.2f} µs")


def direct(dom0: Guest, guest: Guest) -> None:
    domain, domid, end = dom0.domain, guest.domid, GrantEnd(guest.domid, REF, 0)
    page = bytearray(PAGE)

    def map_and_unmap() -> None:
        for _ in range(COUNT):
            unmap_grant_ref(domain, map_grant_ref(domain, domid, REF).handle)

    def copies_out() -> None:
        view = memoryview(page)
        for _ in range(COUNT):
            copy_from(domain, end, view)

    def copies_in() -> None:
        for _ in range(COUNT):
            copy_to(domain, end, page)

    report("map and unmap, Dom0", map_and_unmap)
    report("copy of 4096 from a grant, Dom0", copies_out)
    report("copy of 4096 to a grant, Dom0", copies_in)


def decoded(caller: Guest, granter: Guest) -> None:
    batch = 32
    structure = abi.COPY.pack(REF + 1, granter.domid, 0, 7, DOMID_SELF, 0, PAGE, abi.GNTCOPY_SOURCE_GREF, 0)
    caller.memory.view(UOP, len(structure) * batch)[:] = structure * batch
    arguments = (GrantTableOp.COPY, UOP, batch)

    def copies() -> None:
        for _ in range(COUNT // batch):
            hypercall(caller.call, 20, arguments)

    report("copy of 4096 from a grant, hypercalls of 32", copies, COUNT // batch * batch)


def main() -> None:
    for version in (1, 2):
        with world() as (_, (dom0, one, two)):
            one.grants.set_version(version)
            one.grant(REF, dom0, 5)
            one.grant(REF + 1, two, 5)
            print(f"version {version}")
            direct(dom0, one)
            decoded(two, one)


if __name__ == "__main__":
    main()
