"""One AHCI port: its registers, and the list of commands that the guest fills.

Specification: Serial ATA AHCI 1.3.1, section 3.3 (registers), 5.3 (the port's state machine). A command is carried out
when the guest issues it, in the guest's thread, as the data of a disk image is moved by one system call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.errors import GuestAddressError
from bivisor.platform.ahci import registers as r
from bivisor.platform.ahci.command import Command, CommandError, carry_out
from bivisor.platform.fwcfg import Memory
from bivisor.platform.ide.drive import ABRT, BSY, DRQ, ERR, Drive

_NO_DEVICE = 0x7F
_STATUS_IN_BITS = 0x77  # Set Device Bits leaves BSY and DRQ alone


class Port:
    """Port registers and the drive behind them. `changed()` hears of interrupts; `may_master()` says whether the guest
    lets the controller reach memory."""

    def __init__(self, memory: Memory, changed: Callable[[], None], may_master: Callable[[], bool]) -> None:
        self._memory = memory
        self._changed = changed
        self._may_master = may_master
        self.drive: Drive | None = None
        self._writers: dict[int, Callable[[int], None]] = {
            r.CLB: lambda value: self._keep(r.CLB, value & ~0x3FF),
            r.CLBU: lambda value: self._keep(r.CLBU, value),
            r.FB: lambda value: self._keep(r.FB, value & ~0xFF),
            r.FBU: lambda value: self._keep(r.FBU, value),
            r.PXIS: self._clear_interrupts,
            r.PXIE: self._enable_interrupts,
            r.CMD: self._set_command,
            r.SCTL: self._set_control,
            r.SERR: self._clear_errors,
            r.SACT: self._activate,
            r.CI: self._issue,
        }
        self._registers: dict[int, int] = {r.CLB: 0, r.CLBU: 0, r.FB: 0, r.FBU: 0}
        self.reset()

    def plug(self, drive: Drive) -> None:
        """Put `drive` behind the port."""
        self.drive = drive
        self.reset()

    def unplug(self) -> None:
        """Nothing is behind the port any more; a command that it had is forgotten."""
        self.drive = None
        self.reset()

    def reset(self) -> None:
        """Power on, or a reset of the controller (10.4.3); the addresses of the lists are kept."""
        self._registers |= {
            r.PXIS: 0,
            r.PXIE: 0,
            r.CMD: r.CMD_SUD | r.CMD_POD,
            r.SCTL: 0,
            r.SERR: 0,
            r.SACT: 0,
            r.CI: 0,
        }
        self._stopped = False
        self._failed_tag = 0
        self._reset_link()

    def read(self, offset: int) -> int:
        """The 32-bit register at `offset` of the port."""
        return self._registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Likewise."""
        writer = self._writers.get(offset)
        if writer is not None:
            writer(value)

    @property
    def interrupts(self) -> bool:
        """Whether the port wants an interrupt."""
        return bool(self._registers[r.PXIS] & self._registers[r.PXIE])

    # Registers

    def _keep(self, offset: int, value: int) -> None:
        self._registers[offset] = value

    def _clear_interrupts(self, value: int) -> None:
        self._registers[r.PXIS] &= ~value
        self._changed()

    def _enable_interrupts(self, value: int) -> None:
        self._registers[r.PXIE] = value & r.IE_MASK
        self._changed()

    def _interrupt(self, bits: int) -> None:
        self._registers[r.PXIS] |= bits
        self._changed()

    def _clear_errors(self, value: int) -> None:
        self._registers[r.SERR] &= ~value
        if not self._registers[r.SERR] & r.SERR_EXCHANGED:  # PCS shows what DIAG.X says (3.3.5)
            self._registers[r.PXIS] &= ~r.IS_PCS
            self._changed()

    def _set_command(self, value: int) -> None:
        g = self._registers
        before = g[r.CMD]
        now = value & r.CMD_KEPT | before & (0x1F << r.CMD_SLOT_SHIFT)
        if value & r.CMD_CLO:
            g[r.TFD] &= ~(BSY | DRQ)
        if now & r.CMD_FRE:
            now |= r.CMD_FR
        if now & r.CMD_ST:
            now |= r.CMD_CR
        elif before & r.CMD_ST:
            g[r.CI] = g[r.SACT] = 0
            self._stopped = False
        g[r.CMD] = now & ~(0xF << 28)
        if now & r.CMD_FRE and not before & r.CMD_FRE and self.drive is not None:
            self._post_device(0)
        self._run()

    def _set_control(self, value: int) -> None:
        before, self._registers[r.SCTL] = self._registers[r.SCTL], value & 0xFFF
        if value & 0xF == 1:
            self._registers[r.SSTS] = 0
            self._registers[r.TFD] = _NO_DEVICE | BSY
        elif before & 0xF == 1 and not value & 0xF:
            self._reset_link()
            if self.drive is not None:
                self._registers[r.SERR] |= r.SERR_EXCHANGED
                self._post_device(r.IS_PCS)
        elif value & 0xF == 4:
            self._registers[r.SSTS] = 4

    def _reset_link(self) -> None:
        g, drive = self._registers, self.drive
        g[r.SACT] = g[r.CI] = 0
        self._stopped = False
        if drive is None:
            g[r.SSTS], g[r.TFD], g[r.SIG] = 0, _NO_DEVICE, 0xFFFF_FFFF
            return
        drive.reset()
        task = drive.task
        g[r.SSTS] = r.SSTS_PRESENT
        g[r.SIG] = task.high << 24 | task.mid << 16 | task.low << 8 | task.count
        self._show_task()

    # Commands

    def _activate(self, value: int) -> None:
        if self._registers[r.CMD] & r.CMD_ST:
            self._registers[r.SACT] |= value

    def _issue(self, value: int) -> None:
        if self._registers[r.CMD] & r.CMD_ST:
            self._registers[r.CI] |= value
            self._run()

    def _run(self) -> None:
        """Carry out what was issued, until a command fails: then the guest has to stop the port (6.2.2)."""
        g = self._registers
        while g[r.CI] and not self._stopped and g[r.CMD] & r.CMD_CR and self.drive is not None and self._may_master():
            slot = (g[r.CI] & -g[r.CI]).bit_length() - 1
            g[r.CMD] = g[r.CMD] & ~(0x1F << r.CMD_SLOT_SHIFT) | slot << r.CMD_SLOT_SHIFT
            try:
                self._carry_out(slot, self.drive)
            except GuestAddressError:  # the list or the table is no memory
                self._stopped = True
                self._interrupt(r.IS_HBFS)

    def _carry_out(self, slot: int, drive: Drive) -> None:
        g = self._registers
        header_at = (g[r.CLBU] << 32 | g[r.CLB]) + slot * r.HEADER_STRIDE
        command = Command.fetch(self._memory, header_at)
        if not command.is_command:
            self._device_control(slot, command)
            return
        try:
            if command.code == r.READ_LOG_EXT and command.log_page == r.LOG_NCQ_ERROR:
                moved = command.send(self._memory, self._error_log())
            else:
                moved = carry_out(self._memory, drive, command)
        except CommandError:
            moved = 0
        bits = r.IS_DPS if command.wants_interrupt else 0
        if command.queued:
            self._end_queued(slot, command, drive, bits)
            return
        struct.pack_into("<I", self._memory.view(header_at + 4, 4), 0, moved)
        self._memory.written(header_at + 4, 4)
        failed = bool(drive.task.status & ERR)
        if not failed:
            g[r.CI] &= ~(1 << slot)
        if command.by_pio and not failed:
            self._post_pio_setup(moved, bits)
        else:
            self._post_device(bits | (r.IS_TFES if failed else 0) | r.IS_DHRS)
        self._stopped = failed

    def _end_queued(self, slot: int, command: Command, drive: Drive, bits: int) -> None:
        """The end of a queued command: a Set Device Bits FIS (Serial ATA 3.0, 13.6.4)."""
        g, tag = self._registers, 1 << command.tag
        failed = bool(drive.task.status & ERR)
        if failed:
            self._stopped, self._failed_tag = True, command.tag
            bits |= r.IS_TFES
        else:
            g[r.SACT] &= ~tag
        g[r.CI] &= ~(1 << slot)
        self._show_task()
        status = drive.task.status & _STATUS_IN_BITS
        fis = struct.pack(
            "<BBBBI", r.FIS_SET_DEVICE_BITS, r.FIS_INTERRUPT, status, drive.task.error, 0 if failed else tag
        )
        self._post(r.AT_SET_DEVICE_BITS, fis)
        self._interrupt(bits | r.IS_SDBS)

    def _error_log(self) -> bytes:
        """Log page 0x10 (ATA8-ACS, "Queued Error Log"): which queued command failed, and how."""
        drive = self.drive
        assert drive is not None
        page = bytearray(512)
        page[0], page[2], page[3] = self._failed_tag, drive.task.status | ERR, drive.task.error or ABRT
        page[511] = -sum(page) & 0xFF
        drive.finish()
        drive.task.error = 0
        return bytes(page)

    def _device_control(self, slot: int, command: Command) -> None:
        """A FIS that carries the control register: SRST set, and then cleared, resets the drive (9.3.9)."""
        self._registers[r.CI] &= ~(1 << slot)
        if command.control & r.SRST:
            self._registers[r.TFD] |= BSY
        elif self.drive is not None:
            self.drive.reset()
            self._post_device(r.IS_DHRS)

    # What the drive sends

    def _show_task(self) -> None:
        drive = self.drive
        if drive is not None:
            self._registers[r.TFD] = drive.task.status & 0xFF | drive.task.error << 8

    def _post_device(self, bits: int) -> None:
        """A register FIS from the drive; `bits` of the interrupt status go with it."""
        drive = self.drive
        assert drive is not None
        task, above = drive.task, drive.task.previous
        self._show_task()
        fis = struct.pack(
            "<16B4x", r.FIS_D2H, r.FIS_INTERRUPT if bits else 0, task.status, task.error,
            task.low, task.mid, task.high, task.device, above[1], above[2], above[3], 0, task.count, above[0], 0, 0,
        )  # fmt: skip
        self._post(r.AT_D2H, fis)
        self._interrupt(bits)

    def _post_pio_setup(self, moved: int, bits: int) -> None:
        drive = self.drive
        assert drive is not None
        task, above = drive.task, drive.task.previous
        self._show_task()
        flags = r.FIS_INTERRUPT | r.FIS_TO_MEMORY
        fis = struct.pack(
            "<16BH2x", r.FIS_PIO_SETUP, flags, task.status, task.error,
            task.low, task.mid, task.high, task.device, above[1], above[2], above[3], 0, task.count, above[0],
            0, task.status, moved & 0xFFFF,
        )  # fmt: skip
        self._post(r.AT_PIO_SETUP, fis)
        self._interrupt(bits | r.IS_PSS)

    def _post(self, at: int, fis: bytes) -> None:
        """Put a FIS where the guest wants what is received; elsewhere than in memory it is lost."""
        g = self._registers
        if not g[r.CMD] & r.CMD_FRE or not self._may_master():
            return
        place = (g[r.FBU] << 32 | g[r.FB]) + at
        try:
            self._memory.view(place, len(fis))[:] = fis
        except GuestAddressError:
            return
        self._memory.written(place, len(fis))
