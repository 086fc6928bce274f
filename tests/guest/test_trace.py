"""`bivisor trace` and `bivisor top` on a host with a stock kernel in a domain, and on a machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from bivisor.image import Guest

from .xl_person import PATIENCE, Person

pytestmark = pytest.mark.guest

READ = b"dd if=/dev/xvda of=/dev/null bs=4096 count=1 skip=3 iflag=direct && echo re''ad\n"


@pytest.fixture
def person(tmp_path: Path, guest: Guest) -> Iterator[Person]:
    person = Person(tmp_path / "host")
    yield person
    person.run("host", "stop", "--force")


def start(person: Person, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bivisor", *words],
        env=person.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ways(file: Path) -> list[list[tuple[str, str, str]]]:
    """(process, track, slice) of each stop of each arrow of a Perfetto file, in the order of their times."""
    trace = protos.Trace()
    trace.ParseFromString(file.read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    found: dict[int, list[tuple[str, str, str]]] = defaultdict(list)
    for packet in sorted((p for p in trace.packet if p.HasField("track_event")), key=lambda p: p.timestamp):
        track = tracks[packet.track_event.track_uuid]
        process = tracks[track.parent_uuid].process.process_name
        name = track.name or track.thread.thread_name
        for flow in (*packet.track_event.flow_ids, *packet.track_event.terminating_flow_ids):
            found[flow].append((process, name, packet.track_event.name))
    return list(found.values())


def test_a_disk_read_is_seen_from_the_front_ends_request_to_the_response(person: Person, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    terminal = person.terminal("create", "-c", "name=demo", f"disk=['{tmp_path / 'disk.img'},raw,xvda,ro']")
    terminal.wait_for(b"~ # ")

    # Recorded until the read is over, looked at as a Perfetto file and as lines.
    recording = start(person, "trace", "--json", "--kind", "hypercall,event,ring,interrupt,grant", "--domain", "demo,0")
    assert recording.stdout is not None
    assert b'"demo"' in recording.stdout.readline()  # it has begun
    terminal.type(READ)
    terminal.wait_for(b"\nread\r\n")
    lines = [b'{"names": {"1": "demo"}}\n']
    while not (b'"interrupt"' in lines[-1] and any(b'"read.response"' in line for line in lines)):
        lines.append(recording.stdout.readline())
        assert lines[-1], recording.stderr
    recording.terminate()
    lines.append(recording.stdout.read())  # it ends what it writes
    assert recording.wait(PATIENCE) == 0
    (tmp_path / "read.jsonl").write_bytes(b"".join(lines))
    person.run("trace", "--from", str(tmp_path / "read.jsonl"), "--perfetto", str(tmp_path / "read.pftrace"))
    assert [
        ("demo (1)", "vCPU 0", "event_channel_op.send"),
        ("Domain-0 (0)", "vbd/1/51712", "read"),
        ("Domain-0 (0)", "event channels"),
        ("demo (1)", "vCPU 0"),
    ] in [[way[0], way[1], *(stop[:2] for stop in way[2:])] for way in ways(tmp_path / "read.pftrace") if len(way) == 4]
    said = person.run("trace", "--from", str(tmp_path / "read.jsonl"), "--kind", "ring", "--name", "read")
    assert re.search(r"demo +ring +vbd/1/51712 read request id=\d+ sector=24 size=4096\n", said)
    assert re.search(r"demo +ring +vbd/1/51712 read response id=\d+ status=0\n", said)

    # Live, as text, filtered.
    live = start(
        person, "trace", str(person.state), "--kind", "xenstore", "--name", "/local/domain/1/name", "--count", "1"
    )
    person.until(lambda: b"x" in _renamed(person, live), "nothing was traced")

    # A picture of where time goes.
    picture = json.loads(person.run("top", "--json", "-n", "1", "-d", "0.5"))
    assert [row["name"] for row in picture["domains"]] == ["Domain-0", "x"]
    assert picture["domains"][1]["exits"] > 0
    assert any(row["kind"] == "hypercall" for row in picture["where_time_goes"])
    text = person.run("top", "--batch", "-n", "1", "-d", "0.2")
    assert re.search(r"^ 1  x +\S+ +1 ", text, re.MULTILINE) and "where time goes" in text
    assert "there is no domain nobody" in _refused(person, "trace", "--domain", "nobody")


def _renamed(person: Person, live: subprocess.Popen[bytes]) -> bytes:
    """What was traced once the domain has got another name, whose node somebody writes."""
    if live.poll() is None:
        person.xl("rename", person.names()[0], "y" if person.names() == ["x"] else "x")
        if person.names() == ["y"]:
            person.xl("rename", "y", "x")
        return b""
    assert live.stdout is not None
    return live.stdout.read()


def _refused(person: Person, *words: str) -> str:
    person.run(*words, status=2)
    return person.errors


def test_a_machine_is_traced_by_its_name_and_into_a_file(person: Person, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    machine = start(
        person, "run", "--engine", "soft", "--name", "m1", "--trace", str(file), "--exec", "sleep 6; exit 3"
    )
    person.until(lambda: person.run("top", "m1", "--json", "-n", "1", "-d", "0.1", status=None) != "", "no machine m1")
    lines = person.run("trace", "m1", "--kind", "exit", "--count", "3").splitlines()
    assert len(lines) == 3 and all(re.search(r"\d m1|machine|Domain-0", line) for line in lines)
    assert machine.stdin is not None
    machine.stdin.close()
    assert machine.wait(PATIENCE) == 3
    kinds = {json.loads(line).get("kind") for line in file.read_text().splitlines()}
    assert {"exit", "interrupt", "ring", "life"} <= kinds
    assert "neither the folder of a host nor a machine that runs" in _refused(person, "trace", "m1")
    assert "nobody answers at" in _refused(person, "top")
