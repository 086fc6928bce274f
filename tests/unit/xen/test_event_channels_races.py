"""No event is lost: two processors of a guest that takes events as Linux does, stopped at every memory access, while
another domain sends, and ports are masked, unmasked, polled and moved. Every event of an unmasked port is seen once, or
together with another; none is seen that was not sent."""

from __future__ import annotations

import random

import pytest
from event_guests import world
from event_model import PORTS, FifoModel, Model, TwoLevelModel
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("model", [TwoLevelModel, FifoModel])
@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(30, 600))
def test_every_event_is_seen(model: type[Model], seed: int, length: int) -> None:
    decisions = random.Random(seed).randbytes(length)  # evenly spread, which bytes that Hypothesis draws are not
    with world() as hosts:
        guest = model(hosts, decisions)
        try:
            guest.run()
        finally:
            guest.close()
    assert not guest.owed
    assert all(guest.seen[port] <= guest.sent[port] for port in range(1, PORTS + 1))
    assert all(guest.seen[port] > 0 for port in range(1, PORTS + 1) if guest.sent[port])
