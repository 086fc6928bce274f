"""A TAP device of the host as a wire: Documentation/networking/tuntap.rst and linux/if_tun.h of Linux."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import NET_HDR, bit
from bivisor.errors import HostError, UsageError
from bivisor.host.loop import Loop
from bivisor.host.packet import PacketFd

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8
_IFREQ = struct.Struct("16sH22x")
_NAME_MAX = 15

_OFFLOADS = (
    (abi.NET_F_GUEST_CSUM, _TUN_F_CSUM),
    (abi.NET_F_GUEST_TSO4, _TUN_F_TSO4),
    (abi.NET_F_GUEST_TSO6, _TUN_F_TSO6),
    (abi.NET_F_GUEST_ECN, _TUN_F_TSO_ECN),
)
_HOST_SIDE = (abi.NET_F_CSUM, abi.NET_F_HOST_TSO4, abi.NET_F_HOST_TSO6, abi.NET_F_HOST_ECN)


class Tap(PacketFd):
    """The TAP device `name`; a privileged caller makes it where it does not exist. HostError where it cannot be had."""

    def __init__(self, loop: Loop, name: str) -> None:
        if not 0 < len(name.encode()) <= _NAME_MAX or "/" in name or name.split() != [name]:
            raise UsageError(f"network device {name!r}: a name has 1 to {_NAME_MAX} characters and no blanks")
        offloads = sum(map(bit, _HOST_SIDE)) | sum(bit(feature) for feature, _ in _OFFLOADS)
        super().__init__(loop, _open(name), offloads)
        self.name = name

    def set_offloads(self, features: int) -> None:
        """Tell the kernel which packets the guest takes as they are; it does the work of the others itself."""
        if self._fd < 0:
            return
        wanted = sum(flag for feature, flag in _OFFLOADS if features >> feature & 1)
        try:
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, wanted)
        except OSError:  # an older kernel without one of them: it may then give the guest none
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, 0)


def _open(name: str) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        todo = "run as root, or chmod 666 it" if error.errno in (errno.EPERM, errno.EACCES) else "sudo modprobe tun"
        raise HostError(f"network device {name}: cannot open /dev/net/tun ({error.strerror}): {todo}") from None
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", NET_HDR.size))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    except OSError as error:
        os.close(fd)
        match error.errno:
            case errno.EPERM | errno.EACCES:
                todo = f"sudo ip tuntap add dev {name} mode tap user $USER && sudo ip link set {name} up"
                raise HostError(f"network device {name}: no permission to attach to it; {todo}") from None
            case errno.EBUSY:
                raise HostError(f"network device {name}: another program is using it") from None
            case errno.EINVAL:
                raise HostError(f"network device {name}: it is there but is not a TAP device") from None
        raise HostError(f"network device {name}: {error.strerror}") from None
    return fd
