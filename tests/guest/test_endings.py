"""How a guest ends, and that it lives as a machine should: processes, timers, clocks, interrupts."""

from __future__ import annotations

import time

import pytest

from bivisor.image import Guest
from bivisor.kvm import End

from .conftest import Boot

pytestmark = pytest.mark.guest


def test_a_command_has_its_streams_and_hands_over_its_status(boot: Boot, guest: Guest) -> None:
    with boot("read line; echo got $line; uname -r; echo wrong >&2; exit 7") as run:
        run.stdin.send(b"hello\n")
        result = run.run()
    assert result.status == 7
    assert result.stdout == f"got hello\n{guest.release}\n"
    assert result.stderr == "wrong\n"


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("poweroff; sleep 60", End.POWER_OFF),
        ("reboot; sleep 60", End.RESET),
        ("echo c > /proc/sysrq-trigger; sleep 60", End.PANIC),
        ("exec /bin/debug-exit 42 244", End.EXIT_STATUS),
    ],
)
def test_each_way_to_end_has_an_outcome_of_its_own(boot: Boot, command: str, end: End) -> None:
    with boot(command) as run:
        result = run.run()
    assert result.outcome.end is end, result
    assert result.outcome.status == (42 if end is End.EXIT_STATUS else 0)


def test_a_panic_that_does_not_reboot_is_noticed(boot: Boot) -> None:
    with boot("echo c > /proc/sysrq-trigger; sleep 60", append="panic=0") as run:
        assert run.run().outcome.end is End.PANIC


def test_a_halted_guest_ends(boot: Boot) -> None:
    with boot("halt; sleep 60") as run:
        assert run.run().outcome.end is End.POWER_OFF


def test_forty_parallel_jobs_end_and_none_before_its_timer(boot: Boot) -> None:
    now = "read now _ </proc/uptime; echo $i $now"
    command = f"for i in $(seq 40); do ({now}; usleep $((500000 + i * 50000)); {now}) & done; wait; echo all"
    with boot(command) as run:
        *lines, last = run.run().lines()
    times: dict[int, list[float]] = {}
    for job, _, when in (line.partition(" ") for line in lines):
        times.setdefault(int(job), []).append(float(when))
    assert last == "all"
    assert sorted(times) == list(range(1, 41))
    for number, (began, ended) in times.items():
        assert ended - began >= 0.5 + number * 0.05 - 0.02  # of which /proc/uptime tells hundredths


def test_time_passes_in_the_guest_as_it_does_outside(boot: Boot) -> None:
    with boot("date +%s; read line; date +%s; sleep 2; cut -d. -f1 /proc/uptime") as run:
        run.start()
        started = time.monotonic()
        run.until(lambda: b"\n" in run.stdout)
        assert abs(int(run.stdout) - time.time()) <= 2
        begun = time.time()
        assert run.vm.wait(3) is None
        run.stdin.send(b"on\n")
        lines = run.finish().lines()
    assert abs(int(lines[1]) - begun - 3) <= 2
    assert 5 <= int(lines[2]) <= time.monotonic() - started + 2


def test_virtio_interrupts_are_messages(boot: Boot) -> None:
    with boot("cat /proc/interrupts") as run:
        lines = run.run().lines()
    virtio = [line for line in lines if "virtio" in line]
    assert any("input" in line for line in virtio)
    assert all("PCI-MSI" in line for line in virtio)


def test_processes_come_and_go(boot: Boot) -> None:
    with boot("i=0; while [ $i -lt 200 ]; do /bin/busybox true || exit 1; i=$((i + 1)); done; echo $i") as run:
        assert run.run().lines() == ["200"]
