"""The examples in the documents, as things that can be run.

A block marked ```console is a shell session: lines that begin with "$ " are commands, what follows is what they print.
Numbers and spaces aside, each line that is shown has to be among the lines printed, in whatever order; a line that is
nothing but a number has to be that number, and "..." stands for more of the same. A block marked ```python is a
program; where a print is followed by a comment, that is what it prints.

A further word on the fence says more: `kvm`, it needs a /dev/kvm that runs kernels at full speed; `host`, what it
prints depends on the host and is not compared; `continued`, it goes on where the last block of its language ended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\b0x[0-9a-fA-F]+\b|\d[\d,.]*")
_PRINT = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)
_RELEASE = re.compile(r"\d+\.\d+\.\d+-[\w.-]*(amd64|generic|kvm|virtual)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of `document`, whose text begins at `line`."""

    document: str
    line: int
    language: str
    needs: frozenset[str]
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line of a shell session, and what it is shown to print."""

    words: str
    shown: tuple[str, ...]


def blocks(language: str) -> list[Block]:
    """The blocks of all documents that are in `language`."""
    found: list[Block] = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            if match[1] == language:
                line, words = text.count("\n", 0, match.start()) + 2, frozenset(match[2].split())
                before = found[-1].text + "\n\n" if "continued" in words else ""
                found.append(Block(str(path.relative_to(ROOT)), line, language, words, before + match[3]))
    return found


def commands(block: Block) -> list[Command]:
    """The session of `block`. A command goes on in the next line after a backslash."""
    found: list[Command] = []
    for line in block.text.replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], ()))
        elif line.strip():
            found[-1] = Command(found[-1].words, (*found[-1].shown, line))
    return found


def printed_by(block: Block) -> list[str]:
    """What a program is shown to print, line by line."""
    return _PRINT.findall(block.text)


def comparable(line: str) -> str:
    """`line` without what differs from run to run and from host to host."""
    if line.strip().isdigit():
        return line.strip()
    return " ".join(_NUMBER.sub("#", _RELEASE.sub("RELEASE", line)).split())


def missing(shown: tuple[str, ...] | list[str], printed: str) -> list[str]:
    """The lines of `shown` that are not among those `printed`."""
    known = {comparable(line) for line in printed.splitlines()}
    return [line for line in shown if line.strip() != "..." and comparable(line) not in known]
