"""The processor engine `soft`, made of Unicorn (QEMU's TCG as a library)."""

from bivisor.cpu.soft.engine import SoftEngine

__all__ = ["SoftEngine"]
