"""Scenes: a whole digit where the box says, and clutter that gives nothing away."""

from __future__ import annotations

from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from visualizer.demo import load_scenes
from visualizer.demo.digits import load_digits
from visualizer.demo.scenes import compose, cut_cells, draw
from visualizer.demo.train import SHIPPED, held_out_scenes


@pytest.fixture(scope="module")
def drawn() -> Any:
    return np.stack([draw(image) for image in load_digits()[1].images])


def test_split_is_by_digit() -> None:
    training, held_out = load_digits()
    assert (len(training.images), len(held_out.images)) == (1437, 360)
    seen = {image.tobytes() for image in training.images}
    assert not seen & {image.tobytes() for image in held_out.images}
    for digit in range(10):
        assert abs((held_out.labels == digit).mean() - 0.1) < 0.01


def test_the_box_holds_one_of_the_digits_whole(drawn: Any) -> None:
    labels = load_digits()[1].labels
    random = np.random.default_rng(0)
    scenes = compose(drawn, labels, cut_cells(drawn, 256, random), 50, random)
    pixels = {np.round(d * 255).astype("uint8").tobytes(): n for d, n in zip(drawn, labels)}
    for image, label, (left, top, right, bottom) in zip(scenes.images, scenes.labels, scenes.boxes):
        assert (right - left, bottom - top) == (24, 24)
        assert 0 <= left and 0 <= top and right <= 96 and bottom <= 96
        assert pixels[image[top:bottom, left:right].tobytes()] == label


def test_digits_are_everywhere() -> None:
    boxes = held_out_scenes(400, seed=5).boxes
    for edge in boxes.T[:2]:
        assert edge.min() <= 3 and edge.max() >= 69
        assert abs(edge.mean() - 36) < 4


def test_clutter_is_as_bright_as_digits() -> None:
    """The box is neither the brightest place nor the darkest: its mean is among the others'."""
    scenes = held_out_scenes(300, seed=6)
    ranks = []
    for image, (left, top, right, bottom) in zip(scenes.images, scenes.boxes):
        inside = image[top:bottom, left:right].mean()
        others = [
            image[y : y + 24, x : x + 24].mean() for y in range(0, 73, 24) for x in range(0, 73, 24)
        ]
        ranks.append(np.mean(np.array(others) < inside))
    assert 0.2 < np.mean(ranks) < 0.8
    assert held_out_scenes(300, seed=6).images.max() == 255


def test_bundled_scenes_are_the_held_out_ones() -> None:
    made, bundled = held_out_scenes(SHIPPED, seed=2), load_scenes()
    np.testing.assert_array_equal(made.labels, bundled.labels)
    np.testing.assert_array_equal(made.boxes, bundled.boxes)
    assert np.abs(made.images.astype(int) - bundled.images).max() <= 1  # rounding


def test_scenes_depend_on_their_seed_only() -> None:
    first, again, other = (held_out_scenes(5, seed=seed).images for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_varied_digits_stay_in_their_frame(drawn: Any) -> None:
    image = load_digits()[0].images[0]
    random = np.random.default_rng(0)
    varied = np.stack([draw(image, random) for _ in range(50)])
    assert varied.min() >= 0 and varied.max() <= 1
    assert (varied != draw(image)).any(axis=(1, 2)).all()
    lost = draw(image).sum() - varied.sum(axis=(1, 2))
    assert np.abs(lost).max() < 0.45 * draw(image).sum()
