"""The host report as rows and as JSON, of hosts that are made up."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bivisor.cpu.hostcheck import CapabilityFact, EngineFact, HostReport, Speed, Status, Verdict
from bivisor.cpu.hostfacts import DeviceNode, Memory, Module, Processor, Surroundings

GIB = 1 << 30
IRQFD = CapabilityFact("KVM_CAP_IRQFD", 1, "interrupts", True)
GOOD = HostReport(
    processor=Processor("AuthenticAMD", "EPYC", vmx=False, svm=True, is_guest=False, usable=8),
    device=DeviceNode("/dev/kvm", True, "kvm", "crw-rw----", True),
    modules=(Module("kvm", {}), Module("kvm_amd", {"nested": "1"})),
    kvm=EngineFact("kvm", True, "", "API 12", 255, 3_000_000, (IRQFD,), Speed(3e9, 2e-6)),
    soft=EngineFact("soft", True, "", "Unicorn 2.1.4", 1, 3_000_000, (), Speed(1.7e9, 5e-7)),
    memory=Memory(16 * GIB, 8 * GIB, 0, None, 0, 2 << 20, "madvise", True),
    surroundings=Surroundings(12, DeviceNode("/dev/net/tun", True, "root", "crw-rw-rw-", True), "/usr/bin/passt"),
    verdict=Verdict("kvm", "kvm: /dev/kvm runs CPL0 code at 3,000 million instructions/s"),
)


def row(report: HostReport, title: str) -> tuple[Status, str]:
    (found,) = [r for r in report.lines() if r.title == title]
    return found.status, found.detail


def test_a_good_host_has_nothing_to_complain_about() -> None:
    assert {r.status for r in GOOD.lines()} == {Status.OK}
    assert row(GOOD, "nested virtualization") == (Status.OK, "on")


def test_an_interpreting_device_is_warned_of() -> None:
    slow = dataclasses.replace(GOOD, kvm=dataclasses.replace(GOOD.kvm, speed=Speed(1.7e6, 9e-6)))
    status, detail = row(slow, "kvm: kernel mode")
    assert status is Status.WARN
    assert "1.7 million" in detail


@pytest.mark.parametrize(("required", "status"), [(True, Status.FAIL), (False, Status.WARN)])
def test_a_missing_capability_is_named_with_what_it_is_for(required: bool, status: Status) -> None:
    missing = CapabilityFact("KVM_CAP_IRQFD", 0, "interrupts", required)
    report = dataclasses.replace(GOOD, kvm=dataclasses.replace(GOOD.kvm, capabilities=(missing,)))
    assert row(report, "KVM_CAP_IRQFD") == (status, "missing: interrupts")


def test_without_permission_the_advice_stands_in_the_row() -> None:
    report = dataclasses.replace(
        GOOD,
        device=dataclasses.replace(GOOD.device, accessible=False),
        kvm=EngineFact("kvm", False, "join the group kvm", "", 0, 0, (), None),
    )
    status, detail = row(report, "/dev/kvm")
    assert status is Status.WARN
    assert "join the group kvm" in detail


def test_no_engine_at_all_is_a_failure() -> None:
    report = dataclasses.replace(GOOD, verdict=Verdict(None, "no engine"))
    assert row(report, "engine") == (Status.FAIL, "no engine")


def test_the_report_is_json() -> None:
    again = json.loads(json.dumps(GOOD.to_dict()))
    assert again["verdict"]["engine"] == "kvm"
    assert again["nested"] is True
    assert len(again["rows"]) == len(GOOD.lines())
