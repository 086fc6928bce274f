"""A time on the command line that something waits for: what Python can wait for, and neither endless nor NaN."""

from __future__ import annotations

import threading
from typing import Any

import click


class Seconds(click.FloatRange):
    """A number of seconds within the range, and no more than a thread can wait for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType`."""
        seconds = float(super().convert(value, param, ctx))
        if not seconds <= threading.TIMEOUT_MAX:  # nor is NaN
            self.fail(f"{value} is not a number of seconds up to {threading.TIMEOUT_MAX:g}", param, ctx)
        return seconds
