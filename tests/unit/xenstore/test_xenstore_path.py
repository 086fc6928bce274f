from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.path import LEGAL, ROOT, Path, domain_path, parse, parse_watchable

NAMES = st.lists(st.lists(st.sampled_from(LEGAL.replace(b"/", b"")), min_size=1, max_size=9).map(bytes))


@given(NAMES)
def test_a_path_is_its_components_and_comes_back_as_it_was(names: list[bytes]) -> None:
    wire = b"/" + b"/".join(names)
    assert parse(wire) == tuple(names)
    assert parse(wire).wire == wire


def test_a_relative_path_is_relative_to_the_home_of_the_caller() -> None:
    assert parse(b"device/vif", domain_path(7)).wire == b"/local/domain/7/device/vif"


@pytest.mark.parametrize(
    "wire",
    [b"", b"/a/", b"//", b"//a", b"/a//b", b"a/", b"/a b", b"/a.b", b"/\xff", b"/a\0b", b"@releaseDomain", b"a//b"],
)
def test_what_is_no_path_is_refused(wire: bytes) -> None:
    with pytest.raises(XenStoreError) as refused:
        parse(wire, domain_path(1))
    assert refused.value.errno == errno.EINVAL


def test_a_path_may_have_2048_characters_besides_the_home_of_a_domain() -> None:
    assert parse(b"/" + b"a" * 2047)
    assert parse(b"a" * 2048, domain_path(1))
    for wire in (b"/" + b"a" * 2048, b"a" * 2049, b"/local/domain/1/" + b"a" * 2049):
        with pytest.raises(XenStoreError):
            parse(wire, domain_path(1))


def test_the_parent_of_the_root_is_the_root() -> None:
    assert ROOT.parent == ROOT
    assert Path((b"a", b"b")).parent == (b"a",)


def test_a_watch_may_name_any_special_event_of_2048_characters() -> None:
    assert parse_watchable(b"@any thing", ROOT) == b"@any thing"
    with pytest.raises(XenStoreError):
        parse_watchable(b"@" + b"a" * 2048, ROOT)


@given(st.binary())
def test_no_bytes_raise_anything_but_a_refusal(wire: bytes) -> None:
    try:
        assert parse(wire, domain_path(3)).wire[:1] == b"/"
    except XenStoreError as refused:
        assert refused.errno == errno.EINVAL
