"""xen_version (version.h): what hypervisor this is, and what it can do for a guest of this kind."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import EXTRAVERSION, XEN_VERSION, Feature, VersionOp
from bivisor.memory import PAGE
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError

_FEATURES = (
    1 << Feature.WRITABLE_PAGE_TABLES
    | 1 << Feature.AUTO_TRANSLATED_PHYSMAP
    | 1 << Feature.HVM_CALLBACK_VECTOR
    | 1 << Feature.HVM_SAFE_PVCLOCK
    | 1 << Feature.MEMORY_OP_VNODE_SUPPORTED
    | 1 << Feature.NOT_DIRECT_MAPPED
)
_CAPABILITIES = b"xen-3.0-x86_64 hvm-3.0-x86_64 \0"
_VIRT_START = 0xFFFF_8000_0000_0000
_BY = f"Python {platform.python_version()}", "bivisor", "", platform.python_build()[1]
_COMPILE_INFO = b"".join(
    text.encode()[: size - 1].ljust(size, b"\0") for text, size in zip(_BY, (64, 16, 32, 32), strict=True)
)
_DENIED = b"<denied>\0"


def _get_features(call: Call, arg: int) -> int:
    (submap,) = struct.unpack("<I", call.read(arg, 4))
    if submap:
        raise XenError(Errno.EINVAL)
    features = _FEATURES
    if call.domain.privileged:
        features |= 1 << Feature.DOM0
    call.write(arg + 4, struct.pack("<I", features))
    return 0


def _text(text: bytes) -> Callable[[Call, int], int]:
    def answer(call: Call, arg: int) -> int:
        call.write(arg, text)
        return 0

    return answer


def _page_size(_: Call, arg: int) -> int:
    if arg:
        raise XenError(Errno.EINVAL)
    return PAGE


def _handle(call: Call, arg: int) -> int:
    call.write(arg, call.domain.handle)
    return 0


def _command_line(call: Call, arg: int) -> int:
    call.write(arg, b"\0" if call.domain.privileged else _DENIED)
    return 0


def _build_id(call: Call, _: int) -> int:
    raise XenError(Errno.ENODATA if call.domain.privileged else Errno.EPERM)


_OPS: dict[int, Callable[[Call, int], int]] = {
    VersionOp.VERSION: lambda _, __: XEN_VERSION,
    VersionOp.EXTRAVERSION: _text(EXTRAVERSION),
    VersionOp.COMPILE_INFO: _text(_COMPILE_INFO),
    VersionOp.CAPABILITIES: _text(_CAPABILITIES),
    VersionOp.CHANGESET: _text(b"unavailable\0"),
    VersionOp.PLATFORM_PARAMETERS: _text(struct.pack("<Q", _VIRT_START)),
    VersionOp.GET_FEATURES: _get_features,
    VersionOp.PAGESIZE: _page_size,
    VersionOp.GUEST_HANDLE: _handle,
    VersionOp.COMMANDLINE: _command_line,
    VersionOp.BUILD_ID: _build_id,
}


def xen_version(call: Call, cmd: int, arg: int, *_: int) -> int:
    """HYPERVISOR_xen_version(cmd, arg)."""
    op = _OPS.get(cmd)
    if op is None:
        raise XenError(Errno.ENOSYS)
    return op(call, arg)
