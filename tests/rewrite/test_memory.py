"""Nothing is kept alive that should not be, and nothing accumulates."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import find_leaks
from visualizer.rewrite import Instrumentation, _instrument, instrument, returning_locals

KEY_PREFIX = "__visualizer_sink_"
ROOT = Path(__file__).parents[2]


class Value:
    """Something that a weak reference can point to."""


class Values(list[Any]):
    """A list that a weak reference can point to."""


def keys_in_globals() -> list[str]:
    return [key for key in globals() if key.startswith(KEY_PREFIX)]


def make() -> Callable[[], int]:
    def f() -> int:
        value = Value()
        return 1

    return f


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", ["list", "callback"])
def test_everything_is_collectable_after_remove(kind: str, several: bool) -> None:
    f = make()
    values = Values()
    names = ("value", "value") if several else ("value",)
    sink: Any = values
    if kind == "callback":
        sink = lambda *delivered, into=values: into.append(delivered)
    handle = instrument(f, *names, sink=sink)
    f()
    first = values[0] if kind == "list" and not several else values[0][0]
    watched = [weakref.ref(item) for item in (f, values, first, f.__code__, handle)]
    if kind == "callback":
        watched.append(weakref.ref(sink))
    handle.remove()
    assert not keys_in_globals()
    del f, values, first, sink
    assert watched[4]() is handle
    del handle
    gc.collect()
    assert [reference() for reference in watched] == [None] * len(watched)


def test_the_check_after_every_test_sees_what_is_left() -> None:
    assert find_leaks() == []
    f = make()
    handle = instrument(f, "value", sink=[])
    leaks = find_leaks()
    handle.remove()
    assert leaks == [f"{f!r} is instrumented", f"{handle._key} is in {__name__}"]
    assert find_leaks() == []


def test_handle_that_is_kept_keeps_no_function() -> None:
    f = make()
    handle = instrument(f, "value", sink=[])
    handle.remove()
    watched = weakref.ref(f)
    del f
    gc.collect()
    assert watched() is None


def test_values_are_held_by_the_sink_only() -> None:
    f = make()
    values: list[Any] = []
    with instrument(f, "value", sink=values):
        f()
        watched = weakref.ref(values[0])
        values.clear()
        gc.collect()
        assert watched() is None


def test_function_that_dies_takes_its_key_along() -> None:
    """A handle that nobody removes, and nobody holds."""
    f = make()
    values = Values()
    instrument(f, "value", sink=values)
    f()
    watched = [weakref.ref(item) for item in (f, values, values[0], f.__code__)]
    assert len(keys_in_globals()) == 1
    del f, values
    gc.collect()
    assert keys_in_globals() == []
    assert [reference() for reference in watched] == [None] * 4


def test_handle_outlives_its_function() -> None:
    def instrumented() -> Instrumentation:
        return instrument(make(), "value", sink=[])

    handle = instrumented()
    gc.collect()
    assert keys_in_globals() == []
    handle.remove()


ROUND_TRIPS = """
import gc, tracemalloc
from visualizer.rewrite import instrument
from tests.rewrite.test_memory import keys_in_globals, make

def round_trip(count):
    for _ in range(count):
        f = make()
        instrument(f, "value", sink=[])
        f()
        with instrument(f, "value", "value", sink=print):
            pass

round_trip(50)
gc.collect()
tracemalloc.start()
round_trip(20)
gc.collect()
before = tracemalloc.get_traced_memory()[0]
round_trip(300)
gc.collect()
print(tracemalloc.get_traced_memory()[0] - before, keys_in_globals())
"""


def test_functions_made_at_every_call_do_not_accumulate() -> None:
    """Neither keys nor code: all closures share one rewritten template.

    From Python 3.12 on the text of a key stays, since CPython never frees an interned name. In a
    process of its own, since what other threads take is counted, too, as that of xdist.
    """
    done = subprocess.run(
        [sys.executable, "-c", ROUND_TRIPS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown, keys = done.stdout.split(maxsplit=1)
    assert keys.strip() == "[]"
    assert int(grown) < 300 * 2 * 100  # bytes; one holder with its finalizer takes several hundred


def test_a_template_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    rewrite_code = _instrument.rewrite_code

    def counting(*args: Any) -> Any:
        written.append(args)
        return rewrite_code(*args)

    monkeypatch.setattr(_instrument, "rewrite_code", counting)

    def make_here() -> Callable[[int], int]:
        def f(x: int) -> int:
            return x

        return f

    for _ in range(5):
        with instrument(make_here(), "x", sink=[]) as handle:
            assert handle.is_installed is False  # nobody holds the function any more
    kept = [make_here() for _ in range(3)]
    for f in kept:
        with instrument(f, "x", sink=[]):
            assert f(1) == 1
    assert len(written) == 1


def test_templates_die_with_their_code() -> None:
    def sizes() -> tuple[int, int]:
        gc.collect()
        return len(_instrument._templates._values), len(_instrument._originals._values)

    before = sizes()
    for number in range(20):
        namespace: dict[str, Any] = {}
        exec(f"def f(x):\n    return x + {number}", namespace)
        with instrument(namespace["f"], "x", sink=[]):
            pass
        del namespace
    assert sizes() == before


def test_returning_locals_leaves_nothing() -> None:
    for _ in range(10):
        assert set(returning_locals(make(), "value")()[1]) == {"value"}
    gc.collect()
    assert keys_in_globals() == []
