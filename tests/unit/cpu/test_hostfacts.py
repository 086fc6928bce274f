"""What the files of a made-up host say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bivisor.cpu import hostfacts
from bivisor.cpu.kvm import KvmEngine
from bivisor.errors import HostError


def put(root: Path, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_vmx_and_svm_are_found_in_the_flags(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu vmx hypervisor\n")
    found = hostfacts.processor(tmp_path)
    assert (found.vendor, found.model, found.vmx, found.svm, found.is_guest) == (
        "GenuineIntel", "Xeon", True, False, True,
    )  # fmt: skip


def test_a_host_without_files_is_no_error(tmp_path: Path) -> None:
    assert hostfacts.processor(tmp_path).vendor == "unknown"
    assert hostfacts.kvm_modules(tmp_path) == ()
    assert hostfacts.memory(tmp_path).total == 0
    assert hostfacts.surroundings(tmp_path).iommu_groups == 0
    assert not hostfacts.device_node("/dev/kvm", tmp_path).present


def test_module_parameters_are_read(tmp_path: Path) -> None:
    put(tmp_path, "sys/module/kvm_amd/parameters/nested", "1\n")
    (module,) = hostfacts.kvm_modules(tmp_path)
    assert (module.name, module.parameters) == ("kvm_amd", {"nested": "1"})


def test_the_lowest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/cgroup", "4:memory:/a/b\n0::/user/session\n")
    put(tmp_path, "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n")
    put(tmp_path, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "3000000\n")
    put(tmp_path, "sys/fs/cgroup/user/session/memory.max", "max\n")
    put(tmp_path, "sys/fs/cgroup/user/memory.max", "2000000\n")
    assert hostfacts.memory_limit(tmp_path) == 2_000_000


def test_a_missing_device_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        KvmEngine(str(tmp_path / "kvm"))
    assert "--engine soft" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_device_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "kvm", "")
    with pytest.raises(HostError, match="no KVM device"):
        KvmEngine(str(tmp_path / "kvm"))
