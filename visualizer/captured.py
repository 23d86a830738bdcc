"""What was captured: to be read, annotated, shown and saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any

from visualizer._block.annotations import Annotations
from visualizer._block.block import Block
from visualizer._block.budget import in_words
from visualizer._block.views import AttentionView, CaptureRecord, LocalsView, ModulesView
from visualizer._capture.notices import notify
from visualizer.attention.sizes import MAX_BYTES
from visualizer.errors import (
    CaptureWarning,
    ShapeError,
    StoreWriteError,
    VisualizerError,
)
from visualizer.store.exported import Export
from visualizer.store.json_file import save_json
from visualizer.store.npz_file import save_npz
from visualizer.store.pt_tree import save_tree
from visualizer.store.saving import Saving, raise_errors, save_capture
from visualizer.store.spilling import Spill
from visualizer.summary import attention_rows, entry_rows, print_summary

__all__ = ["Annotations", "Captured"]


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

    def __init__(
        self,
        record: CaptureRecord,
        annotations: Annotations | None = None,
        *,
        spill: Spill | None = None,
    ) -> None:
        self._record, self._spill = record, spill
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
        if self._spill is not None:
            self._spill.open(block)
        try:
            block.open()
        except BaseException:
            if self._spill is not None:
                self._spill.abandon()
            raise
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
        failure = self._finish_spilling() or block.find_failure()
        if error is None and failure is not None:
            for trouble in troubles:
                failure.add_note(trouble)
            raise failure
        with suppress(CaptureWarning) if error is not None else nullcontext():
            for message in [*troubles, *([] if failure is None else [str(failure)])]:
                notify(message)  # last, since a warning may have been made an error

    def _finish_spilling(self) -> VisualizerError | None:
        try:
            if self._spill is not None:
                self._spill.close(self._record, self.annotations)
        except StoreWriteError as error:
            return error
        return None

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

    def save_pt(
        self,
        base: str | os.PathLike[str] = "./vistvis_runs",
        identifier: str = "global",
        *,
        steps: bool | None = None,
        attention: bool = True,
        max_map_bytes: int = MAX_BYTES,
        overwrite: bool = False,
    ) -> Export:
        """Write everything as `<base>/<identifier>/[step_<n>/]layer_<i>/<var>.pt`.

        Each file holds one value, in the type that it had in the program, on the CPU and without
        its graph; `torch.load(file, weights_only=True)` reads it. `<var>` is the local's name, the
        module's path within its layer (`mlp`, or `mlp.input` for what it was called with), or
        `attn_weight`. `<i>` is the number in the module's path; what is outside of layers lies
        above their folders. Where several would share a name, or there are several stacks of
        layers, it is the whole path (a local keeps its name beside modules); several calls become
        `mlp.call_0.pt`, `mlp.call_1.pt`. `names.json` says what such files are.

        Args:
            base: Where the tree is; "~" is your home.
            identifier: The name of its own folder.
            steps: Whether each forward of the model has a folder; None is where there are several.
            attention: Whether attention maps are written, as weights.
            max_map_bytes: How large a map may be; a larger one is left out.
            overwrite: Replace files that are there. Others stay.
        Returns:
            What was written, and what was left out: what is neither tensor, number nor text.
        Raises:
            OutOfRangeError: The identifier is not the name of one folder.
            StoreExistsError: A file is there already; nothing was written.
            StoreWriteError: A file can't be written; those before it are there.
        """
        return save_tree(
            self._record,
            base,
            identifier,
            steps=steps,
            attention=attention,
            max_map_bytes=max_map_bytes,
            overwrite=overwrite,
        )

    def save_json(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        prompt: str | None = None,
        input_ids: Any = None,
        attention: bool = True,
        force: bool = False,
        overwrite: bool = False,
    ) -> Export:
        """Write modules and their attention maps to a JSON file, by kind of module.

        The output of a module that attends is a list whose element 1 are the weights, shape
        `(batch, head, query, key)`. "input" has positional arguments, and behind them an object of
        the others; of several calls, "output" is the last, and "calls" has all of them. NaN is
        null, infinities are 1e999 and -1e999.

        Args:
            path: The file.
            model: The model's name; its class if not given.
            prompt: The text it was given.
            input_ids: The tokens of that.
            attention: Whether attention maps are written.
            force: Write it, however large it becomes.
            overwrite: Replace the file that is there.
        Returns:
            What was written, and what was left out, as locals are.
        Raises:
            ExportTooLargeError: It would have more than 50 MB; nothing was written.
            StoreExistsError: There is a file.
            StoreWriteError: It can't be written.
        """
        return save_json(
            self._record,
            path,
            model=model,
            prompt=prompt,
            input_ids=input_ids,
            attention=attention,
            force=force,
            overwrite=overwrite,
        )

    def save_npz(
        self,
        path: str | os.PathLike[str],
        *,
        attention: bool = True,
        max_map_bytes: int = MAX_BYTES,
        overwrite: bool = False,
    ) -> Export:
        """Write everything to one file that `np.load` reads, without pickle.

        Keys are as values are read here: `modules.blocks.3.mlp`, and `….call_1` for its entry 1
        where there are several; items of tuples and dicts follow behind a dot. A key that no file
        can have is changed, and `names.json` within says how. bfloat16 and float8 are float32.

        Args:
            path: The file.
            attention: Whether attention maps are written, as weights.
            max_map_bytes: How large a map may be; a larger one is left out.
            overwrite: Replace the file that is there.
        Returns:
            What was written, and what was left out: what is no array, number or text.
        Raises:
            StoreExistsError: There is a file.
            StoreWriteError: It can't be written.
        """
        return save_npz(
            self._record,
            path,
            attention=attention,
            max_map_bytes=max_map_bytes,
            overwrite=overwrite,
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
