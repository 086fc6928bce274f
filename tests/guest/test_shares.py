"""Folders of the host in a guest: both see the same files, and the guest sees no others."""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path

import pytest

import bivisor
from bivisor.image import Guest as Payload

pytestmark = pytest.mark.guest

MANY = 1000
SECRET = "what the guest must not read"


def lines(guest: bivisor.KvmGuest, command: str) -> list[str]:
    return guest.run(command, check=True).text.splitlines()


def test_a_guest_and_its_host_share_folders(engine: str, guest: Payload, tmp_path: Path) -> None:
    shared, sources, outside = tmp_path / "shared", tmp_path / "sources", tmp_path / "outside"
    for folder in (shared, sources, outside):
        folder.mkdir()
    (outside / "secret").write_text(SECRET)
    (sources / "text").write_text("only to be read")
    data = random.Random(6).randbytes(3_000_001)
    (shared / "data").write_bytes(data)
    (shared / "escape").symlink_to("../outside/secret")
    (shared / "absolute").symlink_to(outside / "secret")
    (shared / "many").mkdir()
    names = sorted(f"file {number} ü" for number in range(MANY))
    for name in names:
        (shared / "many" / name).touch()

    shares = [str(shared), f"{sources},ro,tag=sources", f"{sources},tag=kept,cache=60"]
    with bivisor.kvm_guest(engine=engine, shares=shares) as vm:
        assert lines(vm, "cd /mnt; sha256sum <data") == [f"{sha256(data).hexdigest()}  -"]
        vm.run("cd /mnt; cp data copy && sync copy && mv copy moved && ln moved hard && echo more >>hard", check=True)
        assert (shared / "moved").read_bytes() == data + b"more\n"
        assert (shared / "hard").stat().st_nlink == 2
        assert not (shared / "copy").exists()

        (shared / "moved").write_bytes(b"the host's\n")  # which the guest sees at once
        assert lines(vm, "cat /mnt/hard; rm /mnt/hard /mnt/moved; mkdir /mnt/new; chmod 700 /mnt/new") == ["the host's"]
        assert not (shared / "moved").exists()
        assert (shared / "new").stat().st_mode & 0o777 == 0o700

        assert sorted(lines(vm, "find /mnt/many -type f")) == [f"/mnt/many/{name}" for name in names]
        assert lines(vm, "ls /share/kept; ls -ln /mnt/many | grep -c ' 0  *0  *0 '")[-1] == str(MANY)
        vm.run("rm -r /mnt/many", check=True)
        assert not (shared / "many").exists()

        # A link leads the guest to files of its own, where there is no such thing; it can make others, which are links.
        assert lines(vm, "readlink /mnt/escape") == ["../outside/secret"]
        assert vm.run("cat /mnt/escape || cat /mnt/absolute").status != 0
        vm.run("mkdir -p /outside /mnt/../outside; echo own >/outside/secret; ln -s / /mnt/root", check=True)
        assert lines(vm, "cat /mnt/escape; ls -d /mnt/root/mnt") == ["own", "/mnt/root/mnt"]
        assert (shared / "root").readlink() == Path("/")
        assert [path.name for path in outside.iterdir()] == ["secret"]
        assert (outside / "secret").read_text() == SECRET

        # What is open stays, though its name is gone; what is cut off is short.
        assert lines(vm, "cd /mnt; exec 3<>data; rm data; truncate -s 10 /proc/self/fd/3; wc -c <&3") == ["10"]

        assert lines(vm, "cat /share/sources/text; echo; mount | grep -c 'virtiofs (ro'") == ["only to be read", "1"]
        vm.run("mount -o remount,rw /share/sources", check=True)  # the guest may believe it, the host does not
        refused = vm.run("cd /share/sources; touch new; echo x >text; rm text; mkdir folder; mv text other")
        assert refused.status != 0
        assert refused.stderr.count(b"Read-only file system") == 5, refused.stderr
        assert [path.name for path in sources.iterdir()] == ["text"]
        assert (sources / "text").read_text() == "only to be read"


def test_what_cannot_be_shared_is_refused(guest: Payload, tmp_path: Path) -> None:
    with pytest.raises(bivisor.UsageError, match="a folder that can be read is needed"):
        bivisor.run("true", shares=[str(tmp_path / "nothing")])
    with pytest.raises(bivisor.UsageError, match="two shares are called 'share'"):
        bivisor.run("true", shares=[str(tmp_path), str(tmp_path)])
