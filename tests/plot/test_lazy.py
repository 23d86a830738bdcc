"""Lazy maps: the same figures and errors as for arrays, and only the rows that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.plot.samples import np, panels, picture, save, weights

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from tests.analysis.lazy_maps import Watched, joined_map, map_of_call  # noqa: E402
from visualizer import capture  # noqa: E402
from visualizer.analysis import rows  # noqa: E402
from visualizer.attention import AttentionMap, Mask  # noqa: E402
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError  # noqa: E402
from visualizer.plot import (  # noqa: E402
    cells,
    plot_attention_distance,
    plot_entropy,
    plot_head_specialization,
    visualize_cls,
    visualize_grid_to_grid,
    visualize_grid_to_grid_with_cls,
    visualize_head,
    visualize_heads,
    visualize_layers,
    visualize_mosaic,
    visualize_rollout,
    visualize_tokens,
)
from visualizer.plot.maps import one_map  # noqa: E402

Draw = Callable[..., Any]

TOKENS = [f"t{index}" for index in range(17)]

OF_ONE_MAP: dict[str, Draw] = {
    "head": lambda m, **of: visualize_head(m, head=1, tokens=TOKENS, **of),
    "average": lambda m, **of: visualize_head(m, head="mean", vmax=0.5, **of),
    "heads": visualize_heads,
    "heads on one scale": lambda m, **of: visualize_heads(m, 2, shared_scale=True, **of),
    "grid": lambda m, **of: visualize_grid_to_grid(m, 9, picture(), (1, 17), head=2, **of),
    "grid, average": lambda m, **of: visualize_grid_to_grid(
        m, 9, picture(), (17, 1), head="mean", **of
    ),
    "grid with cls": lambda m, **of: visualize_grid_to_grid_with_cls(
        m, 16, picture(), 4, head=2, **of
    ),
    "cls": lambda m, **of: visualize_cls(m, picture(), 4, **of),
    "tokens": lambda m, **of: visualize_tokens(m, picture(), [0, 16], (1, 17), **of),
    "tokens, one head": lambda m, **of: visualize_tokens(m, picture(), 3, (17, 1), head=1, **of),
    "tokens of a part": lambda m, **of: visualize_tokens(
        m, picture(), [0, 1], queries=slice(1, None), keys=slice(1, 3), **of
    ),
    "cls, strongest": lambda m, **of: visualize_cls(m, picture(), 4, keep_mass=0.6, **of),
}
OF_LAYERS: dict[str, Draw] = {
    "mosaic": visualize_mosaic,
    "small mosaic": lambda m, **of: visualize_mosaic(m, max_pixels=5, shared_scale=False, **of),
    "layers": lambda m, **of: visualize_layers(m, [0, 2], **of),
    "layers, a head": lambda m, **of: visualize_layers(m, [1, 0], head=1, tokens=TOKENS, **of),
    "tokens": lambda m, **of: visualize_tokens(m, picture(), [0, 16], (1, 17), **of),
    "rollout": lambda m, **of: visualize_rollout(m, picture(), 4, **of),
    "rollout to a patch": lambda m, **of: visualize_rollout(m, picture(), 4, query=16, **of),
    "rollout to all": lambda m, **of: visualize_rollout(
        m, picture(), (1, 17), prefix_tokens=0, residual=0.2, **of
    ),
}
STATISTICS: dict[str, Draw] = {
    "entropy": plot_entropy,
    "distance": lambda m: plot_attention_distance(m, 4, patch_size=16),
    "distance of a text": lambda m: plot_attention_distance(m, None, prefix_tokens=0),
    "specialization": plot_head_specialization,
    "specialization on a grid": lambda m: plot_head_specialization(m, 4),
}

each_of_one = pytest.mark.parametrize("draw", OF_ONE_MAP.values(), ids=OF_ONE_MAP)
each_of_layers = pytest.mark.parametrize("draw", OF_LAYERS.values(), ids=OF_LAYERS)
each_statistic = pytest.mark.parametrize("draw", STATISTICS.values(), ids=STATISTICS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Maps this small take longer with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are taken three at a time, or one."""
    monkeypatch.setattr(rows, "_BLOCK_BYTES", 700)


def check(lazy: Any, expected: Any) -> None:
    """Compare two figures: what is drawn, on which scale, and what is written."""
    pairs = zip(panels(lazy.figure), panels(expected.figure), strict=True)
    for ax, other in pairs:
        assert ax.get_title() == other.get_title()
        assert [text.get_text() for text in ax.texts] == [text.get_text() for text in other.texts]
        np.testing.assert_allclose(
            [*ax.get_xlim(), *ax.get_ylim()], [*other.get_xlim(), *other.get_ylim()], rtol=1e-5
        )
        for image, like in zip(ax.images, other.images, strict=True):
            got, wanted = (np.ma.filled(each.get_array(), -1) for each in (image, like))
            np.testing.assert_allclose(got, wanted, atol=1e-5)
            np.testing.assert_allclose(image.get_clim(), like.get_clim(), atol=1e-5)
            assert image.get_extent() == like.get_extent()
        for dots, like in zip(ax.collections, other.collections, strict=True):
            np.testing.assert_allclose(dots.get_offsets(), like.get_offsets(), atol=1e-4)
        for line, like in zip(ax.lines, other.lines, strict=True):
            np.testing.assert_allclose(line.get_ydata(), like.get_ydata(), atol=1e-4)


def maps_of(batch: int = 1, **options: Any) -> list[AttentionMap]:
    return [map_of_call(batch, seed=seed, **options) for seed in range(3)]


@each_of_one
@pytest.mark.parametrize("kind", ["call", "causal", "joined", "weights"])
def test_a_figure_of_a_map_is_that_of_its_array(draw: Draw, kind: str) -> None:
    given = map_of_call(mask=Mask(causal=0)) if kind == "causal" else map_of_call()
    given = joined_map(rows=True) if kind == "joined" else given
    array = np.asarray(given)
    if kind == "weights":
        given = AttentionMap.from_weights(array)
    check(draw(given), draw(array))
    check(draw([given]), draw([array]))


@each_of_one
@pytest.mark.usefixtures("small_blocks")
def test_one_item_of_a_batch(draw: Draw) -> None:
    given = map_of_call(2)
    check(draw(given, item=1), draw(np.asarray(given), item=1))


@each_of_layers
def test_a_figure_of_layers_is_that_of_their_arrays(draw: Draw) -> None:
    maps = maps_of()
    arrays = [np.asarray(one) for one in maps]
    check(draw(maps), draw(arrays))
    check(draw([maps[0], arrays[1], maps[2]]), draw(arrays))


@each_of_layers
@pytest.mark.usefixtures("small_blocks")
def test_one_item_of_all_layers(draw: Draw) -> None:
    maps = maps_of(2)
    check(draw(maps, item=1), draw([np.asarray(one) for one in maps], item=1))


@each_statistic
@pytest.mark.parametrize("batch", [1, 2])
def test_statistics_of_layers_are_those_of_their_arrays(draw: Draw, batch: int) -> None:
    maps = maps_of(batch)
    arrays = [np.asarray(one) for one in maps]
    check(draw(maps), draw(arrays))
    check(draw([maps[0], arrays[1], maps[2]]), draw(arrays))


@pytest.mark.parametrize("draw", [plot_entropy, plot_head_specialization])
def test_statistics_of_causal_layers(draw: Draw) -> None:
    maps = maps_of(mask=Mask(causal=0))
    check(draw(maps, causal=True), draw([np.asarray(one) for one in maps], causal=True))


@pytest.mark.parametrize("name", [*OF_LAYERS, *STATISTICS])
def test_what_is_captured_is_taken_as_it_is(name: str) -> None:
    draw = (OF_LAYERS | STATISTICS)[name]
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 4, batch_first=True, dropout=0)
    model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    with torch.no_grad(), capture(model) as captured:
        model(torch.randn(1, 17, 16))
    expected = draw([np.asarray(one) for one in captured.attention])
    check(draw(captured.attention), expected)
    check(draw(captured.attention.layers), expected)


@pytest.mark.parametrize("draw", [visualize_mosaic, plot_entropy, plot_head_specialization])
def test_a_single_map_is_a_single_layer(draw: Draw) -> None:
    check(draw(map_of_call()), draw([np.asarray(map_of_call())]))


@pytest.mark.parametrize("name", ["head", "heads", "grid with cls", "cls"])
def test_pixels_are_the_same(name: str) -> None:
    given = map_of_call()
    got, expected = (save(OF_ONE_MAP[name](each)) for each in (given, np.asarray(given)))
    assert np.abs(got.astype(int) - expected).max() <= 3


def blockwise(values: Any, query_starts: Any, key_starts: Any) -> Any:
    """The value farthest from 0 of each block, one by one."""
    queries, keys = ([*starts, None] for starts in (query_starts, key_starts))
    shape = (*values.shape[:-2], len(query_starts), len(key_starts))
    result = np.empty(shape, values.dtype)
    for row, column in np.ndindex(*shape[-2:]):
        block = values[..., queries[row] : queries[row + 1], keys[column] : keys[column + 1]]
        flat = block.reshape(*shape[:-2], -1)
        farthest = np.abs(flat).argmax(axis=-1)[..., None]
        result[..., row, column] = np.take_along_axis(flat, farthest, -1)[..., 0]
    return result


@pytest.mark.parametrize("block_bytes", [1, 100, 700, 2**20])
@pytest.mark.parametrize("side", [1, 2, 5, 7, 16, 17])
def test_maps_are_reduced_some_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, side: int
) -> None:
    monkeypatch.setattr(rows, "_BLOCK_BYTES", block_bytes)
    starts = [np.arange(side) * count // side for count in (17, 23)]
    positive = weights(2, 17, 23)
    signed = positive - weights(2, 17, 23, seed=1)
    for values in (positive, signed, -positive, np.zeros((2, 17, 23))):
        got = cells.strongest(rows.rows_of_array(values), *starts)
        assert np.array_equal(got, blockwise(values, *starts))


@pytest.mark.parametrize("tokens", [17, 401, 1000])
def test_large_maps_are_reduced_as_arrays_are(tokens: int) -> None:
    maps = [map_of_call(1, 2, tokens, seed=seed) for seed in (0, 1)]
    arrays = [np.asarray(one) for one in maps]
    check(visualize_heads(maps[0]), visualize_heads(arrays[0]))
    check(visualize_mosaic(maps), visualize_mosaic(arrays))
    check(visualize_layers(maps, [0, 1]), visualize_layers(arrays, [0, 1]))


@pytest.mark.usefixtures("small_blocks")
@each_of_one
def test_nothing_takes_the_whole_map(draw: Draw) -> None:
    given = Watched.of()
    draw(given)
    assert max((np.prod(shape) for shape in given.taken), default=0) <= 700 / 4
    assert sum(np.prod(shape) for shape in given.taken) <= given.size


@pytest.mark.usefixtures("small_blocks")
@each_of_layers
def test_nothing_takes_the_whole_of_any_layer(draw: Draw) -> None:
    maps = [Watched.of(seed=seed) for seed in range(3)]
    draw(maps)
    for given in maps:
        assert max((np.prod(shape) for shape in given.taken), default=0) <= 700 / 4


@each_statistic
def test_statistics_take_nothing_by_themselves(draw: Draw) -> None:
    whole = AttentionMap.blocks
    maps = [Watched.of(seed=seed) for seed in range(3)]
    draw(maps)
    assert not any(given.taken for given in maps)
    assert AttentionMap.blocks is whole


@pytest.mark.parametrize(
    ("draw", "shapes"),
    [
        (lambda m: visualize_head(m, item=1, head=2), [(1, 17, 17)]),
        (lambda m: visualize_head(m, item=1, head="mean"), [(3, 17, 17)]),
        (lambda m: visualize_heads(m, item=1), [(3, 17, 17)]),
        (lambda m: visualize_grid_to_grid(m, 3, picture(), (1, 17), item=0, head=0), [(1, 1, 17)]),
        (
            lambda m: visualize_grid_to_grid_with_cls(m, 3, picture(), 4, item=0, head="mean"),
            [(3, 1, 17)],
        ),
        (lambda m: visualize_cls(m, picture(), 4, item=1), [(3, 1, 17)]),
        (lambda m: visualize_rollout([m], picture(), 4, item=1), [(3, 17, 17)]),
        (lambda m: visualize_layers([m], [0], item=1, head=1), [(1, 17, 17)]),
        (lambda m: visualize_mosaic([m], item=1), [(3, 17, 17)]),
    ],
    ids=["head", "average", "heads", "grid", "with cls", "cls", "rollout", "layers", "mosaic"],
)
def test_only_what_is_drawn_is_computed(draw: Draw, shapes: list[tuple[int, ...]]) -> None:
    given = Watched.of(2)
    draw(given)
    assert given.taken == shapes


def test_only_the_chosen_layers_are_computed() -> None:
    maps = [Watched.of(seed=seed) for seed in range(4)]
    visualize_layers(maps, [1, 3])
    assert [bool(each.taken) for each in maps] == [False, True, False, True]


def test_one_row_of_a_map_of_a_hundred_thousand_tokens() -> None:
    given = map_of_call(1, 4, 100_000)  # 160 GB
    figure = visualize_grid_to_grid(given, 70_000, picture(), (250, 400), head="mean")
    drawn = panels(figure)[1].images[1].get_array()
    np.testing.assert_allclose(drawn.ravel(), given.row(70_000)[0].mean(axis=0), atol=1e-7)
    assert len(panels(visualize_cls(given, picture(), (1, 99_999)))) == 4


def test_nothing_is_computed_for_a_mistake() -> None:
    given = Watched.of(2)
    for mistake in (
        lambda: visualize_heads(given, item=0, cols=0),
        lambda: visualize_layers([given] * 2, [0, 1], item=0, cols=0),
        lambda: visualize_head(given, item=0, head=3),
        lambda: visualize_grid_to_grid(given, 17, picture(), (1, 17), item=0, head=0),
        lambda: visualize_cls(given, picture(), 5, item=0),
        lambda: visualize_rollout([given], picture(), 5, item=0),
        lambda: visualize_rollout([given], picture(), 4, item=0, query=17),
    ):
        with pytest.raises((OutOfRangeError, ShapeError)):
            mistake()
    assert not given.taken


@pytest.mark.parametrize("draw", [visualize_head, visualize_heads, one_map])
@pytest.mark.parametrize("options", [{}, {"item": 2}, {"item": 1.5}])
def test_choices_are_asked_for_as_of_arrays(draw: Draw, options: dict[str, Any]) -> None:
    given = map_of_call(2)
    said = []
    for values in (given, np.asarray(given)):
        with pytest.raises((ShapeError, OutOfRangeError)) as error:
            draw(values, **options)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_one_of_several_maps_must_be_chosen() -> None:
    with pytest.raises(ShapeError, match=r"att_map holds 3 entries.*as att_map\[-1\]"):
        visualize_head(maps_of(), head=0)
    with pytest.raises(ShapeError, match=r"maps\[0\] holds 3 entries.*as maps\[0\]\[-1\]"):
        plot_entropy([maps_of(), maps_of()])


def test_rollout_through_cross_attention_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"as many queries as keys; got \(5, 17\)"):
        visualize_rollout([map_of_call(queries=5)], picture(), 4)


def hidden(empty_rows: float) -> AttentionMap:
    seen = torch.ones(1, 1, 1, 17, dtype=torch.bool)
    seen[..., :3] = False
    return map_of_call(mask=Mask(causal=0, keys=seen), empty_rows=empty_rows)


def test_rows_that_see_nothing_are_drawn_as_nothing() -> None:
    drawn = visualize_head(hidden(0.0), head=0).images[0].get_array()
    assert not drawn[:3].any()
    assert drawn[3:].any(axis=1).all()


@pytest.mark.parametrize(
    ("block_bytes", "name"), [(700, "queries 0 to 2"), (2**20, "att_map, of shape")]
)
def test_rows_of_nan_are_named(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, name: str
) -> None:
    monkeypatch.setattr(rows, "_BLOCK_BYTES", block_bytes)
    with pytest.raises(NotWeightsError, match=rf"att_map.*{name[-8:]}.*rows with NaN") as error:
        visualize_heads(hidden(float("nan")))
    assert name in str(error.value)


def test_sinks_leave_less_than_one() -> None:
    given = map_of_call(sinks=torch.tensor([-9.0, 0.0, 3.0]))
    check(visualize_heads(given), visualize_heads(np.asarray(given)))
    save(visualize_rollout([given], picture(), 4))
    save(plot_head_specialization([given]))
