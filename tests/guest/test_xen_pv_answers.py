"""The questions of `pv_questions.py`, asked here: the answers are those of real Xen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bivisor.abi.xen.xen import ShutdownReason
from bivisor.toolstack.xenhost import XenHost

from .pv_player import PATIENCE_S
from .pv_questions import CODE, ENTRY, LIST, build, questions, recorded, signed

SOURCE = Path(__file__).parent / "tiny" / "pv_questions.S"


@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs the GNU assembler")
def test_the_kernel_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    obj, out = tmp_path / "q.o", tmp_path / "q.bin"
    subprocess.run(["as", SOURCE, "-o", obj], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, out], check=True)
    assert out.read_bytes() == CODE


@pytest.mark.guest
def test_a_pv_kernel_gets_the_answers_of_real_xen(tmp_path: Path) -> None:
    with XenHost("soft") as host:
        domain = host.create("asks", build(tmp_path / "kernel"), type="pv", memory=16, cmdline="", paused=True)
        memory = domain._built.domain.memory
        domain.start()
        assert domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF
        answers = {
            question.name: signed(ENTRY.unpack(memory.read(LIST + ENTRY.size * number, ENTRY.size))[6] & 0xFFFF_FFFF)
            for number, question in enumerate(questions())
        }
    assert answers == recorded()
