"""Opening /dev/kvm, and what to do about each way in which it cannot be had."""

from __future__ import annotations

import errno
import grp
import os
from pathlib import Path

from bivisor.abi.linux_kvm import DEVICE
from bivisor.errors import HostError


def open_device(device: str = DEVICE) -> int:
    """A descriptor of /dev/kvm. HostError with what to do about each way in which it cannot be had."""
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{device}: {_advice(device, error)}") from error


def _advice(device: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return (
                "not there: turn virtualization on in the firmware and load kvm_intel or kvm_amd "
                "(in a container or VM, have it passed in), or use --engine soft"
            )
        case errno.EACCES | errno.EPERM:
            return f"no permission: {_who_may(device)}, or use --engine soft"
        case errno.EBUSY:
            return "busy: another hypervisor has taken the processor: stop it first, or use --engine soft"
        case _:
            return f"cannot be opened: {error.strerror}"


def _who_may(device: str) -> str:
    try:
        status = Path(device).stat()
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return "ask for access to it"
    if status.st_mode & 0o060 == 0o060 and status.st_gid != 0:
        return f"join the group {group} (usermod -aG {group} USER, then log in again)"
    return 'it is for root alone: give a group access to it (udev rule KERNEL=="kvm", GROUP="kvm", MODE="0660")'
