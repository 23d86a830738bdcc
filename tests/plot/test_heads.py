"""Matrices: one head, the heads of a layer, layers side by side; labels of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plot.samples import colorbars, np, panels, save, weights
from visualizer.errors import OutOfRangeError, ShapeError
from visualizer.plot import visualize_head, visualize_heads, visualize_layers

HOSTILE = ["$x_{$", "\n", "<script>", "", "  ", "a" * 500, "$\\frac{1}$", "\x00", "\ud800", "%s\\n"]


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_head_is_drawn_as_it_is() -> None:
    values = weights(5, 7)
    ax = visualize_head(values)
    (image,) = ax.images
    assert np.array_equal(image.get_array(), values)
    assert ax.get_xlabel() == "key"
    assert ax.get_ylabel() == "query"
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first query is at the top


def test_the_colorbar_has_true_weights() -> None:
    values = weights(5, 5)
    ax = visualize_head(values)
    (bar,) = colorbars(ax.figure)
    assert ax.images[0].get_clim() == (0, values.max())
    assert bar.get_ylim() == (0, values.max())
    assert bar.get_ylabel() == "attention weight"
    assert visualize_head(values, vmax=0.9).images[0].get_clim() == (0, 0.9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_of_any_type(dtype: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    values = torch.from_numpy(weights(2, 3, 6, 6)).to(getattr(torch, dtype)).requires_grad_()
    ax = visualize_head(values, item=1, head=2)
    expected = values[1, 2].detach().double().numpy()
    assert np.array_equal(np.asarray(ax.images[0].get_array(), np.float64), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_of_any_type(dtype: str) -> None:
    values = weights(4, 4).astype(dtype)
    assert np.array_equal(visualize_head(values).images[0].get_array(), values)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_hard_attention_may_be_whole_numbers(dtype: str) -> None:
    assert np.array_equal(visualize_head(np.eye(3, dtype=dtype)).images[0].get_array(), np.eye(3))


def test_lists() -> None:
    values = [[0.25, 0.75], [1.0, 0.0]]
    assert visualize_head(values).images[0].get_array().tolist() == values


def test_a_list_of_tensors_is_the_heads() -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    figure = visualize_heads([torch.eye(3), torch.eye(3).flip(0)])
    assert np.array_equal(panels(figure)[1].images[0].get_array(), np.eye(3)[::-1])


@pytest.mark.parametrize("before", [(), (1,), (1, 1), (1, 1, 1)])
def test_axes_of_size_one_need_no_choice(before: tuple[int, ...]) -> None:
    values = weights(4, 4)
    drawn = visualize_head(values.reshape(*before, 4, 4)).images[0].get_array()
    assert np.array_equal(drawn, values)


def test_the_average_of_the_heads() -> None:
    values = weights(3, 4, 4)
    drawn = visualize_head(values, head="mean").images[0].get_array()
    assert np.allclose(drawn, values.mean(axis=0))


@pytest.mark.parametrize(
    ("heads", "cols"), [(1, 1), (1, 2), (1, 4), (2, 100), (3, 4), (4, 4), (4, 1), (40, 8)]
)
def test_every_head_and_the_average(heads: int, cols: int) -> None:
    values = weights(heads, 3, 3)
    drawn = panels(visualize_heads(values, cols))
    titles = [ax.get_title() for ax in drawn]
    assert titles == [*(f"Head {index}" for index in range(heads)), "Head Average"]
    for ax, expected in zip(drawn, [*values, values.mean(axis=0)], strict=True):
        assert np.allclose(ax.images[0].get_array(), expected)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")
    columns = {ax.get_subplotspec().colspan.start for ax in drawn}
    assert len(columns) == min(cols, heads + 1)
    assert drawn[0].get_gridspec().ncols == len(columns)  # no room is left for more


def test_a_batch_of_one_is_the_notebook_s_habit() -> None:
    values = weights(1, 6, 5, 5)
    assert len(panels(visualize_heads(values, cols=4))) == 7


def test_item_chooses_of_a_batch() -> None:
    values = weights(2, 3, 4, 4)
    drawn = panels(visualize_heads(values, item=1))
    assert np.array_equal(drawn[2].images[0].get_array(), values[1, 2])


def test_each_head_has_its_scale_or_all_have_one() -> None:
    values = weights(3, 4, 4)
    own = [ax.images[0].get_clim() for ax in panels(visualize_heads(values))]
    assert own == [(0, each.max()) for each in [*values, values.mean(axis=0)]]
    figure = visualize_heads(values, shared_scale=True)
    assert {ax.images[0].get_clim() for ax in panels(figure)} == {(0, values.max())}
    assert len(colorbars(figure)) == 1


@pytest.mark.parametrize("vmax", [0, -1, float("nan")])
def test_a_scale_ends_above_zero(vmax: float) -> None:
    with pytest.raises(OutOfRangeError, match=f"vmax is {vmax}; expected .* above 0"):
        visualize_head(weights(3, 3), vmax=vmax)


def test_weights_that_are_all_zero_have_a_scale() -> None:
    save(visualize_head(np.zeros((3, 3))))
    save(visualize_heads(np.zeros((2, 3, 3)), shared_scale=True))


def test_layers_are_on_one_scale() -> None:
    values = weights(4, 2, 5, 5)
    drawn = panels(visualize_layers(values, [0, 2], head=1))
    for ax, layer in zip(drawn, [0, 2], strict=False):
        assert np.array_equal(ax.images[0].get_array(), values[layer, 1])
        assert ax.images[0].get_clim() == (0, values[[0, 2], 1].max())
        assert ax.get_title() == f"Layer {layer}"


def test_the_difference_of_layers_is_centred_on_zero() -> None:
    values = weights(4, 2, 5, 5)
    figure = visualize_layers(values, [3, 1])
    image = panels(figure)[-1].images[0]
    change = values[1].mean(axis=0) - values[3].mean(axis=0)
    far = np.abs(change).max()
    assert np.allclose(image.get_array(), change)
    assert np.allclose(image.get_clim(), (-far, far))
    low, middle, high = (np.array(image.to_rgba(value)) for value in (-far, 0.0, far))
    assert middle[:3].min() > 0.9  # white
    assert np.abs(low - high).max() > 0.3
    assert panels(figure)[-1].get_title() == "Layer 1 less layer 3"
    assert colorbars(figure)[-1].get_ylim() == pytest.approx((-far, far))


def test_one_layer_and_equal_layers() -> None:
    assert len(panels(visualize_layers(weights(1, 1, 4, 4), [0]))) == 1
    save(visualize_layers([weights(1, 4, 4)] * 2, [0, 1]))  # the difference is zero everywhere


def test_layers_of_unequal_sizes_have_no_difference() -> None:
    maps = [weights(2, 4, 4), weights(3, 5, 5)]
    drawn = panels(visualize_layers(maps, [0, 1], difference=False))
    assert [ax.images[0].get_array().shape for ax in drawn] == [(4, 4), (5, 5)]
    with pytest.raises(ShapeError, match=r"\(4, 4\), \(5, 5\).*difference=False"):
        visualize_layers(maps, [0, 1])


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (64, 64), (65, 33), (1000, 63)])
def test_up_to_64_tokens_are_all_shown(count: int, shown: int) -> None:
    tokens = [f"t{index}" for index in range(count)]
    ax = visualize_head(weights(count, count), tokens=tokens)
    for axis in (ax.xaxis, ax.yaxis):
        assert len(labels(axis)) == shown
        for place, label in zip(axis.get_ticklocs(), labels(axis), strict=True):
            assert label == f"t{round(place)}"


def test_hostile_tokens_are_drawn_literally() -> None:
    count = len(HOSTILE)
    ax = visualize_head(weights(count, count), tokens=HOSTILE)
    save(ax)
    for axis in (ax.xaxis, ax.yaxis):
        shown = labels(axis)
        assert shown[0] == "$x_{$"
        assert shown[2] == "<script>"
        assert shown[6] == "$\\frac{1}$"
        assert shown[9] == "%s\\n"
        assert all(text.strip() and text.isprintable() for text in shown)
        assert all(len(text) <= 20 for text in shown)
        assert not any(label.get_parse_math() for label in axis.get_ticklabels())
        assert shown[5].startswith("aaa")


def test_hostile_tokens_in_every_figure_that_takes_them() -> None:
    count = len(HOSTILE)
    save(visualize_heads(weights(1, count, count), tokens=HOSTILE))
    save(visualize_layers(weights(2, 1, count, count), [0, 1], tokens=HOSTILE))


def test_tokens_may_be_what_a_tokenizer_returns() -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    for ids in (np.array([101, 7592, 102]), torch.tensor([101, 7592, 102]), [101, 7592, 102]):
        ax = visualize_head(weights(3, 3), tokens=ids)
        assert labels(ax.yaxis) == ["101", "7592", "102"]


def test_cross_attention_has_tokens_of_its_own_for_keys() -> None:
    ax = visualize_head(weights(2, 3), tokens=["le", "chat"], key_tokens=["the", "black", "cat"])
    assert labels(ax.yaxis) == ["le", "chat"]
    assert labels(ax.xaxis) == ["the", "black", "cat"]
    only_keys = visualize_head(weights(2, 3), key_tokens=["the", "black", "cat"])
    assert labels(only_keys.xaxis) == ["the", "black", "cat"]


@pytest.mark.parametrize("tokens", [["a"], ["a"] * 4, []])
def test_as_many_tokens_as_the_map_has(tokens: list[str]) -> None:
    with pytest.raises(ShapeError, match=f"{len(tokens)} tokens.*query.*has 3.*CLS"):
        visualize_head(weights(3, 3), tokens=tokens)


def test_of_a_large_map_the_strongest_weight_of_each_block_is_drawn() -> None:
    values = weights(1000, 1023)
    ax = visualize_head(values)
    (drawn,) = ax.images
    blocks = np.pad(values, ((0, 2), (0, 0))).reshape(334, 3, 341, 3)
    assert np.array_equal(drawn.get_array(), blocks.max(axis=(1, 3)))
    assert drawn.get_extent() == [-0.5, 1022.5, 1001.5, -0.5]
    assert (*ax.get_xlim(), *ax.get_ylim()) == (-0.5, 1022.5, 999.5, -0.5)
    save(ax)


def test_of_a_large_difference_the_farthest_from_zero_is_drawn() -> None:
    values = np.zeros((2, 800, 800))
    values[0, 3, 5], values[1, 3, 5], values[1, 6, 6] = 0.75, 0.25, 0.5
    shown = panels(visualize_layers(values, [0, 1]))[-1].images[0].get_array()
    assert shown.shape == (400, 400)
    assert (shown[1, 2], shown[3, 3], np.count_nonzero(shown)) == (-0.5, 0.5, 2)


@pytest.mark.parametrize(
    ("draw", "tokens"),
    [(visualize_head, 197), (visualize_head, 577), (visualize_head, 1024), (visualize_heads, 197)],
)
def test_attention_to_one_key_is_seen_in_a_large_map(draw: Any, tokens: int) -> None:
    nothing = np.zeros((tokens, tokens), np.float32)
    before = save(draw(nothing)).astype(int)
    for sink in (1, 2, 3):
        values = nothing.copy()
        values[:, sink] = 1
        after = save(draw(values)).astype(int)
        assert np.abs(after - before).max() > 50, f"nothing of key {sink} is to be seen"


def test_only_the_chosen_item_must_be_weights() -> None:
    values = np.stack([weights(1, 3, 3), np.full((1, 3, 3), np.nan)])  # a padded text beside it
    assert np.array_equal(visualize_head(values, item=0).images[0].get_array(), values[0, 0])
