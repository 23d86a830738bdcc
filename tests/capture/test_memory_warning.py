"""A cache that grows large says so, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local
from visualizer._capture.sites import Sites, sites

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
MIB = 2**20


@pytest.fixture
def attend(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that has an array of so many MiB, where more than 4 are many."""
    monkeypatch.setattr(sites, "warn_bytes", 4 * MIB)
    get_local.activate()
    return make_attention()


def make_attention() -> Callable[[int], None]:
    @get_local("attn")
    def attend(size: int) -> None:
        attn = np.zeros(size * MIB, np.uint8)

    return attend


def test_the_limit_is_one_gibibyte() -> None:
    assert Sites().warn_bytes == sites.warn_bytes == 1024 * MIB


def test_it_warns_once_with_the_function_and_how_to_stop(
    attend: Callable[[int], None], captured_warnings: Recorded
) -> None:
    for _ in range(4):
        attend(1)
    assert captured_warnings == []
    for _ in range(3):
        attend(1)
    (warning,) = captured_warnings
    assert str(warning.message) == (
        "get_local.cache holds 5 MiB, 5 MiB of it 5 values of 'attn' from "
        "make_attention.<locals>.attend(), and it grows with every call. get_local.clear() frees "
        "it; get_local.deactivate() stops capturing."
    )
    assert warning.filename == __file__


def test_after_clear_it_warns_again(
    attend: Callable[[int], None], captured_warnings: Recorded
) -> None:
    for clear in (get_local.clear, get_local.cache.clear, lambda: None):
        attend(3)
        attend(3)
        clear()
    assert len(captured_warnings) == 3


def test_it_names_the_largest(attend: Callable[[int], None], captured_warnings: Recorded) -> None:
    @get_local("scores")
    def score(size: int) -> None:
        scores = np.zeros(size * MIB, np.uint8)

    attend(1)
    score(3)
    attend(1)
    assert "holds 5 MiB, 3 MiB of it 1 values of 'scores' from" in str(captured_warnings[0].message)


def test_what_was_taken_out_does_not_count(
    attend: Callable[[int], None], captured_warnings: Recorded
) -> None:
    for _ in range(10):
        attend(1)
        get_local.cache.pop("attend")
    for _ in range(4):
        attend(1)
    get_local.cache["attend"].pop()
    attend(1)
    assert captured_warnings == []
    attend(1)
    assert len(captured_warnings) == 1


def test_arrays_within_structures_count(
    monkeypatch: pytest.MonkeyPatch, captured_warnings: Recorded
) -> None:
    monkeypatch.setattr(sites, "warn_bytes", MIB)
    get_local.activate()

    @get_local("found")
    def attend() -> None:
        found = {"layers": [(np.zeros(2 * MIB, np.uint8), None)]}

    attend()
    assert len(captured_warnings) == 1


def test_sizes_read_well(monkeypatch: pytest.MonkeyPatch, captured_warnings: Recorded) -> None:
    class Huge:
        """Says that it is large without being it."""

        nbytes = 5 * 2**29

    monkeypatch.setattr("visualizer._capture.sites.snapshot", lambda value: Huge())
    get_local.activate()
    make_attention()(0)
    assert "holds 2.5 GiB, 2.5 GiB of it 1 values" in str(captured_warnings[0].message)
