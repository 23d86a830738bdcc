"""Where a patch looks: maps over pictures, the tile of CLS, boxes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plot.samples import Image, box, colorbars, edges, np, panels, picture, save, weights
from visualizer.plot import (
    highlight_grid,
    visualize_grid_to_grid,
    visualize_grid_to_grid_with_cls,
)

GRIDS = [((1, 1), 0), ((1, 4), 3), ((4, 1), 2), ((3, 5), 7), ((3, 5), 14), (14, 100), ((14, 14), 0)]


def rows_and_columns(grid: Any) -> tuple[int, int]:
    return grid if isinstance(grid, tuple) else (grid, grid)


def cell(index: int, grid: Any, width: float, height: float) -> tuple[float, ...]:
    rows, columns = rows_and_columns(grid)
    row, column = divmod(index, columns)
    wide, high = width / columns, height / rows
    return (column * wide, row * high, (column + 1) * wide, (row + 1) * high)


@pytest.mark.parametrize(("grid", "index"), GRIDS)
@pytest.mark.parametrize("size", [(224, 224), (341, 256), (100, 40), (3, 2)])
def test_a_map_covers_the_picture_and_the_box_its_cell(
    grid: Any, index: int, size: tuple[int, int]
) -> None:
    rows, columns = rows_and_columns(grid)
    values = weights(rows * columns, rows * columns)
    figure = visualize_grid_to_grid(values, index, picture(*size), grid)
    left, right = panels(figure)
    for ax in (left, right):
        assert edges(ax.images[0]) == (0, 0, *size)
        assert ax.images[0].get_array().shape == (size[1], size[0], 3)
        assert box(ax) == pytest.approx(cell(index, grid, *size))
        assert (*ax.get_xlim(), *ax.get_ylim()) == (0, size[0], size[1], 0)
    assert len(left.images) == 1
    mask = right.images[1]
    assert edges(mask) == (0, 0, *size)
    assert np.array_equal(mask.get_array(), values[index].reshape(rows, columns))
    assert mask.get_interpolation() == "nearest"
    assert mask.get_alpha() == 0.6


@pytest.mark.parametrize("mode", ["overlay", "dim"])
def test_colorbars_have_true_weights(mode: Any) -> None:
    values = weights(10, 10)
    (bar,) = colorbars(visualize_grid_to_grid(values[1:, 1:], 4, picture(), 3, mode=mode))
    assert bar.get_ylim() == (0, values[5, 1:].max())
    (bar,) = colorbars(visualize_grid_to_grid_with_cls(values, 4, picture(), 3, mode=mode))
    assert bar.get_ylim() == (0, values[4].max())
    assert bar.get_ylabel() == "attention weight"


def test_a_map_whose_cls_was_cut_off_will_do() -> None:
    values = weights(197, 197)[1:, 1:]
    assert values.sum(axis=-1).max() < 1
    figure = visualize_grid_to_grid(values, 100, picture())
    assert np.array_equal(panels(figure)[1].images[1].get_array().ravel(), values[100])


def test_options_in_their_original_order() -> None:
    figure = visualize_grid_to_grid(weights(6, 6), 3, picture(), (2, 3), 0.25)
    assert panels(figure)[1].images[1].get_alpha() == 0.25
    figure = visualize_grid_to_grid_with_cls(weights(7, 7), 3, picture(), (2, 3), 0.25)
    assert {image.get_alpha() for image in panels(figure)[1].images[1:]} == {0.25}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "list"])
@pytest.mark.parametrize("with_cls", [False, True])
def test_maps_of_any_kind(kind: str, with_cls: bool) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    count = 9 + with_cls
    values = torch.from_numpy(weights(1, 1, count, count)).float()
    given = values.tolist() if kind == "list" else values.to(getattr(torch, kind))
    draw = visualize_grid_to_grid_with_cls if with_cls else visualize_grid_to_grid
    mask = panels(draw(given, 5, picture(), 3))[1].images[-1]
    expected = values[0, 0, 5, with_cls:].reshape(3, 3)
    assert np.allclose(mask.get_array(), expected, rtol=0.01)


def test_item_and_head_choose() -> None:
    values = weights(2, 3, 9, 9)
    mask = panels(visualize_grid_to_grid(values, 5, picture(), 3, item=1, head=2))[1].images[1]
    assert np.array_equal(mask.get_array().ravel(), values[1, 2, 5])
    figure = visualize_grid_to_grid_with_cls(values, 5, picture(), (2, 4), item=1, head="mean")
    mask = panels(figure)[1].images[-1]
    assert np.allclose(mask.get_array().ravel(), values[1, :, 5, 1:].mean(axis=0))


def with_cls_weight(cls: float, largest: float) -> Any:
    """A row that looks at CLS and at the four patches; return CLS's tile and the map's image."""
    row = np.array([cls, largest, 0.1, 0.05, 0.0])
    figure = visualize_grid_to_grid_with_cls(np.tile(row, (5, 1)), 2, picture(), 2)
    _, tile, mask = panels(figure)[1].images
    return tile, mask


def test_the_tile_has_the_scale_of_the_map() -> None:
    tile, mask = with_cls_weight(0.2, 0.4)
    assert tile.get_array().tolist() == [[0.2]]
    assert float(tile.norm(tile.get_array()[0, 0])) == 0.5
    assert tile.get_clim() == mask.get_clim() == (0, 0.4)
    assert tile.to_rgba(0.2)[:3] == mask.to_rgba(0.2)[:3]
    tile, mask = with_cls_weight(0.5, 0.25)
    assert float(tile.norm(tile.get_array()[0, 0])) == 1
    assert float(mask.norm(mask.get_array()[0, 0])) == 0.5


@pytest.mark.parametrize("mode", ["overlay", "dim"])
def test_the_tile_grows_brighter_with_its_weight(mode: Any) -> None:
    seen = []
    for cls in (0.0, 0.1, 0.2, 0.3, 0.4):
        row = np.array([cls, 0.4, 0.1, 0.05, 0.0])
        figure = visualize_grid_to_grid_with_cls(
            np.tile(row, (5, 1)), 2, picture(), 2, alpha=1.0, mode=mode
        )
        pixels = save(figure)
        left, top, right, bottom = edges(panels(figure)[1].images[1])
        ax = panels(figure)[1]
        x, y = ax.transData.transform(((left + right) / 2, (top + bottom) / 2))
        seen.append(int(pixels[len(pixels) - 1 - round(y), round(x)].astype(int).sum()))
    assert seen == sorted(set(seen)), seen


@pytest.mark.parametrize("size", [(224, 224), (100, 40)])
@pytest.mark.parametrize("grid", [1, (2, 5), (5, 2), 3])
def test_the_tile_is_a_cell_at_the_top_left(grid: Any, size: tuple[int, int]) -> None:
    rows, columns = rows_and_columns(grid)
    values = weights(rows * columns + 1, rows * columns + 1)
    left, right = panels(visualize_grid_to_grid_with_cls(values, 0, picture(*size), grid))
    _, tile, mask = right.images
    assert edges(mask) == (0, 0, *size)
    assert edges(tile)[1] == 0
    assert edges(tile)[2] <= 0  # at the left of the picture, and not upon it
    assert edges(tile)[2] - edges(tile)[0] == pytest.approx(size[0] / columns)
    assert edges(tile)[3] == pytest.approx(size[1] / rows)
    assert box(left) == box(right) == pytest.approx(edges(tile))
    assert [text.get_text() for text in left.texts] == ["CLS"]
    for ax in (left, right):
        assert ax.get_xlim()[0] <= edges(tile)[0]
        assert ax.get_xlim()[1] == size[0]


@pytest.mark.parametrize("index", [1, 6, 14, 15])
def test_token_one_is_the_first_patch(index: int) -> None:
    values = weights(16, 16)
    figure = visualize_grid_to_grid_with_cls(values, index, picture(90, 60), (3, 5))
    for ax in panels(figure):
        assert box(ax) == pytest.approx(cell(index - 1, (3, 5), 90, 60))
    assert np.array_equal(panels(figure)[1].images[-1].get_array().ravel(), values[index, 1:])
    assert panels(figure)[1].images[1].get_array()[0, 0] == values[index, 0]


@pytest.mark.parametrize("grid", [1, 3])
def test_registers_have_a_tile_each(grid: int) -> None:
    count = grid * grid + 5
    values = weights(count, count)
    figure = visualize_grid_to_grid_with_cls(values, 3, picture(), grid, prefix_tokens=5)
    left, right = panels(figure)
    tiles = right.images[1:-1]
    assert [float(tile.get_array()[0, 0]) for tile in tiles] == values[3, :5].tolist()
    places = {tuple(round(edge, 6) for edge in edges(tile)) for tile in tiles}
    assert len(places) == 5
    assert box(left) == pytest.approx(edges(tiles[3]))
    assert [text.get_text() for text in left.texts] == ["CLS", "+1", "+2", "+3", "+4"]


def test_gray_pictures_with_cls() -> None:
    for mode in ("L", "1", "LA"):
        figure = visualize_grid_to_grid_with_cls(weights(5, 5), 1, picture(mode=mode), 2)
        assert panels(figure)[0].images[0].get_array().shape == (224, 224, 3)


def test_dim_hides_what_is_not_looked_at() -> None:
    row = np.array([0.0, 0.25, 0.5, 0.25])
    figure = visualize_grid_to_grid(np.tile(row, (4, 1)), 0, picture(), 2, mode="dim")
    shade = panels(figure)[1].images[1]
    assert shade.get_array()[..., 3].ravel().tolist() == [1, 0.5, 0, 0.5]
    assert not shade.get_array()[..., :3].any()


@pytest.mark.parametrize("origin", ["upper", "lower"])
def test_rows_run_from_the_top_down_whatever_matplotlib_is_set_to(origin: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"image.origin": origin}):
        figure = visualize_grid_to_grid(np.eye(4), 3, picture(), 2, alpha=1.0)
        pixels = save(figure)

    def brightness(ax: Any, x: float, y: float) -> int:
        column, row = ax.transData.transform((x, y))
        return int(pixels[len(pixels) - 1 - round(row), round(column)].astype(int).sum())

    left, right = panels(figure)
    assert brightness(left, 30, 30) > brightness(left, 30, 190) + 100
    assert brightness(right, 168, 150) > brightness(right, 168, 56) + 100


def red(pixels: Any) -> Any:
    return (pixels == [255, 0, 0]).all(axis=-1)


@pytest.mark.parametrize(("grid", "index"), GRIDS)
@pytest.mark.parametrize("size", [(224, 224), (341, 256), (100, 40)])
def test_a_highlighted_box_is_exactly_on_its_cell(
    grid: Any, index: int, size: tuple[int, int]
) -> None:
    before = picture(*size)
    after = np.asarray(highlight_grid(before, [index], grid))
    where = np.argwhere(red(after))
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
    expected = cell(index, grid, *size)
    assert np.abs(np.subtract((left, top, right, bottom), expected)).max() <= 0.5
    changed = np.argwhere((after != np.asarray(before)).any(axis=-1))
    assert (changed.min(axis=0) >= (top, left)).all()
    assert (changed.max(axis=0) < (bottom, right)).all()
    for corner in ((top, left), (top, right - 1), (bottom - 1, left), (bottom - 1, right - 1)):
        assert red(after)[corner]


def test_neighbours_do_not_overlap() -> None:
    one, other = (red(np.asarray(highlight_grid(picture(70, 70), [i], 7))) for i in (3, 4))
    assert not (one & other).any()
    both = red(np.asarray(highlight_grid(picture(70, 70), [3, 4], 7)))
    assert np.array_equal(both, one | other)


def test_highlighting_leaves_the_picture_alone() -> None:
    given = picture()
    before = given.tobytes()
    made = highlight_grid(given, range(3))
    assert isinstance(made, Image.Image)
    assert given.tobytes() == before
    assert (made.size, made.mode) == (given.size, "RGB")
    assert highlight_grid(given, []).tobytes() == before


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_boxes_are_red_in_pictures_of_any_mode(mode: str) -> None:
    given = Image.new(mode, (28, 28))
    assert red(np.asarray(highlight_grid(given, [0], 2))).any()


def test_more_cells_than_pixels() -> None:
    assert red(np.asarray(highlight_grid(picture(5, 5), [0, 195]))).any()


def test_indexes_of_every_kind() -> None:
    expected = highlight_grid(picture(), [3, 4]).tobytes()
    assert highlight_grid(picture(), np.array([3, 4])).tobytes() == expected
    assert highlight_grid(picture(), (3, 4)).tobytes() == expected
    assert highlight_grid(picture(), 3).tobytes() == highlight_grid(picture(), [3]).tobytes()


def test_an_index_may_be_what_argmax_returns() -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    values = torch.from_numpy(weights(9, 9))
    place = values[0].argmax()
    visualize_grid_to_grid(values, values.numpy()[0].argmax(), picture(), 3)
    visualize_grid_to_grid(values, place, picture(), 3)
    highlight_grid(picture(), [place], 3)
