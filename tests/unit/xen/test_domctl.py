"""The toolstack's interface: domains are created, paused, described and destroyed by Xen's own structures."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

import pytest
from grant_guests import Guest, NoUpcall

from bivisor.abi.xen import domctl, sysctl, xen
from bivisor.abi.xen.domctl import Domctl, Dominf, Trigger
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GRANT_ENTRY_V1, GTF_PERMIT_ACCESS
from bivisor.abi.xen.sysctl import Sysctl
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, MemoryOp, SchedOp, ShutdownReason, Virq
from bivisor.dom0.control import Control
from bivisor.host.loop import ManualLoop
from bivisor.memory import PAGE, GuestMemory
from bivisor.xen.config import DomainConfig
from bivisor.xen.domain import State
from bivisor.xen.errors import XenError
from bivisor.xen.grant_ops import map_grant_ref, unmap_grant_ref
from bivisor.xen.hypervisor import Hardware, Xen
from bivisor.xen.table import hypercall

PAGES = 64


class Host:
    """A hypervisor with this program's Dom0, and memory for domains that nothing runs."""

    def __init__(self) -> None:
        self.xen = Xen()
        self.loop = ManualLoop()
        self.control = Control(self.xen, self.loop)
        self.domains = self.control.domains
        self.memories: list[GuestMemory] = []

    def offer(self, handle: bytes = bytes(16), vcpus: int = 1) -> None:
        memory = GuestMemory(PAGES * PAGE)
        self.memories.append(memory)
        self.xen.offer(handle, Hardware(memory, NoUpcall(), vcpus))

    def create(self, domid: int = 0, **config: int) -> int:
        self.offer(vcpus=config.get("max_vcpus", 1))
        return self.domains.create(DomainConfig(**config), domid)  # type: ignore[arg-type]

    def guest(self) -> Guest:
        self.memories.append(GuestMemory(PAGES * PAGE))
        return Guest(self.xen, self.memories[-1])

    def close(self) -> None:
        for domain in list(self.xen.domains.values()):
            if domain.domid:
                self.xen.destroy(domain)
        self.control.close()
        for memory in self.memories:
            memory.close()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def refusal(work: object, *arguments: object) -> Errno:
    with pytest.raises(XenError) as caught:
        work(*arguments)  # type: ignore[operator]
    return caught.value.errno


def test_a_domain_is_created_paused_and_lives_through_all_states(host: Host) -> None:
    domid = host.create()
    ran: list[bool] = []
    host.xen.domains[domid].on_run = ran.append
    assert host.domains.info(domid).letters == "--p---"
    host.domains.unpause(domid)
    assert host.domains.info(domid).letters == "r-----"
    host.xen.domains[domid].vcpus[0].blocked = True
    assert host.domains.info(domid).letters == "-b----"
    host.domains.pause(domid)
    assert host.domains.info(domid).letters == "-bp---"  # as real Xen says of a domain that was idle
    host.domains.unpause(domid)
    host.xen.shutdown(host.xen.domains[domid], ShutdownReason.SUSPEND)
    info = host.domains.info(domid)
    assert (info.letters, info.shutdown_reason) == ("---s--", ShutdownReason.SUSPEND)
    host.domains.resume(domid)
    assert host.domains.info(domid).letters == "-b----"
    host.xen.shutdown(host.xen.domains[domid], ShutdownReason.CRASH)
    assert host.domains.info(domid).letters == "----c-"
    assert ran == [True, False, True, False, True, False]
    host.domains.destroy(domid)
    assert refusal(host.domains.info, domid) is Errno.ESRCH


def test_a_domain_runs_when_it_was_unpaused_as_often_as_paused(host: Host) -> None:
    domid = host.create()
    host.domains.pause(domid)
    host.domains.unpause(domid)
    assert host.xen.domains[domid].state is State.PAUSED
    host.domains.unpause(domid)
    assert host.xen.domains[domid].state is State.RUNNING
    assert refusal(host.domains.unpause, domid) is Errno.EINVAL


def test_a_domain_that_shut_down_while_paused_stays_shut_down(host: Host) -> None:
    domid = host.create()
    host.domains.unpause(domid)
    host.domains.pause(domid)
    host.xen.shutdown(host.xen.domains[domid], ShutdownReason.POWEROFF)
    host.domains.unpause(domid)
    assert host.domains.info(domid).letters == "---s--"


def test_what_a_domain_is_created_with_is_what_it_is(host: Host) -> None:
    handle = uuid.uuid4()
    host.offer(handle.bytes, vcpus=2)
    config = DomainConfig(handle.bytes, max_vcpus=2, max_evtchn_port=70, max_grant_frames=3, grant_version=1)
    domid = host.domains.create(config)
    info = host.domains.info(domid)
    assert (info.handle, info.tot_pages, info.max_pages, info.max_vcpu_id) == (handle, PAGES, PAGES, 1)
    assert Dominf.HVM_GUEST in info.flags and info.nr_online_vcpus == 1
    domain = host.xen.domains[domid]
    assert (domain.events.max_port, domain.grants.max_frames, domain.grants.max_version) == (70, 3, 1)
    other = uuid.uuid4()
    host.domains.set_handle(domid, other)
    host.domains.set_max_mem(domid, 40)
    assert (host.domains.info(domid).handle, host.domains.info(domid).max_pages) == (other, 10)
    assert host.domains.vcpu(domid, 1).online is False
    assert refusal(host.domains.vcpu, domid, 2) is Errno.EINVAL


@pytest.mark.parametrize(
    ("change", "errno"),
    [
        ({"flags": 1 << 8}, Errno.EINVAL),
        ({"flags": 2}, Errno.EINVAL),
        ({"max_vcpus": 0}, Errno.EINVAL),
        ({"max_vcpus": 129}, Errno.EINVAL),
        ({"grant_version": 0}, Errno.EINVAL),
        ({"grant_version": 3}, Errno.EINVAL),
        ({"max_grant_frames": 65}, Errno.EINVAL),
        ({"misc_flags": 2}, Errno.EINVAL),
        ({"max_maptrack_frames": 1025}, Errno.EINVAL),
        ({"emulation_flags": 2}, Errno.EOPNOTSUPP),
        ({"flags": 0}, Errno.EOPNOTSUPP),
        ({"max_vcpus": 2}, Errno.EINVAL),
    ],
)
def test_what_no_domain_can_be_is_refused_and_leaves_nothing(host: Host, change: dict[str, int], errno: Errno) -> None:
    host.offer()
    assert refusal(host.domains.create, DomainConfig(**change)) is errno  # type: ignore[arg-type]
    assert list(host.xen.domains) == [0]
    assert host.domains.create(DomainConfig()), "what was offered is still there"


def test_a_domain_of_nothing_is_enomem_and_an_id_in_use_eexist(host: Host) -> None:
    assert refusal(host.domains.create, DomainConfig()) is Errno.ENOMEM
    assert host.create(7) == 7
    assert refusal(host.create, 7) is Errno.EEXIST


def test_dom0_cannot_pause_or_destroy_itself(host: Host) -> None:
    for operation in (host.domains.pause, host.domains.destroy, host.domains.resume):
        assert refusal(operation, 0) is Errno.EINVAL


def test_operations_on_a_domain_that_is_not_there_are_esrch(host: Host) -> None:
    for operation in (host.domains.pause, host.domains.unpause, host.domains.destroy, host.domains.info):
        assert refusal(operation, 9) is Errno.ESRCH


def test_getdomaininfo_answers_for_the_next_domain(host: Host) -> None:
    domid = host.create(5)
    memory = host.control._memory
    memory.write(0, domctl.HEADER.pack(Domctl.GETDOMAININFO, domctl.INTERFACE_VERSION, 2) + bytes(128))
    assert host.control.hypercall(Hypercall.DOMCTL, 0) == 0
    assert struct.unpack("<H", memory.read(8, 2)) == (domid,)


def test_a_trigger_that_means_nothing_here_is_refused(host: Host) -> None:
    domid = host.create()
    hit: list[int] = []
    host.xen.domains[domid].send_nmi = hit.append
    host.domains.trigger(domid, Trigger.NMI)
    assert hit == [0]
    assert refusal(host.domains.trigger, domid, Trigger.POWER) is Errno.ENODEV
    assert refusal(host.domains.trigger, domid, Trigger.NMI, 5) is Errno.ESRCH


def test_all_domains_are_listed_by_their_ids_however_many_there_are(host: Host) -> None:
    wanted = [0, *(host.guest().domid for _ in range(3)), host.create(300)]
    assert [info.domid for info in host.domains.list()] == wanted


def test_the_host_is_described(host: Host) -> None:
    before = host.domains.physinfo()
    host.create()
    after = host.domains.physinfo()
    assert before.nr_cpus >= 1 and before.total_pages == after.total_pages
    assert before.free_pages - after.free_pages == PAGES


def test_the_console_ring_is_read_whole_or_on_from_an_index(host: Host) -> None:
    host.xen.log.write(b"(XEN) one\n")
    text, index = host.domains.read_console()
    assert text == b"(XEN) one\n"
    host.xen.log.write(b"two\n")
    assert host.domains.read_console(index=index) == (b"two\n", index + 4)
    host.xen.log.write(b"x" * (32 << 10) + b"end")
    text, index = host.domains.read_console(clear=True)
    assert text.endswith(b"xend") and len(text) == 16 << 10
    assert host.domains.read_console() == (b"", index)


@pytest.mark.parametrize(
    ("nr", "size", "head"),
    [
        (Hypercall.DOMCTL, domctl.SIZE, domctl.HEADER.pack(Domctl.PAUSEDOMAIN, domctl.INTERFACE_VERSION, 0)),
        (Hypercall.SYSCTL, sysctl.SIZE, sysctl.HEADER.pack(Sysctl.PHYSINFO, sysctl.INTERFACE_VERSION)),
    ],
    ids=["domctl", "sysctl"],
)
def test_a_domu_is_told_what_is_wrong_in_the_order_of_xen(host: Host, nr: int, size: int, head: bytes) -> None:
    guest = host.guest()
    end = PAGES * PAGE
    assert hypercall(guest.call, nr, (end - size + 1,)) == -Errno.EFAULT
    guest.memory.write(0x1000, bytes(size))
    assert hypercall(guest.call, nr, (0x1000,)) == -Errno.EACCES
    guest.memory.write(0x1000, head)
    assert hypercall(guest.call, nr, (0x1000,)) == -Errno.EPERM
    assert host.domains.info(guest.domid).letters == "--p---"


def test_a_domu_that_asks_for_a_domain_of_nobody_is_esrch(host: Host) -> None:
    guest = host.guest()
    for domid in (99, DOMID_SELF):
        guest.memory.write(0x1000, domctl.HEADER.pack(Domctl.PAUSEDOMAIN, domctl.INTERFACE_VERSION, domid) + bytes(128))
        assert hypercall(guest.call, Hypercall.DOMCTL, (0x1000,)) == -Errno.ESRCH


def test_a_domain_whose_grant_is_mapped_is_a_zombie_until_it_is_unmapped(host: Host) -> None:
    guest = host.guest()
    told: list[int] = []
    host.control.bind_virq(Virq.DOM_EXC, lambda: told.append(1))
    guest.grant(8, 0, 3)
    mapping = map_grant_ref(host.control.domain, guest.domid, 8)
    host.domains.destroy(guest.domid)
    assert host.domains.info(guest.domid).letters == "--p--d"
    assert host.create() != guest.domid
    assert refusal(host.create, guest.domid) is Errno.EEXIST
    mapping.view[:4] = b"last"
    unmap_grant_ref(host.control.domain, mapping.handle)
    assert refusal(host.domains.info, guest.domid) is Errno.ESRCH
    host.loop.advance(0)
    assert told, "the toolstack hears of it"


def test_a_watchdog_that_is_not_fed_shuts_its_domain_down(host: Host) -> None:
    now = [0]
    host.xen._now = lambda: now[0]
    host.xen._boot = 0
    guest = host.guest()
    host.domains.unpause(guest.domid)

    def watchdog(number: int, seconds: int) -> int:
        guest.memory.write(0x1000, struct.pack("<II", number, seconds))
        return hypercall(guest.call, Hypercall.SCHED_OP, (SchedOp.WATCHDOG, 0x1000))

    def wait(seconds: int) -> None:
        for _ in range(seconds):
            now[0] += 1_000_000_000
            host.loop.advance(1)

    assert [watchdog(0, 5), watchdog(0, 500), watchdog(0, 5)] == [1, 2, -Errno.ENOSPC]
    for _ in range(3):
        wait(4)
        assert watchdog(1, 5) == 0
    assert host.domains.info(guest.domid).shutdown_reason is None
    wait(7)
    assert host.domains.info(guest.domid).shutdown_reason is ShutdownReason.WATCHDOG


def test_a_watchdog_that_is_stopped_does_nothing_however_often_it_was_set(host: Host) -> None:
    asked: list[float] = []
    host.xen.call_later = lambda seconds, _: asked.append(seconds)
    domain = host.guest().domain
    for seconds in range(1000, 0, -1):
        host.xen.set_watchdog(domain, 0 if seconds == 1000 else 1, seconds)
    assert len(asked) == 1, "or a guest could fill the host's memory with timers"
    host.xen.set_watchdog(domain, 1, 0)
    assert not domain.watchdogs


SHARED = (xen.RESOURCE_GRANT_TABLE, xen.RESOURCE_GRANT_TABLE_SHARED)
STATUS = (xen.RESOURCE_GRANT_TABLE, xen.RESOURCE_GRANT_TABLE_STATUS)


def test_dom0_acquires_the_frames_of_a_grant_table(host: Host) -> None:
    guest = host.guest()
    (frame,) = host.control.map_resource(guest.domid, *SHARED, 0, 1)
    guest.grant(8, 0, 5)
    assert bytes(frame[64:72]) == GRANT_ENTRY_V1.pack(GTF_PERMIT_ACCESS, 0, 5)
    assert len(host.control.map_resource(guest.domid, *SHARED, 1, 3)) == 3
    assert guest.grants.nr_frames == 4
    assert refusal(host.control.map_resource, guest.domid, *STATUS, 0, 1) is Errno.EINVAL, "version 1 has none"
    assert refusal(host.control.map_resource, guest.domid, *SHARED, 64, 1) is Errno.EINVAL
    assert refusal(host.control.map_resource, guest.domid, *SHARED, 63, 2) is Errno.EINVAL
    assert refusal(host.control.map_resource, 99, *SHARED, 0, 1) is Errno.ESRCH
    assert refusal(host.control.map_resource, 0, *SHARED, 0, 1) is Errno.EPERM


@pytest.mark.parametrize(
    ("domid", "kind", "number", "pad", "answer"),
    [
        (1, *SHARED, 0, 64),
        (1, *STATUS, 0, 8),
        (1, *SHARED, 1, -Errno.EINVAL),
        (1, xen.RESOURCE_GRANT_TABLE, 2, 0, -Errno.EINVAL),
        (1, xen.RESOURCE_IOREQ_SERVER, 0, 0, -Errno.EINVAL),
        (1, 3, 0, 0, -Errno.EOPNOTSUPP),
        (DOMID_SELF, *SHARED, 0, -Errno.ESRCH),
        (0, *SHARED, 0, -Errno.EPERM),
        (77, *SHARED, 0, -Errno.ESRCH),
    ],
)
def test_dom0_asks_how_large_a_resource_is(
    host: Host, domid: int, kind: int, number: int, pad: int, answer: int
) -> None:
    host.guest()
    memory = host.control._memory
    memory.write(0, xen.ACQUIRE_RESOURCE.pack(domid, kind, number, 0, pad, 0, 0))
    result = host.control.hypercall(Hypercall.MEMORY_OP, MemoryOp.ACQUIRE_RESOURCE, 0)
    assert (result or memory.read_u32(8)) == answer


def test_parameters_and_ports_of_a_domain_are_given_by_hypercalls(host: Host) -> None:
    domid = host.create()
    host.control.set_param(domid, xen.HvmParam.CONSOLE_PFN, 0x1234)
    assert host.domains.hvm_param(domid, xen.HvmParam.CONSOLE_PFN) == 0x1234
    assert refusal(host.control.set_param, domid, 99, 0) is Errno.EINVAL
    assert refusal(host.control.set_param, 77, 1, 0) is Errno.ESRCH
    port = host.control.alloc_unbound_for(domid)
    rung: list[int] = []
    ours = host.control.bind(domid, port, lambda: rung.append(1))
    host.xen.domains[domid].events.send(port)
    host.loop.advance(0)
    assert rung
    host.control.unbind(ours)
    assert refusal(host.control.alloc_unbound_for, 77) is Errno.ESRCH
