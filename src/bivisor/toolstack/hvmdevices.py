"""The emulated drives and cards of an HVM domain, beside the PV devices of the same disks and networks.

A disk whose letter is one of the first four is an IDE drive at that place as well, as libxl does it; a CD-ROM is a
drive and no PV disk. A guest's PV drivers have the emulated ones unplugged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bivisor.errors import UsageError
from bivisor.host.link import patch
from bivisor.platform.ide import AtaDisk, CdRom
from bivisor.toolstack.hvm import IDE_PLACES, HvmDomain
from bivisor.toolstack.shared_image import SharedImage
from bivisor.toolstack.xenblk import open_params
from bivisor.toolstack.xennet import Vif
from bivisor.toolstack.xlconfig import DiskSpec

if TYPE_CHECKING:
    from bivisor.toolstack.xenhost import XenHost

_FIRST_LETTER = {"xvd": 3, "hd": 2}


def ide_place(spec: DiskSpec) -> int | None:
    """Where the drive of a disk is, 0 to 3; None for one that is not emulated. UsageError for a CD-ROM elsewhere."""
    start = next((length for prefix, length in _FIRST_LETTER.items() if spec.vdev.startswith(prefix)), None)
    letters = "" if start is None else spec.vdev[start:].rstrip("0123456789")
    place = ord(letters) - ord("a") if len(letters) == 1 and spec.vdev[-1].isalpha() else IDE_PLACES
    if place < IDE_PLACES:
        return place
    if spec.cdrom:
        raise UsageError(f"CD-ROM {spec.vdev}: an HVM domain has IDE drives hda to hdd")
    return None


def plug_in_disk(host: XenHost, built: HvmDomain, spec: DiskSpec, hdtype: str) -> None:
    """A disk of the domain: its drive, which is of `hdtype`, and its PV device. UsageError, ImageError, HostError."""
    place = ide_place(spec)
    if place is None:
        host.disks.attach(built.domid, spec)
        return
    image = SharedImage(open_params(spec.params, spec.read_only or spec.cdrom))
    try:
        if spec.cdrom:
            built.add_drive(CdRom(image), place, image.close)
        elif hdtype == "ahci":
            built.add_sata_disk(AtaDisk(image, serial=f"BV{place + 1:05}"), image.close)
        else:
            built.add_drive(AtaDisk(image, serial=f"BV{place + 1:05}"), place, image.close)
    except BaseException:
        image.close()
        raise
    if not spec.cdrom:
        host.disks.attach(built.domid, spec, image=image.again())


def plug_in_card(host: XenHost, built: HvmDomain, vif: Vif) -> None:
    """The emulated card beside a PV network interface, on the same network."""
    with host.loop.lock:
        ours, theirs = patch(host.loop)
        leave = host.networks.join(vif, ours)

        def unplugged() -> None:
            leave()
            theirs.close()

        built.add_nic(theirs, vif.mac, unplugged)
