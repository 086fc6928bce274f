"""The PS/2 controller with a keyboard and a mouse."""

from bivisor.platform.ps2.controller import Ps2Controller
from bivisor.platform.ps2.keyboard import Keyboard
from bivisor.platform.ps2.mouse import Mouse

__all__ = ["Keyboard", "Mouse", "Ps2Controller"]
