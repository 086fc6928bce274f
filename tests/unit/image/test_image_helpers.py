"""The three little programs, run here: without any right or device they must say so and end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bivisor.image import helpers
from bivisor.image.program import Call, Program

Run = Callable[..., subprocess.CompletedProcess[bytes]]

EXIT, WRITE, EXECVE, GETPID = 60, 1, 59, 39


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(image: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        path = tmp_path / "program"
        path.write_bytes(image)
        path.chmod(0o755)
        return subprocess.run([path, *arguments], capture_output=True, timeout=20, check=False)

    return run


LIST = """
    bb =calls                   mov   ebx, calls
  run:
    48 8b 03                    mov   rax, [rbx]
    48 85 c0                    test  rax, rax
    78 @run                     js    run
    48 8b 7b 08                 mov   rdi, [rbx + 8]
    48 8b 73 10                 mov   rsi, [rbx + 16]
    48 8b 53 18                 mov   rdx, [rbx + 24]
    0f 05                       syscall
    48 83 c3 30                 add   rbx, 48
    e9 @@run                    jmp   run
"""


def test_a_program_has_its_labels_data_and_arguments_where_its_code_looks(run: Run) -> None:
    program = Program(LIST)
    calls = [
        Call(GETPID),
        Call(WRITE, (1, b"one\n", 4)),
        Call(EXECVE, (b"/does/not/exist", (b"x",), ())),
        Call(EXECVE, (b"/bin/sh", (b"sh", b"-c", b"echo $V; exit 5"), (b"V=two",))),
        Call(EXIT, (1,)),
    ]
    done = run(program.elf({"calls": program.place_calls(calls)}))
    assert (done.returncode, done.stdout) == (5, b"one\ntwo\n")


def test_equal_data_has_one_place_and_every_place_is_aligned() -> None:
    program = Program("90  nop")
    first, second = program.place(b"abc"), program.place(b"defg")
    assert program.place(b"abc") == first != second
    assert first % 8 == second % 8 == 0


def test_an_address_that_was_not_given_is_an_error() -> None:
    with pytest.raises(KeyError):
        Program("bb =missing  mov ebx, missing").elf({})


@pytest.mark.parametrize(
    "arguments", [(), ("1",), ("1", "2", "3"), ("x", "244"), ("", "244"), ("7", "-1"), ("7", "65536"), ("7", "9" * 30)]
)
def test_debug_exit_refuses_bad_arguments_before_it_touches_anything(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(helpers.debug_exit(), *arguments).returncode == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="as root it would write to a real port")
def test_debug_exit_without_the_right_to_use_ports_fails(run: Run) -> None:
    assert run(helpers.debug_exit(), "7", "244").returncode == 1


def test_load_modules_counts_what_it_could_not_load(run: Run, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.ko"
    rubbish.write_bytes(b"not a module")
    assert run(helpers.load_modules()).returncode == 0
    assert run(helpers.load_modules(), str(rubbish), str(tmp_path / "missing.ko")).returncode == 2


def test_init_makes_its_calls_in_order(run: Run) -> None:
    instead = Call(EXECVE, (b"/bin/sh", (b"sh", b"-c", b"printf instead; exit 3"), ()))
    setup = [Call(WRITE, (1, b"setup ", 6)), instead, Call(EXIT, (1,))]  # it never comes to a child, or to powering off
    done = run(helpers.init(setup, [Call(EXIT, (127,))]))
    assert (done.returncode, done.stdout) == (3, b"setup instead")
