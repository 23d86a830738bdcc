"""A map that is computed when, and where, it is looked at."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visualizer._printable import printable
from visualizer.attention import statistics
from visualizer.attention.call import AttentionCall
from visualizer.attention.grids import token_places
from visualizer.attention.indexing import keys_of, one_of, part_of
from visualizer.attention.joined import Joined
from visualizer.attention.picks import Shape
from visualizer.attention.record import (
    ArrayRecord,
    MapRecord,
    Source,
    dtype_of,
    read_intact,
    to_gradient,
    to_weights,
)
from visualizer.attention.sizes import MAX_BYTES, check_size
from visualizer.attention.stream import BLOCK_BYTES, Block
from visualizer.attention.unobserved import unobserved
from visualizer.errors import MapRefusedError, OutOfRangeError

__all__ = ["AttentionMap", "Floats"]

Floats = NDArray[np.floating[Any]]
"""In fact float32 or float64."""


class AttentionMap:
    """Attention weights, shape `(batch, head, query, key)`, computed where they are asked for.

    The map is exact, in float32, or in float64 for queries of float64, whatever the model computes
    in. Rows whose keys are all hidden are as the call left them: 0, NaN, or even.

    Example:
        >>> m = AttentionMap.from_weights([[0.5, 0.5], [1.0, 0.0]])
        >>> m[0, 0, 1]
        array([1., 0.])
        >>> m.entropy().round(2)
        array([[[0.69, 0.  ]]])
    """

    __slots__ = ("_logsumexp", "record")

    record: MapRecord
    """Where the map comes from."""

    def __init__(self, record: MapRecord) -> None:
        """Keep the record; nothing is read yet."""
        self.record = record
        self._logsumexp: Tensor | None = None

    @classmethod
    def from_weights(
        cls,
        array: Any,
        *,
        gradient: Any = None,
        module_path: str | None = None,
        layer: int | None = None,
    ) -> AttentionMap:
        """Return a map of weights that are there already; kept by reference where possible.

        Args:
            array: Shape `(query, key)`, `(head, query, key)` or `(batch, head, query, key)`; rows
                sum to 1, within 0.02.
            gradient: Of a loss, by these weights; of the same shape.
            module_path: Of the module they are from.
            layer: Its index.
        Raises:
            ShapeError: Another number of axes, or a gradient of another shape.
            NotWeightsError: Negative or not finite values, or rows that don't sum to 1.
        """
        weights = to_weights(array)
        found = None if gradient is None else to_gradient(gradient, weights)
        return cls(ArrayRecord(weights, found, module_path=module_path, layer=layer))

    @property
    def shape(self) -> Shape:
        """Sizes of batch, head, query, key."""
        batch, head, query, key = self.record.shape
        return batch, head, query, key

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is returned: float32, or float64 for queries or weights of float64."""
        exact = self._read().dtype == torch.float64
        return np.dtype(np.float64 if exact else np.float32)

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What the whole map would take."""
        return self.size * self.dtype.itemsize

    @property
    def module_path(self) -> str | None:
        """Of the module that called, as `named_modules()` has it."""
        return self.record.module_path

    @property
    def layer(self) -> int | None:
        """Index of the layer."""
        return self.record.layer

    @property
    def call(self) -> int:
        """Index of the call, of this module."""
        return self.record.call

    @property
    def step(self) -> int | None:
        """Index of the root model's forward."""
        return self.record.step

    @property
    def source(self) -> str:
        """How the call was seen: `"sdpa"`, `"eager"`, `"softmax"`, `"array"` and so on."""
        return self.record.source

    @property
    def confirmed(self) -> bool | None:
        """Whether the map agrees with the model's own output; None where that can't be checked."""
        return self.record.confirmed

    @property
    def is_causal(self) -> bool:
        """Whether no query attends to a key behind its own place.

        With fewer queries than keys, the queries are the last ones. Where the record does not know
        it, it is read off the mask, or off the weights.
        """
        if self.record.is_causal is not None:
            return self.record.is_causal
        source = self._read()
        with unobserved(source.device.type):
            return statistics.is_causal(source)

    def __len__(self) -> int:
        """Return the size of the batch."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Return what is known of the map, in a line."""
        sizes = "×".join(str(size) for size in self.shape)
        where = [] if self.module_path is None else [repr(self.module_path)]
        layer = [] if self.layer is None else [f"layer {self.layer}"]
        held = {True: "confirmed", False: "refuted", None: "not confirmed"}[self.confirmed]
        return printable(f"<AttentionMap {', '.join([sizes, *where, *layer, self.source, held])}>")

    def __getitem__(self, index: Any) -> Any:
        """Return a part of the map, as numpy would of the whole; only its rows are computed.

        Args:
            index: Integers, slices, an ellipsis, lists or arrays of integers or booleans.
        Raises:
            OutOfRangeError: An index out of bounds, or of another kind.
            MapTooLargeError: The part would take more than 1 GiB.
        """
        return part_of(self._read(), index, MAX_BYTES, "this part of the map")

    def weights(
        self, *, head: int | None = None, item: int | None = None, max_bytes: int = MAX_BYTES
    ) -> Floats:
        """Return the whole map, or that of one head, of one item.

        Args:
            head: Index of the head; None is all.
            item: Index in the batch; None is all.
            max_bytes: How large it may be.
        Returns:
            Shape `(batch, head, query, key)`, without the axes that an index was given for.
        Raises:
            MapTooLargeError: It would take more than `max_bytes`.
        """
        return self._part(item, head, slice(None), max_bytes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the whole map, for `np.asarray`; up to 1 GiB."""
        if copy is False:
            raise ValueError("an attention map is computed; np.asarray(m) can't return a view")
        array = self.weights()
        return array if dtype is None else array.astype(dtype, copy=False)

    def row(self, query: int, *, head: int | None = None, item: int | None = None) -> Floats:
        """Return where a query looks.

        Args:
            query: Index of the query.
            head: Index of the head; None is all.
            item: Index in the batch; None is all.
        Returns:
            Shape `(batch, head, key)`, without the axes that an index was given for.
        """
        return self._part(item, head, one_of(query, self.shape[2], 2), MAX_BYTES)

    def column(self, key: int, *, head: int | None = None, item: int | None = None) -> Floats:
        """Return how much each query looks at a key.

        Args:
            key: Index of the key.
            head: Index of the head; None is all.
            item: Index in the batch; None is all.
        Returns:
            Shape `(batch, head, query)`, without the axes that an index was given for.
        """
        key, index = one_of(key, self.shape[3], 3), self._index(item, head)
        source = self._read()
        if not isinstance(source, AttentionCall) or source.mask.bias is not None:
            return np.asarray(self[(*index, slice(None), key)])
        with unobserved(source.device.type):
            values = statistics.column(source, key, self._row_sums(source))[index]
            return _to_numpy(values)

    def gradient(
        self,
        query: int | None = None,
        *,
        head: int | None = None,
        item: int | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> Floats:
        """Return what the weights would have changed in what `backward` was called on.

        `∂L/∂weights`, computed from the gradient of the call's output and its values. Of the last
        backward pass that reached the call; hidden keys have one, too.

        Args:
            query: Index of the query; None is all.
            head: Index of the head; None is all.
            item: Index in the batch; None is all.
            max_bytes: How large it may be.
        Returns:
            Shape `(batch, head, query, key)`, without the axes that an index was given for.
        Raises:
            NoGradientError: There is none; the message says what to change.
            MapTooLargeError: It would take more than `max_bytes`.
        """
        queries = slice(None) if query is None else one_of(query, self.shape[2], 2)
        index = (*self._index(item, head), queries)
        return part_of(self.record.read_gradient(), index, max_bytes, "the gradient")

    def logsumexp(self) -> Floats:
        """Return what softmax divides by, as a logarithm.

        Returns:
            Shape `(batch, head, query)`, nats: of the masked scores and the sinks; -inf where
            there are none.
        Raises:
            MapRefusedError: The map was made from weights, which don't tell.
        """
        source = self._read()
        if isinstance(source, Tensor) or (isinstance(source, Joined) and not source.has_scores):
            raise MapRefusedError(
                f"{self!r} has weights and no scores, so there is no log-sum-exp. Maps that were "
                f"captured as queries and keys, with keep='qk', have it"
            )
        with unobserved(source.device.type):
            return _to_numpy(self._row_sums(source).clone())

    def blocks(self, *, max_bytes: int = 2 * BLOCK_BYTES) -> Iterator[Block]:
        """Go through the map, some rows of an item at a time, with all heads.

        Args:
            max_bytes: What a block may take, if it is more than one query.
        """
        batch, heads, queries, keys = self.shape
        step = max(1, max_bytes // max(1, heads * keys * self.dtype.itemsize))
        for item in range(batch):
            for start in range(0, queries, step):
                part = slice(start, min(start + step, queries))
                yield Block(item, part, self._part(item, None, part, None))

    def entropy(self) -> Floats:
        """Return how widely each query spreads its attention, `-Σ a·log(a)` (Clark et al., 2019).

        Rows are scaled to sum to 1, so that what goes to a sink does not count.

        Returns:
            Shape `(batch, head, query)`, nats; NaN for queries without any weight.
        """
        source = self._read()
        with unobserved(source.device.type):
            return _to_numpy(statistics.entropy(source))

    def received(self) -> Floats:
        """Return how much attention each key gets, averaged over the queries that have any.

        Returns:
            Shape `(batch, head, key)`; sums to 1 over the keys, or less where there are sinks.
        """
        source = self._read()
        with unobserved(source.device.type):
            return _to_numpy(statistics.received(source))

    def top_keys(self, k: int) -> tuple[NDArray[np.int64], Floats]:
        """Return the keys that each query looks at most.

        Args:
            k: How many.
        Returns:
            Indices and weights, each of shape `(batch, head, query, k)`, the largest first.
        Raises:
            OutOfRangeError: More than there are keys, or less than one.
            MapTooLargeError: They would take more than 1 GiB.
        """
        if isinstance(k, bool) or not 1 <= operator.index(k) <= self.shape[3]:
            raise OutOfRangeError(f"k is {k!r}; expected 1 to {self.shape[3]}, the number of keys")
        check_size((*self.shape[:3], k), 8, MAX_BYTES, f"top_keys({k})")
        source = self._read()
        with unobserved(source.device.type):
            indices, weights = statistics.top_keys(source, k)
            return indices.cpu().numpy(), _to_numpy(weights)

    def distance(
        self,
        grid: int | tuple[int, int] | None = None,
        *,
        patch_size: float | tuple[float, float] = 1,
        prefix_tokens: int = 0,
    ) -> Floats:
        """Return how far each head looks, on average (Dosovitskiy et al., 2021, app. D.7).

        The same as `visualizer.analysis.attention_distance`.

        Args:
            grid: Rows and columns of patches, or one number for both; None for text.
            patch_size: Height and width of a patch, or one number for both.
            prefix_tokens: Tokens before the patches (CLS, registers), which have no place.
        Returns:
            Shape `(batch, head)`, in units of `patch_size`; NaN where no query has any weight.
        Raises:
            ShapeError: Not self-attention, or another number of tokens than the grid has.
        """
        places = token_places(self.shape, grid, patch_size, prefix_tokens)
        source = self._read()
        with unobserved(source.device.type):
            at = torch.from_numpy(places).to(source.device, dtype_of(source))
            return _to_numpy(statistics.distance(source, at, prefix_tokens))

    def mass(self, keys: Any) -> Floats:
        """Return the share of each query's attention that goes to the given keys.

        Args:
            keys: An index, a list of indices, a slice, or a boolean mask of shape `(key,)`.
        Returns:
            Shape `(batch, head, query)`.
        Raises:
            OutOfRangeError: A key that does not exist.
        """
        chosen = keys_of(keys, self.shape)
        source = self._read()
        with unobserved(source.device.type):
            at = torch.tensor(chosen, dtype=torch.int64, device=source.device)
            return _to_numpy(statistics.mass(source, at))

    def _read(self) -> Source:
        return read_intact(self.record)

    def _row_sums(self, source: AttentionCall | Joined) -> Tensor:
        if self._logsumexp is None:
            self._logsumexp = statistics.logsumexp(source)
        return self._logsumexp

    def _index(self, item: int | None, head: int | None) -> tuple[Any, Any]:
        batch, heads = self.shape[:2]
        first = slice(None) if item is None else one_of(item, batch, 0)
        return first, slice(None) if head is None else one_of(head, heads, 1)

    def _part(
        self, item: int | None, head: int | None, queries: Any, max_bytes: int | None
    ) -> Floats:
        name = "the map" if head is None else "the head's map"
        return part_of(self._read(), (*self._index(item, head), queries), max_bytes, name)


def _to_numpy(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().numpy()
