"""Asks an HVM guest what hardware it has: one of real Xen, for whoever has it, or ours (`test_xen_hvm.py`).

    cd tests; python -m guest.ask_hvm build FOLDER    makes FOLDER/disk.img and FOLDER/hvm.cfg
    cd tests; python -m guest.ask_hvm ask TTY LOG     logs in at the guest's serial port and asks
    cd tests; python -m guest.ask_hvm read LOG        makes tiny/xen-4.17.hvm of what it said

Between the first two, `xl create FOLDER/hvm.cfg` in a Dom0 of Xen 4.17 that has Debian's qemu-system-xen; TTY is what
`xenstore-read /local/domain/$(xl domid hvm)/serial/0/tty` says. Where Xen itself is emulated that takes half an hour.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import sys
import time
import tty
from pathlib import Path

QUESTIONS = {
    "lspci": "lspci -nn -vvv -xxx 2>/dev/null",
    "dmidecode": "dmidecode",
    "acpi": "cd /sys/firmware/acpi/tables; for t in APIC FACP HPET WAET; do echo $t; od -An -v -tx1 $t; done; cd",
}
PACKAGES = ("dmidecode", "pciutils")
WORDS = "panic=-1 xen_emul_unplug=never"
UUID = "c16d67bb-ef36-46a5-8598-dd412908b504"
MAC = "00:16:3e:00:00:07"
RAM_MIB, VIDEO_MIB = 176, 16
"""Of real Xen's memory= a part is the display's."""
ANSWERS = Path(__file__).parent / "tiny" / "xen-4.17.hvm"
_CONFIG = """\
name = "hvm"
type = "hvm"
memory = {memory}
uuid = "{uuid}"
hdtype = "ahci"
disk = ["format=raw, vdev=xvda, access=rw, backendtype=qdisk, target={disk}"]
vif = ["mac={mac}, model=e1000"]
vga = "stdvga"
boot = "c"
serial = "pty"
vnc = 1
"""
_ZEROES = re.compile(r"[0-9a-f]0:( 00){16}")
_PROMPT, _SLOWLY, _AT_ONCE = b"/root # ", 0.05, 8


def lines(said: str) -> list[str]:
    """What counts of an answer: all but rows of zeroes."""
    kept = [line.rstrip() for line in said.replace("\r", "").split("\n")]
    return [line for line in kept if line and not _ZEROES.fullmatch(line)]


def recorded() -> dict[str, list[str]]:
    """What a guest of real Xen answered to each question."""
    found: dict[str, list[str]] = {}
    for line in ANSWERS.read_text().splitlines():
        if line.startswith("== "):
            found[line.removeprefix("== ")] = []
        else:
            found[list(found)[-1]].append(line)
    return found


def make(folder: Path) -> None:
    """The disk, and the domain's configuration."""
    from bivisor.image.disk import build_disk
    from bivisor.image.pckernel import pc_guest

    folder.mkdir(exist_ok=True, parents=True)
    disk = folder / "disk.img"
    shutil.copyfile(build_disk(guest=pc_guest(), words=WORDS, packages=PACKAGES), disk)
    config = _CONFIG.format(memory=RAM_MIB + VIDEO_MIB, uuid=UUID, disk=disk.absolute(), mac=MAC)
    (folder / "hvm.cfg").write_text(config)


def ask(terminal: str, log: Path) -> None:
    """Log in, and have every question answered; `log` gets what the guest says."""
    port = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    said = b""

    def wait(what: bytes) -> None:
        nonlocal said
        while what not in said:
            select.select([port], [], [])
            said += os.read(port, 4096)
        with log.open("ab") as out:
            out.write(said.partition(what)[0] + what)
        said = said.partition(what)[2]

    def send(line: str) -> None:
        for at in range(0, len(line), _AT_ONCE):
            os.write(port, line[at : at + _AT_ONCE].encode())
            time.sleep(_SLOWLY)

    wait(b"login:")
    send("root\n")
    wait(_PROMPT)
    for name, question in QUESTIONS.items():
        send(f"echo st''art {name}; {question}; echo en''d\n")
        wait(b"\nend\r\n")
        wait(_PROMPT)


def record(log: Path) -> None:
    """Write down what it said."""
    said = log.read_bytes().decode(errors="replace").replace("\r", "")
    parts = []
    for name in QUESTIONS:
        _, found, rest = said.partition(f"\nstart {name}\n")
        answer, ended, _ = rest.partition("\nend\n")
        if not (found and ended):
            raise SystemExit(f"{log} has no answer to {name}")
        parts += [f"== {name}", *lines(answer)]
    ANSWERS.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case "build", folder:
            make(Path(folder))
        case "ask", terminal, log:
            ask(terminal, Path(log))
        case "read", log:
            record(Path(log))
        case _:
            raise SystemExit(__doc__)
