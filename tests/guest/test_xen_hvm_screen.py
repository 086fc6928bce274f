"""The screen of an HVM domain: a VNC client that knows the password sees GRUB on it and chooses from its menu."""

from __future__ import annotations

import shutil
import socket
import struct
from pathlib import Path

import pytest

from bivisor.abi.xen.xen import ShutdownReason
from bivisor.errors import UsageError
from bivisor.image.disk import build_disk
from bivisor.image.progress import quiet
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.xenhost import XenHost
from bivisor.toolstack.xlconfig import read_config
from bivisor.vnc.security import answer

pytestmark = pytest.mark.guest
PATIENCE = 100.0
END, RETURN = 0xFF57, 0xFF0D


def exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = end.recv(size - len(data))
        assert piece, data
        data += piece
    return data


def test_a_vnc_client_chooses_from_the_boot_menu_of_a_domain(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    shutil.copyfile(build_disk(progress=quiet), disk)
    keys = ["name=hvm", "type=hvm", "memory=64", f'disk=["{disk},raw,hda,rw"]', "vnc=1", "vncpasswd=geheim"]
    with XenHost("soft") as host:
        domain = host.create_from(read_config(None, keys).config, feed=Feed())
        with host.loop.lock:
            assert host.store.get(f"{domain.path}/console/vnc-port") == str(domain.screen.port)
        end = socket.create_connection(("127.0.0.1", domain.screen.port), PATIENCE)
        end.sendall(b"RFB 003.008\n\2")
        assert exactly(end, 12 + 2) == b"RFB 003.008\n\1\2"
        end.sendall(answer(b"geheim", exactly(end, 16)) + b"\1")
        assert exactly(end, 4) == bytes(4)
        assert exactly(end, 24 + 3)[-3:] == b"hvm"
        domain.wait_for("GNU GRUB", PATIENCE)
        assert domain.screen.png().startswith(b"\x89PNG")
        end.sendall(b"".join(struct.pack(">BBxxI", 4, down, key) for key in (END, RETURN) for down in (1, 0)))
        assert domain.wait(PATIENCE) is ShutdownReason.POWEROFF
        domain.destroy()
        assert end.recv(1) == b""
        end.close()


def test_a_domain_without_a_screen_says_so() -> None:
    with XenHost("soft") as host:
        domain = host.create("plain", paused=True, memory=64)
        with pytest.raises(UsageError, match="no HVM domain"):
            print(domain.screen)
