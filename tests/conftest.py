"""What every test has in common: when it is over, nothing may be left behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from visualizer.rewrite import _instrument

KEY_PREFIX = "__visualizer_sink_"


def find_leaks() -> list[str]:
    """Say what of the engine is still in place: code, and keys in modules."""
    if _instrument._installations:
        gc.collect()  # a function that is garbage is no leak
    leaks = [f"{function!r} is instrumented" for function in list(_instrument._installations)]
    for name, module in list(sys.modules.items()):
        keys = [key for key in list(getattr(module, "__dict__", ())) if KEY_PREFIX in key]
        leaks += [f"{key} is in {name}" for key in keys]
    return leaks


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Prove that the test has taken out everything that it put in."""
    before = sys.gettrace(), sys.getprofile()  # None, or that of coverage or a debugger
    yield
    after = sys.gettrace(), sys.getprofile()
    sys.settrace(before[0])
    sys.setprofile(before[1])
    assert after == before, "a trace or profile function is left"
    leaks = find_leaks()
    assert not leaks, "\n".join(leaks)
