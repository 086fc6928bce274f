"""IDE: disks and CD-ROMs behind the PIIX3's two channels, by programmed I/O and by bus-master DMA."""

from bivisor.platform.ide.atapi import CdRom
from bivisor.platform.ide.disk import AtaDisk
from bivisor.platform.ide.pci import PiixIde

__all__ = ["AtaDisk", "CdRom", "PiixIde"]
