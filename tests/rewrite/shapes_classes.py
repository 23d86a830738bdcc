"""Shapes 31 to 33: functions that are found through classes and wrappers."""

from __future__ import annotations

import contextlib
import functools

from tests.rewrite.shapes import Case, call, shape


class _Base:
    def method(self, x):
        return x + 1


class _Derived(_Base):
    def method(self, x):
        doubled = super().method(x) * 2
        return doubled, __class__.__name__

    def classless(self, x):
        doubled = super().method(x) * 2
        return doubled


@shape(31, "super() and __class__", "doubled")
def zero_argument_super() -> Case:
    return Case(_Derived.method, call(lambda: _Derived().method(1), 4))


@shape(31, "__class__ itself", "__class__")
def class_cell() -> Case:
    return Case(_Derived.classless, call(lambda: _Derived().classless(1), _Derived))


@shape(32, "a metaclass's __call__", "instance")
def metaclass_call() -> Case:
    class Meta(type):
        def __call__(cls, *args):
            instance = super().__call__(*args)
            instance.made_by = "meta"
            return [instance.value]

    class Made(metaclass=Meta):
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return isinstance(other, str) and (self.value, self.made_by) == (other, "meta")

    return Case(Meta.__call__, call(lambda: Made("a"), "a"), call(lambda: Made()))


class _Shelf:
    def __init__(self, x=1):
        self.x = x

    @property
    def wide(self):
        width = self.x * 2
        return width

    @wide.setter
    def wide(self, value):
        self.x = value

    @staticmethod
    def static(x):
        width = x + 1
        return -width

    @classmethod
    def of(cls, x):
        width = (cls.__name__, x)
        return list(width)

    @functools.cached_property
    def cached(self):
        width = self.x * 3
        return width

    def _scaled(self, by, x):
        width = by * x
        return [width]

    tripled = functools.partialmethod(_scaled, 3)


@shape(33, "a property", "width")
def with_property() -> Case:
    return Case(_Shelf.wide, call(lambda: _Shelf(4).wide, 8), function=_Shelf.wide.fget)


@shape(33, "a staticmethod", "width")
def with_staticmethod() -> Case:
    return Case(
        _Shelf.static, call(lambda: _Shelf.static(1), 2), call(lambda: _Shelf().static(2), 3)
    )


@shape(33, "a classmethod", "width")
def with_classmethod() -> Case:
    expected = ("_Shelf", 5)
    return Case(_Shelf.of, call(lambda: _Shelf.of(5), expected), function=_Shelf.of.__func__)


@shape(33, "a cached property", "width")
def with_cached_property() -> Case:
    def twice() -> object:
        shelf = _Shelf(2)
        return shelf.cached, shelf.cached

    target = vars(_Shelf)["cached"]
    return Case(target, call(twice, 6), function=target.func)


@shape(33, "a partialmethod", "width")
def with_partialmethod() -> Case:
    target = vars(_Shelf)["tripled"]
    return Case(target, call(lambda: _Shelf().tripled(2), 6), function=_Shelf._scaled)


@shape(33, "a partial of a bound method", "width")
def with_partial() -> Case:
    shelf = _Shelf()
    target = functools.partial(shelf._scaled, 5)
    return Case(target, call(lambda: target(2), 10), function=_Shelf._scaled)


@shape(33, "a function behind lru_cache", "width")
def with_lru_cache() -> Case:
    @functools.lru_cache
    def f(x):
        width = x + 1
        return width * 2

    def anew() -> object:
        f.cache_clear()
        return f(1), f(1), f.cache_info()

    return Case(f, call(anew, 2), function=f.__wrapped__)


@shape(33, "a function behind contextmanager", "state")
def with_contextmanager() -> Case:
    @contextlib.contextmanager
    def f(x):
        state = [x]
        try:
            yield state
        finally:
            state.append("left")

    def use() -> object:
        with f(1) as state:
            state.append("used")
        return state

    def fail() -> object:
        with f(1):
            raise KeyError("inside")

    return Case(f, call(use, [1, "used", "left"]), call(fail), function=f.__wrapped__)
