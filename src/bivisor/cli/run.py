"""`bivisor run`: the options, and what is said before and after the guest. See `bivisor.toolstack`."""

from __future__ import annotations

import gc
from typing import Any

import click

_EPILOG = """\b
Examples:
  bivisor run                                     a shell; exit or Ctrl-] leaves
  bivisor run --exec 'uname -r'                   one command
  tar c . | bivisor run --exec 'tar x; ls'        with its standard streams
  bivisor run --memory 1G --disk disk.img,ro --net user
  bivisor run --share . --exec 'ls -l /mnt'
  bivisor run --kernel /boot/vmlinuz --append loglevel=7 --verbose
  bivisor run --machine pc --firmware uefi --firmware-vars vars.fd --disk disk.img
  bivisor run --gdb 1234,wait                     then: gdb vmlinux -ex 'target remote :1234'
  bivisor run --exec true --stats --trace exits.txt

\b
Exit status: that of the --exec command (or what the guest wrote to its debug-exit port, 0xf4), or
    0  the guest powered off           83  it halted for ever
   80  it asked for a reset            84  the engine could not go on
   81  its kernel panicked            124  --timeout passed
   82  triple fault                   130  Ctrl-C, Ctrl-], a signal, or nobody reads the output
    1  an error of this program's doing or of the host's
    2  something was asked for that cannot be: one line says what would be right
"""


@click.command("run", epilog=_EPILOG)
@click.option("--kernel", metavar="FILE", help="Kernel to boot instead of the distribution's: bzImage, ELF, multiboot.")
@click.option("--initrd", metavar="FILE", help="Initramfs for it; without one, it is made if the modules are found.")
@click.option("--append", metavar="WORDS", default="", help="More for the kernel's command line.")
@click.option("--protocol", metavar="NAME", help="Boot protocol: linux64, pvh, multiboot or raw, if not the best one.")
@click.option("--memory", metavar="SIZE", default="256", show_default=True, help="MiB, or with a unit: 512M, 2G.")
@click.option("--cpus", metavar="N", type=int, default=1, show_default=True, help="Virtual processors.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="PATH[,ro][,snapshot][,format=F][…]",
    help="Add a disk image, raw or qcow2; with --machine pc also ,if=ide|ahci|cdrom|virtio.",
)
@click.option("--cdrom", "cdroms", multiple=True, metavar="ISO", help="With --machine pc: a disc, behind the disks.")
@click.option("--snapshot", is_flag=True, help="Throw away what is written to the disks.")
@click.option("--net", "nets", multiple=True, metavar="user|tap=NAME|socket=PATH[,mac=…]", help="Add a network.")
@click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="PATH[,ro][,tag=NAME][,cache=SECONDS]",
    help="Share a folder, at /mnt in the default guest, or at /share/NAME.",
)
@click.option("--engine", metavar="auto|kvm|soft", default="auto", show_default=True, help="What runs the guest.")
@click.option(
    "--exec", "command", metavar="COMMAND", help="Run this in the guest's shell; its streams and status are ours."
)
@click.option(
    "--machine",
    metavar="direct|pc",
    default="direct",
    show_default=True,
    help="direct: a kernel that is handed over; pc: firmware that boots from a disk.",
)
@click.option(
    "--firmware",
    metavar="bios|uefi|FILE",
    default="bios",
    show_default=True,
    help="With --machine pc: SeaBIOS, OVMF, or what FILE has.",
)
@click.option(
    "--firmware-vars",
    metavar="FILE",
    help="Where UEFI keeps its variables (boot entries); made if it is not there. Without it they are thrown away.",
)
@click.option("--boot-menu", is_flag=True, help="With --machine pc: the firmware waits for Esc, and asks what to boot.")
@click.option("--no-reboot", is_flag=True, help="With --machine pc: a reset ends the run.")
@click.option("--control", metavar="SOCKET", help="With --machine pc: where `screenshot` and `keys` find it.")
@click.option(
    "--vnc",
    metavar="[HOST:]DISPLAY[,password-file=FILE]",
    help="With --machine pc: screen, keyboard and mouse for VNC clients, at port 5900 + DISPLAY; auto: a free one.",
)
@click.option("--timeout", metavar="SECONDS", type=float, help="Stop the guest after this time.")
@click.option(
    "--stats", is_flag=True, help="At the end: exits by reason, time inside and outside of the guest (stderr)."
)
@click.option("--json", "as_json", is_flag=True, help="--stats, as JSON.")
@click.option(
    "--trace",
    metavar="[FILE]",
    is_flag=False,
    flag_value="-",
    help="Every exit, decoded, a line each; all events, if FILE ends in .jsonl or .pftrace (ui.perfetto.dev).",
)
@click.option(
    "--gdb", metavar="[HOST:]PORT[,wait]", help="Let gdb attach there; ,wait: the guest runs when gdb says so."
)
@click.option("--name", metavar="NAME", default="", help="What others find the machine by; else run-PID.")
@click.option("--verbose", "-v", is_flag=True, help="Say engine and why; the guest's kernel says what it does.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but errors.")
def command(**words: Any) -> int:
    """Boot a guest: a shell on its console, or one command.

    Without --kernel it is the distribution's own kernel, which is fetched once. Ctrl-] leaves the console.
    """
    gc.disable()  # until the guest runs nothing is garbage, and looking for it takes time; `run` enables it again

    from bivisor.toolstack.options import RunOptions
    from bivisor.toolstack.run import View, run

    names = ("timeout", "stats", "as_json", "trace", "quiet", "gdb", "name")
    view = View(**{name: words.pop(name) for name in names}, verbose=words["verbose"])
    options = RunOptions.of(**words)
    if options.machine == "pc":
        from bivisor.toolstack.pc import run_pc

        return run(options, view, run_pc)
    return run(options, view)
