"""Which places of a picture look at a token: one map, several, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plot.samples import colorbars, edges, np, panels, picture, save, weights
from visualizer.errors import NotWeightsError, OutOfRangeError, PictureError, ShapeError
from visualizer.plot import visualize_tokens, visualize_tokens_over_steps


def drawn(figure: Any) -> list[Any]:
    """The maps over the picture, by token, shape `(row, column)`."""
    return [np.asarray(ax.images[1].get_array()) for ax in panels(figure)[1:]]


def at(row: int, column: int, grid: tuple[int, int], keys: int = 3) -> Any:
    """A map of two heads in which one place looks at token 1, and all others at token 0."""
    values = np.zeros((2, *grid, keys))
    values[..., 0] = 1
    values[:, row, column] = np.eye(keys)[1]
    return values.reshape(2, -1, keys)


def bilinear(values: Any, size: tuple[int, int]) -> Any:
    """Bring a grid to a larger size, place by place; centres of cells are half a cell inside."""
    result = np.zeros(size)
    for row, column in np.ndindex(*size):
        for axis_weights in _corners(row, column, values.shape, size):
            share, y, x = axis_weights
            result[row, column] += share * values[y, x]
    return result


def _corners(row: int, column: int, old: Any, new: Any) -> Any:
    places = []
    for index, before, after in zip((row, column), old, new, strict=True):
        where = min(max((index + 0.5) * before / after - 0.5, 0), before - 1)
        low = min(int(where), before - 1)
        high = min(low + 1, before - 1)
        places.append([(1 - (where - low), low), (where - low, high)])
    for first, y in places[0]:
        for second, x in places[1]:
            yield first * second, y, x


@pytest.mark.parametrize(
    ("size", "grid"),
    [((64, 64), (8, 8)), ((96, 64), (4, 6)), ((64, 96), (6, 4)), ((512, 64), (2, 16))],
)
@pytest.mark.parametrize("place", [(0, -1), (-1, 0), (1, 2)])
def test_the_place_that_looks_at_a_token_is_where_it_is(
    size: tuple[int, int], grid: tuple[int, int], place: tuple[int, int]
) -> None:
    row, column = place[0] % grid[0], place[1] % grid[1]
    figure = visualize_tokens(at(row, column, grid), picture(*size), [1, 0, 2])
    first, second, third = drawn(figure)
    assert first.shape == grid
    assert np.argwhere(first).tolist() == [[row, column]]
    assert np.array_equal(second, 1 - first)
    assert not third.any()
    for ax in panels(figure)[1:]:
        assert edges(ax.images[0]) == edges(ax.images[1]) == (0, 0, *size)
        assert ax.images[1].origin == "upper"
        assert ax.images[1].get_interpolation() == "nearest"
    assert len(panels(figure)[0].images) == 1  # the picture alone


def test_pixels_of_that_place_are_coloured() -> None:
    figure = visualize_tokens(at(0, 3, (2, 4)), np.zeros((40, 80, 3)), [1], alpha=1)
    pixels = save(figure)
    box = panels(figure)[1].get_window_extent()
    height = pixels.shape[0]
    for row, column in np.ndindex(2, 4):
        x = box.x0 + (column + 0.5) / 4 * box.width
        y = height - box.y1 + (row + 0.5) / 2 * box.height
        assert (pixels[int(y), int(x)].sum() > 300) == ((row, column) == (0, 3))


def test_heads_are_averaged_or_one_is_chosen() -> None:
    values = weights(3, 16, 5)
    (mean,) = drawn(visualize_tokens(values, picture(), 4))
    expected = sum(values[head, :, 4] for head in range(3)) / 3
    assert np.allclose(mean.ravel(), expected, atol=1e-12)
    (one,) = drawn(visualize_tokens(values, picture(), 4, head=2))
    assert np.array_equal(one.ravel(), values[2, :, 4])


@pytest.mark.parametrize(
    ("size", "grids"),
    [((64, 64), [(4, 4), (8, 8), (1, 1)]), ((96, 64), [(2, 3), (4, 6)]), ((50, 90), [(9, 5)] * 3)],
)
def test_maps_of_several_sizes_are_averaged_on_the_largest(size: Any, grids: Any) -> None:
    values = [weights(2, r * c, 7, seed=seed) for seed, (r, c) in enumerate(grids)]
    largest = max(grids)
    expected = np.zeros(largest)
    for each, grid in zip(values, grids, strict=True):
        expected += bilinear(each[..., 3].mean(axis=0).reshape(grid), largest) / len(grids)
    (mean,) = drawn(visualize_tokens(values, picture(*size), 3))
    assert np.allclose(mean, expected, atol=1e-6)
    low, high = min(each.min() for each in values), max(each.max() for each in values)
    assert low <= mean.min() <= mean.max() <= high


def test_a_constant_stays_one() -> None:
    values = [np.full((1, count, 4), 0.25) for count in (4, 16, 64)]
    (mean,) = drawn(visualize_tokens(values, picture(), 0))
    assert np.allclose(mean, 0.25)


@pytest.mark.parametrize(
    ("queries", "size", "grid"),
    [
        (64, (512, 512), (8, 8)),
        (64, (500, 300), (8, 8)),  # nothing has its proportions: the model saw it as a square
        (9216, (1024, 576), (72, 128)),  # a square number, and 16:9
        (9216, (576, 1024), (128, 72)),
        (144, (1024, 576), (9, 16)),
        (425, (776, 520), (17, 25)),  # odd sides, rounded up when halved
        (96, (768, 512), (8, 12)),
        (1, (300, 500), (1, 1)),
        (2, (200, 100), (1, 2)),
    ],
)
def test_the_grid_is_that_of_the_picture_s_proportions(
    queries: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    (mean,) = drawn(visualize_tokens(weights(queries, 2), picture(*size), 0))
    assert mean.shape == grid


@pytest.mark.parametrize(("queries", "size"), [(7, (64, 64)), (72, (64, 64)), (21, (96, 64))])
def test_without_such_a_grid_one_has_to_be_given(queries: int, size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=rf"{queries} queries.*grid_size.*queries=slice"):
        visualize_tokens(weights(queries, 2), picture(*size), 0)


def test_what_halving_and_rounding_up_makes_is_found() -> None:
    for height, width in [(65, 97), (40, 72), (33, 64), (96, 54), (129, 65), (27, 48)]:
        rows, columns = height, width
        for _ in range(3):
            rows, columns = -(-rows // 2), -(-columns // 2)
            given = weights(rows * columns, 2)
            (mean,) = drawn(visualize_tokens(given, picture(width * 8, height * 8), 0))
            assert mean.shape == (rows, columns), (height, width)


def test_a_grid_is_of_the_largest_map_and_gives_the_proportions() -> None:
    values = [weights(6, 3), weights(24, 3, seed=1)]
    (mean,) = drawn(visualize_tokens(values, picture(60, 60), 2, (6, 4)))
    expected = bilinear(values[0][:, 2].reshape(3, 2), (6, 4)) / 2
    assert np.allclose(mean, expected + values[1][:, 2].reshape(6, 4) / 2, atol=1e-7)
    with pytest.raises(ShapeError, match=r"24 queries don't fit a grid of 5×5 = 25"):
        visualize_tokens(values, picture(), 2, 5)
    with pytest.raises(ShapeError, match=r"no grid of 9 queries.*the grid, \(6, 4\)"):
        visualize_tokens([weights(9, 3), weights(24, 3)], picture(), 2, (6, 4))


def test_one_scale_for_all_tokens_or_one_for_each() -> None:
    values = at(0, 0, (2, 2))
    values[0, 0] = [0.5, 0.5, 0]
    figure = visualize_tokens(values, picture(), [0, 1, 2])
    assert {ax.images[1].get_clim() for ax in panels(figure)[1:]} == {(0, 1)}
    (bar,) = colorbars(figure)
    assert bar.get_ylim() == (0, 1)
    assert bar.get_ylabel() == "attention weight"
    figure = visualize_tokens(values, picture(), [0, 1, 2], shared_scale=False)
    tops = [ax.images[1].get_clim()[1] for ax in panels(figure)[1:]]
    assert tops == [1, 0.75, 1]  # where nothing is, the scale ends at 1
    assert len(colorbars(figure)) == 3
    assert "own scale" in figure.get_suptitle()


@pytest.mark.parametrize("mode", ["overlay", "dim"])
def test_the_part_of_the_picture_that_the_model_saw(mode: Any) -> None:
    figure = visualize_tokens(at(1, 0, (2, 2)), picture(), 1, crop=(24, 12, 104, 92), mode=mode)
    assert edges(panels(figure)[1].images[1]) == (24, 12, 104, 92)
    assert len(panels(figure)[0].lines) == 2  # its edge
    with pytest.raises(PictureError):
        visualize_tokens(at(1, 0, (2, 2)), picture(), 1, crop=(0, 0, 900, 900))


def test_of_a_crop_it_is_the_crop_s_proportions() -> None:
    (mean,) = drawn(visualize_tokens(weights(36, 2), picture(), 0, crop=(0, 0, 90, 40)))
    assert mean.shape == (4, 9)


def joint(image: Any, text_first: bool) -> tuple[Any, dict[str, slice]]:
    """A joint map of 16 places and 3 tokens, made around what the places give to the tokens."""
    values = np.full((1, 19, 19), 0.0)
    places, words = (slice(3, 19), slice(0, 3)) if text_first else (slice(0, 16), slice(16, 19))
    values[:, words, words] = 1 / 3
    values[:, places, words] = image / 2
    values[:, places, places] = 0.5 / 16
    return values, {"queries": places, "keys": words}


@pytest.mark.parametrize("text_first", [False, True])
def test_joint_attention(text_first: bool) -> None:
    image = weights(16, 3)
    values, options = joint(image, text_first)
    figure = visualize_tokens(values, picture(), [0, 2], tokens="abc", **options)
    for mean, token in zip(drawn(figure), (0, 2), strict=True):
        assert np.array_equal(mean.ravel(), image[:, token] / 2)
    assert [ax.get_title() for ax in panels(figure)[1:]] == ["0: a", "2: c"]
    with pytest.raises(ShapeError, match=r"3 tokens, and the maps have 19 keys.*keys=slice"):
        visualize_tokens(values, picture(), 0, tokens="abc")
    with pytest.raises(ShapeError, match=r"19 queries.*queries=slice"):
        visualize_tokens(values, picture(), 0)


def test_negative_ends_of_parts_count_from_the_end() -> None:
    values, _ = joint(weights(16, 3), False)
    figure = visualize_tokens(values, picture(), 0, queries=slice(-3), keys=slice(-3, None))
    assert np.array_equal(drawn(figure)[0].ravel(), values[0, :16, 16])


@pytest.mark.parametrize(
    "part",
    [slice(0, 17), slice(5, 5), slice(0, 16, 2), slice(15, None, -1), slice("a"), 3, (0, 16), []],
)
def test_what_is_no_part(part: Any) -> None:
    for name in ("queries", "keys"):
        with pytest.raises(OutOfRangeError, match=rf"{name} is .*of the 16 .*slice\(0, 16\)"):
            visualize_tokens(weights(16, 16), picture(), 0, **{name: part})


HOSTILE = {
    r"$\frac{a}{$": r"$\frac{a}{$",
    "$x_$": "$x_$",
    "a\nb\x00\x1b[31m": r"a\nb\x00\x1b[31m",
    "‮abc": r"\u202eabc",
    "": "''",
    "  ": "'  '",
    "Ġcat</w>": "Ġcat</w>",
    "\ud800": r"\ud800",
    "x" * 100: "x" * 19 + "…",
}


@pytest.mark.parametrize("token", HOSTILE, ids=range(len(HOSTILE)))
def test_tokens_are_written_as_they_are(token: str) -> None:
    class Map:
        """Has a step, as captured maps do."""

        step, ndim = 0, 2

        def __array__(self, *args: Any, **options: Any) -> Any:
            return np.full((4, 2), 0.5)

    for figure, text in (
        (figure := visualize_tokens(Map(), picture(), 1, tokens=["a", token]), panels(figure)[1]),
        (
            figure := visualize_tokens_over_steps([Map()], picture(), 1, tokens=["a", token]),
            panels(figure)[0],
        ),
    ):
        label = text.get_title() if "Step" not in text.get_title() else text.get_ylabel()
        assert label == f"1: {HOSTILE[token]}"
        save(figure)


def test_titles_tell_the_maps() -> None:
    figure = visualize_tokens([weights(16, 2), weights(64, 2), weights(16, 2)], picture(), [1, 0])
    assert figure.get_suptitle() == "Queries: the picture, 4×4 and 8×8; keys: the text; 3 maps"
    assert [ax.get_title() for ax in panels(figure)] == ["The picture", "token 1", "token 0"]


def test_a_batch_needs_a_choice() -> None:
    values = weights(2, 3, 16, 4)
    with pytest.raises(ShapeError, match=r"maps\[1\] has a batch of 2.*item=1"):
        visualize_tokens([values[:1], values], picture(), 0)
    (mean,) = drawn(visualize_tokens([values] * 2, picture(), 3, item=1))
    assert np.allclose(mean.ravel(), values[1, :, :, 3].mean(axis=0))


def test_an_array_is_one_map() -> None:
    """So that no batch is averaged for a list of layers."""
    with pytest.raises(ShapeError, match="batch of 2"):
        visualize_tokens(weights(2, 3, 16, 4), picture(), 0)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "list"])
def test_maps_of_any_kind(kind: str) -> None:
    values = weights(2, 16, 4)
    if kind == "list":
        given = [values.tolist()]
    else:
        torch: Any = pytest.importorskip("torch", reason="torch is not installed")
        given = torch.from_numpy(values).to(getattr(torch, kind)).requires_grad_()
    (mean,) = drawn(visualize_tokens(given, picture(), 2))
    assert np.allclose(mean.ravel(), values[:, :, 2].mean(axis=0), atol=2e-3)


def test_self_attention_among_cross_attention_is_told() -> None:
    with pytest.raises(ShapeError, match=r"\[7, 16\].*self-attention.*endswith\('attn2'\)"):
        visualize_tokens([weights(2, 16, 16), weights(2, 16, 7)], picture(), 0)


def test_mistakes() -> None:
    values = weights(2, 16, 4)
    for chosen in (4, -1, [0, 9], "a", None, 1.5, [True]):
        with pytest.raises(OutOfRangeError, match="token.*0 to 3"):
            visualize_tokens(values, picture(), chosen)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="chosen is empty; name some of the 4 tokens"):
        visualize_tokens(values, picture(), [])
    with pytest.raises(ShapeError, match="5 tokens, and the maps have 4 keys"):
        visualize_tokens(values, picture(), 0, tokens="abcde")
    with pytest.raises(NotWeightsError, match=r"maps\[1\].*negative"):
        visualize_tokens([values, values - 0.5], picture(), 0)
    with pytest.raises(OutOfRangeError, match="head 2"):
        visualize_tokens(values, picture(), 0, head=2)
    with pytest.raises(OutOfRangeError, match="cols"):
        visualize_tokens(values, picture(), 0, cols=0)
    with pytest.raises(OutOfRangeError, match="alpha"):
        visualize_tokens(values, picture(), 0, alpha=2)
    with pytest.raises(ShapeError, match="maps is empty"):
        visualize_tokens([], picture(), 0)
    with pytest.raises(ShapeError, match=r"maps\[0\] tells no step"):
        visualize_tokens_over_steps([values], picture(), 0)


@pytest.mark.parametrize("chosen", [[2, 0], (2, 0), "array", range(2, -1, -2)])
def test_tokens_may_be_chosen_by_any_sequence(chosen: Any) -> None:
    chosen = np.array([2, 0]) if isinstance(chosen, str) else chosen
    figure = visualize_tokens(weights(4, 3), picture(), chosen)
    assert [ax.get_title() for ax in panels(figure)[1:]] == ["token 2", "token 0"]


def of_steps(steps: int = 3) -> Any:
    """Lazy maps of 16 and 64 places and 5 tokens, two for each step."""
    lazy: Any = pytest.importorskip("tests.analysis.lazy_maps", reason="torch is not installed")
    made = []
    for step in reversed(range(steps)):
        for seed, queries in enumerate((16, 64)):
            one = lazy.Watched.of(2, 3, 5, queries=queries, seed=10 * step + seed)
            one.record.step = step
            made.append(one)
    return made


def test_steps_are_columns_and_tokens_rows() -> None:
    maps = of_steps()
    figure = visualize_tokens_over_steps(maps, picture(), [4, 1], tokens="abcde", item=1)
    axes = panels(figure)
    assert [ax.get_title() for ax in axes] == ["Step 0", "Step 1", "Step 2", "", "", ""]
    assert [ax.get_ylabel() for ax in axes] == ["4: e", "", "", "1: b", "", ""]
    (bar,) = colorbars(figure)
    top = 0.0
    for ax, (token, step) in zip(axes, [(t, s) for t in (4, 1) for s in range(3)], strict=True):
        these = [one for one in maps if one.step == step]
        (own,) = drawn(visualize_tokens(these, picture(), token, item=1))
        assert np.array_equal(ax.images[1].get_array(), own)
        top = max(top, float(own.max()))
    assert bar.get_ylim() == (0, top)
    save(figure)


def test_of_lazy_maps_columns_are_computed_and_nothing_else() -> None:
    lazy: Any = pytest.importorskip("tests.analysis.lazy_maps", reason="torch is not installed")
    maps = of_steps(1)
    visualize_tokens(maps, picture(), [4, 1], item=0)
    assert not any(each.taken for each in maps)
    large = lazy.Watched.of(1, 2, 10_000 + 20, seed=3)  # joint
    parts = {"queries": slice(20, None), "keys": slice(0, 20)}
    (mean,) = drawn(visualize_tokens(large, picture(), 7, **parts))
    query, key = (tensor.double() for tensor in large.record.held.tensors()[:2])
    scores = 0.7 * query[0, :, 20:30] @ key[0].transpose(-1, -2)
    expected = scores.softmax(-1)[..., 7].mean(0).numpy()
    assert mean.shape == (100, 100)
    np.testing.assert_allclose(mean.ravel()[:10], expected, rtol=1e-4)


def test_nothing_is_computed_for_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = of_steps(1)

    def column(*args: Any, **options: Any) -> Any:
        raise AssertionError("a column is computed")

    monkeypatch.setattr(type(maps[0]), "column", column, raising=False)
    for options in (
        {"chosen": 5},
        {"tokens": "abc"},
        {"grid_size": 7},
        {"head": 3},
        {"cols": 0},
        {"item": 2},
        {"queries": slice(0, 65)},
        {"crop": (0, 0, 0, 0)},
    ):
        with pytest.raises((OutOfRangeError, ShapeError, PictureError)):
            visualize_tokens(maps, picture(), **{"chosen": 0, "item": 0, **options})


def test_weights_of_nan_are_refused() -> None:
    lazy: Any = pytest.importorskip("tests.analysis.lazy_maps", reason="torch is not installed")
    hidden = lazy.Mask(visible=lazy.torch.eye(4).bool()[None, None])
    hidden.visible[..., 0, :] = False
    given = lazy.map_of_call(1, 2, 4, mask=hidden, empty_rows=float("nan"))
    with pytest.raises(NotWeightsError, match=r"maps\[0\], key 1, has weights from nan"):
        visualize_tokens(given, picture(), 1)
