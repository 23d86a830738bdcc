"""Every test of `capture()` begins with nothing patched, and leaves nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from tests.capture.conftest import (  # noqa: F401  (fixtures)
    captured_warnings,
    nothing_captured,
    write_module,
)
from visualizer._capture.eager_stance import eager_stance
from visualizer._intercept import observers
from visualizer._intercept.patches import _ABSENT as ABSENT
from visualizer._intercept.patches import patches
from visualizer.rewrite import _instrument


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_open() -> Iterator[None]:
    """Prove that the test left no patch, no observer and no stance; take out what it left."""
    torch.manual_seed(0)
    yield
    if patches._replaced or observers._open or _instrument._installations:
        gc.collect()
    left = [f"{one.owner!r}.{one.name} is patched" for one in patches._replaced.values()]
    left += [f"{observer!r} is open" for observer in observers._open]
    left += [f"{owner!r} keeps the compiler's stance" for owner in eager_stance._owners]
    left += [f"{function!r} is instrumented" for function in _instrument._installations]
    _reset()
    assert not left, "\n".join(left)


def _reset() -> None:
    for installation in list(_instrument._installations.values()):
        for handle in list(installation._handles):
            handle.remove()
    for replaced in list(patches._replaced.values()):
        if replaced.original is ABSENT:
            delattr(replaced.owner, replaced.name)
        else:
            setattr(replaced.owner, replaced.name, replaced.original)
    patches._replaced.clear()
    observers._open.clear()
    for owner in list(eager_stance._owners):
        eager_stance.keep(False, owner=owner)
