"""What every guest has to do: phases of a shell's commands, typed on its console, between two marks each.

The time is the host's: a mark is noted when it arrives. Each phase runs twice with nobody listening, for the shorter
time, and once more to count what happens. What it costs to start the program alone, its `overhead`, is measured too
and taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

from bivisor.toolstack.compare.peer import ADDRESS, GUEST_ADDRESS, MAC, PORT

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Phase:
    """`command` does so many `units`; `unit` is what they are, and `title` what is shown. `needs` is "disk" or
    "network" where it needs one. `overhead` is a command that does the same without any unit."""

    key: str
    title: str
    command: str
    units: float
    unit: str
    needs: str = ""
    overhead: str = ""


CALLS, PROGRAMS, REQUESTS, READ, SENT = 60_000, 60, 600, 32, 16

_NOTHING = "dd if=/dev/zero of=/dev/null bs=1 count=0"
SEND = "send"
PHASES = (
    Phase(
        "calls",
        "system calls",
        f"dd if=/dev/zero of=/dev/null bs=1 count={CALLS // 2}",
        CALLS,
        "call",
        overhead=_NOTHING,
    ),
    Phase(
        "programs",
        "programs started",
        f"i=0; while [ $i -lt {PROGRAMS} ]; do /bin/busybox true; i=$((i+1)); done",
        PROGRAMS,
        "program",
    ),
    Phase(
        "requests",
        "4 KiB disk reads",
        f"dd if=$disk of=/dev/null bs=4k count={REQUESTS} iflag=direct",
        REQUESTS,
        "read",
        "disk",
        _NOTHING,
    ),
    Phase(
        "read",
        "disk throughput",
        f"dd if=$disk of=/dev/null bs=1M count={READ} iflag=direct",
        READ,
        "MiB",
        "disk",
        _NOTHING,
    ),
    Phase(
        SEND,
        "network throughput",
        f"wget -O /dev/null --post-file=/tmp/sent http://{ADDRESS}:{PORT}/",
        SENT,
        "MiB",
        "network",
    ),
)
"""`SEND` is between the first and the last of its bytes, as they arrive, not between its marks."""

DISK_BYTES, SENT_BYTES = READ * MIB, SENT * MIB


def title(key: str) -> str:
    """What a phase is called."""
    return next(phase.title for phase in PHASES if phase.key == key)


def setup(disk: str) -> str:
    """What is typed first: the guest's disk is `disk`, and its network gets an address."""
    file = f"dd if=/dev/zero bs=1M count={SENT} | tr '\\0' x >/tmp/sent"
    network = f"ifconfig eth0 {GUEST_ADDRESS} netmask 255.255.255.0 up && arp -s {ADDRESS} {MAC}"
    return (
        f"disk={disk}; ({file}; {network}) 2>/dev/null; for w in 1 2 3 4 5 6 7 8 9; do [ -e $disk ] || sleep 0.2; done"
    )


def has(need: str) -> str:
    """A command that says yes or no: whether the guest found its disk, or its network."""
    what = "-b $disk" if need == "disk" else "-e /sys/class/net/eth0"
    return f"[ {what} ] && echo ha$((0))s || echo la$((0))cks"


def marked(command: str, number: int) -> str:
    """The line to type for a command; its marks are `@bNUMBER` and `@eNUMBER`. What is typed is echoed, and must not
    look like them."""
    return f"echo @b$(({number})); ({command}) >/dev/null 2>&1; echo @e$(({number}))"
