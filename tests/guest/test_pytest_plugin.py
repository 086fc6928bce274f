"""The plugin for pytest, run by pytest itself: what a marker asks for, what a failure shows, tests in parallel."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bivisor.image import Guest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.guest

IS_INSTALLED = "bivisor" in entry_points(group="pytest11").names
PLUGIN = () if IS_INSTALLED else ("-p", "bivisor.testing.plugin")
OPTIONS = ("--bivisor-engine=soft", "-p", "no:cacheprovider")
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(program, *options)`: pytest on a file with that program, in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))

    def do(program: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(program)
        return pytester.runpytest_subprocess(*PLUGIN, *OPTIONS, *options, timeout=150)

    return do


def test_guests_are_made_as_the_marker_says_in_parallel(run: Run) -> None:
    done = run(
        """
        import pytest

        def megabytes(guest):
            return int(guest.run("grep MemTotal /proc/meminfo").text.split()[1]) >> 10

        @pytest.mark.bivisor(memory="300M", cpus=1, append="of=mine")
        def test_kvm(kvm_guest):
            assert 200 < megabytes(kvm_guest) <= 300
            assert "of=mine" in kvm_guest.run("cat /proc/cmdline").text

        @pytest.mark.parametrize("kind", [
            pytest.param("pvh", marks=pytest.mark.bivisor(architecture="pvh", append="of=mine")),
            pytest.param("pv", marks=pytest.mark.bivisor(architecture="pv", append="of=mine")),
        ])
        def test_xen(kind, domu, xen_host, bivisor_guest):
            assert bivisor_guest is domu is xen_host.find("domu")
            assert domu.run("cat /sys/hypervisor/guest_type").text.lower() == kind
            assert "of=mine" in domu.run("cat /proc/cmdline").text
        """,
        "-n",
        "2",
    )
    done.assert_outcomes(passed=3)


def test_a_failure_shows_console_and_trace(run: Run) -> None:
    done = run(
        """
        import pytest

        def test_fails(kvm_guest):
            kvm_guest.run("echo words of the kernel >/dev/kmsg; echo words >/dev/hvc0; devmem 0xFED80000")
            assert False

        @pytest.mark.bivisor(trace=False)
        def test_fails_too(domu):
            domu.run("echo other words >/dev/hvc0")
            assert False

        @pytest.mark.bivisor(memory=0)
        def test_cannot_begin(kvm_guest):
            pass

        @pytest.mark.bivisor(wheels=4)
        def test_is_wrong(kvm_guest):
            pass
        """
    )
    done.assert_outcomes(failed=2, errors=2)
    said = done.stdout.str()
    assert re.search(r"-+ console of kvm_guest -+\n(.*\n)*.*words", said)
    assert re.search(r"-+ trace of kvm_guest -+\n(.*\n)*.* exit Mmio .*address=0xfed80000", said)
    assert re.search(r"-+ console of domu -+\n(.*\n)*.*other words", said)
    assert "trace of xen_host" not in said
    assert "needs at least 1 MiB" in said
    assert "unexpected keyword argument 'wheels'" in said
