"""Fixtures with guests for pytest: `kvm_guest`, `xen_host`, `domu`, and `bivisor_guest`, which is any of them.

    @pytest.mark.bivisor(memory="512M", architecture="pv")
    def test_the_kernel_knows_where_it_is(domu):
        assert domu.run("cat /sys/hypervisor/type").text == "xen"

Each test has guests of its own, so tests run in parallel (pytest-xdist). When one fails, its report has what its guests
said on their consoles and the last things that happened to them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bivisor.events import Event, Events, Kind, Subscription

if TYPE_CHECKING:
    from bivisor.toolstack.domu import DomU
    from bivisor.toolstack.guests import KvmGuest
    from bivisor.toolstack.xenhost import XenHost

ARCHITECTURES = ("kvm", "pvh", "pv")
_MARKER = (
    'bivisor(memory=256, cpus=1, kernel=None, initrd=None, append="", engine=None, architecture="kvm"|"pvh"|"pv",'
    " trace=True): how the guests of this test are made (memory in MiB, or as in 2G); trace=False keeps no trace"
)
_TRACED = frozenset(Kind) - {Kind.ENTRY}
_KNOWN = ("kind", "name", "time", "domain", "vcpu", "duration")
_LAST = 200
_CONSOLE_LIMIT = 16 << 10


@dataclass
class Wanted:
    """What a test's marker says, with the command line's engine where it says none."""

    engine: str = "auto"
    memory: str | int = 256
    cpus: int = 1
    kernel: str | Path | None = None
    initrd: str | Path | None = None
    append: str = ""
    architecture: str | None = None
    trace: bool = True


@dataclass
class _Witness:
    """What can be told of a test's guests when it fails."""

    guests: list[tuple[str, Any]] = field(default_factory=list)
    traces: list[tuple[str, Subscription]] = field(default_factory=list)

    def watch(self, name: str, events: Events, wanted: Wanted) -> None:
        """Keep the last of what happens."""
        if wanted.trace:
            self.traces.append((name, events.subscribe(_TRACED, limit=_LAST)))

    def sections(self) -> Iterator[tuple[str, str]]:
        """Title and text of each part of a report."""
        for name, guest in self.guests:
            text = guest.output[-_CONSOLE_LIMIT:].decode(errors="replace").replace("\r\n", "\n")
            if log := getattr(guest, "log", None):
                text = f"{log.text()}\n{text}"
            yield f"console of {name}", text
        for name, trace in self.traces:
            yield f"trace of {name}", "\n".join(map(line_of, trace.take()))


_WITNESS = pytest.StashKey[_Witness]()


def line_of(event: Event) -> str:
    """An event in one line."""
    rest = " ".join(
        f"{key}={hex(value) if type(value) is int else value}"
        for key, value in event.to_dict().items()
        if key not in _KNOWN and value != -1 and str(value) not in event.name
    )
    return f"{event.time / 1e9:.6f} d{event.domain}v{event.vcpu} {event.kind.value} {event.name} {rest}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The engine on the command line."""
    group = parser.getgroup("bivisor")
    group.addoption("--bivisor-engine", default="auto", metavar="auto|kvm|soft", help="What runs the tests' guests.")


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line("markers", _MARKER)


def wanted_of(request: pytest.FixtureRequest) -> Wanted:
    """What the nearest markers say; a test's own come before its module's. UsageError for a word that is none."""
    words: dict[str, Any] = {"engine": request.config.getoption("--bivisor-engine")}
    for mark in reversed(list(request.node.iter_markers("bivisor"))):
        if mark.args:
            raise pytest.UsageError(f"@pytest.mark.bivisor takes names only: {_MARKER}")
        words |= mark.kwargs
    try:
        wanted = Wanted(**words)
    except TypeError as error:
        raise pytest.UsageError(f"@pytest.mark.bivisor: {error}; it is {_MARKER}") from None
    if wanted.architecture not in (None, *ARCHITECTURES):
        raise pytest.UsageError(f"architecture {wanted.architecture!r} is none of {', '.join(ARCHITECTURES)}")
    return wanted


def _witness(request: pytest.FixtureRequest) -> _Witness:
    witness: _Witness = request.node.stash.setdefault(_WITNESS, _Witness())
    return witness


@pytest.fixture
def kvm_guest(request: pytest.FixtureRequest) -> Iterator[KvmGuest]:
    """A guest of the hosted architecture, booted."""
    from bivisor.toolstack.guests import KvmGuest

    wanted, witness = wanted_of(request), _witness(request)
    guest = KvmGuest(
        attach=lambda vm: witness.watch("kvm_guest", vm.events, wanted),
        kernel=None if wanted.kernel is None else str(wanted.kernel),
        initrd=None if wanted.initrd is None else str(wanted.initrd),
        append=wanted.append,
        memory=wanted.memory,
        cpus=wanted.cpus,
        engine=wanted.engine,
    )
    witness.guests.append(("kvm_guest", guest))
    with guest:
        yield guest


@pytest.fixture
def xen_host(request: pytest.FixtureRequest) -> Iterator[XenHost]:
    """A Xen host without domains."""
    from bivisor.toolstack.xenhost import XenHost

    wanted = wanted_of(request)
    with XenHost(wanted.engine) as host:
        _witness(request).watch("xen_host", host.events, wanted)
        yield host


@pytest.fixture
def domu(request: pytest.FixtureRequest, xen_host: XenHost) -> Iterator[DomU]:
    """A domain of `xen_host`, booted: PVH, unless the marker says PV."""
    from bivisor.toolstack.xenhost import DEFAULT_CMDLINE

    wanted = wanted_of(request)
    kind = wanted.architecture or "pvh"
    if kind == "kvm":
        raise pytest.UsageError('domu: a Xen domain is "pvh" or "pv"; the fixture kvm_guest is the other architecture')
    with xen_host.create(
        "domu",
        wanted.kernel,
        type=kind,
        memory=wanted.memory,
        vcpus=wanted.cpus,
        initrd=wanted.initrd,
        cmdline=f"{DEFAULT_CMDLINE} {wanted.append}".strip(),
        agent=True,
    ) as domain:
        _witness(request).guests.append(("domu", domain))
        yield domain


@pytest.fixture
def bivisor_guest(request: pytest.FixtureRequest) -> KvmGuest | DomU:
    """A guest of the architecture that the marker names, "kvm" if it names none; what `kvm_guest` or `domu` is."""
    name = "kvm_guest" if wanted_of(request).architecture in (None, "kvm") else "domu"
    return request.getfixturevalue(name)  # type: ignore[no-any-return]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test tells of its guests."""
    report = yield
    witness = item.stash.get(_WITNESS, None)
    if report.failed and witness is not None:
        report.sections.extend(witness.sections())
    return report
