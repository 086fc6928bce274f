"""`bivisor compare` on two of its rows: real guests, and what every figure and count of theirs has to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bivisor.cli.main import status_of
from bivisor.toolstack.compare.counter import DOORBELL, TO_BACKEND, TO_GUEST
from bivisor.toolstack.compare.result import BOOT, Comparison
from bivisor.toolstack.compare.workload import PHASES, PROGRAMS, REQUESTS, SEND

pytestmark = pytest.mark.guest


def test_two_rows_are_run_counted_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    arguments = ["compare", "--engine", "soft", "--only", "kvm-virtio,xen-pv", "--json", "--html", str(page)]
    assert status_of(arguments) == 0
    said = capsys.readouterr()
    assert "KVM, virtio: user space after" in said.err and "Xen PV: user space after" in said.err
    found = Comparison.from_dict(json.loads(said.out))
    assert [row.key for row in found.rows] == ["kvm-virtio", "xen-pv"]
    for row in found.rows:
        assert not row.missing and not row.notes
        assert set(row.phases) == {BOOT, *(phase.key for phase in PHASES)}
        assert all(part.seconds > 0 and part.counts is not None for part in row.phases.values())
    virtio, pv = found.rows
    reads = virtio.counts("requests")
    assert reads is not None and reads.hypercalls == {} and reads.exits[DOORBELL] >= REQUESTS
    asked = pv.counts("requests")
    assert asked is not None and asked.requests["read"] == REQUESTS
    most = REQUESTS * 0.9  # a back-end that is still at work needs no event for one more
    assert asked.events[TO_BACKEND] > most and asked.events[TO_GUEST] > most
    programs = pv.counts("programs")
    assert programs is not None and programs.hypercalls["mmu_update"] > 100 * PROGRAMS
    assert programs.hypercalls["mmuext_op.new_baseptr"] >= PROGRAMS  # the native path is off while somebody listens
    sent = pv.counts(SEND)
    assert sent is not None and sent.grants["copy"] > 1000
    assert "Xen PV" in page.read_text()
