"""AHCI: SATA disks and CD-ROM drives behind the controller of an ICH9, with native command queuing."""

from bivisor.platform.ahci.controller import PORTS, Ahci

__all__ = ["PORTS", "Ahci"]
