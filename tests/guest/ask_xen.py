"""Asks real Xen the questions of `questions.py`, for whoever has one.

    cd tests; python -m guest.ask_xen build FOLDER    makes FOLDER/player.elf
    cd tests; python -m guest.ask_xen read LOG        makes tiny/xen-4.17.answers of Xen's console log

Between the two, boot Xen with `guest_loglvl=all` and create the guest as its first domain: type="pvh", memory=8.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .player import SCRATCH, TABLE, build, entries, signed
from .questions import ANSWERS, SLOT, questions

_LINE = re.compile(rb"R ([0-9a-f]{4}) ([0-9a-f]{16}) ?([0-9a-f]*)")


def make(folder: Path) -> Path:
    """The guest that asks all questions and prints the answers."""
    asked = questions()
    shown = [(question.address(i), question.shown) for i, question in enumerate(asked)]
    table = entries([question.call(i) for i, question in enumerate(asked)], shown).ljust(SCRATCH - TABLE, b"\0")
    structures = b"".join(question.data.ljust(SLOT, b"\0") for question in asked)
    folder.mkdir(exist_ok=True, parents=True)
    return build(folder, table + structures, len(asked), alone=True)


def record(log: Path) -> None:
    """Write down what Xen answered."""
    found = {int(m[1], 16): (signed(int(m[2], 16)), m[3].decode()) for m in _LINE.finditer(log.read_bytes())}
    asked = questions()
    if len(found) != len(asked):
        raise SystemExit(f"{log} has {len(found)} answers to {len(asked)} questions")
    lines = [f"{question.name}: {found[i][0]} {found[i][1]}".rstrip() + "\n" for i, question in enumerate(asked)]
    ANSWERS.write_text("".join(lines))


def recorded() -> dict[str, tuple[int, str]]:
    """What Xen answered to each question: the result, and the structure's first bytes in hexadecimal digits."""
    answers = {}
    for line in ANSWERS.read_text().splitlines():
        name, _, rest = line.rpartition(": ")
        result, _, shown = rest.partition(" ")
        answers[name] = (int(result), shown)
    return answers


if __name__ == "__main__":
    match sys.argv[1:]:
        case "build", where:
            print(make(Path(where)))
        case "read", log:
            record(Path(log))
        case _:
            raise SystemExit(__doc__)
