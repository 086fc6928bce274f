"""`bivisor xl` and `bivisor host`: what they ask of the host, and that they print what Xen's own xl prints.

The lines that are compared were printed by xl 4.17 on a real Xen host.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bivisor.cli.main import cli, status_of
from bivisor.cli.xl import _COMMANDS
from bivisor.errors import UsageError
from bivisor.host.local_socket import private_folder
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.server import RpcServer
from bivisor.toolstack.xlconfig import DomainConfig

Capture = pytest.CaptureFixture[str]
UUID = "1e8c186d-5920-4282-abe4-2dcb359cce7f"
DOM0 = {
    "name": "Domain-0",
    "domid": 0,
    "memory_kib": 1536 << 10,
    "vcpus": 1,
    "state": "r-----",
    "cpu_time_s": 25.83,
    "uuid": "00000000-0000-0000-0000-000000000000",
    "reason": None,
    "uptime_s": 79.0,
}
U1 = {
    "name": "u1",
    "domid": 1,
    "memory_kib": 256 << 10,
    "vcpus": 1,
    "state": "-b----",
    "cpu_time_s": 8.9,
    "uuid": UUID,
    "reason": None,
    "uptime_s": 57.4,
}
VCPUS = [
    {"name": "Domain-0", "domid": 0, "vcpu": 0, "cpu": 0, "online": True, "state": "r--", "cpu_time_s": 21.5},
    {"name": "u1", "domid": 1, "vcpu": 0, "cpu": 0, "online": True, "state": "---", "cpu_time_s": 1.6},
]
VBD = {
    "vdev": 51712,
    "be": 0,
    "handle": 1,
    "state": 1,
    "evt_ch": -1,
    "ring_ref": -1,
    "be_path": "/local/domain/0/backend/vbd/1/51712",
}
VIF = {
    "idx": 0,
    "be": 0,
    "mac": "00:16:3e:68:c7:65",
    "handle": 0,
    "state": 1,
    "evt_ch": -1,
    "tx_ring_ref": -1,
    "rx_ring_ref": -1,
    "be_path": "/local/domain/0/backend/vif/1/0",
}
ANSWERS: dict[str, Any] = {
    "list": [DOM0, U1],
    "vcpu_list": VCPUS,
    "block_list": [VBD],
    "network_list": [VIF],
    "info": {"host": "(none)", "nr_cpus": 1, "cpu_mhz": "2596.145"},
    "dmesg": "(XEN) Xen version 4.17.7\n",
    "create": {"domid": 1, "name": "u1"},
    "order": {"domid": 1},
    "wait": {"domid": 1, "reason": 0},
    "status": {
        "pid": 7,
        "engine": "soft, as asked for",
        "since": 0,
        "domains": 1,
        "state": "/s",
        "xenstored": "/s/xenstored.sock",
    },
}
QUIET = ("destroy", "pause", "unpause", "rename", "mem_set", "mem_max", "vcpu_set", "sysrq", "trigger", "config_update")
DEVICES = ("block_attach", "block_detach", "network_attach", "network_detach")


class Host:
    """A host that notes what it is asked, and answers what it has been told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def table(self) -> dict[str, Callable[..., Any]]:
        return {name: self._method(name) for name in (*ANSWERS, *QUIET, *DEVICES)}

    def _method(self, name: str) -> Callable[..., Any]:
        def method(_: object, **params: Any) -> Any:
            self.asked.append((name, params))
            if params.get("domain") == "nope":
                raise UsageError("there is no domain nope")
            return ANSWERS.get(name)

        return method


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    place = Place(private_folder(tmp_path / "state"))
    monkeypatch.setenv("BIVISOR_HOST", str(place.folder))
    monkeypatch.chdir(tmp_path)
    host = Host()
    server = RpcServer(place.socket, host.table())
    yield host
    server.close()


def xl(*words: str) -> int:
    return status_of(["xl", *words])


@pytest.mark.parametrize("name", [*_COMMANDS, "host start", "host stop", "host status", "host env"])
def test_every_command_has_help(name: str) -> None:
    words = name.split() if name.startswith("host") else ["xl", name]
    helped = CliRunner().invoke(cli, [*words, "--help"])
    assert helped.exit_code == 0, helped.output
    assert "Usage: " in helped.output
    if words[0] == "xl":
        assert "Example" in helped.output


def test_list_prints_what_xl_prints(host: Host, capsys: Capture) -> None:
    assert xl("list") == 0
    assert capsys.readouterr().out == (
        "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
        "Domain-0                                     0  1536     1     r-----      25.8\n"
        "u1                                           1   256     1     -b----       8.9\n"
    )
    assert xl("list", "-v", "u1") == 0
    assert capsys.readouterr().out == (
        "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID"
        "                            Reason-Code\tSecurity Label\n"
        "u1                                           1   256     1     -b----       8.9"
        f" {UUID}        -                -\n"
    )
    assert xl("list", "-l", "1") == 0
    assert json.loads(capsys.readouterr().out) == [U1]


def test_the_other_lists_print_what_xl_prints(host: Host, capsys: Capture) -> None:
    assert xl("vcpu-list") == 0
    assert capsys.readouterr().out == (
        "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)\n"
        "Domain-0                             0     0    0   r--      21.5  all / all\n"
        "u1                                   1     0    0   ---       1.6  all / all\n"
    )
    assert xl("block-list", "u1") == 0
    assert capsys.readouterr().out == (
        "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
        "51712 0   1      1     -1     -1       /local/domain/0/backend/vbd/1/51712\n"
    )
    assert xl("network-list", "u1") == 0
    assert capsys.readouterr().out == (
        "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
        "0   0  00:16:3e:68:c7:65     0     1     -1    -1/-1          /local/domain/0/backend/vif/1/0\n"
    )
    assert xl("uptime") == 0
    assert capsys.readouterr().out == (
        "Name                                ID Uptime\n"
        "Domain-0                             0  0:01:19\n"
        "u1                                   1  0:00:57\n"
    )
    assert xl("info") == 0
    assert capsys.readouterr().out == (
        "host                   : (none)\nnr_cpus                : 1\ncpu_mhz                : 2596.145\n"
    )
    assert xl("dmesg") == 0
    assert capsys.readouterr().out == "(XEN) Xen version 4.17.7\n"


def test_the_lists_are_json_for_scripts(host: Host, capsys: Capture) -> None:
    for command, answer in (("vcpu-list", VCPUS), ("block-list", [VBD]), ("network-list", [VIF])):
        assert xl(command, "u1", "--json") == 0
        assert json.loads(capsys.readouterr().out) == answer
    assert xl("info", "--json") == 0
    assert json.loads(capsys.readouterr().out) == ANSWERS["info"]
    assert status_of(["host", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"running": True, **ANSWERS["status"]}


def test_names_and_numbers_are_converted(host: Host, capsys: Capture) -> None:
    assert (xl("domid", "u1"), xl("domname", "1")) == (0, 0)
    assert capsys.readouterr().out == "1\nu1\n"
    assert xl("domid", "Domain-0") == 0
    assert capsys.readouterr().out == "0\n"
    assert (xl("domid", "nope"), xl("domname", "77"), xl("list", "nope")) == (2, 2, 2)
    told = capsys.readouterr()
    assert told.out == ""
    lines = [f"bivisor: there is no domain {words}" for words in ("nope", "77", "nope")]
    assert told.err.splitlines() == lines


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("destroy u1", ("destroy", {"domain": "u1"})),
        ("pause u1", ("pause", {"domain": "u1"})),
        ("unpause 1", ("unpause", {"domain": "1"})),
        ("rename u1 u2", ("rename", {"domain": "u1", "name": "u2"})),
        ("mem-set u1 200", ("mem_set", {"domain": "u1", "size": 200 << 20})),
        ("vcpu-set u1 2", ("vcpu_set", {"domain": "u1", "count": 2})),
        ("mem-set u1 2048k", ("mem_set", {"domain": "u1", "size": 2 << 20})),
        ("mem-max u1 1G", ("mem_max", {"domain": "u1", "size": 1 << 30})),
        ("sysrq u1 h", ("sysrq", {"domain": "u1", "letter": "h"})),
        ("trigger u1 nmi", ("trigger", {"domain": "u1", "trigger": "nmi", "vcpu": 0})),
        ("shutdown u1", ("order", {"domain": "u1", "order": "poweroff"})),
        ("shutdown -a", ("order", {"domain": "1", "order": "poweroff"})),
        ("reboot u1", ("order", {"domain": "u1", "order": "reboot"})),
        ("shutdown -w u1", ("wait", {"domain": "1", "death": False})),
        ("shutdown -ww u1", ("wait", {"domain": "1", "death": True})),
        ("block-detach u1 xvdb", ("block_detach", {"domain": "u1", "device": "xvdb", "force": False})),
        ("block-detach --force u1 51712", ("block_detach", {"domain": "u1", "device": "51712", "force": True})),
        ("network-detach u1 0", ("network_detach", {"domain": "u1", "device": "0", "force": False})),
        ("dmesg -c", ("dmesg", {"clear": True})),
    ],
)  # fmt: skip
def test_a_command_asks_for_what_it_says(words: str, asked: tuple[str, dict[str, Any]], host: Host) -> None:
    assert xl(*words.split()) == 0
    assert host.asked[-1] == asked


def test_devices_are_described_as_in_the_file(host: Host, tmp_path: Path) -> None:
    (tmp_path / "b.img").write_bytes(b"")
    assert xl("block-attach", "u1", "b.img", "raw", "xvdb", "ro") == 0
    assert xl("block-attach", "u1", "format=raw", "vdev=xvdb", "access=ro", "target=b.img") == 0
    first, second = (params["disk"] for _, params in host.asked)
    assert first == second
    assert (first["target"], first["vdev"], first["read_only"]) == (f"{tmp_path}/b.img", "xvdb", True)
    assert xl("network-attach", "u1", "bridge=br1", "mac=00:16:3e:00:00:01") == 0
    assert host.asked[-1][1]["vif"]["bridge"] == "br1"


def test_create_sends_the_file_with_what_the_command_line_says(host: Host, tmp_path: Path) -> None:
    (tmp_path / "u1.cfg").write_text('name="u1"\nmemory=128\nkernel="vmlinuz"\ndisk=["a.img,raw,xvda,w"]\n')
    assert xl("create", "u1.cfg", "memory=64", "-p") == 0
    assert xl("create", "-f", "u1.cfg", "-F", "name=u2") == 0
    (_, first), (_, second), waited = host.asked
    config = DomainConfig.from_json(first["config"])
    assert (config.name, config.memory, first["paused"]) == ("u1", 64 << 20, True)
    assert (config.kernel, config.disks[0].target) == (tmp_path / "vmlinuz", tmp_path / "a.img")
    assert (second["config"]["name"], second["paused"]) == ("u2", False)
    assert waited == ("wait", {"domain": "1", "death": True})


def test_a_dry_run_asks_nobody(host: Host, capsys: Capture) -> None:
    assert xl("create", "-n", "name=u1", "kernel=/k") == 0
    assert json.loads(capsys.readouterr().out)["kernel"] == "/k"
    assert host.asked == []
    assert xl("create", "-d", "name=u1", "kernel=/k") == 0
    told = capsys.readouterr()
    assert (json.loads(told.err)["name"], told.out) == ("u1", "")


def test_config_update_keeps_the_name(host: Host) -> None:
    assert xl("config-update", "u1", "kernel=/k", "memory=512") == 0
    ((method, params),) = host.asked
    assert (method, params["domain"], params["config"]["memory"]) == ("config_update", "u1", 512 << 20)


def test_what_became_of_an_order_is_told_as_xl_tells_it(host: Host, capsys: Capture) -> None:
    assert xl("shutdown", "-w", "u1") == 0
    assert capsys.readouterr().err.splitlines() == [
        "bivisor: Shutting down domain u1",
        "bivisor: Waiting for 1 domains",
        "bivisor: Domain 1 has been shut down, reason code 0",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("destroy nope", "there is no domain nope"),
        ("list nope", "there is no domain nope"),
        ("block-list nope", "there is no domain nope"),
        ("shutdown", "name a domain, or all of them by -a"),
        ("shutdown -a u1", "name a domain, or all of them by -a"),
        ("mem-set u1 lots", "memory 'lots': a number of MiB, or a number with b, k, m, g or t"),
        ("block-attach u1 a.img", "it lacks vdev"),
        ("create /nope.cfg", "/nope.cfg: No such file or directory"),
        ("create a.cfg b.cfg", "b.cfg: one configuration file is enough"),
        ("create", "the configuration lacks name"),
        ("create name=u1 type=xyz", "command line:1: type"),
        ("create -V name=u1", "-V: a PVH domain has no display"),
        ("create -e name=u1", "-e: the host watches over its domains"),
        ("trigger u1 explode", "is not one of 'nmi', 'reset'"),
        ("save u1", "xl save is not there: domains cannot be saved or migrated yet"),
        ("dance", "No such command 'dance'"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(words: str, told: str, host: Host, capsys: Capture) -> None:
    assert xl(*words.split()) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("bivisor: ")]
    assert len(lines) == err.count("\n") == 1
    assert told in err
    assert "Traceback" not in out + err


def test_without_a_host_nothing_is_started_to_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("BIVISOR_HOST", str(tmp_path / "state"))
    assert xl("list") == 2
    assert "no host runs in" in capsys.readouterr().err
    assert xl("list", "-l") == 2
    assert status_of(["xl", "--no-start", "create", "name=u1", "kernel=/k"]) == 2
    assert status_of(["host", "status"]) == 1
    assert status_of(["host", "stop"]) == 0
    assert not (tmp_path / "state").exists()
    assert capsys.readouterr().out == "not running\n"


def test_the_environment_for_other_tools_is_printed(host: Host, tmp_path: Path, capsys: Capture) -> None:
    assert status_of(["host", "env"]) == 0
    state = tmp_path / "state"
    assert capsys.readouterr().out == (f"export BIVISOR_HOST={state}\nexport XENSTORED_PATH={state}/xenstored.sock\n")
