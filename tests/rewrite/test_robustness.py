"""What goes on around the engine: reloaded code, odd globals, imports, threads, garbage."""

from __future__ import annotations

import gc
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from visualizer.errors import CodeReplacedError, NotInstrumentableError, UnknownLocalError
from visualizer.rewrite import instrument, returning_locals

SOURCE = "def f(x):\n    y = x\n    return y\n"


def make(source: str = SOURCE, **names: Any) -> FunctionType:
    namespace: dict[str, Any] = {"__name__": "made", **names}
    exec(textwrap.dedent(source), namespace)
    return namespace["f"]


def test_code_derived_from_ours_does_not_reach_the_sink_of_another_function() -> None:
    derived, other = make(), make("def f(x):\n    z = x\n    return z\n")
    handle = instrument(derived, "y", sink=[])
    derived.__code__ = derived.__code__.replace(co_name="derived")
    with pytest.raises(CodeReplacedError):
        handle.remove()
    gc.collect()
    for sink in ([], print):
        with instrument(other, "z", sink=sink):
            assert derived(1) == 1
        assert sink in ([], print)


@pytest.mark.parametrize("kind", ["subclass", "with __missing__"])
def test_globals_that_are_no_plain_dict_are_refused(kind: str) -> None:
    class Names(dict[str, Any]):
        if kind != "subclass":

            def __missing__(self, name: str) -> Any:
                return type("Anything", (), {"values": 10**30})

    names = Names(__builtins__=__builtins__)
    exec(SOURCE, names)
    code = names["f"].__code__
    with pytest.raises(NotInstrumentableError, match="globals are a plain dict"):
        instrument(names["f"], "y", sink=[])
    assert names["f"].__code__ is code


def test_a_list_with_an_append_of_its_own_is_no_sink() -> None:
    class Loud(list[Any]):
        def append(self, item: Any) -> None:
            raise AssertionError

    with pytest.raises(TypeError, match=r"sink=values\.append"):
        instrument(make(), "y", sink=Loud())


def test_an_object_that_answers_everything_is_refused() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return Proxy()

    with pytest.raises(NotInstrumentableError, match="Proxy"):
        instrument(Proxy(), "y", sink=[])


@pytest.mark.parametrize("how", ["instrument", "returning_locals"])
def test_a_namespace_that_is_garbage_is_collected(how: str) -> None:
    class Marker:
        pass

    marker = Marker()
    watched = weakref.ref(marker)
    f = make(marker=marker)
    if how == "instrument":
        instrument(f, "y", sink=[])
    else:
        f.__globals__["g"] = returning_locals(f, "y")
        assert f.__globals__["g"](1) == (1, {"y": 1})
    del f, marker
    gc.collect()
    assert watched() is None


def test_a_target_whose_import_instruments_does_not_deadlock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread imports a module whose body instruments; another names a target in it."""
    (tmp_path / "slow_module.py").write_text(
        "import time\ntime.sleep(0.3)\nfrom visualizer.rewrite import instrument\n"
        + SOURCE
        + "instrument(f, 'x', sink=[]).remove()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    taken: list[int] = []

    def by_name() -> None:
        with instrument("slow_module:f", "y", sink=taken):
            sys.modules["slow_module"].f(3)

    threads = [
        threading.Thread(target=lambda: __import__("slow_module"), daemon=True),
        threading.Thread(target=by_name, daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert taken == [3]
    del sys.modules["slow_module"]


def test_a_comprehensions_variable_in_a_cell_is_no_local() -> None:
    """A closure made in the comprehension turns its variable into a cell variable."""
    alone = make("def f(n):\n    made = [lambda: x for x in range(n)]\n    return made\n")
    with pytest.raises(UnknownLocalError, match="'x' is only a comprehension's variable"):
        instrument(alone, "x", sink=[])
    both = make(
        """
        def f(n):
            x = 5
            made = [lambda: x for x in range(n)]
            return [call() for call in made], (lambda: x)()
        """
    )
    values: list[int] = []
    with instrument(both, "x", sink=values):
        assert both(2) == ([1, 1], 5)
    assert values == [5]
