"""Telling a person on standard error what takes time: a bar on a terminal, a line a step elsewhere, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """What a long operation reports."""

    def step(self, text: str) -> None:
        """The next step begins."""

    def fraction(self, done: float) -> None:
        """How much of this step is done, from 0 to 1."""


ProgressFactory = Callable[[], AbstractContextManager[Progress]]
"""Called when it turns out that there is something to do."""


class _Silent:
    def step(self, text: str) -> None:
        pass

    def fraction(self, done: float) -> None:
        pass


class _Lines(_Silent):
    def step(self, text: str) -> None:
        print(f"bivisor: {text}", file=sys.stderr, flush=True)


@contextmanager
def quiet() -> Iterator[Progress]:
    """Says nothing."""
    yield _Silent()


@contextmanager
def on_stderr() -> Iterator[Progress]:
    """A bar if standard error is a terminal, plain lines otherwise."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        class _Bar:
            def step(self, text: str) -> None:
                bar.reset(task, description=text, total=None)

            def fraction(self, done: float) -> None:
                bar.update(task, total=1.0, completed=done)

        yield _Bar()
