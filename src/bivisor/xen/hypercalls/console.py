"""console_io (xen.h CONSOLEIO_*): the hypervisor's own console."""

from __future__ import annotations

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.xen import CONSOLEIO_READ, CONSOLEIO_WRITE
from bivisor.xen.call import Call
from bivisor.xen.errors import XenError

_WRITE_LIMIT = 4096


def console_io(call: Call, cmd: int, count: int, buffer: int, *_: int) -> int:
    """HYPERVISOR_console_io(cmd, count, buffer). A domain without privilege has nothing to say there: EPERM."""
    if not call.domain.privileged:
        raise XenError(Errno.EPERM)
    match cmd:
        case int() if cmd == CONSOLEIO_WRITE:
            if count > _WRITE_LIMIT:
                raise XenError(Errno.EINVAL)
            call.hypervisor.console_write(call.domain, call.read(buffer, count))
            return 0
        case int() if cmd == CONSOLEIO_READ:
            return 0
        case _:
            raise XenError(Errno.ENOSYS)
