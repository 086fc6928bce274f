"""`bivisor run --machine pc`: a PC that boots from its disks, from options to exit status.

A reset of the guest is a new machine with the same disks, as pressing the button would be; `no_reboot` ends it instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bivisor.errors import UsageError
from bivisor.host.images import DiskImage, open_image
from bivisor.kvm import End, Outcome
from bivisor.kvm.firmware import Firmware, FirmwareMachine, PcSettings
from bivisor.kvm.vm import Wrapper
from bivisor.platform.ide import AtaDisk, CdRom
from bivisor.platform.virtio.blk import VirtioBlk
from bivisor.platform.virtio.rng import VirtioRng
from bivisor.toolstack.control import ControlSocket
from bivisor.toolstack.launch import DEBUG_EXIT_PORT, add_net, add_share
from bivisor.toolstack.options import DiskOption, RunOptions
from bivisor.toolstack.pcfirmware import BIOS, direct_kernel, load_firmware
from bivisor.toolstack.run import TIMED_OUT, View, say, until_the_end, watch_exits
from bivisor.toolstack.screen import Display
from bivisor.toolstack.session import Log, Session
from bivisor.toolstack.terminal import TerminalSession

IDE_PLACES = 4


def launch_pc(
    options: RunOptions,
    session: Session,
    *,
    log: Callable[[bytes], None],
    wrap: Wrapper | None = None,
    images: Sequence[DiskImage] | None = None,
    firmware: Firmware | None = None,
) -> FirmwareMachine:
    """A PC with everything that `options` ask for, ready to start. Closing it gives everything back, but for `images`
    and `firmware`: the open images of its disks, and its firmware with variables, where they are to outlive it."""
    with ExitStack() as opened:
        if firmware is None:
            firmware = load_firmware(options, opened.callback)
        settings = PcSettings(firmware, log, boot_menu=options.boot_menu, kernel=direct_kernel(options))
        vm = FirmwareMachine(
            settings,
            memory=options.memory,
            cpus=options.cpus,
            engine=options.engine,
            console=session.com1,
            debug_exit_port=DEBUG_EXIT_PORT,
            wrap=wrap,
        )
        vm.on_close(opened.pop_all().close)
    try:
        session.connect(vm)
        if images is None:
            images = open_disks(options, vm.on_close)
        place = 0
        for disk, image in zip(options.disks, images, strict=True):
            place += _add_disk(vm, disk, image, place)
        for index, net in enumerate(options.nets):
            add_net(vm, net, index)
        for share in options.shares:
            add_share(vm, share)
        vm.add(VirtioRng(vm.loop))
        vm.power_on()
    except BaseException:
        vm.close()
        raise
    return vm


def open_disks(options: RunOptions, on_close: Callable[[Callable[[], None]], object]) -> list[DiskImage]:
    """The images of a machine's disks; `on_close` takes what closes them."""
    images = []
    for option in options.disks:
        image = open_image(option.path, option.how)
        on_close(image.close)
        images.append(image)
    return images


def _add_disk(vm: FirmwareMachine, option: DiskOption, disk: DiskImage, place: int) -> int:
    """Plug in one drive; 1 if it took the IDE place `place`."""
    cdrom = option.interface == "cdrom"
    if option.interface == "virtio":
        function = vm.add(VirtioBlk(disk, vm.loop, queues=option.queues, serial=option.serial))
        slot = vm.board.pci.slot_of(function)
        vm.board.boot_order.append(f"/pci@i0cf8/scsi@{slot:x}/disk@0,0")
        return 0
    if option.interface == "ahci":
        sata = AtaDisk(disk, serial=option.serial or f"BV{len(vm.board.boot_order) + 1:05}", sata=True)
        vm.board.boot_order.append(vm.board.add_sata_drive(sata))
        return 0
    if place == IDE_PLACES:
        raise UsageError(f"disk {option.path}: a PC has {IDE_PLACES} IDE drives; add if=virtio or if=ahci to some")
    vm.add_drive(CdRom(disk) if cdrom else AtaDisk(disk, serial=option.serial or f"BV{place + 1:05}"), place)
    vm.board.boot_order.append(f"/pci@i0cf8/ide@1,1/drive@{place >> 1}/disk@{place & 1}")
    return 1


def run_pc(options: RunOptions, view: View, stack: ExitStack) -> int:
    """Run the PC until it ends or is left; the exit status."""
    _check(options)
    images = open_disks(options, stack.callback)
    firmware = load_firmware(options, stack.callback)
    display = None if options.vnc is None else _serve_display(options.vnc, view, stack)
    deadline = None if view.timeout is None else time.monotonic() + view.timeout
    while True:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        outcome = _one_boot(options, view, left, (images, firmware), display)
        if outcome is None:
            say(f"the guest did not end within {view.timeout:g} s")
            return TIMED_OUT
        if outcome.end is not End.RESET or options.no_reboot:
            break
    if outcome.end is not End.POWER_OFF and not view.quiet:
        say(str(outcome))
    return outcome.exit_status


def _check(options: RunOptions) -> None:
    """UsageError for what a PC cannot be asked for."""
    if options.command is not None or (options.firmware == BIOS and (options.kernel or options.initrd)):
        raise UsageError(
            "--machine pc boots what its disks have: --exec is for --machine direct, and so are --kernel and --initrd "
            "but with --firmware uefi"
        )
    if options.initrd is not None and options.kernel is None:
        raise UsageError("--initrd: it comes with a --kernel")
    if options.firmware == BIOS and not options.disks:
        raise UsageError("--machine pc boots from a disk: give --disk IMAGE (bivisor image build makes one)")


def _serve_display(text: str, view: View, stack: ExitStack) -> Display:
    """A screen with keyboard and mouse that VNC clients find as --vnc `text` says."""
    from bivisor.toolstack.vnc import VncOption, VncServer, listen

    option = VncOption.parse(text)
    security = option.security()
    display = Display()
    server = stack.enter_context(VncServer(display, display, listen(option), security, name="bivisor"))
    if not view.quiet:
        say(f"VNC at {option.host}:{server.port}")
    return display


def _one_boot(
    options: RunOptions,
    view: View,
    timeout: float | None,
    kept: tuple[Sequence[DiskImage], Firmware],
    display: Display | None,
) -> Outcome | None:
    """From reset to the end: how it ended, or None where `timeout` (seconds) passed. `kept` is what outlives resets."""
    log = Log(_to_stderr if view.verbose else None)
    session = TerminalSession(virtio=False, is_terminal=os.isatty(0), says_end=False, log=Log())
    with watch_exits(view) as watcher, ExitStack() as stack:
        wrap = watcher.wrap if watcher else None
        vm = launch_pc(options, session, log=log, wrap=wrap, images=kept[0], firmware=kept[1])
        stack.callback(vm.close)
        if watcher is not None:
            watcher.watch(vm)
        if display is not None:
            display.plug_in(vm.board.vga, vm.board.ps2, vm.loop)
            stack.callback(display.unplug)
        if options.control is not None:
            stack.enter_context(ControlSocket(Path(options.control), vm))
        if view.verbose:
            say(f"engine {vm.why}")
        outcome = until_the_end(vm, session, view, timeout)
        if watcher is not None and watcher.timed:
            watcher.report(as_json=view.as_json)
    return outcome


def _to_stderr(data: bytes) -> None:
    os.write(2, data)
