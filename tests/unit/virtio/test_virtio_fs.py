"""A shared folder, driven as a guest's kernel would, and as no kernel would."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuse_client import ANSWERS, FuseClient, FuseError

from bivisor.abi import fuse as abi
from bivisor.errors import UsageError
from bivisor.host import shared_calls, shared_folder, shared_nodes
from bivisor.host.shared_folder import SharedFolder
from bivisor.platform.virtio.fs import REQUEST

SECRET = b"what the guest must not read"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_bytes(SECRET)
    return place


@pytest.fixture
def shared(tmp_path: Path, outside: Path) -> Path:
    place = tmp_path / "shared"
    (place / "folder").mkdir(parents=True)
    (place / "file").write_bytes(b"contents")
    (place / "folder/inner").write_bytes(b"inner contents")
    (place / "out").symlink_to("../outside")
    (place / "to-secret").symlink_to(outside / "secret")
    os.mkfifo(place / "fifo")
    return place


@pytest.fixture
def client(shared: Path) -> Iterator[FuseClient]:
    client = FuseClient(shared)
    yield client
    client.close()


def refused(number: int, act: Callable[[], object]) -> None:
    with pytest.raises(FuseError) as caught:
        act()
    assert caught.value.number == number, caught.value


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_configuration_names_the_tag_and_one_request_queue(client: FuseClient) -> None:
    assert client.device.config == b"files".ljust(36, b"\0") + struct.pack("<I", 1)


def test_init_agrees_on_what_both_know(client: FuseClient) -> None:
    answer = client.call(abi.INIT, 0, abi.INIT_IN.pack(7, 37, 1 << 17, 0xFFFFFFFF))
    major, minor, readahead, flags, _, _, max_write, _, pages, _, _ = abi.INIT_OUT.unpack(answer)
    assert (major, minor, readahead, max_write, pages) == (7, 31, 1 << 17, 1 << 20, 256)
    assert flags & abi.MAX_PAGES
    assert not flags & abi.DO_READDIRPLUS
    refused(errno.EPROTO, lambda: client.call(abi.INIT, 0, abi.INIT_IN.pack(6, 1, 0, 0)))


def test_a_file_is_read_and_written_where_the_host_has_it(client: FuseClient, shared: Path) -> None:
    node = client.walk("folder/inner")
    opened = client.open(node, os.O_RDWR)
    assert client.read(opened) == b"inner contents"
    assert client.read(opened, 6, 3) == b"con"
    assert client.write(opened, b"INNER") == 5
    assert (shared / "folder/inner").read_bytes() == b"INNER contents"
    client.release(opened)
    refused(errno.EBADF, lambda: client.read(opened))
    appended = client.open(node, os.O_WRONLY | os.O_APPEND)
    client.write(appended, b"!", 0)
    assert (shared / "folder/inner").read_bytes() == b"INNER contents!"


def test_what_waits_is_done_by_another_thread_and_answered(client: FuseClient, shared: Path) -> None:
    node, opened = client.create(b"new", os.O_RDWR | os.O_SYNC, 0o6755)
    assert client.write(opened, b"stable") == 6
    assert client.call(abi.FSYNC, node, abi.FSYNC_IN.pack(opened, 1, 0)) == b""
    assert client.call(abi.FSYNCDIR, 1, abi.FSYNC_IN.pack(client.opendir(), 0, 0)) == b""
    client.call(abi.FALLOCATE, node, abi.FALLOCATE_IN.pack(opened, 0, 8192, 0, 0))
    assert (shared / "new").read_bytes() == b"stable".ljust(8192, b"\0")
    refused(errno.EOPNOTSUPP, lambda: client.call(abi.FALLOCATE, 1, abi.FALLOCATE_IN.pack(opened, 0, 1, 0x40, 0)))
    assert client.call(abi.LSEEK, node, abi.LSEEK_IN.pack(opened, 0, os.SEEK_HOLE, 0))
    assert not (shared / "new").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"../outside", b"folder/inner", b"/no/such/file"])
@pytest.mark.parametrize("opcode", [abi.LOOKUP, abi.UNLINK, abi.RMDIR, abi.MKDIR, abi.MKNOD, abi.CREATE, abi.RENAME])
def test_a_name_that_leads_elsewhere_is_refused(client: FuseClient, opcode: int, name: bytes, outside: Path) -> None:
    head = {abi.MKDIR: 8, abi.MKNOD: 16, abi.CREATE: 16, abi.RENAME: 8}.get(opcode, 0)
    body = struct.pack("<Q", 1).ljust(head, b"\0")[:head] + name + b"\0"
    if opcode == abi.RENAME:
        body += name + b"\0"
    refused(errno.EINVAL, lambda: client.call(opcode, 1, body))
    assert (outside / "secret").read_bytes() == SECRET


def test_a_symbolic_link_is_a_link_and_never_followed(client: FuseClient, outside: Path) -> None:
    out, to_secret = client.lookup(b"out"), client.lookup(b"to-secret")
    before = (outside / "secret").stat()
    assert client.call(abi.READLINK, out) == b"../outside"
    assert stat.S_ISLNK(client.status(to_secret)["mode"])
    refused(errno.ENOTDIR, lambda: client.lookup(b"secret", out))
    refused(errno.ENOTDIR, lambda: client.opendir(out))
    refused(errno.ELOOP, lambda: client.open(to_secret))
    refused(errno.ELOOP, lambda: client.create(b"to-secret", os.O_RDWR))
    refused(errno.EINVAL, lambda: client.setattr(to_secret, abi.FATTR_SIZE))
    refused(errno.EOPNOTSUPP, lambda: client.setattr(to_secret, abi.FATTR_MODE, mode=0o777))
    client.setattr(to_secret, abi.FATTR_MTIME)
    refused(errno.ENOTDIR, lambda: client.create(b"new", os.O_RDWR, parent=out))
    hard = client.call(abi.LINK, 1, abi.LINK_IN.pack(to_secret) + b"another\0")
    assert stat.S_ISLNK(attributes_mode(hard))
    after = (outside / "secret").stat()
    assert (after.st_size, after.st_mode, after.st_mtime_ns, after.st_nlink) == (
        before.st_size,
        before.st_mode,
        before.st_mtime_ns,
        1,
    )
    assert [path.name for path in outside.iterdir()] == ["secret"]


def attributes_mode(answer: bytes) -> int:
    return int(abi.ATTR.unpack_from(answer, abi.ENTRY_HEAD.size)[9])


def test_a_folder_that_became_a_link_is_not_gone_through(client: FuseClient, shared: Path) -> None:
    folder = client.lookup(b"folder")
    (shared / "folder").rename(shared / "moved")
    (shared / "folder").symlink_to("../outside")
    refused(errno.ESTALE, lambda: client.lookup(b"secret", folder))
    refused(errno.ESTALE, lambda: client.create(b"new", os.O_RDWR, parent=folder))


def test_only_regular_files_are_opened_and_made(client: FuseClient) -> None:
    refused(errno.ENXIO, lambda: client.open(client.lookup(b"fifo"), os.O_RDONLY))
    refused(errno.ENXIO, lambda: client.create(b"fifo", os.O_RDONLY))
    for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        refused(errno.EPERM, lambda: client.call(abi.MKNOD, 1, abi.MKNOD_IN.pack(kind | 0o666, 259, 0, 0) + b"n\0"))  # noqa: B023
    client.call(abi.MKNOD, 1, abi.MKNOD_IN.pack(stat.S_IFREG | 0o600, 0, 0, 0) + b"n\0")
    refused(errno.EISDIR, lambda: client.open(client.lookup(b"folder")))


def test_a_node_is_forgotten_when_all_lookups_are_taken_back(client: FuseClient) -> None:
    node = client.lookup(b"file")
    assert client.lookup(b"file") == node
    client.forget(node)
    assert client.status(node)["size"] == 8
    client.forget(1, 1000)
    client.forget(node)
    refused(errno.ESTALE, lambda: client.status(node))
    assert client.status(1)
    one, two = client.walk("folder/inner"), client.lookup(b"folder")
    one_left = abi.BATCH_FORGET_IN.pack(2, 0) + abi.FORGET_ONE.pack(two, 2) + abi.FORGET_ONE.pack(99, 1)
    assert client.send(abi.BATCH_FORGET, 0, one_left, room=0) == b""
    assert client.status(one)["size"] == 14  # its folder stays while it does
    client.forget(one, 1 << 63)
    refused(errno.ESTALE, lambda: client.status(two))


def test_few_files_are_open_however_many_the_guest_knows(client: FuseClient, shared: Path) -> None:
    before = open_fds()
    nodes = []
    for i in range(3 * shared_nodes.FDS_MAX):
        (shared / f"{i}").mkdir()
        (shared / f"{i}/x").write_bytes(b"y" * i)
        nodes.append(client.walk(f"{i}/x"))
    assert [client.status(node)["size"] for node in nodes] == list(range(3 * shared_nodes.FDS_MAX))
    assert open_fds() - before <= shared_nodes.FDS_MAX
    client.device.reset()
    assert open_fds() == before


def test_a_guest_that_closes_nothing_runs_into_a_limit(client: FuseClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.folder, "_handles_max", 3)
    node = client.lookup(b"file")
    handles = [client.open(node), client.open(node), client.opendir()]
    refused(errno.ENFILE, lambda: client.open(node))
    refused(errno.ENFILE, client.opendir)
    refused(errno.ENFILE, lambda: client.create(b"new", os.O_RDWR))
    client.release(handles[0])
    client.open(node)
    monkeypatch.setattr(shared_nodes, "NODES_MAX", 3)
    client.lookup(b"folder")
    refused(errno.ENFILE, lambda: client.lookup(b"fifo"))
    monkeypatch.setattr(shared_folder, "LISTED_MAX", 1)
    refused(errno.ENOMEM, lambda: client.list(handles[2]))


def test_a_removed_file_lives_while_it_is_open(client: FuseClient, shared: Path) -> None:
    node = client.lookup(b"file")
    opened = client.open(node, os.O_RDWR)
    client.call(abi.UNLINK, 1, b"file\0")
    other, _ = client.create(b"file", os.O_RDWR)
    assert other != node
    assert client.status(node)["size"] == 8
    client.setattr(node, abi.FATTR_SIZE | abi.FATTR_FH, handle=opened, size=3)
    assert client.read(opened) == b"con"
    assert client.status(other)["size"] == 0
    client.release(opened)


def test_a_folder_is_listed_in_pieces_and_again(client: FuseClient, shared: Path) -> None:
    names = {b".", b"..", *(os.fsencode(path.name) for path in shared.iterdir())}
    for plus in (False, True):
        opened = client.opendir()
        found = client.list(opened, size=400, plus=plus)
        assert len(found) == len(names)
        assert set(found) == names
        first = client.entries(opened, 0, size=400, plus=plus)
        assert client.entries(opened, first[0][1], size=400, plus=plus)[0][0] == found[1]
        (shared / f"late {plus}").touch()
        names.add(f"late {plus}".encode())
        assert set(client.list(opened, plus=plus)) == names
        assert client.entries(opened, 1 << 40) == []


def test_readdirplus_is_offered_where_what_it_tells_may_be_kept(shared: Path) -> None:
    client = FuseClient(shared, cache=1.5)
    answer = client.call(abi.INIT, 0, abi.INIT_IN.pack(7, 37, 0, 0xFFFFFFFF))
    assert abi.INIT_OUT.unpack(answer)[3] & abi.DO_READDIRPLUS
    entry = client.call(abi.LOOKUP, 1, b"file\0")
    assert abi.ENTRY_HEAD.unpack_from(entry)[2:] == (1, 1, 500_000_000, 500_000_000)
    client.close()


def test_a_renamed_file_keeps_its_node(client: FuseClient, shared: Path) -> None:
    folder, inner, file = client.lookup(b"folder"), client.walk("folder/inner"), client.lookup(b"file")
    client.call(abi.RENAME, folder, abi.RENAME_IN.pack(1) + b"inner\0outer\0")
    assert client.lookup(b"outer") == inner
    refused(errno.EEXIST, lambda: client.call(abi.RENAME2, 1, abi.RENAME2_IN.pack(1, 1, 0) + b"outer\0file\0"))
    client.call(abi.RENAME2, 1, abi.RENAME2_IN.pack(1, 2, 0) + b"outer\0file\0")
    assert (client.lookup(b"file"), client.lookup(b"outer")) == (inner, file)
    client.call(abi.RENAME2, 1, abi.RENAME2_IN.pack(folder, 0, 0) + b"file\0outer\0")
    assert (shared / "folder/outer").read_bytes() == b"inner contents"
    refused(errno.EINVAL, lambda: client.call(abi.RENAME2, 1, abi.RENAME2_IN.pack(1, 4, 0) + b"outer\0x\0"))
    refused(errno.EINVAL, lambda: client.call(abi.RENAME, 1, abi.RENAME_IN.pack(folder) + b"folder\0x\0"))
    client.call(abi.UNLINK, 1, b"outer\0")
    refused(errno.ENOTEMPTY, lambda: client.call(abi.RMDIR, 1, b"folder\0"))


def test_files_are_the_guests_roots_and_stay_so(client: FuseClient, shared: Path) -> None:
    node = client.lookup(b"file")
    assert (client.status(node)["uid"], client.status(node)["gid"]) == (0, 0)
    client.setattr(node, abi.FATTR_UID | abi.FATTR_MODE, uid=0, mode=0o4711)
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o711
    refused(errno.EPERM, lambda: client.setattr(node, abi.FATTR_UID, uid=1000))
    client.setattr(node, abi.FATTR_MTIME)
    assert (shared / "file").stat().st_mtime == 8
    client.folder.uid = client.folder.gid = 12345
    assert client.status(node)["uid"] == client.status(node)["gid"] == 65534


def test_nothing_is_changed_in_a_folder_that_is_shared_read_only(shared: Path) -> None:
    client = FuseClient(shared, read_only=True)
    file, folder = client.lookup(b"file"), client.lookup(b"folder")
    before = sorted((path, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in shared.rglob("*"))
    pair = b"file\0new\0"
    opened = client.open(file)
    for opcode, node, body in (
        (abi.CREATE, 1, abi.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + b"new\0"),
        (abi.MKNOD, 1, abi.MKNOD_IN.pack(stat.S_IFREG, 0, 0, 0) + b"new\0"),
        (abi.MKDIR, 1, abi.MKDIR_IN.pack(0o755, 0) + b"new\0"),
        (abi.SYMLINK, 1, b"new\0file\0"),
        (abi.LINK, 1, abi.LINK_IN.pack(file) + b"new\0"),
        (abi.UNLINK, 1, b"file\0"),
        (abi.RMDIR, 1, b"folder\0"),
        (abi.RENAME, 1, abi.RENAME_IN.pack(folder) + pair),
        (abi.RENAME2, 1, abi.RENAME2_IN.pack(folder, 0, 0) + pair),
        (abi.OPEN, file, abi.OPEN_IN.pack(os.O_WRONLY, 0)),
        (abi.OPEN, file, abi.OPEN_IN.pack(os.O_RDWR, 0)),
        (abi.FALLOCATE, file, abi.FALLOCATE_IN.pack(opened, 0, 100, 0, 0)),
        *((abi.SETATTR, file, abi.SETATTR_IN.pack(1 << bit, *[0] * 15)) for bit in (0, 3, 4, 5)),
    ):
        refused(errno.EROFS, lambda: client.call(opcode, node, body))  # noqa: B023
    refused(errno.EBADF, lambda: client.write(opened, b"x"))
    assert client.read(opened) == b"contents"
    assert before == sorted((path, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in shared.rglob("*"))
    client.close()


def test_numbers_that_make_no_sense_are_errors(client: FuseClient) -> None:
    huge = (1 << 64) - 1
    node = client.lookup(b"file")
    opened, listed = client.open(node, os.O_RDWR), client.opendir()
    refused(errno.EBADF, lambda: client.read(listed))
    refused(errno.EBADF, lambda: client.entries(opened))
    refused(errno.EFBIG, lambda: client.read(opened, huge))
    refused(errno.EFBIG, lambda: client.write(opened, b"x", huge))
    refused(errno.EFBIG, lambda: client.setattr(node, abi.FATTR_SIZE, size=huge))
    refused(errno.EINVAL, lambda: client.call(abi.FALLOCATE, 1, abi.FALLOCATE_IN.pack(opened, huge, 1, 0, 0)))
    refused(errno.EINVAL, lambda: client.call(abi.LSEEK, 1, abi.LSEEK_IN.pack(opened, 0, os.SEEK_SET, 0)))
    refused(errno.EINVAL, lambda: client.open(node, os.O_ACCMODE))
    refused(errno.EINVAL, lambda: client.call(abi.READ, 1, b"short"))
    refused(errno.EINVAL, lambda: client.call(abi.WRITE, 1, abi.WRITE_IN.pack(opened, 0, 100, 0, 0, 0, 0) + b"x"))
    refused(errno.EINVAL, lambda: client.call(abi.LOOKUP, 1, b"no end"))
    refused(errno.ENAMETOOLONG, lambda: client.lookup(b"n" * 256))
    refused(errno.ENOSYS, lambda: client.call(abi.FLUSH))
    refused(errno.ENOSYS, lambda: client.call(4711))
    refused(errno.EIO, lambda: client.call(abi.LOOKUP, 1, b"file\0", room=8))


def test_a_request_that_cannot_be_answered_asks_for_a_reset(client: FuseClient) -> None:
    assert client.send(abi.LOOKUP, 1, b"file\0", room=0) is None
    assert client.transport.reasons == ["virtio-fs: a request without room for its answer"]
    client.device.reset()
    client.start()
    assert client.send_raw(b"short") is None
    assert client.transport.reasons == ["virtio-fs: a request without a header"]


def test_a_reset_closes_everything_and_no_work_touches_memory_after_it(client: FuseClient) -> None:
    before = open_fds()
    _, opened = client.create(b"new", os.O_RDWR | os.O_SYNC)
    client.memory.write(ANSWERS, b"\xff" * 16)
    request = abi.IN_HEADER.pack(0, abi.FSYNC, 7, 1, 0, 0, 0, 0) + abi.FSYNC_IN.pack(opened, 0, 0)
    client.memory.write(0x100000, request)
    client.queues[REQUEST].add([(0x100000, len(request))], [(ANSWERS, 16)], table=True)
    client.device.notify(REQUEST)
    client.device.reset()
    assert open_fds() == before
    client.loop.run_soon()
    assert client.memory.read(ANSWERS, 16) == b"\xff" * 16


def test_a_reset_does_not_wait_for_what_would_take_long(client: FuseClient, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    begun = threading.Event()

    def one_step(_fd: int, _mode: int, at: int, _length: int) -> None:
        steps.append(at)
        begun.set()
        client.folder._hurry.wait(30)

    monkeypatch.setattr(shared_calls, "fallocate", one_step)
    _, opened = client.create(b"new", os.O_RDWR)
    body = abi.FALLOCATE_IN.pack(opened, 0, 1 << 40, 0, 0)
    request = abi.IN_HEADER.pack(0, abi.FALLOCATE, 7, 1, 0, 0, 0, 0) + body
    client.memory.write(0x100000, request)
    client.queues[REQUEST].add([(0x100000, len(request))], [(ANSWERS, 16)], table=True)
    client.device.notify(REQUEST)
    assert begun.wait(30)
    client.device.reset()
    assert steps == [0]
    client.start()  # and what is asked for after it is done
    node, opened = client.create(b"newer", os.O_RDWR)
    monkeypatch.undo()
    client.call(abi.FALLOCATE, node, abi.FALLOCATE_IN.pack(opened, 0, 100, 0, 0))
    assert client.status(node)["size"] == 100


def test_what_cannot_be_shared_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="No such file or directory; a folder that can be read is needed"):
        SharedFolder(tmp_path / "nothing")
    with pytest.raises(UsageError, match="Not a directory"):
        SharedFolder(tmp_path / "file")
