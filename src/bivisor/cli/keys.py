"""`bivisor keys`: see `bivisor.cli.screenshot`."""

from bivisor.cli.screenshot import keys as command

__all__ = ["command"]
