"""How disks and networks are written: xl-disk-configuration(5), xl-network-configuration(5), xen-vbd-interface(7)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.toolstack.xlconfig import DiskSpec, VifSpec
from bivisor.toolstack.xlconfig.disk import vdev_number


@pytest.mark.parametrize(
    "text",
    [
        "/dev/vg/guest-volume,,hda",
        "/dev/vg/guest-volume,raw,hda,rw",
        "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
        "raw:/dev/vg/guest-volume,hda,w",
        "phy:/dev/vg/guest-volume,hda,w",
        "tap:aio:/dev/vg/guest-volume,hda:disk,w",
        "vdev=hda,/dev/vg/guest-volume",
    ],
)
def test_the_manuals_ways_to_write_a_disk_mean_the_same(text: str) -> None:
    assert DiskSpec.parse(text) == DiskSpec(Path("/dev/vg/guest-volume"), "hda")


def test_access_and_flags_are_understood() -> None:
    spec = DiskSpec.parse("a.img,raw,xvdb,ro,no-discard,untrusted")
    assert spec == DiskSpec(Path("a.img"), "xvdb", read_only=True, discard=False, trusted=False)
    assert DiskSpec.parse("vdev=xvda,target=odd, name,raw.img ").target == Path("odd, name,raw.img ")


def test_a_format_is_raw_where_none_is_named_and_travels_with_the_disk() -> None:
    qcow2 = DiskSpec.parse("format=qcow2,vdev=xvda,target=a.img").absolute(Path("/d"))
    assert qcow2.params == "qcow2:/d/a.img"
    assert DiskSpec.from_json(qcow2.to_json()) == qcow2
    assert DiskSpec.parse("qcow2:a.img,xvda,w").format == "qcow2"
    assert DiskSpec.parse("/a.img,vhd,xvda").params == "vpc:/a.img"
    assert DiskSpec.parse("/a.img,,xvda").params == "/a.img"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.img", "it lacks vdev, as in disk.img,raw,xvda,rw"),
        ("vdev=xvda", "it lacks the target"),
        ("a.img,raw,xvda,x", "access 'x' is one of r, ro, w, rw"),
        ("a.img,raw,zda", "vdev 'zda': it is written xvda, xvdb1, sda or d0"),
        ("a.img,raw,hde", "there is no such disk or partition"),
        ("a.img,tar,xvda", "format 'tar' is none of raw, qcow2"),
        ("a.img,raw,xvda,w,more", "'more' is one parameter too many"),
        ("a.img,raw,xvda,w,script=block-iscsi", "script: Bivisor runs no hotplug scripts"),
        ("nbd:a.img,xvda,w", "nbd: needs a hotplug script"),
        ("a.img,raw,xvda,backendtype=qdisk", "backendtype: Bivisor has one block back-end"),
        ("a.img,raw,xvda,colo-host=x", "colo-host: COLO is not there"),
        ("a.img,raw,xvda,speed=9", "'speed' is not one of target, format, vdev, access"),
        ("a.img,raw,xvda,vdev=xvdb", "vdev is given twice"),
    ],
)
def test_a_disk_that_cannot_be_is_refused_with_what_would_be_right(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        DiskSpec.parse(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 202 << 8),
        ("xvdb1", 202 << 8 | 16 | 1),
        ("xvdp15", 202 << 8 | 15 << 4 | 15),
        ("xvdq", 1 << 28 | 16 << 8),
        ("xvda16", 1 << 28 | 16),
        ("xvdaa", 1 << 28 | 26 << 8),
        ("xvdz", 268441856),
        ("sdb2", 8 << 8 | 16 | 2),
        ("hda1", 3 << 8 | 1),
        ("hdb", 3 << 8 | 64),
        ("hdc", 22 << 8),
        ("hdd63", 22 << 8 | 64 | 63),
        ("d0", 202 << 8),
        ("d5p3", 202 << 8 | 5 << 4 | 3),
        ("51712", 51712),
        ("0xca00", 51712),
    ],
)
def test_a_virtual_device_has_the_number_that_the_interface_gives_it(vdev: str, number: int) -> None:
    assert vdev_number(vdev) == number


@given(st.text(st.sampled_from("abcdxvhs0123456789p"), max_size=8))
def test_any_name_has_a_number_or_is_refused(vdev: str) -> None:
    try:
        assert vdev_number(vdev) >= 0
    except UsageError:
        pass


@given(st.text(st.sampled_from("axv,=:/ rowtphyg") | st.characters(codec="utf-8"), max_size=40))
def test_any_disk_is_understood_or_refused(text: str) -> None:
    try:
        spec = DiskSpec.parse(text)
    except UsageError:
        return
    assert DiskSpec.from_json(spec.to_json()) == spec


def test_a_bare_name_is_a_file_here_or_else_a_device(tmp_path: Path) -> None:
    assert DiskSpec.parse("a.img,,xvda").absolute(tmp_path).target == tmp_path / "a.img"
    assert DiskSpec.parse("/dev/x,,xvda").absolute(tmp_path).target == Path("/dev/x")
    (tmp_path / "null").write_bytes(b"")
    assert DiskSpec.parse("null,,xvda").absolute(tmp_path).target == tmp_path / "null"


def test_a_network_is_understood() -> None:
    assert VifSpec.parse("") == VifSpec()
    spec = VifSpec.parse("mac=00:16:3E:74:3d:76, bridge=br1,mtu=9000,devid=3,untrusted")
    assert spec == VifSpec("vif", "00:16:3e:74:3d:76", "br1", "", 9000, 3, False)
    assert VifSpec.parse("type=tap,vifname=tap0").kind == "tap"
    assert VifSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mac=00:16:3e:1:2:3", "mac: '00:16:3e:1:2:3' is not written as in 00:16:3e:01:02:03"),
        ("mac=01:00:5e:00:00:01", "mac: 01:00:5e:00:00:01 is a group's address"),
        ("type=ioemu", "type: 'ioemu' is not one of vif, user, tap"),
        ("type=tap", "type=tap needs vifname"),
        ("bridge=a/b", "bridge: 'a/b' is not the name of an interface"),
        ("mtu=5", "mtu: '5' has to be a number from 68 to 65535"),
        ("rate=1MB/s", "rate: rates are not limited"),
        ("script=vif-route", "script: Bivisor runs no hotplug scripts"),
        ("model=e1000", "model: a PVH domain has no emulated network cards"),
        ("bridge=a,bridge=b", "bridge is given twice"),
        ("speed=5", "'speed' is not one of mac, bridge, type, vifname, mtu, devid, trusted"),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_what_would_be_right(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        VifSpec.parse(text)
    assert told in str(caught.value)
