"""`bivisor xl`: Xen's own command, for the domains of this program's host. See xl(1)."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = {
    "create": ("create", "Create a domain from a configuration file."),
    "config-update": ("create", "Change what a domain is made of when it reboots."),
    "list": ("listing", "List domains."),
    "vcpu-list": ("listing", "List the virtual processors of domains."),
    "uptime": ("listing", "Print for how long domains have run."),
    "domid": ("listing", "Convert a domain name to its id."),
    "domname": ("listing", "Convert a domain id to its name."),
    "destroy": ("life", "End a domain at once."),
    "shutdown": ("life", "Ask a domain's kernel to shut down."),
    "reboot": ("life", "Ask a domain's kernel to reboot."),
    "pause": ("life", "Hold a domain's processors."),
    "unpause": ("life", "Let a paused domain go on."),
    "rename": ("life", "Give a domain another name."),
    "sysrq": ("life", "Send a magic SysRq key to a domain's kernel."),
    "trigger": ("life", "Send an NMI to a domain."),
    "console": ("console", "Attach to a domain's console."),
    "mem-set": ("memory", "Set the memory that a domain is to come to."),
    "mem-max": ("memory", "Set the memory that a domain can have at most."),
    "vcpu-set": ("vcpus", "Set how many processors a domain is to use."),
    "block-attach": ("devices", "Give a domain another disk."),
    "block-detach": ("devices", "Take a disk from a domain."),
    "block-list": ("devices", "List a domain's disks."),
    "network-attach": ("devices", "Give a domain another network interface."),
    "network-detach": ("devices", "Take a network interface from a domain."),
    "network-list": ("devices", "List a domain's network interfaces."),
    "info": ("info", "Print what is known of the host."),
    "dmesg": ("info", "Print the hypervisor's messages."),
}
_ELSEWHERE = {
    **dict.fromkeys(("save", "restore", "migrate", "migrate-receive", "remus"), "domains cannot be saved or migrated"),
    **dict.fromkeys(
        ("pci-attach", "pci-detach", "pci-list", "pci-assignable-add", "usbdev-attach"), "there is no pass-through"
    ),
    **dict.fromkeys(("cd-insert", "cd-eject", "vncviewer", "button-press"), "it is for HVM domains"),
    **dict.fromkeys(("vcpu-pin", "sched-credit", "sched-credit2", "cpupool-list"), "there is no scheduler"),
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            ctx.fail(f"xl {cmd_name} is not there: {_ELSEWHERE[cmd_name]} yet")
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"bivisor.cli.xl.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, "list_" if cmd_name == "list" else cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in _COMMANDS.items()])


_EPILOG = """\b
Examples:
  bivisor xl create name=demo -c         a domain with the default guest, and its console
  bivisor xl create demo.cfg memory=512
  bivisor xl list
  bivisor xl shutdown -w demo

A domain is named by its name or its id. Exit status: 0 done; 2 it cannot be, and a line says why; 1 an error of the
host's.
"""


@click.group("xl", cls=_Lazy, epilog=_EPILOG)
@click.option("--state", metavar="DIR", help="The host's folder, instead of $BIVISOR_HOST or its usual place.")
@click.option("--no-start", is_flag=True, help="Do not start a host where none runs.")
@click.pass_context
def command(ctx: click.Context, state: str | None, no_start: bool) -> None:
    """Xen's own command, for the domains of this program's host.

    Commands and xl.cfg files are those of Xen; `create` starts a host where none runs (see `bivisor host`).
    """
    ctx.obj = {"state": state, "start": not no_start}
