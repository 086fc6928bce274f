"""What a stock kernel warns of as PVH domain of real Xen, and the command that makes a guest tell what it warns of.

Recorded on Xen 4.17.7 with Linux 6.1.0-56-cloud-amd64, from `dmesg -r`, levels 0 to 4, numbers as `#`.
"""

from __future__ import annotations

import re

COMMAND = "echo warnings; dmesg -r | grep '^<[0-4]>'; echo end of warnings"

ON_REAL_XEN = {
    "ACPI Error: No handler or method for GPE #, disabling event (#/evgpe-#)",
    "ACPI: No IOAPIC entries present",
    "ACPI: OSL: SCI (ACPI GSI #) not registered",
    "ACPI: setting ELCR to # (from #)",
    "cpu # spinlock event irq #",  # with several processors
    "Grant table initialized",
    "PCI: Fatal: No config space access function found",
    "PCI: System does not support PCI",
    "hrtimer: interrupt took # ns",  # on a host that is slow
}

_LINE = re.compile(r"<[0-4]>\[ *[0-9.]+\] (.*)")
# Of the rig's emulated processor, which counts more into an XSAVE area than it has: under real Xen as here.
_XSAVE = re.compile(
    r"<[0-4]>[^\n]*\[ cut here \]-*\n[^\n]*XSAVE consistency problem.*?---\[ end trace[^\n]*\n"
    r"(<4>[^\n]*CPUID\[0d[^\n]*\n)*",
    re.S,
)
_NUMBER = re.compile(r"\b[0-9a-f]*[0-9][0-9a-f]*\b|\bf{4}\b")


def warnings(text: str) -> set[str]:
    """The warnings and errors in what `COMMAND` printed, numbers as `#`."""
    _, _, rest = text.replace("\r", "").partition("\nwarnings\n")
    shown, end, _ = rest.partition("end of warnings")
    assert end, text[-2000:]
    shown = _XSAVE.sub("", shown)
    return {_NUMBER.sub("#", match[1]).strip() for match in map(_LINE.match, shown.splitlines()) if match}
