"""The with-block itself: what is put in place, and taken out again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from visualizer._block.attention_tap import AttentionTap
from visualizer._block.budget import Budget, in_words
from visualizer._block.explanation import explain_attention, explain_function, explain_module
from visualizer._block.locals_tap import LocalsTap
from visualizer._block.modules_tap import ModulesTap
from visualizer._block.options import Keep
from visualizer._block.places import Places
from visualizer._block.sites import Site, SiteRecorder
from visualizer._capture.eager_stance import eager_stance
from visualizer._intercept.observers import open_observer, shut_observer
from visualizer.errors import CaptureBudgetError, MapRefusedError, VisualizerError

__all__ = ["Block"]


class Block:
    """One open capture: an `Observer`.

    Attributes:
        is_open: Between `open` and `close`.
        was_opened: Whether it was ever open.
        budget: The bytes that it holds.
    """

    def __init__(
        self,
        model: nn.Module | None,
        *,
        locals: Mapping[Any, Any],  # noqa: A002
        modules: Sequence[str],
        attention: bool,
        inputs: bool,
        keep: Any,
        max_bytes: int | None,
    ) -> None:
        wanted = Keep.of(keep)
        self.is_open = self.was_opened = False
        self.budget = Budget(max_bytes)
        self._model = None if model is None else weakref.ref(model)
        self._places = Places(model)
        recorder = SiteRecorder(wanted, self.budget)
        self.modules = ModulesTap(modules, self._places, recorder, inputs=inputs)
        self.locals = LocalsTap(locals, self, self._places, recorder)
        self.attention = AttentionTap(self._places, wanted, self.budget) if attention else None
        self._stack: ExitStack | None = None

    def open(self) -> None:
        """Put everything in place; take it out again where that fails half-way."""
        self.was_opened = True
        with ExitStack() as stack:
            stack.callback(self._places.release)
            self._enter(stack, self._places.watch, None)
            self._enter(stack, self.modules.install, self.modules.remove)
            self._enter(stack, self.locals.install, self.locals.remove)
            if self.attention is not None:
                self._enter(stack, self.attention.install, self.attention.remove)
            stack.callback(eager_stance.keep, False, owner=self)
            eager_stance.keep(True, owner=self)
            stack.callback(shut_observer, self)
            open_observer(self)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Take everything out again, whatever fails on the way."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    @staticmethod
    def _enter(
        stack: ExitStack, install: Callable[[], None], remove: Callable[[], None] | None
    ) -> None:
        if remove is not None:
            stack.callback(remove)
        install()

    def on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._places.on_call(module)
        self.modules.on_call(module, args, kwargs)

    def on_return(self, module: nn.Module, output: Any) -> None:
        self.modules.on_return(module, output)

    def explain(self) -> list[str]:
        """Say what was asked for and is not there, a sentence for each thing."""
        found = []
        for tapped in self.locals.functions:
            found += explain_function(tapped)
        for path, module in self.modules.modules.items():
            found += explain_module(path, module)
        if self.attention is not None:
            found += explain_attention(self.attention, self.model)
        return found

    @property
    def model(self) -> nn.Module | None:
        """The model whose calls count, as long as somebody has it."""
        return None if self._model is None else self._model()

    def find_failure(self) -> VisualizerError | None:
        """Return what leaving the block raises: a site that was refused, or is over the limit."""
        refused = [] if self.attention is None else self.attention.sites_so_far()
        for site in refused:
            if site.refused is not None:
                return MapRefusedError(
                    f"{site.refused} disagrees with what the model computed, so that module was "
                    f"not captured any further; the rest of the capture is readable. Did something "
                    f"between model and kernel change query, key, mask or scale?"
                )
        stopped = [site.name for site in self._sites() if site.over_budget is not None]
        stopped += [site.name for site in refused if site.over_budget is not None]
        if not stopped:
            return None
        some = ", ".join(map(repr, stopped[:3])) + (" and others" if len(stopped) > 3 else "")
        return CaptureBudgetError(
            f"the capture reached its limit of {in_words(self.budget.max_bytes or 0)}: {some} "
            f"stopped recording. The model ran on, and what was taken before, "
            f"{in_words(self.budget.used)}, is readable. Raise max_bytes, capture less of the "
            f"model, or keep less of it: keep='last', or every n-th call with keep=n"
        )

    def _sites(self) -> list[Site]:
        sites = [site for tapped in self.locals.functions for site in tapped.sites.values()]
        for tapped in self.modules.modules.values():
            sites += [tapped.output] if tapped.input is None else [tapped.output, tapped.input]
        return sites
