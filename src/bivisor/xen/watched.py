"""The hypercalls of one processor while somebody listens: its table, with each function wrapped.

A `Call` carries the table that stands in for the common one (`Call.watched`), None while nobody listens. So the calls
of a multicall are seen as well, each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from bivisor.abi.xen.errno import Errno
from bivisor.events import Answer, Delay, Deny, Hypercall, Kind, Probe, Site
from bivisor.xen.call import Call, Preempted
from bivisor.xen.decode import NAMES, decode, name_of
from bivisor.xen.errors import XenError

Function = Callable[..., int]
_MASK = (1 << 64) - 1
_SIGN = 1 << 63
_NUMBERS = 64
"""xen.h numbers hypercalls from 0; a hypercall page has room for 128, and Xen uses the first 64."""
_CALLS = frozenset(NAMES.values())


def watch_hypercalls(
    call: Call, table: Mapping[int, Function], changed: Callable[[bool], None] = lambda _: None
) -> Site:
    """Tell the hypervisor's events of the hypercalls of this processor, which are those of `table`. `changed` hears
    whether anybody listens, from any thread."""

    def install(probe: Probe | None) -> None:
        call.watched = None if probe is None else _Watched(call, table, probe).functions
        changed(probe is not None)

    return call.hypervisor.events.site(Kind.HYPERCALL, install, call.domain.domid)


class _Watched:
    """What stands in for `table` as long as `probe` does."""

    def __init__(self, call: Call, table: Mapping[int, Function], probe: Probe) -> None:
        self._call = call
        self._probe = probe
        self._delayed = -1
        known = dict.fromkeys(range(_NUMBERS), _not_there) | dict(table)  # those not there may be a hook's own
        self.functions = {
            nr: self._wrapped(nr, function) if _may_be(nr, probe.names) else function for nr, function in known.items()
        }

    def _wrapped(self, nr: int, function: Function) -> Function:
        probe, clock, name = self._probe, self._probe.clock, name_of(nr)
        domain, vcpu = self._call.domain.domid, self._call.vcpu

        def watched(call: Call, *arguments: int) -> int:
            op, details = decode(call, nr, arguments)
            event = Hypercall(clock(), domain, vcpu, 0, int(nr), name, op, [int(each) for each in arguments], details)
            try:
                if probe.hooks:
                    decided = self._interfere(event)
                    result = function(call, *event.args) if decided is None else decided
                else:
                    result = function(call, *arguments)
            except XenError as error:
                result = -error.errno
            except Preempted:
                event.preempted = True
                event.duration = clock() - event.time
                probe.tell(event)
                raise
            event.result = result
            event.duration = clock() - event.time
            probe.over(event)
            return event.result

        return watched

    def _interfere(self, event: Hypercall) -> int | None:
        """The result that a hook decided for, None where the call is to be carried out. Preempted to come back."""
        if self._delayed == event.nr:
            self._delayed = -1
            return None
        match self._probe.ask(event):
            case Deny(number):
                return -number
            case Answer(value):
                number = value if isinstance(value, int) else int.from_bytes(value, "little")
                return _signed(number)
            case Delay(seconds):
                self._delayed = event.nr
                raise Preempted(*event.args, pause=seconds)
            case None:
                return None
        return 0


def _not_there(*_: object) -> int:
    return -Errno.ENOSYS


def _may_be(nr: int, names: tuple[str, ...] | None) -> bool:
    """Whether hypercall `nr` may be what one of `names` asks for: those that cannot are left alone."""
    if names is None:
        return True
    call = name_of(nr)
    for name in names:
        head, dot, _ = name.partition(".")
        if fnmatchcase(call, head) or (not dot and name not in _CALLS):  # a word that may be an operation's
            return True
    return False


def _signed(value: int) -> int:
    return ((value & _MASK) ^ _SIGN) - _SIGN
