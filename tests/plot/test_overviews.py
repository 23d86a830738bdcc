"""All heads of all layers: the mosaic, CLS head by head, rollout, statistics."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from tests.plot.samples import colorbars, edges, np, panels, picture, save, weights
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError
from visualizer.plot import (
    plot_attention_distance,
    plot_entropy,
    plot_head_specialization,
    visualize_cls,
    visualize_mosaic,
    visualize_relevance,
    visualize_rollout,
)


def tiles(ax: Any, side: int) -> Any:
    """A mosaic's pixels, shape `(layer, head, side, side)`."""
    pixels = ax.images[0].get_array()
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels.reshape(rows, side, columns, side).swapaxes(1, 2)


def test_a_mosaic_has_layers_from_the_top_and_heads_from_the_left() -> None:
    values = weights(3, 4, 5, 5)
    ax = visualize_mosaic(values)
    assert np.allclose(tiles(ax, 5), values)
    assert edges(ax.images[0]) == (0, 0, 4, 3)
    assert ax.images[0].get_clim() == pytest.approx((0, values.max()))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2"]
    assert "key" in ax.get_xlabel()
    assert "query" in ax.get_ylabel()
    (bar,) = colorbars(ax.figure)
    assert bar.get_ylim() == pytest.approx((0, values.max()))


@pytest.mark.parametrize("tokens", [64, 65, 100, 128, 1024])
def test_large_maps_keep_the_largest_weight_of_each_block(tokens: int) -> None:
    values = np.zeros((1, 2, tokens, tokens), np.float32)
    values[..., 0] = 0.25
    for head, (query, key) in enumerate([(tokens - 1, tokens - 1), (tokens // 3, tokens // 2)]):
        values[0, head, query, key] = 0.5
    shown = tiles(visualize_mosaic(values), 64)
    assert shown.shape == (1, 2, 64, 64)
    for head, (query, key) in enumerate([(tokens - 1, tokens - 1), (tokens // 3, tokens // 2)]):
        ((row, column),) = np.argwhere(shown[0, head] == 0.5)
        assert abs(row - query * 64 / tokens) <= 1
        assert abs(column - key * 64 / tokens) <= 1
        assert (shown[0, head][:, 0] >= 0.25).all()


def test_layers_of_unequal_heads_and_tokens() -> None:
    ax = visualize_mosaic([weights(2, 3, 3), weights(4, 6, 6), weights(1, 1, 1)])
    shown = tiles(ax, 6)
    assert shown.shape[:2] == (3, 4)
    missing = np.ma.getmaskarray(shown).all(axis=(2, 3))
    assert missing.tolist() == [
        [False, False, True, True],
        [False] * 4,
        [False, True, True, True],
    ]
    assert np.array_equal(shown[2, 0], np.ones((6, 6)))
    save(ax)


def test_each_map_of_a_mosaic_may_have_its_scale() -> None:
    ax = visualize_mosaic(weights(2, 3, 5, 5), shared_scale=False)
    assert np.allclose(tiles(ax, 5).max(axis=(2, 3)), 1)
    assert ax.images[0].get_clim() == (0, 1)


def test_a_mosaic_of_what_is_captured() -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    maps = [torch.from_numpy(weights(1, 3, 4, 4)).bfloat16().requires_grad_() for _ in range(2)]
    assert tiles(visualize_mosaic(maps), 4).shape == (2, 3, 4, 4)


def test_cls_prints_the_mass_that_stays() -> None:
    row = np.array([[0.75, 0.1, 0.05, 0.1, 0.0], [0.0, 0.25, 0.5, 0.25, 0.0]])
    values = np.repeat(row[:, None], 5, axis=1)
    figure = visualize_cls(values, picture(), 2)
    drawn = panels(figure)
    assert [ax.get_title() for ax in drawn] == ["Head 0: 75% on CLS", "Head 1: 0% on CLS"]
    for ax, expected in zip(drawn, row, strict=True):
        assert np.array_equal(ax.images[1].get_array().ravel(), expected[1:])
        assert ax.images[1].get_clim() == (0, expected[1:].max())
        assert edges(ax.images[1]) == (0, 0, 224, 224)
    assert len(colorbars(figure)) == 2


def test_cls_looks_with_the_row_of_cls() -> None:
    values = weights(2, 1, 7, 7)
    drawn = panels(visualize_cls(values, picture(90, 60), (2, 3), item=1, cols=1))
    assert np.array_equal(drawn[0].images[1].get_array(), values[1, 0, 0, 1:].reshape(2, 3))


def test_cls_with_registers() -> None:
    values = weights(3, 9, 9)
    drawn = panels(visualize_cls(values, picture(), 2, prefix_tokens=5))
    mass = values[1, 0, :5].sum()
    assert drawn[1].get_title() == f"Head 1: {mass:.0%} on CLS and 4 more"
    assert np.array_equal(drawn[1].images[1].get_array().ravel(), values[1, 0, 5:])


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.01, [0, 0, 0.4, 0]),
        (0.5, [0, 0, 0.4, 0]),
        (0.51, [0, 0.2, 0.4, 0]),
        (0.9, [0.1, 0.2, 0.4, 0.1]),
        (1.0, [0.1, 0.2, 0.4, 0.1]),
    ],
)
def test_cls_may_keep_the_largest_weights_only(share: float, kept: list[float]) -> None:
    row = np.array([0.2, 0.1, 0.2, 0.4, 0.1])
    figure = visualize_cls(np.tile(row, (5, 1)), picture(), 2, keep_mass=share)
    assert panels(figure)[0].images[1].get_array().ravel().tolist() == kept


@pytest.mark.parametrize("share", [0, -1, 1.1])
def test_the_kept_mass_is_a_share(share: float) -> None:
    with pytest.raises(OutOfRangeError, match="keep_mass"):
        visualize_cls(weights(5, 5), picture(), 2, keep_mass=share)


def test_rollout_of_one_layer_by_hand() -> None:
    values = weights(1, 2, 5, 5)
    ax = visualize_rollout(values, picture(), 2, residual=0.25)
    expected = 0.75 * values[0].mean(axis=0)[0] + 0.25 * np.eye(5)[0]
    assert np.allclose(ax.images[1].get_array().ravel(), expected[1:])
    assert ax.get_title() == f"Rollout to CLS: {expected[0]:.0%} on CLS"
    assert ax.images[1].get_clim() == pytest.approx((0, expected[1:].max()))


def test_rollout_multiplies_the_last_layer_leftmost() -> None:
    values = weights(3, 2, 5, 5)
    product = np.eye(5)
    for layer in values.mean(axis=1):
        product = (layer + np.eye(5)) / 2 @ product
    ax = visualize_rollout(values, picture(), 2, query=3)
    assert np.allclose(ax.images[1].get_array().ravel(), product[3, 1:])
    assert "token 3" in ax.get_title()


def test_rollout_without_cls() -> None:
    values = weights(2, 2, 4, 4)
    ax = visualize_rollout(values, picture(), 2, prefix_tokens=0)
    assert ax.images[1].get_array().sum() == pytest.approx(1)
    assert "average" in ax.get_title()
    assert (
        "patch 0" in visualize_rollout(values, picture(), 2, prefix_tokens=0, query=0).get_title()
    )


def test_rollout_needs_whole_rows() -> None:
    with pytest.raises(NotWeightsError, match="cut off"):
        visualize_rollout(weights(2, 2, 5, 5)[..., 1:, 1:], picture(), 2, prefix_tokens=0)


def test_relevance_of_one_layer_by_hand() -> None:
    values, gradients = weights(1, 2, 5, 5), weights(1, 2, 5, 5) - 0.2
    expected = np.maximum(values * gradients, 0)[0].mean(axis=0)
    ax = visualize_relevance(values, picture(), 2, gradients=gradients)
    assert np.allclose(ax.images[1].get_array().ravel(), expected[0, 1:])
    assert ax.get_title() == "Relevance at CLS"
    ax = visualize_relevance(values, picture(), 2, gradients=gradients, query=3)
    assert np.allclose(ax.images[1].get_array().ravel(), expected[3, 1:])
    assert ax.get_title() == "Relevance at token 3"
    last = visualize_relevance(values, picture(), 2, gradients=gradients, query=-1)
    assert np.allclose(last.images[1].get_array().ravel(), expected[4, 1:])
    assert last.get_title() == "Relevance at token 4"


def test_relevance_without_cls_is_the_average_of_all_patches() -> None:
    values, gradients = weights(1, 2, 4, 4), weights(1, 2, 4, 4)
    ax = visualize_relevance(values, picture(), 2, gradients=gradients, prefix_tokens=0)
    expected = (values * gradients)[0].mean(axis=(0, 1))
    assert np.allclose(ax.images[1].get_array().ravel(), expected)
    assert "average" in ax.get_title()


def test_relevance_of_captured_maps() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import visualizer

    q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    with visualizer.capture(gradients=True) as captured:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).pow(3).sum().backward()
    (made,) = captured.attention
    ax = visualize_relevance(captured.attention, picture(), 2)
    expected = np.maximum(np.asarray(made) * made.gradient(), 0)[0].mean(axis=0)[0, 1:]
    assert np.allclose(ax.images[1].get_array().ravel(), expected, rtol=1e-4)


def test_rollout_names_layers_of_unequal_sizes() -> None:
    with pytest.raises(ShapeError, match=r"5.*4|4.*5"):
        visualize_rollout([weights(2, 5, 5), weights(2, 4, 4)], picture(), 2)


def test_entropy_of_one_key_is_0_and_of_all_alike_1() -> None:
    values = np.stack([np.eye(4), np.full((4, 4), 0.25)])
    ax = plot_entropy(values[None])
    assert ax.images[0].get_array().tolist() == [[0, 1]]
    assert ax.images[0].get_clim() == (0, 1)
    assert [text.get_text() for text in ax.texts] == ["0.0", "1.0"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")


def test_causal_entropy() -> None:
    causal = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    assert plot_entropy([causal], causal=True).images[0].get_array()[0, 0] == pytest.approx(1)
    assert plot_entropy([causal]).images[0].get_array()[0, 0] < 0.8


def test_statistics_average_over_pictures() -> None:
    values = np.stack([np.eye(4), np.full((4, 4), 0.25)])[:, None]
    assert plot_entropy([values]).images[0].get_array().tolist() == [[0.5]]


def test_attention_distance_by_hand() -> None:
    near, far = np.eye(5), np.eye(5)[[0, 4, 3, 2, 1]]  # each patch sees itself, or the opposite one
    ax = plot_attention_distance([np.stack([near, far])] * 2, 2, patch_size=16)
    dots = [collection.get_offsets().tolist() for collection in ax.collections]
    diagonal = pytest.approx(16 * 2**0.5, rel=1e-5)
    assert dots == [[[0, 0], [0, diagonal]], [[1, 0], [1, diagonal]]]
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([8 * 2**0.5] * 2)
    assert "pixels" in ax.get_ylabel()
    assert ax.get_xlabel() == "layer"


def test_attention_distance_in_patches_and_tokens() -> None:
    assert "patches" in plot_attention_distance(weights(1, 2, 5, 5), 2).get_ylabel()
    text = plot_attention_distance([np.eye(4)[::-1]], None, prefix_tokens=0)
    assert "tokens" in text.get_ylabel()
    assert text.collections[0].get_offsets().tolist() == [[0, 2]]


def test_specialization_has_four_tables() -> None:
    sink = np.zeros((5, 5))
    sink[:, 0] = 1
    figure = plot_head_specialization([np.stack([sink, np.eye(5)])], 2)
    tables = {ax.get_title(): ax.images[0].get_array() for ax in panels(figure)}
    assert list(tables) == ["Entropy", "Attention distance", "Mass on CLS", "Mass on the diagonal"]
    assert np.allclose(tables["Mass on CLS"], [[1, 0.2]])
    assert np.allclose(tables["Mass on the diagonal"], [[0.2, 1]])
    assert tables["Entropy"].tolist() == [[0, 0]]


def test_specialization_of_text() -> None:
    titles = [ax.get_title() for ax in panels(plot_head_specialization(weights(2, 3, 5, 5)))]
    assert "Mass on the first token" in titles


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1, 1)],
        [(1, 2, 2)],
        [(40, 3, 3)] * 24,
        [(2, 3, 3), (5, 7, 7), (1, 2, 2)],
        [(2, 1, 3, 3)],
    ],
)
@pytest.mark.parametrize(
    "draw",
    [
        plot_entropy,
        lambda maps: plot_attention_distance(maps, None, prefix_tokens=0),
        plot_head_specialization,
        lambda maps: visualize_mosaic([each.reshape(-1, *each.shape[-2:]) for each in maps]),
    ],
)
def test_odd_models_draw_without_a_warning(draw: Any, shapes: list[tuple[int, ...]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw([weights(*shape) for shape in shapes])
    save(drawn)
    for ax in panels(getattr(drawn, "figure", drawn)):
        assert ax.get_xlabel()
        assert ax.get_ylabel()


def test_unequal_heads_leave_holes_in_tables() -> None:
    table = plot_entropy([weights(2, 3, 3), weights(4, 5, 5)]).images[0].get_array()
    assert np.ma.getmaskarray(table).tolist() == [[False, False, True, True], [False] * 4]


@pytest.mark.parametrize("draw", [plot_entropy, plot_attention_distance, plot_head_specialization])
def test_tables_count_layers_and_heads_in_whole_numbers(draw: Any) -> None:
    options = {"grid_size": 2} if draw is plot_attention_distance else {}
    drawn = draw(weights(1, 1, 5, 5), **options)
    figure = getattr(drawn, "figure", drawn)
    save(figure)
    for ax in panels(figure):
        axes = [ax.xaxis] if draw is plot_attention_distance else [ax.xaxis, ax.yaxis]
        for axis in axes:
            low, high = sorted(axis.get_view_interval())
            shown = [place for place in axis.get_ticklocs() if low <= place <= high]
            assert shown == [round(place) for place in shown]


@pytest.mark.parametrize("draw", [plot_entropy, plot_head_specialization])
def test_statistics_need_whole_rows(draw: Any) -> None:
    with pytest.raises(NotWeightsError, match="cut off"):
        draw(weights(2, 2, 5, 5)[..., 1:, 1:])
