"""Requests that no kernel sends to a shared folder: each is answered, and none leaves the folder."""

from __future__ import annotations

import os
import random
import struct
import tempfile
from pathlib import Path

from fuse_client import FuseClient
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.abi import fuse as abi
from bivisor.platform.virtio.fs import HIPRIO, REQUEST

SECRET = b"what the guest must not read"
NAMES = (
    *(b"file", b"folder", b"inner", b"out", b"to-secret", b"new", b"other", b"secret", b"fifo"),
    *(b"", b".", b"..", b"../outside", b"../outside/secret", b"/no/such/file", b"folder/..", b"\xff\n", b"n" * 300),
)
SIZES = {
    abi.MKNOD: 16,
    abi.MKDIR: 8,
    abi.RENAME: 8,
    abi.RENAME2: 16,
    abi.LINK: 8,
    abi.CREATE: 16,
    abi.SETATTR: 88,
    abi.OPEN: 8,
    abi.OPENDIR: 8,
    abi.READ: 40,
    abi.WRITE: 40,
    abi.READDIR: 40,
    abi.READDIRPLUS: 40,
    abi.INIT: 16,
    abi.FALLOCATE: 32,
    abi.LSEEK: 24,
    abi.FSYNC: 16,
    abi.FSYNCDIR: 16,
    abi.RELEASE: 24,
    abi.GETATTR: 16,
    abi.FORGET: 8,
    abi.BATCH_FORGET: 40,
    abi.RELEASEDIR: 24,
}
NAMED = (abi.LOOKUP, abi.UNLINK, abi.RMDIR, abi.SYMLINK, abi.MKNOD, abi.MKDIR, abi.CREATE, abi.RENAME, abi.RENAME2)
ENTRIES = (abi.LOOKUP, abi.SYMLINK, abi.MKNOD, abi.MKDIR, abi.LINK, abi.CREATE)
WITH_NODE = (abi.RENAME, abi.RENAME2, abi.LINK)
WITH_HANDLE = (
    *(abi.READ, abi.WRITE, abi.READDIR, abi.READDIRPLUS, abi.FALLOCATE, abi.LSEEK, abi.FSYNC, abi.FSYNCDIR),
    *(abi.RELEASE, abi.RELEASEDIR),
)
LIKELY = (*NAMED, abi.LINK, abi.LOOKUP, abi.LOOKUP, abi.OPEN, abi.READ, abi.WRITE, abi.OPENDIR, abi.READDIRPLUS)
SOME_FLAGS = (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_EXCL)


def world(top: Path) -> tuple[Path, Path]:
    """A folder to share, with ways that seem to lead out of it, and what is outside."""
    shared, outside = top / "shared", top / "outside"
    (shared / "folder").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (shared / "file").write_bytes(b"contents")
    (shared / "folder/inner").write_bytes(b"inner contents")
    (shared / "out").symlink_to("../outside")
    (shared / "to-secret").symlink_to(outside / "secret")
    (shared / "folder/up").symlink_to("..")
    os.mkfifo(shared / "fifo")
    return shared, outside


def number(dice: random.Random) -> int:
    """A field of 32 bits: mostly small, as nodes, handles, flags and sizes are."""
    return dice.choice([0, 1, dice.randrange(8), dice.randrange(64), *SOME_FLAGS, 4096, dice.randrange(1 << 32)])


class Player:
    """Somebody who remembers which nodes and handles there are, and mostly uses them."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.nodes = [abi.ROOT_ID]
        self.handles = [1]

    def opcode(self) -> int:
        """What to ask for: seldom what would end the game."""
        found = self.dice.choice([self.dice.choice(LIKELY), *abi.OPERATIONS, self.dice.randrange(1 << 32)])
        return abi.LOOKUP if found in (abi.INIT, abi.DESTROY) and self.dice.random() < 0.9 else found

    def node(self) -> int:
        """A node, mostly one that was given out."""
        dice = self.dice
        return dice.choice([abi.ROOT_ID, *dice.choices(self.nodes, k=5), dice.randrange(12), dice.randrange(1 << 64)])

    def body(self, opcode: int) -> bytes:
        """What may follow the header."""
        dice = self.dice
        if dice.random() < 0.05:
            return dice.randbytes(dice.randrange(100))
        small = dice.random() < 0.7
        words = [number(dice) if dice.random() < 0.3 else 0 for _ in range(SIZES.get(opcode, 0) // 4)]
        if small:  # the high halves of numbers of 64 bits
            words[1::2] = [0] * len(words[1::2])
        fixed = struct.pack(f"<{len(words)}I", *words)
        data = dice.randbytes(dice.choice([0, 5, 64]))
        if opcode in WITH_NODE:
            fixed = struct.pack("<Q", self.node()) + fixed[8:]
        elif opcode in WITH_HANDLE and dice.random() < 0.9:
            fixed = struct.pack("<Q", dice.choice(self.handles)) + fixed[8:]
            if opcode == abi.WRITE and small:
                fixed = fixed[:16] + struct.pack("<I", len(data)) + fixed[20:]
            elif opcode in (abi.READ, abi.READDIR, abi.READDIRPLUS) and small:
                fixed = fixed[:16] + struct.pack("<I", dice.choice([100, 4096])) + fixed[20:]
        if opcode == abi.FALLOCATE and fixed:  # so little that it costs no disk, or more than there can be
            fixed = fixed[:8] + struct.pack("<QQ", dice.choice([0, 100, 1 << 63]), dice.choice([0, 1 << 16, 1 << 63]))
            fixed += struct.pack("<II", dice.choice([0, 1, 3, 16, 99]), 0)
        names = b"".join(dice.choice(NAMES) + b"\0" for _ in range(dice.choice([1, 2, 2, 2])))
        return fixed + (names if opcode in NAMED or opcode == abi.LINK else data)

    def learn(self, opcode: int, answer: bytes) -> None:
        """Remember what an answer without an error gives."""
        body = answer[abi.OUT_HEADER.size :]
        if opcode in ENTRIES:
            self.nodes.append(struct.unpack_from("<Q", body)[0])
        if opcode in (abi.OPEN, abi.OPENDIR, abi.CREATE):
            self.handles.append(abi.OPEN_OUT.unpack(body[-abi.OPEN_OUT.size :])[0])


def outside_is_untouched(outside: Path, top: Path) -> bool:
    return (
        sorted(path.name for path in top.iterdir()) == ["outside", "shared"]
        and [path.name for path in outside.iterdir()] == ["secret"]
        and (outside / "secret").read_bytes() == SECRET
        and (outside / "secret").stat().st_nlink == 1
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_a_guest_asks_for_it_gets_an_answer_and_stays_inside(seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        shared, outside = world(top)
        client = FuseClient(shared, cache=dice.choice([0.0, 1.0]))
        try:
            before = (outside.stat().st_mode, (outside / "secret").stat().st_mtime_ns)
            player = Player(dice)
            for _ in range(200):
                opcode = player.opcode()
                silent = opcode in (abi.FORGET, abi.BATCH_FORGET, abi.INTERRUPT)
                room = dice.choice([0, 8]) if dice.random() < 0.02 else dice.choice([4096, 65536])
                queue = dice.choice([HIPRIO, REQUEST])
                answer = client.send(opcode, player.node(), player.body(opcode), room=room, queue=queue)
                if answer is None:
                    assert not room
                    client.device.reset()
                    client.start()
                    continue
                assert SECRET not in answer
                if not silent:
                    size, error, _ = abi.OUT_HEADER.unpack_from(answer)
                    assert size == len(answer)
                    assert error <= 0
                    if not error:
                        player.learn(opcode, answer)
            assert outside_is_untouched(outside, top)
            assert (outside.stat().st_mode, (outside / "secret").stat().st_mtime_ns) == before
        finally:
            client.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_messages_of_any_bytes_are_answered(messages: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        shared, outside = world(Path(name))
        client = FuseClient(shared)
        try:
            for message in messages:
                if client.send_raw(message) is None:
                    assert len(message) < abi.IN_HEADER.size
                    client.device.reset()
                    client.start()
            assert outside_is_untouched(outside, Path(name))
        finally:
            client.close()
