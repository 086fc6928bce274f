"""Traces: what is asked for, lines and files, and that a Perfetto file is one by Perfetto's own definitions."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from bivisor.errors import OutputError, UsageError
from bivisor.events import (
    DeviceAccess,
    Entry,
    Event,
    Events,
    EventSend,
    Exit,
    Grant,
    Hypercall,
    Interrupt,
    Kind,
    Life,
    Ring,
    XenBus,
    XenStore,
)
from bivisor.toolstack.tracing.counts import Counts
from bivisor.toolstack.tracing.perfetto import perfetto_trace
from bivisor.toolstack.tracing.protobuf import Mark, Track, trace_bytes
from bivisor.toolstack.tracing.recorder import Recorder, is_recording
from bivisor.toolstack.tracing.sinks import JsonSink
from bivisor.toolstack.tracing.source import Recorded
from bivisor.toolstack.tracing.text import Lines
from bivisor.toolstack.tracing.wanted import DEFAULT_KINDS, Wanted, params_of

VBD = "vbd/1/51712"
BAD_TIME = '{"kind": "life", "time": "now", "domain": 0, "vcpu": 0, "duration": 0, "what": "x"}'


def disk_read() -> list[Event]:
    """A disk read of domain 1: its event channel is port 7 there and port 4 in Dom0."""
    asked = Ring(1_200, 1, -1, 0, VBD, "request", "read", 3, 4096, 8, port=4)
    answered = Ring(1_900, 1, -1, 0, VBD, "response", "read", 3, port=4)
    return [
        Exit(1_000, 1, 0, 150, "Hypercall", 32, 8, False, 0, ""),
        Hypercall(1_010, 1, 0, 100, 32, "event_channel_op", "send", [4, 64], {"arg": 64, "port": 7}, 0),
        EventSend(1_050, 1, -1, 0, "send", 7, 0, 4),
        asked,
        Grant(1_300, 0, -1, 40, "map", 1, 8),
        answered,
        EventSend(1_950, 0, -1, 0, "send", 4, 1, 7),
        Interrupt(1_960, 1, 0, 0, "upcall", 243),
    ]


def others() -> list[Event]:
    return [
        Life(900, 1, -1, 0, "created", "demo"),
        Entry(910, 1, 0, 0),
        XenStore(2_000, 1, -1, 30, "READ", "device/vbd", "", 0, "\udcff", 0),
        XenBus(2_100, 1, -1, 0, VBD, "front", "INITIALISED", "CONNECTED"),
        XenBus(2_400, 1, -1, 0, VBD, "front", "CONNECTED", ""),
        DeviceAccess(2_200, 0, -1, 10, "COM1", 0, 1, True, 65),
        Exit(2_300, 1, 0, 0, "Interrupted", ended=True),
        Hypercall(2_500, 1, 0, 5, 24, "vcpu_op", "", [0], {"x": (1 << 64) - 1}, None, True),
        Interrupt(2_600, 0, -1, 0, "line", 4, False),
        Ring(2_700, 1, -1, 0, "console/1", "request", "write", 0, 12, port=3),
    ]


class Trace:
    """A Perfetto file as its own definitions read it."""

    def __init__(self, data: bytes) -> None:
        trace = protos.Trace()
        trace.ParseFromString(data)
        assert trace.SerializeToString() == data or trace.ByteSize() == len(data)  # nothing in it is unknown
        self.tracks = {
            p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")
        }
        self.events = [(p.timestamp, p.track_event) for p in trace.packet if p.HasField("track_event")]
        self.clocks = {p.timestamp_clock_id for p in trace.packet if p.HasField("track_event")}

    def name(self, uuid: int) -> str:
        track = self.tracks[uuid]
        return str(track.name or track.thread.thread_name or track.process.process_name)

    def flows(self) -> dict[int, list[tuple[str, str]]]:
        """(track, slice) of each stop of each arrow, in the order of their times."""
        found: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for _, event in sorted(self.events, key=lambda each: each[0]):
            for flow in (*event.flow_ids, *event.terminating_flow_ids):
                found[flow].append((self.name(event.track_uuid), event.name))
        return found


def test_the_way_of_a_disk_read_is_one_arrow_from_hypercall_to_upcall() -> None:
    trace = Trace(perfetto_trace(disk_read(), {0: "Domain-0", 1: "demo"}))
    (way,) = trace.flows().values()
    assert way == [
        ("vCPU 0", "event_channel_op.send"),
        (VBD, "read"),
        ("event channels", "send 4 → demo:7"),
        ("vCPU 0", "upcall 243"),
    ]
    (vcpu,) = (track for track in trace.tracks.values() if track.HasField("thread"))
    assert vcpu.thread.pid == 2 and trace.tracks[vcpu.parent_uuid].process.process_name == "demo (1)"
    (read,) = ((time, event) for time, event in trace.events if event.name == "read")
    assert read[0] == 1_200 and {each.name: each.int_value for each in read[1].debug_annotations}["sector"] == 8


def test_slices_of_a_track_begin_and_end_inside_each_other() -> None:
    trace = Trace(perfetto_trace([*disk_read(), *others()], {}))
    open_: dict[int, int] = defaultdict(int)
    times = [time for time, _ in trace.events]
    assert times == sorted(times) and trace.clocks == {3}
    for _, event in trace.events:
        assert event.track_uuid in trace.tracks
        if event.type == protos.TrackEvent.TYPE_SLICE_BEGIN:
            open_[event.track_uuid] += 1
        elif event.type == protos.TrackEvent.TYPE_SLICE_END:
            open_[event.track_uuid] -= 1
            assert open_[event.track_uuid] >= 0
    assert not any(open_.values())


def test_requests_that_are_under_way_at_once_have_a_lane_each() -> None:
    asked = [Ring(10 * n, 1, -1, 0, VBD, "request", "write", n, 512, 0, port=4) for n in range(3)]
    answered = [Ring(100 + 10 * n, 1, -1, 0, VBD, "response", "write", n, port=4) for n in range(3)]
    trace = Trace(perfetto_trace([*asked, *answered], {}))
    assert len({event.track_uuid for _, event in trace.events if event.name == "write"}) == 3


def test_a_virtio_request_goes_from_the_exit_to_the_interrupt() -> None:
    trace = Trace(
        perfetto_trace(
            [
                Exit(100, 0, 0, 500, "Mmio", 0xE000_0000, 2, True, 0, "virtio-blk BAR 1"),
                Ring(200, 0, -1, 0, "virtio-blk-1/0", "request", "read", 5, 513, 0),
                Ring(300, 0, -1, 0, "virtio-blk-1/0", "response", "read", 5, 513),
                Interrupt(350, 0, -1, 0, "msi", 44),
            ],
            {0: "machine"},
        )
    )
    assert list(trace.flows().values()) == [[("vCPU 0", "Mmio"), ("virtio-blk-1/0", "read"), ("vCPU 0", "msi 44")]]


@given(name=st.text(), value=st.integers(-(1 << 63), (1 << 64) - 1), flow=st.integers(0, (1 << 64) - 1), said=st.text())
def test_whatever_is_said_the_definitions_read_it_as_it_was(name: str, value: int, flow: int, said: str) -> None:
    mark = Mark(7, 1, name, "c", 3, {"n": value, "s": said}, [flow])
    trace = Trace(trace_bytes([Track(1, name)], [mark]))
    event = trace.events[0][1]
    text = name.encode("utf-8", "replace").decode()
    assert (event.name, trace.tracks[1].name, list(event.flow_ids)) == (text, text, [flow])
    number, words = event.debug_annotations
    assert value in (number.int_value, number.uint_value)
    assert words.string_value == said.encode("utf-8", "replace").decode()


def test_trace_processor_finds_the_way_where_it_is_installed(tmp_path: Path) -> None:
    """Perfetto's own program is no Python package: its query is asked too where a host has it."""
    file = tmp_path / "disk.pftrace"
    file.write_bytes(perfetto_trace([*disk_read(), *others()], {1: "demo"}))
    assert Trace(file.read_bytes()).flows()
    program = shutil.which("trace_processor_shell") or shutil.which("trace_processor")
    if program is not None:
        query = tmp_path / "query.sql"
        query.write_text(
            "select s.name, d.name from flow join slice s on slice_out = s.id join slice d on slice_in = d.id"
        )
        done = subprocess.run([program, "-q", str(query), str(file)], capture_output=True, text=True, check=True)
        assert '"event_channel_op.send","read"' in done.stdout.replace(" ", "")


# -------------------------------------------------------------------- lines


def test_lines_say_when_who_what_and_how_long() -> None:
    lines = Lines({0: "Domain-0"}, start=900)
    said = [lines.line(event) for event in (*others(), *disk_read())]
    assert said[0] == "   0.000000 demo           life      created demo"
    assert said[-7] == ("   0.000000 demo v0        hypercall event_channel_op.send arg=64 port=7 = 0  0.1 µs")
    assert said[-6].endswith("event     send 7 -> domain 0 port 4")
    assert said[-5].endswith("ring      vbd/1/51712 read request id=3 sector=8 size=4096")
    assert said[4].endswith("xenbus    vbd/1/51712 front-end CONNECTED -> gone")
    assert "\x1b[" not in "".join(said)
    assert "\x1b[" in Lines({}, colour=True).line(others()[0])


def test_a_guest_cannot_command_the_terminal_of_who_looks() -> None:
    event = XenStore(1, 1, -1, 0, "WRITE", "data/\x1b[2J\udcff", "a\nb\0c", 0, "\x07")
    line = Lines({1: "de\x1bmo"}).line(event)
    assert line.isprintable() and line.encode()
    assert r"data/\x1b[2J\udcff" in line


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    events = sorted((*disk_read(), *others()), key=lambda event: event.time)
    with file.open("w") as out:
        sink = JsonSink(out, {1: "demo"})
        for event in events:
            sink.put(event)
        out.write('{"dropped": 3}\n')
    wanted = Wanted.of(["all"])
    again = Recorded(file, wanted)
    assert list(again) == events and again.names == {1: "demo"}
    rings = list(Recorded(file, Wanted.of(["ring,event"], ["demo"], ["read", "send"])))
    assert [event.kind for event in rings] == [Kind.EVENT, Kind.RING, Kind.RING]


@pytest.mark.parametrize("line", ["x", "[]", '{"kind": "nothing"}', BAD_TIME, '{"kind": "life", "what": 1}', "7"])
def test_a_recording_with_rubbish_in_it_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(json.dumps(others()[0].to_dict()) + "\n" + line + "\n")
    with pytest.raises(UsageError, match="line 2: that is no event"):
        list(Recorded(file, Wanted()))


def test_a_recording_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        list(Recorded(tmp_path / "no", Wanted()))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no file of JSON lines"):
        list(Recorded(tmp_path / "binary", Wanted()))


def test_what_is_asked_for_is_said_in_words() -> None:
    wanted = Wanted.of(["exit,hypercall", "exit"], ["1"], ["a*"])
    assert (wanted.kinds, wanted.domains, wanted.names) == ((Kind.EXIT, Kind.HYPERCALL), ("1",), ("a*",))
    assert params_of(wanted.params()) == wanted
    assert Wanted.of([]).kinds == DEFAULT_KINDS and set(Wanted.of(["all"]).kinds) == set(Kind)
    with pytest.raises(UsageError, match="kind 'exits' is none of exit, entry"):
        Wanted.of(["exits"])
    with pytest.raises(UsageError, match="lists of words"):
        params_of({"kinds": "exit"})
    with pytest.raises(UsageError, match="there is no domain demo"):
        Wanted.of([], ["demo"]).subscribe(Events())


def test_a_machine_is_recorded_in_the_format_that_the_name_says(tmp_path: Path) -> None:
    assert [is_recording(name) for name in ("a.jsonl", "a.pftrace", "a.txt", "-")] == [True, True, False, False]
    events = Events()
    for name in ("a.jsonl", "a.pftrace"):
        with Recorder(tmp_path / name) as recorder:
            recorder.begin(events)
            events.tell(Life(1, 0, -1, 0, "started"))
        assert recorder.dropped == 0
    assert [event.name for event in Recorded(tmp_path / "a.jsonl", Wanted())] == ["started"]
    assert [event.name for _, event in Trace((tmp_path / "a.pftrace").read_bytes()).events] == ["started"]
    for name in ("no/a.jsonl", "no/a.pftrace"):
        with pytest.raises(UsageError, match="No such file"):
            Recorder(tmp_path / name)


@pytest.mark.parametrize("count", [1, 1000])
def test_a_recording_that_a_full_disk_ends_does_not_hold_up_the_machine_and_says_so(count: int, tmp_path: Path) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    events = Events()
    told = pytest.raises(OutputError, match=r"cannot write all of .*full.jsonl: No space left")
    with told, Recorder(tmp_path / "full.jsonl") as recorder:
        recorder.begin(events)
        for _ in range(count):
            events.tell(Life(1, 0, -1, 0, "started"))


# -------------------------------------------------------------------- counting


def test_counts_are_by_domain_kind_and_name_and_a_request_takes_until_its_response() -> None:
    events = Events()
    counts = Counts(events)
    assert counts.look()["counts"] == []
    listener = events._listeners[0]
    for event in (*disk_read(), *disk_read()):
        listener.tell(event)
    found = {(row["domain"], row["kind"], row["name"]): row for row in counts.look()["counts"]}
    assert found[1, "hypercall", "event_channel_op.send"] | {"domain": 1} == {
        "domain": 1, "kind": "hypercall", "name": "event_channel_op.send", "count": 2, "ns": 200, "bytes": 0,
    }  # fmt: skip
    ring = found[1, "ring", f"{VBD} read"]
    assert (ring["count"], ring["ns"], ring["bytes"]) == (2, 1400, 8192)
    counts.close()
    assert not events._listeners


def test_a_guest_that_makes_up_names_does_not_fill_the_hosts_memory() -> None:
    events = Events()
    counts = Counts(events)
    counts.look()
    for number in range(5000):
        events._listeners[0].tell(XenStore(1, 1, -1, 1, str(number), "/"))
    rows = counts.look()["counts"]
    counts.close()
    assert len(rows) <= 4097 and sum(row["count"] for row in rows) == 5000


def test_text_goes_out_when_nothing_happens_for_a_while() -> None:
    out = io.StringIO()
    sink = JsonSink(out, {})
    sink.put(others()[0])
    sink.pause()
    sink.close()
    assert len(out.getvalue().splitlines()) == 2
