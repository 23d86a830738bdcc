"""`capture()`: take any local, any module's output and any attention out of a block of code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any

from torch import nn

from visualizer._block.annotations import Annotations
from visualizer._block.block import Block
from visualizer._block.budget import in_words
from visualizer._block.views import AttentionView, CaptureRecord, LocalsView, ModulesView
from visualizer._capture.notices import notify
from visualizer._printable import printable
from visualizer.errors import CaptureWarning, DamagedError, ShapeError
from visualizer.store.captures import StoredCapture
from visualizer.store.reader import Store
from visualizer.store.saving import Saving, raise_errors, save_capture
from visualizer.summary import attention_rows, entry_rows, print_summary

__all__ = ["Annotations", "Captured", "capture", "load"]


def capture(
    model: nn.Module | None = None,
    *,
    locals: Mapping[Any, Any] | None = None,  # noqa: A002 - what they are called
    modules: str | Sequence[str] = (),
    attention: bool = True,
    inputs: bool = False,
    gradients: bool = False,
    keep: Any = "auto",
    max_bytes: int | None = None,
) -> Captured:
    """Take values out of what runs inside a with-block, without a change to any code.

    The model's own output is bit-identical, and afterwards everything is as it was before.

    Args:
        model: Only what it calls is captured, under its modules' paths. Without one everything
            that runs in this context is.
        locals: Which locals of which functions: `{function or "module:Qual.name": names}`.
        modules: Paths of modules whose outputs are taken; `*` stands for one part of a path, `**`
            for any number, `{layer}` for a number that becomes the entry's layer.
        attention: Take every attention call, fused or not, as an `AttentionMap`.
        inputs: Take what these modules are called with, too.
        gradients: Keep what the gradients of attention maps are computed from, once a backward
            pass has come, in the block or after it: `m.gradient()` has them.
        keep: "all", "last", or a number n for every n-th call of a site; for attention "auto"
            (queries and keys, or rows, whichever is smaller), "qk", "rows" (the weights of each
            query, computed at once) or "weights" (the model's own map, where it computes one). A
            tuple for both.
        max_bytes: How many bytes may be held. A site that would pass it stops; leaving the block
            then raises.
    Returns:
        A context manager, in which and after which the captured values are read.
    Raises:
        TypeError: What is no model, no mapping of locals, or patterns without a model.
        UnknownModuleError: A pattern fits none of the model's modules.
        TargetNotFoundError, NotInstrumentableError, UnknownLocalError: As for
            `visualizer.rewrite.instrument`.
        OutOfRangeError: Options that mean nothing.
        CaptureBudgetError: On leaving the block: `max_bytes` was reached.
        MapRefusedError: On leaving the block: a map disagrees with the model's output.

    Example:
        >>> import torch
        >>> layer = torch.nn.TransformerEncoderLayer(16, 4, batch_first=True).eval()
        >>> with torch.no_grad(), capture(layer) as captured:
        ...     _ = layer(torch.randn(1, 5, 16))
        >>> captured.attention[0].shape
        (1, 4, 5, 5)
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"capture() takes the model, a torch.nn.Module, not {type(model).__name__}. What is "
            f"called in the block is captured: with capture(model) as captured: model(x)"
        )
    if inputs and not modules:
        raise TypeError(
            "capture(inputs=True) takes what modules are called with, and needs to know of which: "
            "capture(model, modules=[…], inputs=True)"
        )
    if gradients and not attention:
        raise TypeError(
            "capture(gradients=True, attention=False) has nothing to take gradients of: they are "
            "those of attention maps"
        )
    block = Block(
        model,
        locals=locals or {},
        modules=modules,
        attention=attention,
        inputs=inputs,
        gradients=gradients,
        keep=keep,
        max_bytes=max_bytes,
    )
    return Captured(block)


class Captured:
    """What a block of `capture()` took, or what `load()` found. Read it in the block or after it.

    Attributes:
        locals: `captured.locals["Attention.forward"]["attn"]` is a list of `Entry`, in call order.
        modules: `captured.modules["blocks.3.mlp"]` is a list of `Entry`.
        inputs: `captured.inputs["blocks.3.mlp"]` is a list of `Entry` that hold `ModuleInputs`.
        attention: The attention maps: `[i]` in the order of the calls, `["blocks.3.attn"]` and
            `.layers[i]` are lists, `.joined("blocks.3.attn")` is that of a whole generation.
        annotations: What `annotate` was told.
    """

    def __init__(self, record: CaptureRecord, annotations: Annotations | None = None) -> None:
        self._record = record
        self.locals = LocalsView(record.functions)
        self.modules = ModulesView("captured.modules", record.outputs)
        self.inputs = ModulesView("captured.inputs", record.inputs)
        self.attention = AttentionView(record.attention, record.why_no_attention)
        self.annotations = Annotations() if annotations is None else annotations

    def __enter__(self) -> Captured:
        block = self._record
        if not isinstance(block, Block):
            raise RuntimeError(
                f"this is a capture that was loaded, and takes nothing any more: {self!r}. Call "
                f"capture() for another one"
            )
        if block.was_opened:
            raise RuntimeError(
                "this capture was open before, and holds what it took then; call capture() again "
                "for another one"
            )
        raise_errors()
        block.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        block = self._record
        assert isinstance(block, Block)
        troubles = block.close()
        failure = block.find_failure()
        if error is None and failure is not None:
            for trouble in troubles:
                failure.add_note(trouble)
            raise failure
        with suppress(CaptureWarning) if error is not None else nullcontext():
            for message in [*troubles, *([] if failure is None else [str(failure)])]:
                notify(message)  # last, since a warning may have been made an error

    @property
    def nbytes(self) -> int:
        """Bytes that are held; memory that is shared counts once."""
        return self._record.nbytes

    def annotate(
        self,
        *,
        tokens: Sequence[Any] | None = None,
        image: Any = None,
        grid: int | tuple[int, int] | None = None,
        prefix_tokens: int = 0,
    ) -> Captured:
        """Tell what the values belong to, for figures.

        Args:
            tokens: Labels of the tokens, as `tokenizer.convert_ids_to_tokens` returns them.
            image: The picture: a path, a PIL image or an array.
            grid: Rows and columns of patches, or one number for both.
            prefix_tokens: Tokens before the patches (CLS, registers).
        Returns:
            The capture itself.
        Raises:
            ShapeError: A grid or a number of tokens that can't be.
        """
        if isinstance(grid, int):
            grid = (grid, grid)
        if grid is not None and (len(grid) != 2 or min(grid) < 1):
            raise ShapeError(f"grid is {grid}; expected rows and columns of patches")
        if prefix_tokens < 0:
            raise ShapeError(f"prefix_tokens is {prefix_tokens}; expected 0 or more")
        self.annotations = Annotations(
            None if tokens is None else list(tokens), image, grid, prefix_tokens
        )
        return self

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        background: bool = False,
    ) -> Saving:
        """Write everything to a folder, from which `visualizer.load` reads it again.

        Once this returns, it survives a crash; whatever happens on the way, what was committed
        until then can be read. Attention maps are stored as what they are computed from.

        Args:
            path: The folder; it is made.
            overwrite: Replace what was saved there before, once this is whole.
            background: Return at once, and write in a thread. Values that are changed before they
                are on the disk are left out, and `wait` says so. What goes wrong is raised by
                `wait`, or else by the next `save` or block. A normal exit waits.
        Returns:
            What can be waited for.
        Raises:
            StoreExistsError: There is something already.
            StoreWriteError: It can't be written; what was committed stays.
        """
        return save_capture(
            self._record, self.annotations, path, overwrite=overwrite, background=background
        )

    def explain(self) -> str:
        """Say what was asked for and is not there; "" where everything is."""
        return "\n".join(self._record.explain())

    def summary(self) -> None:
        """Print what was taken, its shapes and bytes, and what is missing and why."""
        rows = [
            row
            for function, variables in self.locals.items()
            for name, entries in variables.items()
            for row in entry_rows(f"local {name}", {function: entries})
        ]
        rows += entry_rows("output", self.modules)
        rows += entry_rows("inputs", self.inputs)
        rows += attention_rows(self.attention)
        where = "on the disk" if self._record.state == "loaded" else "held"
        print_summary(rows, f"{in_words(self.nbytes)} {where}", self.explain().splitlines())

    def __repr__(self) -> str:
        parts = [
            f"{len(self.locals)} functions",
            f"{len(self.modules)} modules",
            f"{len(self.attention)} attention maps",
        ]
        state = self._record.state
        return f"<capture, {state}: {', '.join(parts)}; captured.summary() shows them>"


def load(path: str | os.PathLike[str]) -> Captured:
    """Read a capture that was saved. The model is not needed.

    Only the index is read now. Values are read when they are used, each time anew, and held
    against the hashes that were written with them.

    Args:
        path: The folder that `captured.save` made.
    Returns:
        The capture. What of it is damaged or missing is warned of, and told by `explain()`; the
        rest can be read.
    Raises:
        NotAStoreError: There is none.
    """
    store = Store(path)
    record = StoredCapture(store)
    troubles = record.troubles()
    annotations = Annotations()
    try:
        annotations = record.annotations()
    except DamagedError as error:
        troubles.append(str(error))
    if troubles:
        more = f" (and {len(troubles) - 1} more, by captured.explain())" if troubles[1:] else ""
        notify(printable(f"{troubles[0]}{more}"))
    return Captured(record, annotations)
