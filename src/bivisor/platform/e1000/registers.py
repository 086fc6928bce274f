"""Numbers of the 82540EM: register offsets, bits, descriptors.

Specification: Intel, PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), section 3
(descriptors), 5.6 (EEPROM map), 13 (registers).
"""

from __future__ import annotations

import struct

CTRL, STATUS, EECD, EERD, MDIC = 0x0000, 0x0008, 0x0010, 0x0014, 0x0020
ICR, ITR, ICS, IMS, IMC = 0x00C0, 0x00C4, 0x00C8, 0x00D0, 0x00D8
RCTL, TCTL = 0x0100, 0x0400
RDBAL, RDBAH, RDLEN, RDH, RDT = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
TDBAL, TDBAH, TDLEN, TDH, TDT = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
MTA, MTA_END, RAL0, RAH0, RA_END = 0x5200, 0x5400, 0x5400, 0x5404, 0x5480
VFTA, VFTA_END = 0x5600, 0x5800

CTRL_RST, CTRL_SLU, CTRL_PHY_RST = 1 << 26, 1 << 6, 1 << 31
STATUS_FD, STATUS_LU, STATUS_SPEED_1000 = 1 << 0, 1 << 1, 2 << 6
EECD_SK, EECD_CS, EECD_DI, EECD_DO, EECD_REQ, EECD_GNT, EECD_PRES = 1, 2, 4, 8, 1 << 6, 1 << 7, 1 << 8
EERD_START, EERD_DONE = 1 << 0, 1 << 4
MDIC_READ, MDIC_WRITE, MDIC_READY, MDIC_ERROR = 2 << 26, 1 << 26, 1 << 28, 1 << 30
RCTL_EN, RCTL_UPE, RCTL_MPE, RCTL_BAM, RCTL_BSEX, RCTL_SECRC = 1 << 1, 1 << 3, 1 << 4, 1 << 15, 1 << 25, 1 << 26
TCTL_EN = 1 << 1
INT_TXDW, INT_TXQE, INT_LSC, INT_RXDMT0, INT_RXO, INT_RXT0 = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 6, 1 << 7

DESCRIPTOR = 16
RX_DESCRIPTOR = struct.Struct("<QHHBBH")  # address, length, checksum, status, errors, special
TX_LEGACY = struct.Struct("<QHBBBBH")  # address, length, CSO, command, status, CSS, special
TX_EXTENDED = struct.Struct("<QIBBH")  # address, length with type and command, status, options, special
TX_CONTEXT = struct.Struct("<BBHBBHIBBH")  # IPCSS, IPCSO, IPCSE, TUCSS, TUCSO, TUCSE, PAYLEN.., STATUS, HDRLEN, MSS
DD, RX_EOP = 0x01, 0x02
CMD_EOP, CMD_IFCS, CMD_IC, CMD_TSE, CMD_RS, CMD_DEXT = 0x01, 0x02, 0x04, 0x04, 0x08, 0x20
POPTS_IXSM, POPTS_TXSM = 0x01, 0x02
TUCMD_TCP, TUCMD_IP = 0x01, 0x02
