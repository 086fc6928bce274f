"""The card: registers, EEPROM, PHY, and the two rings.

Specification: Intel 317453, section 13 "Register Descriptions". The wire is a `NetBackend` (platform/virtio/net.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from bivisor.errors import GuestAddressError
from bivisor.host.loop import Clock, Timer
from bivisor.platform.e1000 import registers as r
from bivisor.platform.e1000.arrival import frames_of
from bivisor.platform.e1000.departure import header_of
from bivisor.platform.e1000.eeprom import Eeprom
from bivisor.platform.e1000.ring import Ring, store
from bivisor.platform.e1000.transmit import FRAME_MAX, FRAME_MIN, PACKET_MAX, Context, frames
from bivisor.platform.fwcfg import Memory
from bivisor.platform.pci import BarKind, Identity, PciFunction
from bivisor.platform.virtio.net import NetBackend, parse_mac

REGISTERS = 0x2_0000
IO_PORTS = 0x40
TURN = 256
TURN_FRAMES = 1024
"""How many frames a turn's packets may become, before the loop goes on: each can be 64 KiB in segments of 48 bytes."""
SENT_INTERVAL_S = 2e-3
"""Between two interrupts that only say what was sent; the real card's timers ("TIDV") serve the same end. A
stack whose frames are all gone at once never puts data together into longer segments."""

CRC_BYTES = 4

_SENT = r.INT_TXDW | r.INT_TXQE
_PHY = {0: 0x1140, 1: 0x796D, 2: 0x0141, 3: 0x0C20, 4: 0x0DE1, 5: 0xCDE1, 6: 1, 9: 0x0E00, 10: 0x3C00, 17: 0xAC08}
_SIZES = {0: 2048, 1: 1024, 2: 512, 3: 256}
_VIRTIO_HEADER = 12
_NO_OFFLOADS = memoryview(bytes(_VIRTIO_HEADER))


class E1000(PciFunction):
    """The card with address `mac` on the wire `backend`, whose rings and buffers are in `memory`."""

    def __init__(self, memory: Memory, backend: NetBackend, mac: str, clock: Clock) -> None:
        super().__init__(Identity(0x8086, 0x100E, 0x020000, 0x03, 0x1AF4, 0x1100), name="e1000", pin=1)
        self._memory = memory
        self._backend = backend
        self._clock = clock
        self._hush = 0.0
        self._unsaid = 0
        self._timer: Timer | None = None
        self._mac = parse_mac(mac)
        self._eeprom = Eeprom(self._mac)
        self._room = memoryview(bytearray(PACKET_MAX + _VIRTIO_HEADER))
        self._outgoing: deque[tuple[memoryview, ...]] = deque()
        self._arrived: deque[bytes] = deque()
        self._io_address = 0
        self._readers: dict[int, Callable[[], int]] = {
            r.ICR: self._take_causes,
            r.EECD: lambda: self._eeprom.control,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            r.CTRL: self._set_control,
            r.EECD: self._eeprom.set_control,
            r.EERD: self._read_eeprom,
            r.MDIC: self._phy_access,
            r.ICR: self._clear_causes,
            r.ICS: self._cause,
            r.IMS: lambda value: self._mask(self._masked | value),
            r.IMC: lambda value: self._mask(self._masked & ~value),
            r.RCTL: partial(self._set_receive, r.RCTL),
            r.RDLEN: partial(self._set_receive, r.RDLEN),
            r.RDH: partial(self._set_receive, r.RDH),
            r.RDT: lambda value: self._set_receive(r.RDT, value & 0xFFFF),
            r.TCTL: self._set_transmit,
            r.TDT: self._set_transmit_tail,
        }
        self._reset()
        self.add_bar(0, BarKind.MEMORY32, REGISTERS, self)
        self.add_bar(1, BarKind.IO, IO_PORTS, _IoPorts(self))

    # Registers

    def read(self, offset: int, size: int) -> int:
        """A register; a narrower access is a part of one."""
        place = offset & ~3
        reader = self._readers.get(place)
        value = reader() if reader is not None else self._registers.get(place, 0)
        return value >> 8 * (offset & 3)

    def write(self, offset: int, size: int, value: int) -> None:
        """A register, whole."""
        if offset & 3 or size < 4:
            return
        value &= 0xFFFF_FFFF
        writer = self._writers.get(offset)
        if writer is not None:
            writer(value)
        elif offset in _KEPT or any(first <= offset < end for first, end in _TABLES):
            self._registers[offset] = value

    def _reset(self) -> None:
        self._causes = self._masked = 0
        self._phy = dict(_PHY)
        self._packet = bytearray()
        self._sending = False
        self._made = 0
        self._outgoing.clear()
        self._arrived.clear()
        self._context = Context()
        self._eeprom.reset()
        self._registers = {
            r.CTRL: r.CTRL_SLU,
            r.STATUS: r.STATUS_FD | r.STATUS_LU | r.STATUS_SPEED_1000,
            r.RAL0: int.from_bytes(self._mac[:4], "little"),
            r.RAH0: int.from_bytes(self._mac[4:], "little") | 1 << 31,
        }
        self._drive()

    def _set_control(self, value: int) -> None:
        if value & r.CTRL_RST:
            self._reset()
            self._watch()
        else:
            self._registers[r.CTRL] = value & ~(r.CTRL_RST | r.CTRL_PHY_RST)

    def _read_eeprom(self, value: int) -> None:
        if value & r.EERD_START:
            self._registers[r.EERD] = self._eeprom.word(value >> 8) << 16 | value & 0xFF00 | r.EERD_DONE

    def _phy_access(self, value: int) -> None:
        number = value >> 16 & 31
        if value >> 21 & 31 != 1:
            value |= r.MDIC_ERROR
        elif value & r.MDIC_READ:
            value = value & ~0xFFFF | self._phy.get(number, 0)
        elif value & r.MDIC_WRITE and number not in (1, 2, 3):
            self._phy[number] = value & (0x7DFF if number == 0 else 0xFFFF)  # a reset ends at once
        self._registers[r.MDIC] = value | r.MDIC_READY

    # Interrupts

    def _take_causes(self) -> int:
        causes, self._causes = self._causes, 0
        self._drive()
        return causes

    def _clear_causes(self, value: int) -> None:
        self._causes &= ~value
        self._drive()

    def _cause(self, value: int) -> None:
        self._causes |= value & 0x1_FFFF
        self._drive()

    def _mask(self, value: int) -> None:
        self._masked = value & 0x1_FFFF
        self._registers[r.IMS] = self._masked
        self._drive()

    def _drive(self) -> None:
        causes = self._causes & self._masked
        if causes and not causes & ~_SENT and not self._intx:
            now = self._clock.now()
            if now < self._hush:
                if self._timer is None:
                    self._timer = self._clock.call_at(self._hush, self._moderated)
                return
            self._hush = now + SENT_INTERVAL_S
            self._unsaid = 0
        if bool(causes) != self._intx:
            self.set_intx(bool(causes))

    def _moderated(self) -> None:
        self._timer = None
        self._drive()

    # Rings

    def _ring(self, low: int) -> Ring:
        """The ring whose registers begin at `low`."""
        g = self._registers.get
        count = (g(low + 8, 0) & 0xF_FF80) // r.DESCRIPTOR
        return Ring(g(low, 0) & ~15 | g(low + 4, 0) << 32, count, g(low + 0x10, 0) & 0xFFFF, g(low + 0x18, 0))

    def _set_transmit(self, value: int) -> None:
        self._registers[r.TCTL] = value
        self._transmit()

    def _set_transmit_tail(self, value: int) -> None:
        self._registers[r.TDT] = value & 0xFFFF
        self._transmit()

    def _transmit(self) -> None:
        """Send what the ring has, as far as the wire takes it; after a turn of its own the loop goes on with it."""
        ring = self._ring(r.TDBAL)
        if (
            not self._registers.get(r.TCTL, 0) & r.TCTL_EN
            or not self.bus_master
            or max(ring.head, ring.tail) >= ring.count
        ):
            self._sending = False
            return
        head, causes, self._made = ring.head, 0, 0
        try:
            descriptors = ring.view(self._memory)
            for _ in range(min(ring.held, TURN)):
                if not self._flush() or self._made >= TURN_FRAMES:
                    break
                at = head * r.DESCRIPTOR
                if self._send_descriptor(bytes(descriptors[at : at + r.DESCRIPTOR])):
                    descriptors[at + 12] |= r.DD
                    causes |= r.INT_TXDW
                head = (head + 1) % ring.count
            ring.written(self._memory, head)
        except GuestAddressError:
            self._packet.clear()  # a ring or a buffer that is not memory: what is left of the ring is lost
            head = ring.tail
        self._unsaid += (head - ring.head) % ring.count
        if self._unsaid > ring.count // 2:
            self._hush = 0.0  # a driver that waits for room is not kept waiting
        self._registers[r.TDH] = head
        self._sending = head != ring.tail
        self._watch()
        self._cause(causes | (0 if self._sending else r.INT_TXQE))

    def _flush(self) -> bool:
        """Give the wire what waits for it; whether it took all of that."""
        outgoing = self._outgoing
        while outgoing:
            if not self._backend.send(outgoing[0]):
                return False
            outgoing.popleft()
        return True

    def _wire_ready(self) -> None:
        if self._flush():
            self._transmit()
            self._watch()

    def _send_descriptor(self, raw: bytes) -> bool:
        """Take one descriptor; whether its status is to be written back."""
        address, word, _, options, _ = r.TX_EXTENDED.unpack(raw)
        command = word >> 24
        if command & r.CMD_DEXT and not word >> 20 & 15:
            self._context = Context.parse(raw)
            return bool(command & r.CMD_RS)
        extended = bool(command & r.CMD_DEXT)
        length = word & 0xF_FFFF if extended else word & 0xFFFF
        if len(self._packet) + length <= PACKET_MAX:
            self._packet += self._memory.view(address, length)
        if command & r.CMD_EOP:
            packet, self._packet = self._packet, bytearray()
            if extended:
                self._send_packet(packet, options, segment=bool(command & r.CMD_TSE))
            else:
                if command & r.CMD_IC:
                    _, _, put, _, _, start, _ = r.TX_LEGACY.unpack(raw)
                    packet_context = Context(start=start, put=put)
                    next(frames(packet, packet_context, r.POPTS_TXSM, segment=False))
                self._send(packet)
        return bool(command & r.CMD_RS)

    def _send_packet(self, packet: bytearray, options: int, *, segment: bool) -> None:
        backend = self._backend
        if backend.has_header:
            header = header_of(packet, self._context, options, backend.offloads, segment=segment)
            if header is not None:
                self._send(packet, memoryview(header))
                return
        for frame in frames(packet, self._context, options, segment=segment):
            self._send(frame)

    def _send(self, frame: bytearray, header: memoryview = _NO_OFFLOADS) -> None:
        """Put a frame on the wire, behind those that wait for it. Only one with a header of its own may be longer."""
        self._made += 1
        if len(frame) >= FRAME_MIN and (len(frame) <= FRAME_MAX or header is not _NO_OFFLOADS):
            views = (header, memoryview(frame)) if self._backend.has_header else (memoryview(frame),)
            if self._outgoing or not self._backend.send(views):
                self._outgoing.append(views)

    def _set_receive(self, place: int, value: int) -> None:
        """A register on which it depends whether there is room for frames: those that wait may have it now."""
        self._registers[place] = value
        if self._arrived and self._registers.get(r.RCTL, 0) & r.RCTL_EN:
            self._store_arrived()
            self._drive()
        self._watch()

    def _watch(self) -> None:
        ready = self._registers.get(r.RCTL, 0) & r.RCTL_EN and not self._arrived and self._ring(r.RDBAL).held
        sending = self._sending or self._outgoing
        self._backend.watch(self._receive if ready else None, self._wire_ready if sending else None)

    def _receive(self) -> None:
        """A turn of arriving frames, with one interrupt for all. What a packet becomes waits until all of it has found
        room: a neighbour that sends 64 KiB at once would have to send them again."""
        arrived, room, has_header = self._arrived, self._room, self._backend.has_header
        free = self._ring(r.RDBAL).held
        for _ in range(TURN):
            if len(arrived) >= free:
                break
            length = self._backend.receive([room])
            if length < 0:
                self._backend.watch(None, None)
            if length <= 0:
                self._store_arrived()
                self._drive()
                return
            packet = room[:length]
            for each in frames_of(packet) if has_header else (packet,):
                if FRAME_MIN <= len(each) <= FRAME_MAX and self._is_ours(each):
                    arrived.append(bytes(each))
        self._store_arrived()
        self._drive()
        self._watch()

    def _store_arrived(self) -> None:
        """Put what has arrived into the guest's buffers, as far as they suffice."""
        if not self._arrived:
            return
        ring = self._ring(r.RDBAL)
        if not self.bus_master or not ring.count:
            self._arrived.clear()
            self._causes |= r.INT_RXO
        elif ring.held:
            control = self._registers.get(r.RCTL, 0)
            room = _SIZES[control >> 16 & 3] * (16 if control & r.RCTL_BSEX and control >> 16 & 3 else 1)
            crc = 0 if control & r.RCTL_SECRC else CRC_BYTES
            self._registers[r.RDH], causes = store(self._memory, ring, self._arrived, room, crc)
            self._causes |= causes

    def _is_ours(self, frame: memoryview) -> bool:
        control = self._registers.get(r.RCTL, 0)
        if frame[0] & 1:
            broadcast = bytes(frame[:6]) == b"\xff" * 6
            # the multicast table may let more through than the guest asked for; its stack sorts them out
            return bool(control & (r.RCTL_BAM if broadcast else r.RCTL_MPE) or not broadcast)
        own = self._registers.get(r.RAH0, 0) << 32 & 0xFFFF_0000_0000 | self._registers.get(r.RAL0, 0)
        return bool(control & r.RCTL_UPE) or int.from_bytes(frame[:6], "little") == own

    def close(self) -> None:
        """See `PciFunction.close`; the wire stays its owner's."""
        self._backend.watch(None, None)
        if self._timer is not None:
            self._timer.cancel()


_KEPT = frozenset(
    (
        *(r.ITR, r.RDBAL, r.RDBAH, r.TDBAL, r.TDBAH, r.TDLEN, r.TDH),
        *range(0x0028, 0x00C0, 4),
        *(0x0170, 0x0410, 0x0420, 0x0E00, 0x1000, 0x2160, 0x2168, 0x2170),
        *(0x2820, 0x2828, 0x282C, 0x3820, 0x3828, 0x382C, 0x5000, 0x5800, 0x5808),
    )
)
_TABLES = ((r.MTA, r.MTA_END), (r.RAL0, r.RA_END), (r.VFTA, r.VFTA_END))


class _IoPorts:
    """BAR 1: an address register and a data register for the same registers (13.2.1)."""

    def __init__(self, card: E1000) -> None:
        self._card = card
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return self._address
        return self._card.read(self._address, 4) if offset == 4 and self._address < REGISTERS else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            self._address = value & 0xF_FFFC
        elif offset == 4 and size == 4 and self._address < REGISTERS:
            self._card.write(self._address, 4, value)
