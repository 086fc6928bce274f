"""`bivisor image`: what guests are booted from. See `bivisor.image`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bivisor.image import Guest
    from bivisor.image.progress import Progress

_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group("image", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Prepare, list, build and inspect what guests are booted from.

    Without a subcommand: get the default guest. That needs the network once; afterwards everything works offline.
    """
    return get() if ctx.invoked_subcommand is None else 0


def get(refresh: bool = False, quiet: bool = False) -> int:
    """Prepare the default guest and say where it is."""
    from bivisor.image import default_guest

    _show(default_guest(_progress(quiet), refresh=refresh))
    return 0


@command.command("get")
@click.option("--refresh", is_flag=True, help="Ask the distribution for a newer kernel.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def get_command(refresh: bool, quiet: bool) -> int:
    """Get the distribution's kernel and make its initramfs."""
    return get(refresh, quiet)


@command.command("list")
@_JSON
def list_command(as_json: bool) -> int:
    """What is there: the default guest, and the kernels in /boot."""
    from bivisor.errors import ImageError
    from bivisor.image.default import known_guest
    from bivisor.image.prepare import find_modules, installed_kernels, release_of

    rows = []
    default = known_guest()
    if default is not None:
        rows.append({"name": "default", "release": default.release, "kernel": str(default.kernel), "bootable": True})
    for kernel in installed_kernels():
        try:
            release = release_of(kernel)
        except ImageError:
            continue
        has_modules = find_modules(kernel, release) is not None
        rows.append({"name": kernel.name, "release": release, "kernel": str(kernel), "bootable": has_modules})
    if as_json:
        _print_json(rows)
        return 0
    for row in rows:
        without = "" if row["bootable"] else "  (its modules are not there: give --initrd)"
        click.echo(f"{row['name']:<8}  {row['release']:<24}  {row['kernel']}{without}")
    if not rows:
        click.echo("nothing yet: `bivisor image get` gets the default guest", err=True)
    return 0


@command.command("path")
@click.argument("what", type=click.Choice(["kernel", "initrd", "modules", "cache"]), default="kernel")
def path_command(what: str) -> int:
    """Print the path of the default guest's kernel (or initrd, modules), or of the cache, for scripts."""
    if what == "cache":
        from bivisor.image.place import default_root

        click.echo(default_root())
        return 0
    from bivisor.image import default_guest

    click.echo(getattr(default_guest(_progress(False)), what))
    return 0


@command.command("initrd")
@click.option("--kernel", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The bzImage.")
@click.option("--modules", metavar="DIR", type=click.Path(path_type=Path), help="Its /lib/modules/RELEASE.")
@click.option("--extra", metavar="MODULE", multiple=True, help="A module to have in it as well.")
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Copy the initramfs there.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def initrd_command(kernel: Path, modules: Path | None, extra: tuple[str, ...], output: Path | None, quiet: bool) -> int:
    """Make an initramfs for a kernel, with busybox and just the modules that a guest needs."""
    from bivisor.errors import HostError
    from bivisor.image.cache import Cache
    from bivisor.image.prepare import guest_of

    with _progress(quiet)() as report:
        guest = guest_of(Cache(), report, kernel, modules=modules, extra=extra)
    if output is not None:
        try:
            output.write_bytes(guest.initrd.read_bytes())
        except OSError as error:
            raise HostError(f"cannot write {output}: {error.strerror}") from error
    _show(guest)
    return 0


@command.command("build")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--packages", metavar="NAME,NAME…", default="", help="Packages of the distribution to unpack into it.")
@click.option("--size", metavar="SIZE", help="Of the image: MiB, or with a unit; as large as it needs without it.")
@click.option(
    "--pc-kernel", is_flag=True, help="The distribution's kernel with drivers of PC hardware, not the small one."
)
@click.option("--append", metavar="WORDS", default="", help="More for the kernel's command line.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def build_command(file: Path, packages: str, size: str | None, pc_kernel: bool, append: str, quiet: bool) -> int:
    """Make a bootable disk image: Debian's kernel, GRUB, a small system with busybox, memtest86+, and packages.

    Root is not needed. Packages are unpacked with all that they depend on; their scripts are not run.
    """
    from bivisor.image.cache import Cache
    from bivisor.image.disk import WORDS, build_disk, copy_image
    from bivisor.image.pckernel import pc_guest
    from bivisor.toolstack.newimage import to_write
    from bivisor.toolstack.options import parse_memory

    progress = _progress(quiet)
    wanted = 0 if size is None else parse_memory(size)
    with to_write(file) as out:  # first, so that nobody waits for what cannot be kept
        made = build_disk(
            Cache(),
            progress,
            pc_guest(progress) if pc_kernel else None,
            " ".join(filter(None, (WORDS, append))),
            packages=[name.strip() for name in packages.split(",") if name.strip()],
            size=wanted,
        )
        copy_image(made, out)
    click.echo(f"{file}: bivisor run --machine pc --disk {file}")
    return 0


@command.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@_JSON
def inspect_command(file: Path, as_json: bool) -> int:
    """Say what kernel a file is, by its content: format, architecture, version, and how it can be booted."""
    from bivisor.boot import inspect

    image = inspect(file)
    rows: dict[str, Any] = {
        "kind": image.kind,
        "architecture": image.architecture,
        "version": image.version,
        "compression": image.compression,
        "protocols": list(image.protocols),
    }
    if as_json:
        details = {name: part for name in ("bzimage", "elf", "multiboot") if (part := getattr(image, name)) is not None}
        _print_json({"file": str(file)} | rows | _plain(details))
        return 0
    rows["protocols"] = ", ".join(image.protocols) or "none: it cannot be booted here"
    for name, value in rows.items():
        if value:
            click.echo(f"{name:<13} {value}")
    return 0


@command.command("symbols", epilog="\b\nExample:\n  bivisor image symbols vmlinux.sym && gdb vmlinux.sym\n")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--kernel", metavar="FILE", type=click.Path(path_type=Path), help="A kernel, if not the default guest's.")
def symbols_command(file: Path, kernel: Path | None) -> int:
    """Write a kernel's own symbols to FILE, in a form that gdb takes."""
    from bivisor.boot.kallsyms import kernel_symbols, symbol_file
    from bivisor.errors import HostError
    from bivisor.image import default_guest

    symbols = kernel_symbols(kernel or default_guest(_progress(False)).kernel)
    try:
        file.write_bytes(symbol_file(symbols))
    except OSError as error:
        raise HostError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"{file}: {len(symbols)} symbols")
    return 0


def _show(guest: Guest) -> None:
    for name, value in asdict(guest).items():
        click.echo(f"{name:<8} {value}")


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))


def _plain(value: Any) -> Any:
    """Parsed headers as JSON has them: names and numbers; the raw bytes are in the file."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.name[:4] != "raw_"}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    match value:
        case dict():
            return {name: _plain(part) for name, part in value.items()}
        case tuple() | list():
            return [_plain(part) for part in value]
        case bytes():
            return value.hex()
        case _:
            return value


def _progress(quiet: bool) -> Callable[[], AbstractContextManager[Progress]]:
    from bivisor.image import on_stderr
    from bivisor.image import quiet as silent

    return silent if quiet else on_stderr
