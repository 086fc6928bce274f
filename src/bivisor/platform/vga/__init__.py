"""A VGA adapter with Bochs' extensions: text, planes, 256 colours, and linear frame buffers up to 32 bits."""

from bivisor.platform.vga.card import VgaCard
from bivisor.platform.vga.frame import Frame

__all__ = ["Frame", "VgaCard"]
