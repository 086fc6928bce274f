"""Commands in a guest that runs: a shell script in it carries out one request after the other, and this is its host.

A request is a line "SCRIPT INPUT SECONDS" (the bytes of the command and of its standard input, which follow, and the
time that it may take, 0 for ever). The answer is a line "STATUS OUT ERR" and the bytes that it wrote. The script goes
where `--exec` has its command, so it needs nothing of the guest but busybox and the channel. A shell for a person is on
the console meanwhile.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bivisor.errors import BivisorError, GuestTimeout

SCRIPT = r"""
trap '' INT
read -r consoles </sys/class/tty/console/active
read -r release </proc/sys/kernel/osrelease
(exec setsid sh -c 'exec <>"$0" >&0 2>&0; echo "Linux $1."; export PS1="\w \\\$ "; exec sh -i' \
	"/dev/${consoles##* }" "$release" </dev/null) &
if read -r hypervisor 2>/dev/null </sys/hypervisor/type && [ "$hypervisor" = xen ]; then
	tries=0
	until [ -c /dev/hvc1 ] || [ $((tries += 1)) -gt 500 ]; do sleep 0.01; done
	exec <>/dev/hvc1 >&0
	stty raw -echo
fi
exec 2>/dev/null
t=/run/bivisor
mkdir -p $t
take() { # $1 bytes of what comes
	[ "$1" -ge 65536 ] && dd bs=65536 count=$(($1 / 65536)) iflag=fullblock
	[ $(($1 % 65536)) -gt 0 ] && dd bs=$(($1 % 65536)) count=1 iflag=fullblock
}
echo ready
while read -r command input seconds; do
	take "$command" >$t/command
	take "$input" >$t/in
	if [ "$seconds" != 0 ]; then
		timeout -s KILL "$seconds" sh $t/command <$t/in >$t/out 2>$t/err
	else
		sh $t/command <$t/in >$t/out 2>$t/err
	fi
	status=$?
	set -- $(wc -c $t/out $t/err)
	echo "$status $1 $3"
	[ "$1" != 0 ] && head -c "$1" $t/out
	[ "$3" != 0 ] && head -c "$3" $t/err
done
"""
_GRACE_S = 10.0


class CommandFailed(BivisorError):
    """A command in the guest that had to succeed did not. `result` is what came of it."""

    def __init__(self, command: str, result: Result) -> None:
        last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        super().__init__(f"{command!r} ended with status {result.status}" + (f": {last}" if last else ""))
        self.result = result


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a command in a guest: its exit `status`, and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its standard output as text, without the white space around it."""
        return self.stdout.decode(errors="replace").strip()


class Agent:
    """The host's end. `send(bytes)` brings requests to the guest; `hear` gets what the script says, from any thread.
    `has_ended()` says whether the guest is gone; `name` is for messages."""

    def __init__(self, send: Callable[[bytes], object], has_ended: Callable[[], bool], name: str = "the guest") -> None:
        self._send = send
        self._has_ended = has_ended
        self._name = name
        self._news = threading.Condition()
        self._one = threading.Lock()
        self._said = bytearray()
        self._ready = False
        self._lost = False

    def hear(self, data: bytes) -> None:
        """The script said `data`."""
        with self._news:
            self._said += data
            self._news.notify_all()

    def ended(self) -> None:
        """The guest is gone: who waits looks again."""
        with self._news:
            self._news.notify_all()

    def run(self, command: str, *, input: bytes = b"", timeout: float = 60.0, check: bool = False) -> Result:
        """Run `command` in the guest's shell. GuestTimeout after `timeout` seconds, when it is killed, or where the
        guest ends; with `check`, CommandFailed for a status other than 0."""
        deadline = time.monotonic() + timeout
        with self._one:
            if self._lost:
                raise GuestTimeout(f"{self._name} does not answer: an earlier command never came to its end")
            self._get_ready(deadline)
            words = command.encode() + b"\n"
            # The agent kills what takes too long, so that the next command finds it free.
            seconds = max(1, round(deadline - time.monotonic() + 0.5))
            self._send(b"%d %d %d\n" % (len(words), len(input), seconds) + words + input)
            result = self._answer(command, deadline, timeout)
        if check and result.status != 0:
            raise CommandFailed(command, result)
        return result

    def wait_ready(self, timeout: float) -> None:
        """Wait until it takes commands. GuestTimeout."""
        with self._one:
            self._get_ready(time.monotonic() + timeout)

    def _get_ready(self, deadline: float) -> None:
        if not self._ready:
            self._line(deadline, "start its agent")
            self._ready = True

    def _answer(self, command: str, deadline: float, timeout: float) -> Result:
        what = f"finish {command!r}"
        try:
            status, out, err = (int(word) for word in self._line(deadline + _GRACE_S, what).split())
            said = self._take(out + err, deadline + _GRACE_S, what)
        except (GuestTimeout, ValueError):
            self._lost = True
            raise
        if status == 137 and time.monotonic() >= deadline - 1:
            raise GuestTimeout(f"{self._name} did not {what} within {timeout:g} s")
        return Result(status, said[:out], said[out:])

    def _line(self, deadline: float, what: str) -> bytes:
        with self._news:
            while (end := self._said.find(b"\n")) < 0:
                self._wait(deadline, what)
            line = bytes(self._said[:end])
            del self._said[: end + 1]
            return line

    def _take(self, count: int, deadline: float, what: str) -> bytes:
        with self._news:
            while len(self._said) < count:
                self._wait(deadline, what)
            data = bytes(self._said[:count])
            del self._said[:count]
            return data

    def _wait(self, deadline: float, what: str) -> None:
        left = deadline - time.monotonic()
        if self._has_ended() or left <= 0:
            raise GuestTimeout(f"{self._name} {'ended' if self._has_ended() else 'takes too long'}: it did not {what}")
        self._news.wait(min(left, 0.5))


def quoted(path: str) -> str:
    """`path` as the guest's shell takes it."""
    return shlex.quote(path)
