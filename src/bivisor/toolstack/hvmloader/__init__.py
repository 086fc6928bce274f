"""What Xen's hvmloader does in the guest before its BIOS runs, done by the builder: PCI set up, ACPI and SMBIOS tables
made, SeaBIOS put below 1 MiB and told of all that."""

from bivisor.toolstack.hvmloader.acpi import Chipset
from bivisor.toolstack.hvmloader.loader import LowMemory, e820, load

__all__ = ["Chipset", "LowMemory", "e820", "load"]
