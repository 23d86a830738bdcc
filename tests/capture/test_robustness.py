"""What goes on around get_local: copies of the cache, odd values, warnings as errors, threads."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from visualizer import get_local
from visualizer._capture.snapshot import Reference, snapshot
from visualizer.errors import CaptureWarning


def make_function() -> Callable[[Any], Any]:
    def attend(x: Any) -> Any:
        attn = x
        return attn

    return attend


@pytest.fixture
def attend() -> Callable[[Any], Any]:
    get_local.activate()
    return get_local("attn")(make_function())


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda cache: cache.copy(),
        lambda cache: pickle.loads(pickle.dumps(cache)),
    ],
    ids=["copy", "deepcopy", "method", "pickle"],
)
def test_a_copy_of_the_cache_has_the_values(
    attend: Callable[[Any], Any], duplicate: Callable[[Any], Any]
) -> None:
    attend([1])
    saved = duplicate(get_local.cache)
    attend([2])
    get_local.clear()
    (values,) = saved.values()
    assert type(saved) is dict
    assert values == [[1]]


@dataclass
class Itself:
    values: list[int]

    def __copy__(self) -> Itself:
        return self


class ItselfDict(dict[str, Any]):
    def __copy__(self) -> ItselfDict:
        return self


class Attributes(dict[str, Any]):
    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


def test_an_object_that_copies_as_itself_is_not_touched() -> None:
    inner = [1]
    value = Itself(inner)
    assert isinstance(snapshot(value), Reference)
    assert value.values is inner
    items = ItselfDict(m=inner)
    taken = snapshot(items)
    assert items["m"] is inner
    inner.append(2)
    assert taken == {"m": [1]}


def test_items_that_are_attributes_too_are_copied_in_both_places() -> None:
    value = Attributes(m=[1])
    taken = snapshot(value)
    value.m.append(2)
    assert taken["m"] == [1]
    assert taken.m == [1]


def test_warnings_as_errors_leave_nothing_behind() -> None:
    first, second = get_local("attn")(make_function()), get_local("attn")(make_function())
    code = second.__code__
    get_local.activate()
    first.__code__ = (lambda x: x).__code__
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptureWarning)
        with pytest.raises(CaptureWarning, match="was replaced by somebody else"):
            get_local.deactivate()
    assert second.__code__ is code
    assert not get_local.is_activate


def test_a_namespace_that_is_garbage_is_collected_while_active() -> None:
    class Marker:
        pass

    get_local.activate()
    marker = Marker()
    watched = weakref.ref(marker)
    namespace: dict[str, Any] = {"__name__": "made", "marker": marker, "get_local": get_local}
    exec("@get_local('y')\ndef f(x):\n    y = x\n", namespace)
    namespace["f"](1)
    del namespace, marker
    gc.collect()
    assert watched() is None


def test_a_patch_by_name_during_the_import_of_its_module_does_not_deadlock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_decorated.py").write_text(
        "import time\ntime.sleep(0.3)\nfrom visualizer import get_local\n"
        "@get_local('t')\ndef f(x):\n    t = x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    patches: list[Any] = []
    threads = [
        threading.Thread(target=lambda: __import__("slow_decorated"), daemon=True),
        threading.Thread(
            target=lambda: patches.append(get_local.patch("slow_decorated:f", "t")), daemon=True
        ),
        threading.Thread(target=get_local.activate, daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    sys.modules["slow_decorated"].f(3)
    patches[0].remove()
    get_local.deactivate()
    assert get_local.cache["slow_decorated:f"] == [3]
    del sys.modules["slow_decorated"]


def test_lambdas_of_different_cells_are_different_functions() -> None:
    get_local.activate()
    namespace: dict[str, Any] = {"get_local": get_local, "__name__": "notebook"}
    for number in (1, 2):
        cell = f"f{number} = get_local('t')(lambda x: [t := x + {number}])"
        exec(compile(cell, f"<cell {number}>", "exec"), namespace)
    namespace["f1"](10)
    namespace["f2"](10)
    assert [get_local.cache[key] for key in get_local.cache] == [[11], [12]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_records_although_a_lock_was_held(attend: Callable[[Any], Any]) -> None:
    sites: ModuleType = sys.modules["visualizer._capture.sites"]
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with sites.sites._lock:
            held.set()
            released.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    child = os.fork()
    if not child:
        threading.Timer(20, lambda: os._exit(2)).start()
        attend(1)
        os._exit(0 if get_local.cache["attend"] == [1] else 1)
    _, status = os.waitpid(child, 0)
    released.set()
    holder.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_stance_that_somebody_changed_is_taken_again_and_given_back_once() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    eval_frame = pytest.importorskip("torch._dynamo").eval_frame
    with torch.compiler.set_stance("eager_on_recompile"):
        get_local.activate()
    assert eval_frame._stance.stance == "default"
    with pytest.warns(CaptureWarning, match="stance of torch.compile was changed"):
        list(get_local.cache)
    assert eval_frame._stance.stance == "force_eager"
    get_local.deactivate()
    assert eval_frame._stance.stance == "default"


def test_a_stance_set_while_active_stays_after_deactivate() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    eval_frame = pytest.importorskip("torch._dynamo").eval_frame
    get_local.activate()
    torch.compiler.set_stance("fail_on_recompile")
    try:
        get_local.deactivate()
        assert eval_frame._stance.stance == "fail_on_recompile"
    finally:
        torch.compiler.set_stance("default")
