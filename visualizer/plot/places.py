"""How much each place of a picture looks at a token of a text, in one map or in several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_index
from visualizer.analysis.grids import Grid, grid_in_proportion, rows_and_columns
from visualizer.errors import ShapeError
from visualizer.plot.drawing import printable
from visualizer.plot.maps import Columns, Head, columns_of, list_of_layers
from visualizer.plot.pictures import Region

__all__ = ["Places", "check_keys", "choose", "list_of_maps", "places_of", "step_of"]

_CROSS: Final = "[m for m in captured.attention if m.module_path.endswith('attn2')]"


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """A map whose queries are the places of a grid over a picture.

    Attributes:
        columns: The map, shape `(query, key)`.
        grid: Rows and columns of its queries.
        size: Of the largest grid among the maps that are drawn together.
    """

    columns: Columns
    grid: tuple[int, int]
    size: tuple[int, int]

    def weights(self, key: int) -> Floats:
        """Return how much each place looks at a key, brought to `size`."""
        weights = self.columns.take(key).reshape(self.grid)
        if self.grid == self.size:
            return weights
        rows, columns = self.size
        own = Image.fromarray(weights.astype(np.float32))
        return np.asarray(own.resize((columns, rows), Image.Resampling.BILINEAR))


def list_of_maps(maps: Any) -> Sequence[Any]:
    """Return one map or several as a sequence; what has axes of its own is one."""
    return [maps] if getattr(maps, "ndim", 0) > 1 else list_of_layers(maps)


def step_of(entry: Any, name: str) -> int:
    """Return the step that a map is of.

    Raises:
        ShapeError: It tells none.
    """
    step = getattr(entry, "step", None)
    if not isinstance(step, int):
        raise ShapeError(
            f"{name} tells no step. Maps that were captured within a model's forward do; for "
            f"others there is visualize_tokens"
        )
    return step


def check_keys(
    entries: Sequence[Any],
    item: int | None,
    head: Head,
    queries: slice | None,
    keys: slice | None,
) -> list[Columns]:
    """Return maps, having made sure that they have as many keys.

    Raises:
        ShapeError: They have not.
    """
    found = [
        columns_of(entry, item, head, queries=queries, keys=keys, name=f"maps[{index}]")
        for index, entry in enumerate(entries)
    ]
    counts = sorted({columns.shape[1] for columns in found})
    if len(counts) > 1:
        raise ShapeError(
            f"the maps have unequal numbers of keys, {counts}; expected one for each token of the "
            f"text. Is self-attention among them? Cross-attention of a UNet is {_CROSS}"
        )
    return found


def choose(chosen: Sequence[int] | int, tokens: Sequence[Any] | None, count: int) -> dict[int, str]:
    """Return the tokens that were chosen, and what is written over each.

    Args:
        chosen: Which ones.
        tokens: The text, a token a key.
        count: How many keys there are.
    Raises:
        ShapeError: None was chosen, or there are more tokens than keys, or fewer.
        OutOfRangeError: A token that does not exist.
    """
    given = None if tokens is None else list(tokens)
    if given is not None and len(given) != count:
        raise ShapeError(
            f"there are {len(given)} tokens, and the maps have {count} keys. Are the special "
            f"tokens (<|startoftext|>) or the padding in one and not in the other? In joint "
            f"attention, say which keys are the text: keys=slice(…)"
        )
    indexes = chosen.tolist() if hasattr(chosen, "tolist") else chosen
    listed = list(indexes) if isinstance(indexes, Sequence | set | range) else [indexes]
    if not listed:
        raise ShapeError(f"chosen is empty; name some of the {count} tokens, as chosen=[1, 2]")
    places = [check_index(each, count, "token") for each in listed]
    return {
        place: f"token {place}" if given is None else f"{place}: {printable(given[place])}"
        for place in places
    }


def places_of(found: list[Columns], grid_size: Grid | None, region: Region) -> list[Places]:
    """Return where the queries of maps lie.

    Args:
        found: The maps.
        grid_size: Rows and columns of the largest; the others have its proportions. If None, they
            are those of the picture, or else all grids are square.
        region: The part of the picture that they lie over.
    Raises:
        ShapeError: There are no such grids.
    """
    counts = [columns.shape[0] for columns in found]
    for sides in _proportions(grid_size, region, max(counts)):
        grids = {count: grid_in_proportion(count, *sides) for count in set(counts)}
        fitting = [grid for grid in map(grids.get, counts) if grid is not None]
        if len(fitting) == len(counts):
            size = max(fitting, key=lambda grid: grid[0] * grid[1])
            return [Places(*each, size) for each in zip(found, fitting, strict=True)]
    width, height = region.right - region.left, region.bottom - region.top
    count = next(count for count in counts if grids[count] is None)
    expected = f"the picture, {width:g}×{height:g}, nor is there a square one"
    raise ShapeError(
        f"no grid of {count} queries has the proportions of "
        f"{expected if grid_size is None else f'the grid, {grid_size}'}. Pass the grid_size of the "
        f"largest map, (rows, columns), and maps of the same proportions; in joint attention, say "
        f"which queries are the picture: queries=slice(…)"
    )


def _proportions(grid_size: Grid | None, region: Region, most: int) -> list[tuple[float, float]]:
    """Return heights and widths that grids may have the proportions of, the likelier first."""
    if grid_size is None:
        return [(region.bottom - region.top, region.right - region.left), (1, 1)]
    rows, columns = rows_and_columns(grid_size)
    if rows * columns != most:
        raise ShapeError(
            f"{most} queries don't fit a grid of {rows}×{columns} = {rows * columns} places. Pass "
            f"rows and columns of the largest map; in joint attention, say which queries are the "
            f"picture: queries=slice(…)"
        )
    return [(rows, columns)]
