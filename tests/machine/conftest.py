"""The engines that this host has, by name: tiny guests run on any /dev/kvm that opens."""

from __future__ import annotations

import pytest

from bivisor.cpu.select import open_kvm, open_soft
from bivisor.errors import HostError


@pytest.fixture(scope="session", params=["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine."""
    name = str(request.param)
    try:
        (open_kvm if name == "kvm" else open_soft)().close()
    except HostError as error:
        pytest.skip(str(error))
    return name
