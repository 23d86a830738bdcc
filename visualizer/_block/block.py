"""The with-block itself: what is put in place, and taken out again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from visualizer._block.attention_tap import AttentionTap
from visualizer._block.budget import Budget, in_words
from visualizer._block.entry import Entry
from visualizer._block.explanation import explain_attention, explain_function, explain_modules
from visualizer._block.locals_tap import LocalsTap, TappedFunction
from visualizer._block.modules_tap import ModulesTap
from visualizer._block.options import Keep
from visualizer._block.places import Places
from visualizer._block.sink import ValueSink
from visualizer._block.sites import Site, SiteRecorder, is_second_time
from visualizer._block.wrappers import innermost
from visualizer._capture.eager_stance import eager_stance
from visualizer._intercept.observers import open_observer, shut_observer
from visualizer.errors import CaptureBudgetError, MapRefusedError, VisualizerError

__all__ = ["Block"]


_NEVER_OPENED = "the block was never entered: with capture(…) as captured: model(x)"


class Block:
    """One open capture: an `Observer`, and a `CaptureRecord`.

    Attributes:
        is_open: Between `open` and `close`.
        was_opened: Whether it was ever open.
        budget: The bytes that it holds.
        error: The first error that recording raised, outside of what a single place can tell.
    """

    def __init__(
        self,
        model: nn.Module | None,
        *,
        locals: Mapping[Any, Any],  # noqa: A002
        modules: Sequence[str],
        attention: bool,
        inputs: bool,
        gradients: bool,
        keep: Any,
        max_bytes: int | None,
        sink: ValueSink | None = None,
    ) -> None:
        wanted = Keep.of(keep)
        self.is_open = self.was_opened = False
        self.budget = Budget(max_bytes)
        self._model = None if model is None else weakref.ref(model)
        self._places = Places(model)
        recorder = SiteRecorder(wanted, self.budget, sink)
        self._sink = sink
        self.modules = ModulesTap(modules, self._places, recorder, inputs=inputs)
        self.locals = LocalsTap(locals, self, self._places, recorder)
        self.attention = (
            AttentionTap(self._places, wanted, self.budget, gradients=gradients, sink=sink)
            if attention
            else None
        )
        self._needs_eager = bool(locals) or bool(modules) or gradients
        self.model_name = None if model is None else _name_of(innermost(model))
        self.spec = {
            "locals": {tapped.key: list(tapped.sites) for tapped in self.locals.functions},
            "modules": self.modules.patterns,
            "attention": attention,
            "inputs": inputs,
            "gradients": gradients,
            "keep": [wanted.every, wanted.last, wanted.form],
        }
        self.error: Exception | None = None

    def open(self) -> None:
        """Put everything in place; take it out again where that fails half-way."""
        self.was_opened = True
        try:
            self._places.watch()
            self.modules.install()
            self.locals.install()
            if self.attention is not None:
                self.attention.install()
            if self._needs_eager:
                eager_stance.keep(True, owner=self)
            open_observer(self)
        except BaseException:
            self.close()
            raise

    def close(self) -> list[str]:
        """Take everything out again, and return what could not be put back."""
        troubles: list[str] = []
        with ExitStack() as stack:  # all of it, whatever raises on the way
            removers = [self._places.release, self.modules.remove, self.locals.remove]
            if self.attention is not None:
                removers.append(self.attention.remove)
            for remove in removers:
                stack.callback(_extend, troubles, remove)
            stack.callback(eager_stance.keep, False, owner=self)
            stack.callback(shut_observer, self)
        return troubles

    def on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_second_time():
            if self._places.on_call(module):
                self.modules.on_step()
            self.modules.on_call(module, args, kwargs)

    def on_return(self, module: nn.Module, output: Any) -> None:
        if not is_second_time():
            self.modules.on_return(module, output)
            self._places.on_end(module)

    def on_raise(self, module: nn.Module) -> None:
        if not is_second_time():
            self.modules.on_raise(module)
            self._places.on_end(module)

    def on_error(self, error: Exception) -> None:
        self.error = self.error or error.with_traceback(None)

    @property
    def functions(self) -> list[TappedFunction]:
        """Of which locals are taken."""
        return self.locals.functions

    @property
    def nbytes(self) -> int:
        """Bytes that are held; memory that is shared counts once."""
        return self.budget.used + (0 if self._sink is None else self._sink.nbytes)

    @property
    def state(self) -> str:
        """Whether it is open or closed."""
        return "open" if self.is_open else "closed"

    def outputs(self) -> dict[str, list[Entry]]:
        """Return the outputs of modules, by path."""
        return {path: tapped.output.entries for path, tapped in self.modules.modules.items()}

    def inputs(self) -> dict[str, list[Entry]]:
        """Return what modules were called with, by path."""
        return {
            path: tapped.input.entries
            for path, tapped in self.modules.modules.items()
            if tapped.input is not None
        }

    def why_no_attention(self) -> str:
        """Say why there are no attention maps."""
        if self.attention is None:
            return "capture() was called with attention=False"
        if not self.was_opened:
            return _NEVER_OPENED
        return "; ".join(explain_attention(self.attention, self.model))

    def explain(self) -> list[str]:
        """Say what was asked for and is not there, a sentence for each thing."""
        if not self.was_opened:
            return [_NEVER_OPENED]
        found = []
        if self.error is not None:
            found.append(f"recording raised {type(self.error).__name__}: {self.error}")
        for tapped in self.locals.functions:
            found += explain_function(tapped)
        found += explain_modules(self.modules.modules)
        if self.attention is not None:
            found += explain_attention(self.attention, self.model)
        return found

    @property
    def model(self) -> nn.Module | None:
        """The model whose calls count, as long as somebody has it."""
        return None if self._model is None else self._model()

    def find_failure(self) -> VisualizerError | None:
        """Return what leaving the block raises: a site that was refused, or is over the limit."""
        attending = [] if self.attention is None else self.attention.sites_so_far()
        for each in attending:
            if each.refused is not None:
                return MapRefusedError(
                    f"{each.refused} disagrees with what the model computed, so that module was "
                    f"not captured any further; the rest of the capture is readable. Did something "
                    f"between model and kernel change query, key, mask or scale?"
                )
        stopped = [(site.name, site.over_budget) for site in self._sites() if site.over_budget]
        stopped += [(each.name, each.over_budget) for each in attending if each.over_budget]
        if not stopped:
            return None
        some = ", ".join(repr(name) for name, _ in stopped[:3])
        some += " and others" if len(stopped) > 3 else ""
        return CaptureBudgetError(
            f"the capture reached its limit of {in_words(self.budget.max_bytes or 0)}: {some} "
            f"stopped recording ({stopped[0][1]}). The model ran on, and what was taken before, "
            f"{in_words(self.budget.used)}, is readable. Raise max_bytes, capture less of the "
            f"model, or keep less of it: keep='last', or every n-th call with keep=n"
        )

    def _sites(self) -> list[Site]:
        sites = [site for tapped in self.locals.functions for site in tapped.sites.values()]
        for tapped in self.modules.modules.values():
            sites += [tapped.output] if tapped.input is None else [tapped.output, tapped.input]
        return sites


def _name_of(model: nn.Module) -> str:
    return f"{type(model).__module__}:{type(model).__qualname__}"


def _extend(troubles: list[str], remove: Callable[[], list[str]]) -> None:
    troubles.extend(remove())
