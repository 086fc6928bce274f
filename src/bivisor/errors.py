"""What can go wrong, as types.

A face turns a `BivisorError` into one line on standard error and the exit status in `status`; no other exception is
meant to reach a user. Each message says what was wrong, where, and what would be right.
"""

from __future__ import annotations


class BivisorError(Exception):
    """The base of every error that Bivisor raises on purpose."""

    status: int = 1


class UsageError(BivisorError):
    """The caller asked for something that cannot be: a bad option, a file that is not there, memory that is too big."""

    status = 2


class ImageError(UsageError):
    """A file handed over as kernel, initramfs or disk is not what it has to be."""


class HostError(UsageError):
    """The host lacks a device, a permission or a library that is needed. The message names what to do."""


class OutputError(BivisorError):
    """A file or stream took no more of what was to be written to it: a full disk, say."""


class EngineError(BivisorError):
    """A processor engine refused or failed; the message carries the call and its errno."""


class GuestMemoryError(BivisorError):
    """Guest memory cannot be made, mapped or given back."""


class GuestTimeout(BivisorError):
    """A guest did not do in time what was waited for."""


class GuestAddressError(BivisorError):
    """A guest named guest-physical memory that is not there. Devices catch it; it never ends the host."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"guest-physical {address:#x}+{length:#x} is not memory")
        self.address = address
        self.length = length
