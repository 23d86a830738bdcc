"""What may be given as a target; what is refused is in test_refusals.py."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from visualizer.errors import VisualizerError
from visualizer.rewrite import UNBOUND, check_locals, instrument

HERE = __name__


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as most decorators do."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        outcome = function(*args, **kwargs)
        return outcome

    return wrapper


def scale(x: int) -> int:
    factor = x * 2
    return factor + 1


@passing_on
@passing_on
@passing_on
def deep(x: int) -> int:
    factor = x * 2
    return factor + 1


@contextlib.contextmanager
def managed(x: int) -> Any:
    factor = x * 2
    yield factor + 1


@functools.singledispatch
def dispatched(x: object) -> int:
    factor = 2
    return factor * 100


@dispatched.register
def _(x: int) -> int:
    factor = x * 2
    return factor + 1


class Shop:
    def method(self, x: int) -> int:
        factor = x * 2
        return factor + 1

    @staticmethod
    def static(x: int) -> int:
        factor = x * 2
        return factor + 1

    @classmethod
    def of(cls, x: int) -> int:
        factor = x * 2
        return factor + 1

    @property
    def width(self) -> int:
        factor = 6
        return factor + 1

    @functools.cached_property
    def cached(self) -> int:
        factor = 6
        return factor + 1

    @functools.lru_cache(maxsize=None)  # noqa: B019
    def remembered(self, x: int) -> int:
        factor = x * 2
        return factor + 1

    @staticmethod
    @passing_on
    def wrapped_static(x: int) -> int:
        factor = x * 2
        return factor + 1

    def by(self, factor: int, x: int) -> int:
        return factor * x + 1

    doubling = functools.partialmethod(by, 6)

    class Inner:
        def method(self, x: int) -> int:
            factor = x * 2
            return factor + 1


shop = Shop()


def _use_managed(x: int) -> int:
    with managed(x) as value:
        return value


TARGETS: dict[str, tuple[object, Callable[[], object]]] = {
    "function": (scale, lambda: scale(3)),
    "function of a class": (Shop.method, lambda: shop.method(3)),
    "bound method": (shop.method, lambda: Shop().method(3)),
    "staticmethod": (Shop.static, lambda: Shop.static(3)),
    "staticmethod object": (vars(Shop)["static"], lambda: Shop.static(3)),
    "classmethod": (Shop.of, lambda: Shop.of(3)),
    "classmethod object": (vars(Shop)["of"], lambda: Shop.of(3)),
    "property": (Shop.width, lambda: Shop().width),
    "cached property": (vars(Shop)["cached"], lambda: Shop().cached),
    "lru_cache": (Shop.remembered, lambda: Shop().remembered(3)),
    "partial": (functools.partial(scale, 3), lambda: scale(3)),
    "partial of partial": (functools.partial(functools.partial(scale), 3), lambda: scale(3)),
    "partialmethod": (vars(Shop)["doubling"], lambda: Shop().doubling(1)),
    "decorated": (deep, lambda: deep(3)),
    "decorated staticmethod": (Shop.wrapped_static, lambda: Shop.wrapped_static(3)),
    "contextmanager": (managed, lambda: _use_managed(3)),
    "singledispatch default": (dispatched, lambda: 7 if dispatched("") == 200 else None),
    "singledispatch implementation": (dispatched.dispatch(int), lambda: dispatched(3)),
    "string": (f"{HERE}:scale", lambda: scale(3)),
    "string, method": (f"{HERE}:Shop.method", lambda: shop.method(3)),
    "string, staticmethod": (f"{HERE}:Shop.static", lambda: Shop.static(3)),
    "string, classmethod": (f"{HERE}:Shop.of", lambda: Shop.of(3)),
    "string, property": (f"{HERE}:Shop.width", lambda: Shop().width),
    "string, cached property": (f"{HERE}:Shop.cached", lambda: Shop().cached),
    "string, nested class": (f"{HERE}:Shop.Inner.method", lambda: Shop.Inner().method(3)),
    "string, method of an instance": (f"{HERE}:shop.method", lambda: shop.method(3)),
    "string, decorated": (f"{HERE}:deep", lambda: deep(3)),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_target(kind: str) -> None:
    target, run = TARGETS[kind]
    values: list[Any] = []
    with instrument(target, "factor", sink=values) as handle:
        assert handle.function is check_locals(target, "factor")
        assert run() == 7
    assert values == [2 if kind == "singledispatch default" else 6]
    assert run() == 7
    assert len(values) == 1


def test_string_imports_the_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not_imported_yet.py").write_text("def f(x):\n    y = x + 1\n    return y\n")
    monkeypatch.syspath_prepend(tmp_path)
    values: list[Any] = []
    try:
        with instrument("not_imported_yet:f", "y", sink=values):
            assert sys.modules["not_imported_yet"].f(1) == 2
    finally:
        sys.modules.pop("not_imported_yet", None)
    assert values == [2]


def test_module_that_does_not_import_says_so_itself(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is not the target but something that it imports: not our error."""
    (tmp_path / "lacks_something.py").write_text("import surely_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_there") as caught:
        instrument("lacks_something:f", "y", sink=[])
    assert not isinstance(caught.value, VisualizerError)


def both(factor: int) -> int:
    factor = [factor for factor in range(factor)][-1]
    return factor


def test_local_that_a_comprehension_uses_too() -> None:
    values: list[Any] = []
    with instrument(both, "factor", sink=values):
        assert both(3) == 2
    assert values == [2]


def test_method_of_another_collection_as_sink() -> None:
    values: set[object] = set()
    with instrument(both, "factor", sink=values.add), instrument(scale, "x", sink=values.add):
        both(3)
        scale(1)
    assert values == {1, 2}


def test_unbound_is_shown_by_its_name() -> None:
    assert repr(UNBOUND) == "UNBOUND"
