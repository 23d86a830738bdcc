"""`capture()` takes any local, any module's output and any attention; `load()` reads it again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from visualizer._block.annotations import Annotations
from visualizer._block.block import Block
from visualizer._block.options import Keep
from visualizer._capture.notices import notify
from visualizer._printable import printable
from visualizer.captured import Captured
from visualizer.errors import DamagedError
from visualizer.store.captures import StoredCapture
from visualizer.store.reader import Store
from visualizer.store.spilling import Spill

__all__ = ["capture", "load"]


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
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
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
            then raises. With `out`, how many may wait to be written: the model waits then.
        out: A folder that everything is written to while the block runs, as by `Captured.save`:
            values are not kept in memory, but read from there. Leaving the block waits for it.
        overwrite: Replace what was saved there before, once this is whole.
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
        StoreExistsError: On entering it: there is something at `out` already.
        StoreWriteError: On entering or leaving it: `out` can't be written to. On entering: what was
            saved in the background could not be, and nobody has waited for it.

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
    if out is not None and (gradients or Keep.of(keep).last):
        raise TypeError(
            "capture(out=…) writes values while the block runs, so that it can have neither "
            "gradients, which come later, nor keep='last'. Capture without out=, and then "
            "captured.save(…)"
        )
    spill = None if out is None else Spill(out, overwrite=overwrite, max_bytes=max_bytes)
    block = Block(
        model,
        locals=locals or {},
        modules=modules,
        attention=attention,
        inputs=inputs,
        gradients=gradients,
        keep=keep,
        max_bytes=max_bytes if spill is None else None,
        sink=spill,
    )
    return Captured(block, spill=spill)


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
