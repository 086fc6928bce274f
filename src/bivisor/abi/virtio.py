"""Numbers and structures of virtio 1.2 (OASIS virtio-v1.2, "Virtual I/O Device (VIRTIO) Version 1.2").

Sections: 2.1 device status, 2.7 split virtqueues, 4.1 virtio over PCI, 5 device types, 6 reserved feature bits. A
feature is named by its bit; `bit(F)` is its mask. Names are the specification's without the prefix VIRTIO_.
"""

from __future__ import annotations

import struct
from typing import Final


def bit(feature: int) -> int:
    """The mask of a feature bit."""
    return 1 << feature


# 2.1 Device status field
STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_DEVICE_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

# 6 Reserved feature bits
F_INDIRECT_DESC: Final = 28
F_EVENT_IDX: Final = 29
F_VERSION_1: Final = 32

# 2.7 Split virtqueues
QUEUE_SIZE_MAX: Final = 32768
DESC: Final = struct.Struct("<QIHH")  # addr, len, flags, next
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4
AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1

# 4.1 Virtio over PCI bus
PCI_VENDOR: Final = 0x1AF4
PCI_DEVICE_BASE: Final = 0x1040
PCI_REVISION: Final = 1
PCI_CAP_COMMON_CFG: Final = 1
PCI_CAP_NOTIFY_CFG: Final = 2
PCI_CAP_ISR_CFG: Final = 3
PCI_CAP_DEVICE_CFG: Final = 4
PCI_CAP_PCI_CFG: Final = 5
PCI_CAP: Final = struct.Struct("<BBBBBBHII")  # vndr, next, len, cfg_type, bar, id, padding, offset, length
PCI_CAP_LENGTH: Final = 16
ISR_QUEUE: Final = 1
ISR_CONFIG: Final = 2
MSI_NO_VECTOR: Final = 0xFFFF

# 5 Device types
ID_NET: Final = 1
ID_BLOCK: Final = 2
ID_CONSOLE: Final = 3
ID_ENTROPY: Final = 4
ID_BALLOON: Final = 5
ID_FS: Final = 26

# 5.1 Network device
NET_F_CSUM: Final = 0
NET_F_GUEST_CSUM: Final = 1
NET_F_MTU: Final = 3
NET_F_MAC: Final = 5
NET_F_GUEST_TSO4: Final = 7
NET_F_GUEST_TSO6: Final = 8
NET_F_GUEST_ECN: Final = 9
NET_F_HOST_TSO4: Final = 11
NET_F_HOST_TSO6: Final = 12
NET_F_HOST_ECN: Final = 13
NET_F_MRG_RXBUF: Final = 15
NET_F_STATUS: Final = 16
NET_S_LINK_UP: Final = 1
NET_CONFIG: Final = struct.Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu
NET_HDR: Final = struct.Struct("<BBHHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
NET_HDR_F_NEEDS_CSUM: Final = 1
NET_HDR_F_DATA_VALID: Final = 2
NET_HDR_GSO_NONE: Final = 0
NET_HDR_GSO_TCPV4: Final = 1
NET_HDR_GSO_TCPV6: Final = 4
NET_HDR_GSO_ECN: Final = 0x80
NET_RECEIVEQ: Final = 0
NET_TRANSMITQ: Final = 1

# 5.2 Block device
BLK_F_SIZE_MAX: Final = 1
BLK_F_SEG_MAX: Final = 2
BLK_F_RO: Final = 5
BLK_F_BLK_SIZE: Final = 6
BLK_F_FLUSH: Final = 9
BLK_F_TOPOLOGY: Final = 10
BLK_F_MQ: Final = 12
BLK_F_DISCARD: Final = 13
BLK_F_WRITE_ZEROES: Final = 14
BLK_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
# capacity, size_max, seg_max, cylinders, heads, sectors, blk_size, physical_block_exp, alignment_offset, min_io_size,
# opt_io_size, writeback, unused, num_queues, max_discard_sectors, max_discard_seg, discard_sector_alignment,
# max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap (as u8)
BLK_REQ: Final = struct.Struct("<IIQ")  # type, reserved, sector
BLK_RANGE: Final = struct.Struct("<QII")  # sector, num_sectors, flags
BLK_RANGE_F_UNMAP: Final = 1
BLK_T_IN: Final = 0
BLK_T_OUT: Final = 1
BLK_T_FLUSH: Final = 4
BLK_T_GET_ID: Final = 8
BLK_T_DISCARD: Final = 11
BLK_T_WRITE_ZEROES: Final = 13
BLK_S_OK: Final = 0
BLK_S_IOERR: Final = 1
BLK_S_UNSUPP: Final = 2
BLK_ID_BYTES: Final = 20
SECTOR: Final = 512

# 5.3 Console device
CONSOLE_F_SIZE: Final = 0
CONSOLE_F_MULTIPORT: Final = 1
CONSOLE_CONFIG: Final = struct.Struct("<HHII")  # cols, rows, max_nr_ports, emerg_wr
CONSOLE_CONTROL: Final = struct.Struct("<IHH")  # id, event, value
CONSOLE_RESIZE_SIZE: Final = struct.Struct("<HH")  # cols, rows
CONSOLE_DEVICE_READY: Final = 0
CONSOLE_DEVICE_ADD: Final = 1
CONSOLE_DEVICE_REMOVE: Final = 2
CONSOLE_PORT_READY: Final = 3
CONSOLE_CONSOLE_PORT: Final = 4
CONSOLE_RESIZE: Final = 5
CONSOLE_PORT_OPEN: Final = 6
CONSOLE_PORT_NAME: Final = 7

# 5.5 Traditional memory balloon device
BALLOON_F_MUST_TELL_HOST: Final = 0
BALLOON_F_STATS_VQ: Final = 1
BALLOON_F_DEFLATE_ON_OOM: Final = 2
BALLOON_F_PAGE_REPORTING: Final = 5
BALLOON_CONFIG: Final = struct.Struct("<IIII")  # num_pages, actual, free_page_hint_cmd_id, poison_val
BALLOON_STAT: Final = struct.Struct("<HQ")  # tag, val
BALLOON_PAGE: Final = 4096
BALLOON_STATS: Final = (
    "swap-in",
    "swap-out",
    "major-faults",
    "minor-faults",
    "free-memory",
    "total-memory",
    "available-memory",
    "disk-caches",
    "hugetlb-allocations",
    "hugetlb-failures",
)

# 5.11 File system device
FS_CONFIG: Final = struct.Struct("<36sI")  # tag, num_request_queues
FS_TAG_BYTES: Final = 36
