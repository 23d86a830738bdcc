"""What users read a capture through: mappings and a sequence, with explanations."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

from visualizer._block.entry import Entry
from visualizer._printable import printable
from visualizer.attention import AttentionMap, join_steps
from visualizer.errors import AmbiguousKeyError, OutOfRangeError, UnknownKeyError

__all__ = [
    "AttentionRecords",
    "AttentionSite",
    "AttentionView",
    "CaptureRecord",
    "FunctionRecord",
    "FunctionView",
    "LocalsView",
    "ModulesView",
    "SiteRecord",
]


class SiteRecord(Protocol):
    """What was captured at one place."""

    @property
    def entries(self) -> list[Entry]: ...


class FunctionRecord(Protocol):
    """A function of which locals are taken.

    Attributes:
        qualname: Its `__qualname__`.
        key: That, behind its module: "module:qualname".
        sites: What was captured, by variable.
    """

    @property
    def qualname(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def sites(self) -> Mapping[str, SiteRecord]: ...


class AttentionSite(Protocol):
    """A module that attends; `module_path` None is outside of any."""

    @property
    def module_path(self) -> str | None: ...
    @property
    def maps(self) -> list[AttentionMap]: ...


class AttentionRecords(Protocol):
    """The attention maps of a capture: in the order of the calls, and by module."""

    @property
    def maps(self) -> list[AttentionMap]: ...
    @property
    def sites(self) -> Sequence[AttentionSite]: ...


class CaptureRecord(Protocol):
    """What a capture holds: that of a block, or one that was loaded.

    Attributes:
        functions: Of which locals were taken.
        attention: The attention maps; None if they were not asked for.
        nbytes: Bytes that are held; memory that is shared counts once.
        state: "open", "closed" or "loaded".
        model_name: The model's class.
        spec: What was asked for.
    """

    @property
    def functions(self) -> Sequence[FunctionRecord]: ...
    @property
    def attention(self) -> AttentionRecords | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def model_name(self) -> str | None: ...
    @property
    def spec(self) -> Mapping[str, Any]: ...

    def outputs(self) -> dict[str, list[Entry]]:
        """Return the outputs of modules, by path."""
        ...

    def inputs(self) -> dict[str, list[Entry]]:
        """Return what modules were called with, by path."""
        ...

    def explain(self) -> list[str]:
        """Say what was asked for and is not there, a sentence for each thing."""
        ...

    def why_no_attention(self) -> str:
        """Say why there are no attention maps."""
        ...


class _View(Mapping[str, Any]):
    """A read-only mapping that says what there is when a key does not fit."""

    _what = "captured"

    def _known(self) -> dict[str, Any]:
        raise NotImplementedError

    def _unknown(self, key: object) -> str:
        known = list(self._known())
        if not known:
            return f"{self._what} is empty; {key!r} was not asked for in capture()"
        near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.3) or known[:5]
        return f"{self._what} has no {key!r}; it has {', '.join(map(repr, near))}" + (
            f" and {len(known) - len(near)} more" if len(known) > len(near) else ""
        )

    def __getitem__(self, key: str) -> Any:
        try:
            return self._known()[key]
        except (KeyError, TypeError):
            raise UnknownKeyError(self._unknown(key)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def __repr__(self) -> str:
        return printable(f"<{self._what}: {', '.join(self._known()) or 'nothing'}>")


class FunctionView(_View):
    """The captured locals of one function: `{variable: [entry, …]}`."""

    def __init__(self, tapped: FunctionRecord) -> None:
        self._tapped = tapped
        self._what = f"captured.locals[{tapped.qualname!r}]"

    def _known(self) -> dict[str, list[Entry]]:
        return {name: site.entries for name, site in self._tapped.sites.items()}


class LocalsView(_View):
    """The captured functions: `{"Attention.forward": {variable: [entry, …]}}`.

    Where two functions share a qualified name, their module stands before it, as
    `"module:Attention.forward"`; any function may be asked for in this spelling.
    """

    _what = "captured.locals"

    def __init__(self, functions: Sequence[FunctionRecord]) -> None:
        self._functions = functions

    def _known(self) -> dict[str, FunctionView]:
        names = [tapped.qualname for tapped in self._functions]
        return {
            tapped.qualname if names.count(tapped.qualname) == 1 else tapped.key: FunctionView(
                tapped
            )
            for tapped in self._functions
        }

    def __getitem__(self, key: str) -> FunctionView:
        fitting = [tapped for tapped in self._functions if key in (tapped.qualname, tapped.key)]
        if len(fitting) == 1:
            return FunctionView(fitting[0])
        if fitting:
            choices = ", ".join(repr(tapped.key) for tapped in fitting)
            raise AmbiguousKeyError(
                f"captured.locals[{key!r}] fits more than one function; write one of {choices}"
            )
        raise UnknownKeyError(self._unknown(key))


class ModulesView(_View):
    """The captured modules: `{path: [entry, …]}`."""

    def __init__(self, what: str, entries: Callable[[], dict[str, list[Entry]]]) -> None:
        self._what = what
        self._entries = entries

    def _known(self) -> dict[str, list[Entry]]:
        return self._entries()


class AttentionView(Sequence[AttentionMap]):
    """The captured attention maps: by number in the order of the calls, or by module path.

    Args:
        records: They; None if attention was not asked for.
        explain: Says why there is nothing.
    """

    def __init__(self, records: AttentionRecords | None, explain: Callable[[], str]) -> None:
        self._records = records
        self._explain = explain

    @property
    def layers(self) -> list[list[AttentionMap]]:
        """The maps of each module that attends, in order of first appearance."""
        return [list(site.maps) for site in self._sites()]

    @property
    def paths(self) -> list[str]:
        """Their module paths."""
        return list(dict.fromkeys(str(site.module_path) for site in self._sites()))

    def joined(self, path: str, *, past: int = 0, cross: bool = False) -> AttentionMap:
        """Return one map of a whole generation: that of all tokens, from a module's of each step.

        Args:
            path: The module's.
            past: How many tokens a cache had before the block.
            cross: The steps share their keys, as in the cross-attention of a decoder.
        Raises:
            NotStepsError: The maps are not those of one generation. For one of several, take its
                maps: `visualizer.attention.join_steps(captured.attention[path][64:])`.
            UnknownKeyError: No such module attended.
        """
        return join_steps(self._of_path(path), past=past, cross=cross)

    def _sites(self) -> list[AttentionSite]:
        sites = [] if self._records is None else self._records.sites
        return [site for site in sites if site.module_path is not None]

    def _maps(self) -> list[AttentionMap]:
        return [] if self._records is None else self._records.maps

    @overload
    def __getitem__(self, index: int) -> AttentionMap: ...
    @overload
    def __getitem__(self, index: slice | str) -> list[AttentionMap]: ...
    def __getitem__(self, index: int | slice | str) -> AttentionMap | list[AttentionMap]:
        maps = self._maps()
        if isinstance(index, str):
            return self._of_path(index)
        try:
            return maps[index]
        except IndexError:
            if maps:
                raise OutOfRangeError(
                    f"captured.attention[{index}]: {len(maps)} attention calls were captured, 0 to "
                    f"{len(maps) - 1}"
                ) from None
            raise OutOfRangeError(f"no attention was captured: {self._explain()}") from None

    def _of_path(self, path: str) -> list[AttentionMap]:
        known = self.paths
        fitting = [path] if path in known else [each for each in known if each.endswith(f".{path}")]
        if len(fitting) == 1:
            return [made for made in self._maps() if made.module_path == fitting[0]]
        if not known:
            raise UnknownKeyError(f"no attention was captured: {self._explain()}")
        near = fitting or difflib.get_close_matches(path, known, n=3, cutoff=0.3)
        raise UnknownKeyError(
            f"no attention of a module {path!r} was captured. "
            + (f"Near it: {', '.join(map(repr, near))}. " if near else "")
            + "captured.attention.paths lists the modules"
        )

    def __len__(self) -> int:
        return len(self._maps())

    def __iter__(self) -> Iterator[AttentionMap]:
        return iter(list(self._maps()))

    def __repr__(self) -> str:
        if not self._maps():
            return printable(f"<captured.attention, empty: {self._explain()}>")
        return f"<captured.attention: {len(self)} maps of {len(self.layers)} modules>"
