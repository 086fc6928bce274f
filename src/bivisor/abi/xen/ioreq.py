"""xen/include/public/hvm/ioreq.h: what Xen and a device model tell each other of an access that a guest made.

`IOREQ` is `struct ioreq`; a page of them has one for each processor. Its bit fields are in the byte after `vp_eport`
and a pad: see `FLAGS_AT`.
"""

from __future__ import annotations

import struct

IOREQ = struct.Struct("<QQIIIHBB")  # addr, data, count, size, vp_eport, _pad0, state and flags, type
IOREQS = 4096 // IOREQ.size
DATA_AT, COUNT_AT, PORT_AT, FLAGS_AT, TYPE_AT = 8, 16, 24, 30, 31

STATE_IOREQ_NONE, STATE_IOREQ_READY, STATE_IOREQ_INPROCESS, STATE_IORESP_READY = range(4)
STATE_MASK = 0x0F
DATA_IS_PTR, DIR_READ, DF = 0x10, 0x20, 0x40

IOREQ_TYPE_PIO, IOREQ_TYPE_COPY, IOREQ_TYPE_PCI_CONFIG, IOREQ_TYPE_TIMEOFFSET, IOREQ_TYPE_INVALIDATE = 0, 1, 2, 7, 8

BUF_POINTERS = struct.Struct("<II")  # read_pointer, write_pointer
BUF_IOREQ = struct.Struct("<II")  # type | dir << 9 | size << 10 | addr << 12, data
IOREQ_BUFFER_SLOT_NUM = 511
BUF_ADDR_LIMIT = 1 << 20

ACPI_PM1A_EVT_BLK_ADDRESS_V1 = 0xB000
ACPI_PM1A_CNT_BLK_ADDRESS_V1 = 0xB004
ACPI_PM_TMR_BLK_ADDRESS_V1 = 0xB008
ACPI_GPE0_BLK_ADDRESS_V1, ACPI_GPE0_BLK_LEN_V1 = 0xAFE0, 4
