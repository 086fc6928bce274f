"""Packets for the tests, made by other means than the code under test has."""

from __future__ import annotations

import struct

STATION_A, STATION_B = bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")
BROADCAST = b"\xff" * 6


def ethernet(
    payload: bytes, kind: int, *, source: bytes = STATION_A, target: bytes = STATION_B, vlan: int = 0
) -> bytes:
    tag = struct.pack(">HH", 0x8100, vlan) if vlan else b""
    return target + source + tag + struct.pack(">H", kind) + payload


def total(data: bytes) -> int:
    """The ones' complement sum of 16-bit words, word by word."""
    data += b"\0" * (len(data) % 2)
    result = 0
    for (word,) in struct.iter_unpack(">H", data):
        result += word
        result = (result & 0xFFFF) + (result >> 16)
    return result


def pseudo(packet: bytes) -> bytes:
    """The pseudo header of the IP packet."""
    if packet[0] >> 4 == 4:
        header = 4 * (packet[0] & 15)
        return packet[12:20] + struct.pack(">BBH", 0, packet[9], len(packet) - header)
    return packet[8:40] + struct.pack(">I3xB", len(packet) - 40, packet[6])


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"") -> bytes:
    header = bytearray(
        struct.pack(
            ">BBHHHBBH4s4s",
            0x45 + len(options) // 4,
            0,
            20 + len(options) + len(payload),
            0x1234,
            0x4000,
            64,
            protocol,
            0,
            bytes((10, 0, 0, 1)),
            bytes((10, 0, 0, 2)),
        )
        + options
    )
    struct.pack_into(">H", header, 10, 0xFFFF ^ total(bytes(header)))
    return bytes(header) + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + b"\xfd" * 16 + b"\xfc" * 16 + payload


def tcp(data: bytes, *, sequence: int = 1000, flags: int = 0x18, options: bytes = b"") -> bytes:
    return (
        struct.pack(">HHIIBBHHH", 4000, 80, sequence, 7, (20 + len(options)) // 4 << 4, flags, 500, 0, 0)
        + options
        + data
    )


def udp(data: bytes) -> bytes:
    return struct.pack(">HHHH", 4000, 53, 8 + len(data), 0) + data


def with_checksum(packet: bytes, *, blank: bool = False) -> bytes:
    """Fill the TCP or UDP checksum of an IP packet in; if `blank`, as a sender leaves it that wants it done."""
    header = 4 * (packet[0] & 15) if packet[0] >> 4 == 4 else 40
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    at = header + (16 if protocol == 6 else 6)
    value = total(pseudo(packet)) if blank else (0xFFFF ^ total(pseudo(packet) + packet[header:])) or 0xFFFF
    return packet[:at] + struct.pack(">H", value) + packet[at + 2 :]


def is_right(packet: bytes) -> bool:
    """Whether the TCP or UDP checksum of an IP packet is."""
    header = 4 * (packet[0] & 15) if packet[0] >> 4 == 4 else 40
    return total(pseudo(packet) + packet[header:]) == 0xFFFF
