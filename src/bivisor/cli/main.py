"""The command `bivisor`: finds the subcommand, and turns every error into one line and an exit status.

A subcommand is imported when it is called and not before: the time until a guest runs is measured.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click

from bivisor.errors import BivisorError

_COMMANDS = {
    "run": ("bivisor.cli.run", "Boot a guest: a shell on its console, or one command."),
    "image": ("bivisor.cli.image", "Prepare, list, build and inspect what guests are booted from."),
    "xl": ("bivisor.cli.xl", "Xen's own command: create, list, console, destroy and their like."),
    "host": ("bivisor.cli.host", "Start, stop and look at the Xen host that xl commands."),
    "web": ("bivisor.cli.web", "Serve a page with the live picture of what runs."),
    "screenshot": ("bivisor.cli.screenshot", "Write a picture of a running PC's screen."),
    "keys": ("bivisor.cli.keys", "Press keys of a running PC."),
    "compare": (
        "bivisor.cli.compare",
        "Run one guest under KVM and Xen, with every kind of device, and say what differs.",
    ),
    "top": ("bivisor.cli.top", "Show what domains and machines come out for, and where the time goes."),
    "trace": ("bivisor.cli.trace", "Show what happens in a running host or machine, event by event."),
    "check": ("bivisor.cli.check", "Say what this host can do for guests, and how fast."),
}
INTERRUPTED = 130
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Lazy(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(_COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in _COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from bivisor import __version__

        click.echo(f"bivisor {__version__}")
        ctx.exit()


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="BIVISOR_CACHE names the directory for kernels; BIVISOR_DEBUG=1 shows where an error came from.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """KVM and Xen in Python: runs stock Linux kernels, with /dev/kvm or without."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    _fill_standard_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # as with Ctrl-C everything is given back; nohup stays nohup
            signal.signal(number, signal.default_int_handler)
    status = status_of(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # it has been told, where it could be; Python would tell it again, and in its own words
            _silence(stream.fileno())
    sys.exit(status)


def status_of(arguments: Sequence[str]) -> int:
    """The exit status of `arguments`; errors are told on standard error in one line."""
    try:
        result = cli.main(args=list(arguments), prog_name="bivisor", standalone_mode=False)
        sys.stdout.flush()  # now, while it can still be told where it does not go
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = f" (see {context.command_path} --help)" if context is not None else ""
        return _tell(error, error.format_message().rstrip(".") + where, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BivisorError as error:
        return _tell(error, str(error), error.status)
    except BrokenPipeError:  # whoever read our output has seen enough
        _silence(1)
        return 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            return _tell(error, _internal(error), 70)
        return _tell(error, f"cannot write the output: {error.strerror}", 1)
    except Exception as error:
        return _tell(error, _internal(error), 70)


def _silence(fd: int) -> None:
    """What is still to be written there goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _internal(error: Exception) -> str:
    return f"internal error: {type(error).__name__}: {error} (BIVISOR_DEBUG=1 shows where)"


def _tell(error: BaseException, words: str, status: int) -> int:
    if os.environ.get("BIVISOR_DEBUG"):
        import traceback

        traceback.print_exception(error)
    with suppress(OSError):  # nobody to tell it to; the status remains
        print(f"bivisor: {' '.join(words.split())}", file=sys.stderr, flush=True)
    return status


def _fill_standard_streams() -> None:
    """A descriptor below 3 that is closed would become the next file opened, and get what was meant for a terminal."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # Python found it closed, and print() would take another one in its place
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))
