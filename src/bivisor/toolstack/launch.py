"""From options to a machine that is loaded and ready to start.

The order of the PCI bus is fixed (console, entropy, disks, networks, balloon, shared folders), so that a guest finds
the same devices under the same names each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bivisor.boot import PayloadCache
from bivisor.errors import ImageError, UsageError
from bivisor.image import Guest, ProgressFactory, default_guest, on_stderr
from bivisor.image.place import default_root
from bivisor.kvm import VirtualMachine
from bivisor.kvm.vm import Wrapper
from bivisor.platform.virtio.rng import VirtioRng
from bivisor.toolstack.options import DiskOption, NetOption, RunOptions, ShareOption
from bivisor.toolstack.session import Session

if TYPE_CHECKING:
    from bivisor.platform.virtio.net import NetBackend

    class _Wire(NetBackend, Protocol):
        def close(self) -> None: ...


DEBUG_EXIT_PORT = 0xF4


@dataclass(frozen=True, slots=True)
class Payload:
    """What is booted. `ours`: the initramfs is of this program, and has a driver for the virtio console; `release` is
    the kernel's, where it is known, and `modules` the folder of its modules."""

    kernel: Path
    initrd: Path | None
    ours: bool
    release: str = ""
    modules: Path | None = None


def payload(options: RunOptions, progress: ProgressFactory = on_stderr) -> Payload:
    """The kernel and initramfs that `options` ask for, prepared if need be. HostError where there is no kernel."""
    kernel, initrd = options.kernel, options.initrd
    if kernel is None:
        guest = default_guest(progress)
        return Payload(guest.kernel, initrd or guest.initrd, initrd is None, guest.release, guest.modules)
    if initrd is not None or any(word.startswith("root=") for word in options.append.split()):
        return Payload(kernel, initrd, False)
    made = _guest_of(kernel, progress)
    if made is None:
        return Payload(kernel, None, False)
    return Payload(kernel, made.initrd, True, made.release, made.modules)


def _guest_of(kernel: Path, progress: ProgressFactory) -> Guest | None:
    from bivisor.image.cache import Cache
    from bivisor.image.prepare import guest_of

    try:
        with progress() as report:
            return guest_of(Cache(), report, kernel)
    except ImageError:  # no modules for it; whether it is a kernel at all is told when it is loaded
        return None


def launch(
    options: RunOptions,
    session: Session,
    *,
    found: Payload | None = None,
    wrap: Wrapper | None = None,
    attach: Callable[[VirtualMachine], object] | None = None,
) -> VirtualMachine:
    """A machine with `session`'s consoles and everything else that `options` ask for, loaded and not yet started.

    Closing it gives everything back. `attach(vm)` may plug in devices of one's own. UsageError, ImageError and
    HostError say in one line what cannot be.
    """
    what = payload(options) if found is None else found
    vm = VirtualMachine(
        memory=options.memory,
        cpus=options.cpus,
        engine=options.engine,
        console=session.com1,
        debug_exit_port=DEBUG_EXIT_PORT,
        wrap=wrap,
    )
    try:
        session.connect(vm)
        vm.add(VirtioRng(vm.loop))
        for disk in options.disks:
            _add_disk(vm, disk)
        for index, net in enumerate(options.nets):
            add_net(vm, net, index)
        _add_balloon(vm)
        for share in options.shares:
            add_share(vm, share)
        if attach is not None:
            attach(vm)
        vm.load(
            what.kernel,
            initrd=what.initrd,
            initrd_tail=_tail(session.command) + _sharing(options, what),
            cmdline=_cmdline(options, session),
            protocol=options.protocol,
            cache=PayloadCache(default_root() / "kernels"),
        )
        if what.initrd is None and session.command is not None:  # after `load`, which knows what is wrong with a kernel
            raise UsageError(
                f"--exec: there is no initramfs for {what.kernel}, nor modules to make one (give --initrd FILE)"
            )
    except BaseException:
        vm.close()
        raise
    return vm


def _tail(command: str | None) -> bytes:
    if command is None:
        return b""
    from bivisor.image.initramfs import append_exec

    return append_exec(command)


def _sharing(options: RunOptions, what: Payload) -> bytes:
    """What the default guest needs to mount shared folders. ImageError where its kernel cannot."""
    if not (options.shares and what.ours and what.modules is not None):
        return b""
    from bivisor.image.initramfs import append_sharing
    from bivisor.image.modules import ModuleTree

    try:
        return append_sharing(ModuleTree(what.modules))
    except ImageError as error:
        raise ImageError(f"--share: {error}") from None


def _cmdline(options: RunOptions, session: Session) -> str:
    loud = "" if options.verbose else "quiet"
    networks = (f"bivisor.dhcp=eth{index}" for index, net in enumerate(options.nets) if net.kind == "user")
    shares = (f"bivisor.share={share.tag}{',ro' * share.read_only}" for share in options.shares)
    ending = ("panic=-1", f"bivisor.exit={DEBUG_EXIT_PORT:#x}")
    words = (session.words(), loud, *ending, *networks, *shares, options.append)
    return " ".join(filter(None, words))


def _add_disk(vm: VirtualMachine, option: DiskOption) -> None:
    from bivisor.host.images import open_image
    from bivisor.platform.virtio.blk import VirtioBlk

    disk = open_image(option.path, option.how)
    vm.on_close(disk.close)
    vm.add(VirtioBlk(disk, vm.loop, queues=option.queues, serial=option.serial))


def add_share(vm: VirtualMachine, option: ShareOption) -> None:
    """Plug in a folder of the host."""
    from bivisor.host.shared_folder import SharedFolder
    from bivisor.platform.virtio.fs import VirtioFs

    folder = SharedFolder(option.path, read_only=option.read_only)
    vm.on_close(folder.close)
    vm.add(VirtioFs(folder, vm.loop, option.tag, cache=option.cache))


def add_net(vm: VirtualMachine, option: NetOption, index: int) -> None:
    """Plug in the network interface number `index`."""
    from bivisor.platform.virtio.net import VirtioNet, parse_mac

    mac = option.mac or f"52:54:00:b1:00:{index + 1:02x}"
    parse_mac(mac)
    wire = _WIRES[option.kind](vm, option.target)
    vm.on_close(wire.close)
    if option.model == "e1000":
        from bivisor.platform.e1000 import E1000

        vm.pc.add(E1000(vm.memory, wire, mac, vm.loop))
    else:
        vm.add(VirtioNet(wire, mac))


def _user(vm: VirtualMachine, _: str) -> _Wire:
    from bivisor.host.passt import Passt

    return Passt(vm.loop)


def _tap(vm: VirtualMachine, name: str) -> _Wire:
    from bivisor.host.tap import Tap

    return Tap(vm.loop, name)


def _socket(vm: VirtualMachine, path: str) -> _Wire:
    from bivisor.host.link import SocketLink

    return SocketLink(vm.loop, path)


_WIRES: dict[str, Callable[[VirtualMachine, str], _Wire]] = {"user": _user, "tap": _tap, "socket": _socket}


def _add_balloon(vm: VirtualMachine) -> None:
    from bivisor.host.falloc import punch_hole
    from bivisor.platform.virtio.balloon import VirtioBalloon

    vm.add(VirtioBalloon(vm.loop, punch_hole, reporting=True))
