"""The end of a domain: what it was made of is given back once, when nobody has any of it mapped any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from grant_guests import PAGES, Guest

from bivisor.memory import PAGE, GuestMemory
from bivisor.xen.domain import State
from bivisor.xen.hypervisor import Xen

SOMEBODY = 7


class End:
    """A domain, how often it was given back, and what Dom0's loop has still to call."""

    def __init__(self, memory: GuestMemory) -> None:
        self.xen = Xen()
        self.later: list[Callable[[], None]] = []
        self.xen.call_later = lambda _, work: self.later.append(work)
        self.domain = Guest(self.xen, memory).domain
        self.given_back = 0

    def destroy(self) -> None:
        self.xen.destroy(self.domain)
        self.xen.when_gone(self.domain, self.give_back)

    def give_back(self) -> None:
        assert self.domain.state is State.GONE
        self.given_back += 1

    def let_go(self) -> None:
        self.domain.references.remove(SOMEBODY)
        self.xen.release(self.domain)

    def run_loop(self) -> None:
        while self.later:
            self.later.pop(0)()


@pytest.fixture
def end() -> Iterator[End]:
    with GuestMemory(PAGES * PAGE) as memory:
        yield End(memory)


def test_a_domain_of_which_nobody_has_anything_is_given_back_at_once(end: End) -> None:
    end.destroy()
    assert end.given_back == 1


def test_one_of_which_somebody_has_a_page_waits_for_that_and_for_the_loop(end: End) -> None:
    end.domain.references.add(SOMEBODY)
    end.destroy()
    end.run_loop()
    assert end.given_back == 0
    end.let_go()
    assert end.given_back == 0  # whoever let go holds the lock
    end.run_loop()
    end.xen.close()
    assert end.given_back == 1


def test_what_a_loop_that_has_ended_did_not_come_to_is_done_at_the_end(end: End) -> None:
    end.domain.references.add(SOMEBODY)
    end.destroy()
    end.let_go()
    end.xen.close()
    assert end.given_back == 1
    end.run_loop()
    assert end.given_back == 1


def test_who_lets_go_after_the_end_gives_it_back(end: End) -> None:
    end.domain.references.add(SOMEBODY)
    end.destroy()
    end.xen.close()
    assert end.given_back == 0
    end.let_go()
    assert end.given_back == 1
