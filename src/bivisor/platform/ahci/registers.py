"""Numbers of AHCI: register offsets, bits, structures in memory, frame information structures (FIS).

Specification: Serial ATA AHCI 1.3.1, section 3 (registers) and 4 (memory structures); Serial ATA 3.0, 10.3 (FIS types).
"""

from __future__ import annotations

import struct

CAP, GHC, IS, PI, VS, CAP2, BOHC = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x24, 0x28
PORT_BASE, PORT_SIZE = 0x100, 0x80
CLB, CLBU, FB, FBU, PXIS, PXIE, CMD, TFD = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x20
SIG, SSTS, SCTL, SERR, SACT, CI = 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38

SLOTS = 32
CAP_CLO, CAP_AHCI_ONLY, CAP_NCQ, CAP_64 = 1 << 24, 1 << 18, 1 << 30, 1 << 31
CAP_SLOTS_SHIFT, CAP_SPEED_SHIFT, SPEED_1_5 = 8, 20, 1
GHC_HR, GHC_IE, GHC_AE = 1 << 0, 1 << 1, 1 << 31
VERSION_1_3_1 = 0x0001_0301

CMD_ST, CMD_SUD, CMD_POD, CMD_CLO, CMD_FRE, CMD_FR, CMD_CR = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 14, 1 << 15
CMD_KEPT = 0x0F00_0000 | 1 << 25 | CMD_ST | CMD_SUD | CMD_POD | CMD_FRE
CMD_SLOT_SHIFT = 8
IS_DHRS, IS_PSS, IS_SDBS, IS_DPS, IS_PCS, IS_PRCS = 1 << 0, 1 << 1, 1 << 3, 1 << 5, 1 << 6, 1 << 22
IS_HBFS, IS_TFES = 1 << 29, 1 << 30
IE_MASK = 0xFDC0_00FF
SSTS_PRESENT = 0x113  # a device, at 1.5 Gbit/s, its interface active
SERR_EXCHANGED = 1 << 26

HEADER = struct.Struct("<HHIQ")  # flags, PRDTL, PRDBC, command table
HEADER_STRIDE = 32
FLAG_ATAPI, FLAG_WRITE = 1 << 5, 1 << 6
TABLE_ACMD, TABLE_PRDT = 0x40, 0x80
PRD = struct.Struct("<QII")  # address, reserved, count with the interrupt bit
PRD_INTERRUPT, PRD_COUNT = 1 << 31, 0x3F_FFFF

FIS_H2D, FIS_D2H, FIS_PIO_SETUP, FIS_SET_DEVICE_BITS = 0x27, 0x34, 0x5F, 0xA1
FIS_IS_COMMAND, FIS_INTERRUPT, FIS_TO_MEMORY, SRST = 0x80, 0x40, 0x20, 0x04
AT_PIO_SETUP, AT_D2H, AT_SET_DEVICE_BITS, RECEIVED = 0x20, 0x40, 0x58, 0x100

READ_FPDMA, WRITE_FPDMA, READ_DMA_EXT, WRITE_DMA_EXT, READ_LOG_EXT, PACKET = 0x60, 0x61, 0x25, 0x35, 0x2F, 0xA0
LOG_NCQ_ERROR = 0x10
