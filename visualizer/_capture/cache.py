"""`get_local.cache`: captured values under keys as people write them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NoReturn

from visualizer._capture.device_copies import copies
from visualizer._capture.eager_stance import eager_stance
from visualizer._capture.notices import notify
from visualizer._capture.sites import Site, explain_empty, sites
from visualizer._capture.taps import taps
from visualizer._capture.tensors import Obstacle
from visualizer.errors import AmbiguousKeyError, UnknownKeyError

__all__ = ["Cache"]

_ABSENT = object()


class Cache(Mapping[str, list[Any]]):
    """Captured values by function: `cache["Attention.forward"]` is a list, one entry a call.

    A key is a function's `__qualname__` where one variable of it is captured, and
    `qualname.variable` where several are. Where that fits more than one function, the module
    stands before it, `module:qualname`, and where functions of one module share a name (a
    property's getter and setter) their first line behind it, `module:qualname@line`, and a number
    where even that is the same. Reading takes any spelling that fits only one.
    """

    def __getitem__(self, key: str) -> list[Any]:
        site = self._find(key)
        copies.wait()
        if site.error is not None:
            self._warn_once(site, f"values are missing: {explain_empty(site)}")
        elif not site.values and (
            site.calls_unbound or Obstacle.BACKWARD.value in site.not_recorded
        ):
            self._warn_once(site, explain_empty(site))
        return site.values

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown())

    def __len__(self) -> int:
        return len(self._shown())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and len(self._fitting(key)) == 1

    def __repr__(self) -> str:
        shown = self._shown()
        if not shown:
            return f"<get_local.cache, empty: {_why_no_keys()}>"
        lines = [f"  {key!r}: {_describe(site)}" for key, site in shown.items()]
        return "\n".join(["<get_local.cache", *lines, ">"])

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key's values; the default where nothing fits the key.

        Raises:
            AmbiguousKeyError: More than one captured variable fits the key.
        """
        try:
            return self[key]
        except UnknownKeyError:
            return default

    def pop(self, key: str, default: Any = _ABSENT) -> Any:
        """Return a key's values and begin a new list for it. The key itself stays."""
        try:
            site = self._find(key)
        except UnknownKeyError:
            if default is _ABSENT:
                raise
            return default
        copies.wait()
        return site.clear()

    def copy(self) -> dict[str, list[Any]]:
        """Return a dict with a list for each key, which later calls don't change."""
        return {key: list(values) for key, values in self.items()}

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, list[Any]]:
        return deepcopy(self.copy(), memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)

    def clear(self) -> None:
        """Begin a new list for every key, as `get_local.clear()` does."""
        sites.clear()

    def __delitem__(self, key: str) -> None:
        self.pop(key)

    def __setitem__(self, key: str, value: Any) -> NoReturn:
        raise TypeError(
            f"get_local.cache is filled by the functions that run; {key!r} can't be set. "
            "get_local.clear() or get_local.cache.pop(key) empties it, and dict(get_local.cache) "
            "is a copy of your own."
        )

    def _shown(self) -> dict[str, Site]:
        """Return the sites by the keys that are shown for them."""
        taps.adopt_reloaded()
        eager_stance.hold()
        found = list(sites)
        variables = Counter((site.module, site.qualname, site.line) for site in found)
        short: dict[Site, str] = {
            site: site.qualname
            if variables[site.module, site.qualname, site.line] == 1
            else f"{site.qualname}.{site.variable}"
            for site in found
        }
        keys = _lengthen_where_equal(short, lambda site: f"{site.module}:{short[site]}")
        keys = _lengthen_where_equal(keys, lambda site: f"{keys[site]}@{site.line}")
        shown: dict[str, Site] = {}
        for site, key in keys.items():
            twins = sum(1 for other in shown if other.partition("#")[0] == key)
            shown[f"{key}#{twins + 1}" if twins else key] = site
        return shown

    def _fitting(self, key: str) -> list[Site]:
        shown = self._shown()
        if key in shown:
            return [shown[key]]
        exact = [site for site in shown.values() if key in _spellings(site)]
        return exact or [
            site
            for site in shown.values()
            if any(spelling.endswith(f".{key}") for spelling in _spellings(site))
        ]

    def _find(self, key: str) -> Site:
        fitting = self._fitting(key) if isinstance(key, str) else []
        if len(fitting) == 1:
            return fitting[0]
        shown = self._shown()
        if fitting:
            choices = ", ".join(repr(name) for name, site in shown.items() if site in fitting)
            raise AmbiguousKeyError(
                f"get_local.cache[{key!r}] fits more than one captured variable; write one of "
                f"{choices}."
            )
        if not shown:
            raise UnknownKeyError(f"get_local.cache has no key {key!r}: {_why_no_keys()}.")
        nearest = difflib.get_close_matches(str(key), shown, n=1)
        guess = f" Did you mean {nearest[0]!r}?" if nearest else ""
        known = ", ".join(map(repr, shown))
        raise UnknownKeyError(f"get_local.cache has no key {key!r}; it has {known}.{guess}")

    def _warn_once(self, site: Site, message: str) -> None:
        if not site.was_explained:
            site.was_explained = True
            notify(message)


def _lengthen_where_equal(keys: dict[Site, str], longer: Callable[[Site], str]) -> dict[Site, str]:
    uses = Counter(keys.values())
    return {site: key if uses[key] == 1 else longer(site) for site, key in keys.items()}


def _spellings(site: Site) -> tuple[str, ...]:
    full = f"{site.qualname}.{site.variable}"
    return site.qualname, full, f"{site.module}:{site.qualname}", f"{site.module}:{full}"


def _why_no_keys() -> str:
    if not sites.is_active:
        return "get_local is not active; call get_local.activate() before the model runs"
    return (
        "no function is decorated; put @get_local('attn') on one, or name one with "
        "get_local.patch('package.module:Class.forward', 'attn')"
    )


def _describe(site: Site) -> str:
    if not site.values:
        return f"empty: {explain_empty(site)}"
    last = list.__getitem__(site.values, -1)
    kind = getattr(last, "dtype", type(last).__name__)
    shape = getattr(last, "shape", None)
    count = len(site.values)
    what = f"{kind} {tuple(shape)}" if shape is not None else f"{kind}"
    return f"{count} {'entry' if count == 1 else 'entries'} of {site.variable!r}, the last {what}"
