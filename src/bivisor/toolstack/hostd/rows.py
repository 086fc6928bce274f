"""What the host tells of its domains and of itself, as the rows and fields that `xl` shows."""

from __future__ import annotations

import platform
import time
from typing import Any

from bivisor.dom0.domctl import DomainInfo
from bivisor.toolstack.xenhost import XenHost

KIB = 1 << 10
PAGE_KIB = 4
DOM0_UUID = "00000000-0000-0000-0000-000000000000"


def domain_rows(host: XenHost) -> list[dict[str, Any]]:
    """One for each domain, Domain-0 first."""
    return [_row(host, info) for info in host.control.domains.list()]


def _row(host: XenHost, info: DomainInfo) -> dict[str, Any]:
    domain = host.domains.get(info.domid)
    name = "Domain-0" if info.domid == 0 else domain.name if domain is not None else "(null)"
    return {
        "name": name,
        "domid": info.domid,
        "memory_kib": info.tot_pages * PAGE_KIB,
        "vcpus": info.nr_online_vcpus,
        "state": info.letters,
        "cpu_time_s": info.cpu_time / 1e9,
        "uuid": domain.uuid if domain is not None else DOM0_UUID,
        "reason": None if info.shutdown_reason is None else int(info.shutdown_reason),
        "config": None if domain is None else domain.config.to_json(),
        "uptime_s": time.time() - (host.began if domain is None else domain.began),
        "target_kib": None if domain is None else domain.memory_target // KIB,
    }


def vcpu_rows(host: XenHost, domids: list[int]) -> list[dict[str, Any]]:
    """One for each virtual processor of these domains, of all where the list is empty."""
    rows = []
    for info in host.control.domains.list():
        if domids and info.domid not in domids:
            continue
        name = _row(host, info)["name"]
        for index in range(info.max_vcpu_id + 1):
            vcpu = host.control.domains.vcpu(info.domid, index)
            paused = info.letters[2] == "p"
            state = (
                f"{'-' if paused or not vcpu.running else 'r'}{'b' if vcpu.blocked else '-'}{'p' if paused else '-'}"
            )
            rows.append(
                {
                    "name": name,
                    "domid": info.domid,
                    "vcpu": vcpu.vcpu,
                    "cpu": vcpu.cpu if vcpu.online else None,
                    "online": vcpu.online,
                    "state": state,
                    "cpu_time_s": vcpu.cpu_time / 1e9,
                }
            )
    return rows


def block_rows(host: XenHost, domid: int) -> list[dict[str, Any]]:
    """One for each disk of a domain, as `xl block-list` names the columns."""
    return [
        {
            "vdev": status.vbd.spec.device,
            "be": 0,
            "handle": domid,
            "state": int(status.state),
            "evt_ch": status.event_channel or -1,
            "ring_ref": status.ring_ref or -1,
            "be_path": status.vbd.device.backend_path,
            "name": status.vbd.spec.vdev,
            "target": str(status.vbd.spec.target),
            "read_only": status.vbd.spec.read_only,
        }
        for status in host.disks.status(domid)
    ]


def network_rows(host: XenHost, domid: int) -> list[dict[str, Any]]:
    """One for each network interface of a domain, as `xl network-list` names the columns."""
    return [
        {
            "idx": status.vif.devid,
            "be": 0,
            "mac": status.vif.mac,
            "handle": status.vif.devid,
            "state": int(status.state),
            "evt_ch": status.event_channel or -1,
            "tx_ring_ref": status.tx_ring_ref or -1,
            "rx_ring_ref": status.rx_ring_ref or -1,
            "be_path": status.vif.device.backend_path,
            "network": status.vif.spec.kind if status.vif.spec.kind != "vif" else status.vif.spec.bridge,
        }
        for status in host.networks.status(domid)
    ]


def info_fields(host: XenHost) -> dict[str, Any]:
    """What `xl info` prints, by the names that it has there."""
    physical, version, uname = host.control.domains.physinfo(), host.control.version(), platform.uname()
    return {
        "host": uname.node,
        "release": uname.release,
        "version": uname.version,
        "machine": uname.machine,
        "nr_cpus": physical.nr_cpus,
        "max_cpu_id": physical.max_cpu_id,
        "nr_nodes": physical.nr_nodes,
        "cores_per_socket": physical.cores_per_socket,
        "threads_per_core": physical.threads_per_core,
        "cpu_mhz": f"{physical.cpu_khz / 1000:.3f}",
        "virt_caps": "hvm hap gnttab-v1 gnttab-v2",
        "total_memory": physical.total_pages * PAGE_KIB // KIB,
        "free_memory": physical.free_pages * PAGE_KIB // KIB,
        "sharing_freed_memory": 0,
        "sharing_used_memory": 0,
        "outstanding_claims": 0,
        "free_cpus": 0,
        "xen_major": version.major,
        "xen_minor": version.minor,
        "xen_extra": version.extra,
        "xen_version": f"{version.major}.{version.minor}{version.extra}",
        "xen_caps": version.capabilities,
        "xen_pagesize": version.page_size,
        "platform_params": f"virt_start=0x{version.virt_start:x}",
        "xen_changeset": version.changeset,
        "xen_commandline": version.command_line,
        "cc_compiler": version.compiler,
        "xend_config_format": 4,
        "bivisor_engine": host.why or host.engine.name,
    }
