"""A domain without privilege gets from this hypervisor the answers that real Xen gives: a thousand hypercalls."""

from __future__ import annotations

from pathlib import Path

import pytest

from bivisor.toolstack.xenhost import XenHost

from .ask_xen import recorded
from .player import Player, build
from .questions import SLOT, questions

pytestmark = pytest.mark.guest

OTHERWISE = {
    "add_to_physmap 2 0x300 0x907": -95,  # memory stays where it is in the guest: EOPNOTSUPP
    "remove_from_physmap 0x907": -2,  # so there is nothing to remove
    "bind_pirq 5": -22,  # Xen gives a port for an interrupt that no device raises
}
"""Where this hypervisor does not do as Xen does."""


def test_a_domain_gets_the_answers_of_real_xen(tmp_path: Path) -> None:
    asked, answers = questions(), recorded()
    with XenHost("soft") as host:
        player = Player(host, build(tmp_path))
        for index, question in enumerate(asked):
            player.write(question.address(index), question.data.ljust(SLOT, b"\0"))
        results = player.play([question.call(index) for index, question in enumerate(asked)])
        given = {
            question.name: (results[index], player.read(question.address(index), question.shown).hex())
            for index, question in enumerate(asked)
        }
    different = {name: (given[name], answers[name]) for name in answers if given[name] != answers[name]}
    assert {name: ours[0] for name, (ours, _) in different.items()} == OTHERWISE, different
