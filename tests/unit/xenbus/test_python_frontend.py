"""Front-ends and back-ends written in Python, on both ends of a connection, with no guest at all."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from bivisor import GuestTimeout, UsageError, XenHost
from bivisor.abi.xen import blkif
from bivisor.abi.xen.blkif import BlkifOp
from bivisor.abi.xen.xenbus import XenbusState
from bivisor.dom0.xenbus.backend import RingBackend
from bivisor.dom0.xenbus.node import Refused
from bivisor.toolstack.frontend import Frontend
from bivisor.toolstack.pydomain import PyDomain
from bivisor.toolstack.xendevices import XenDevice

LAYOUT = blkif.PROTOCOLS["x86_64-abi"]


class Reader(Frontend):
    """Reads the first sector of a disk."""

    def initialise(self) -> Mapping[str, str | int]:
        self.answered = threading.Event()
        self.add_ring(LAYOUT.entry_size)
        return {"ring-ref": self.refs[0], "event-channel": self.port, "protocol": "x86_64-abi"}

    def event(self) -> None:
        assert self.ring is not None
        while (response := self.ring.take()) is not None or self.ring.rest():
            if response is not None:
                self.response = LAYOUT.response.unpack_from(response)
                self.answered.set()

    def read(self) -> bytes:
        with self.domain.host.loop.lock:
            assert self.ring is not None
            gfn = self.domain.new_page()
            ref = self.domain.grant(gfn)
            request = LAYOUT.request.pack(BlkifOp.READ, 1, 77, 0) + blkif.SEGMENT.pack(ref, 0, 0)
            self.ring.put(request)
            self.push()
        assert self.answered.wait(20)
        with self.domain.host.loop.lock, self.domain.page(gfn) as page:
            data = bytes(page[:512])
        self.domain.revoke(ref)
        self.domain.free_page(gfn)
        return data


def test_a_front_end_in_python_reads_a_disk_of_the_stock_back_end(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"first sector".ljust(4096, b"."))
    nodes: dict[str, str | int] = {"params": str(tmp_path / "disk"), "mode": "r"}
    with XenHost("soft") as host, PyDomain(host) as domain:
        for _ in range(2):  # what was used before is free again
            with Reader(domain, XenDevice("vbd", domain.domid, 51712, nodes)) as reader:
                assert isinstance(reader, Reader)
                assert reader.backend("sectors") == "8"
                assert reader.read().startswith(b"first sector")
                assert reader.response == (77, BlkifOp.READ, 0)
            assert reader.state is XenbusState.CLOSED


class Echo(RingBackend):
    entry_size = 64

    def features(self) -> Mapping[str, str | int]:
        return {"feature-echo": 1}

    def request(self, request: bytes) -> bytes | None:
        if request.startswith(b"bad"):
            raise Refused("that is no word")
        return request.upper()


class Asker(Frontend):
    def initialise(self) -> Mapping[str, str | int]:
        self.answers: list[bytes] = []
        self.gone = threading.Event()
        self.add_ring(64, pages=2)
        return {
            "ring-page-order": 1,
            "ring-ref0": self.refs[0],
            "ring-ref1": self.refs[1],
            "event-channel": self.port,
        }

    def event(self) -> None:
        assert self.ring is not None
        while (answer := self.ring.take()) is not None or self.ring.rest():
            if answer is not None:
                self.answers.append(answer.rstrip(b"\0"))

    def closed(self) -> None:
        self.gone.set()

    def ask(self, *words: bytes) -> None:
        with self.domain.host.loop.lock:
            assert self.ring is not None
            for word in words:
                self.ring.put(word.ljust(64, b"\0"))
            self.push()
        self.domain.host.settle()


def test_a_back_end_of_ones_own_answers_and_lets_go_of_a_front_end_that_it_refuses() -> None:
    with XenHost("soft") as host, PyDomain(host) as domain:
        host.add_backend("echo", Echo)
        with pytest.raises(UsageError, match="there is a back-end of type 'echo' already"):
            host.add_backend("echo", Echo)
        with Asker(domain, XenDevice("echo", domain.domid, 0)) as asker:
            assert isinstance(asker, Asker)
            assert asker.backend("feature-echo") == "1"
            words = [b"word %d" % number for number in range(64)]
            asker.ask(*words)
            for _ in range(50):
                host.settle()
            assert asker.answers == [word.upper() for word in words]
            asker.ask(b"bad")
            assert asker.gone.wait(20)
            assert "that is no word" in (
                host.store.get(f"/local/domain/0/error/backend/echo/{domain.domid}/0/error") or ""
            )


def test_a_device_that_nobody_serves_is_a_timeout(tmp_path: Path) -> None:
    with XenHost("soft") as host, PyDomain(host) as domain:
        with pytest.raises(UsageError, match="did not answer"):
            Asker(domain, XenDevice("nobody", domain.domid, 0)).open(timeout=0.2)
        assert GuestTimeout.status == 1
