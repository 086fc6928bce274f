"""What is between the domains of a host at one moment, as a picture needs it: channels, grants, rings, watches.

Each thing has an `id` that it keeps as long as it is there, so that two pictures can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bivisor.abi.xen.event_channel import EvtchnStat
from bivisor.abi.xen.xen import Virq
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.errors import UsageError
from bivisor.toolstack.hostd import rows
from bivisor.toolstack.xenhost import XenHost


def picture(host: XenHost) -> dict[str, Any]:
    """The host now. Lists of domains, channels, grants, rings and watches; sizes in KiB, times in seconds."""
    vcpus: dict[int, list[dict[str, Any]]] = {}
    for row in rows.vcpu_rows(host, []):
        vcpus.setdefault(row["domid"], []).append(row)
    domains = [_domain(host, row, vcpus.get(row["domid"], [])) for row in rows.domain_rows(host)]
    with host.xen.lock:
        channels, grants = list(_channels(host)), list(_grants(host))
    with host.loop.lock:
        watches = list(_watches(host))
    return {
        "engine": host.why or host.engine.name,
        "domains": domains,
        "channels": channels,
        "grants": grants,
        "rings": [ring for domain in domains if domain["domid"] for ring in _rings(host, domain["domid"])],
        "watches": watches,
    }


def _domain(host: XenHost, row: dict[str, Any], vcpus: list[dict[str, Any]]) -> dict[str, Any]:
    config = row.pop("config") or {}
    known = host.domains.get(row["domid"])
    ended = known is not None and known.stopped.is_set()
    kind = config.get("type", "dom0")
    return row | {"type": kind, "vcpus": vcpus, "ended": ended, "screen": kind == "hvm"}


def _channels(host: XenHost) -> Iterator[dict[str, Any]]:
    """Each port once; both ends of an interdomain channel are one entry, that of the lower domain and port."""
    for domid, domain in sorted(host.xen.domains.items()):
        for port, status in domain.events.listing().items():
            kind = status.status.name.lower()
            if status.status is EvtchnStat.INTERDOMAIN:
                if (status.remote, status.remote_port) < (domid, port):
                    continue
                identity = f"{domid}.{port}-{status.remote}.{status.remote_port}"
            else:
                identity = f"{domid}.{port}"
            yield {
                "id": f"channel-{identity}",
                "kind": kind,
                "domid": domid,
                "port": port,
                "vcpu": status.vcpu,
                "remote": status.remote if kind in ("interdomain", "unbound") else None,
                "remote_port": status.remote_port if kind == "interdomain" else None,
                "virq": _virq(status.virq) if kind == "virq" else None,
            }


def _virq(number: int) -> str:
    try:
        return Virq(number).name
    except ValueError:
        return str(number)


def _grants(host: XenHost) -> Iterator[dict[str, Any]]:
    """Each grant that somebody has mapped; the hypervisor knows of no other."""
    for domid, domain in sorted(host.xen.domains.items()):
        for ref, active in domain.grants.listing().items():
            yield {
                "id": f"grant-{domid}.{ref}",
                "granter": domid,
                "ref": ref,
                "grantee": active.domid,
                "gfn": active.gfn,
                "readers": active.readers,
                "writers": active.writers,
            }


def _rings(host: XenHost, domid: int) -> Iterator[dict[str, Any]]:
    domain = host.domains.get(domid)
    if domain is None:
        return
    first = domain.rings
    for kind, gfn, port in (
        ("console", first.console_gfn, first.console_port),
        ("xenstore", first.store_gfn, first.store_port),
    ):
        yield {
            "id": f"ring-{kind}-{domid}",
            "kind": kind,
            "frontend": domid,
            "backend": 0,
            "device": 0,
            "name": kind,
            "state": None,
            "port": port,
            "refs": [],
            "gfn": gfn,
            "path": None,
            "target": None,
        }
    for kind, found in (("vbd", rows.block_rows), ("vif", rows.network_rows)):
        try:
            devices = found(host, domid)
        except KeyError:  # the domain has gone meanwhile
            return
        for row in devices:
            number = row["vdev"] if kind == "vbd" else row["idx"]
            refs = [row[key] for key in ("ring_ref", "tx_ring_ref", "rx_ring_ref") if row.get(key, -1) >= 0]
            yield {
                "id": f"ring-{kind}-{domid}.{number}",
                "kind": kind,
                "frontend": domid,
                "backend": row["be"],
                "device": number,
                "name": row["name"] if kind == "vbd" else f"vif{number}",
                "state": row["state"],
                "port": row["evt_ch"] if row["evt_ch"] >= 0 else None,
                "refs": refs,
                "gfn": None,
                "path": row["be_path"],
                "target": row["target"] if kind == "vbd" else f"{row['network']}, {row['mac']}",
            }


def _watches(host: XenHost) -> Iterator[dict[str, Any]]:
    """Each watch once; who set it is a domain, and one of Dom0's several connections is not told from another."""
    seen: dict[tuple[int, str, str], int] = {}
    for connection in list(host.server.connections):
        for path, token in connection.watches:
            what = (connection.domid, path.wire.decode(errors="replace"), token.decode(errors="replace"))
            seen[what] = again = seen.get(what, 0) + 1
            number = "" if again == 1 else f"~{again}"
            yield {
                "id": f"watch-{what[0]}-{what[1]}-{what[2]}{number}",
                "domid": what[0],
                "path": what[1],
                "token": what[2],
            }


def store_nodes(host: XenHost, path: str) -> list[dict[str, Any]]:
    """The nodes right below `path`: name, value, and how many there are below each. UsageError for what is no path."""
    base = path.rstrip("/")
    try:
        with host.loop.lock:
            found = []
            for name in host.store.names(path):
                below = f"{base}/{name}"
                value = host.store.get(below)
                if value is not None:
                    found.append({"name": name, "value": value, "below": len(host.store.names(below))})
            return found
    except XenStoreError as error:
        raise UsageError(f"{path!r} is no path in the store: {error}") from None
