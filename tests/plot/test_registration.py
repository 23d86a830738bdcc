"""A map lies where the model looked: `crop=` and `transform=`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.plot.samples import Image, box, edges, np, panels, picture, weights
from visualizer.errors import PictureError
from visualizer.plot import (
    visualize_cls,
    visualize_grid_to_grid,
    visualize_grid_to_grid_with_cls,
    visualize_relevance,
    visualize_rollout,
    visualize_tokens,
)

ImageOps: Any = pytest.importorskip("PIL.ImageOps", reason="pillow is not installed")
Transform = Callable[[Any], Any]


def region(size: tuple[int, int], **options: Any) -> tuple[float, ...]:
    """Where the map of 3×3 patches is drawn."""
    figure = visualize_grid_to_grid(weights(9, 9), 0, picture(*size), 3, **options)
    return edges(panels(figure)[1].images[1])


def resize(short: int, how: Any = None) -> Transform:
    """As torchvision: the short side becomes `short`."""

    def apply(image: Any) -> Any:
        scale = short / min(image.size)
        return image.resize(
            (round(image.width * scale), round(image.height * scale)), how or Image.BILINEAR
        )

    return apply


def centre_crop(side: int) -> Transform:
    def apply(image: Any) -> Any:
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        return image.crop((left, top, left + side, top + side))

    return apply


def to_normal(image: Any) -> Any:
    """As torchvision's ToTensor and Normalize, in numpy."""
    values = np.asarray(image, dtype=np.float32) / 255
    values = values[..., None] if values.ndim == 2 else values
    return (values.transpose(2, 0, 1) - 0.45) / 0.22


def chain(*steps: Transform) -> Transform:
    def apply(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    return apply


EVALUATION = chain(resize(256), centre_crop(224), to_normal)


@pytest.mark.parametrize("index", [0, 4, 8])
def test_crop_places_map_and_boxes(index: int) -> None:
    figure = visualize_grid_to_grid(
        weights(9, 9), index, picture(341, 256), 3, crop=(58, 16, 283, 241)
    )
    left, right = panels(figure)
    row, column = divmod(index, 3)
    x, y = 58 + 75 * column, 16 + 75 * row
    assert edges(right.images[1]) == (58, 16, 283, 241)
    assert box(left) == box(right) == pytest.approx((x, y, x + 75, y + 75))
    assert edges(left.images[0]) == (0, 0, 341, 256)  # all of the picture is shown
    assert (*left.get_xlim(), *left.get_ylim()) == (0, 341, 256, 0)


def test_every_figure_over_a_picture_takes_crop_and_transform() -> None:
    image, crop = picture(341, 256), (58, 16, 282, 240)
    for options in ({"crop": crop}, {"transform": EVALUATION}):
        figures = [
            visualize_grid_to_grid_with_cls(weights(10, 10), 1, image, 3, **options),
            visualize_cls(weights(2, 10, 10), image, 3, **options),
            visualize_rollout(weights(2, 2, 10, 10), image, 3, **options).figure,
            visualize_relevance(
                weights(2, 2, 10, 10), image, 3, gradients=weights(2, 2, 10, 10), **options
            ).figure,
            visualize_tokens(weights(9, 4), image, 3, **options),
        ]
        for figure in figures:
            mask = panels(figure)[-1].images[-1]
            assert edges(mask) == pytest.approx(crop, abs=1)


def test_the_first_cell_of_a_crop_with_cls() -> None:
    crop = (58, 16, 283, 241)
    figure = visualize_grid_to_grid_with_cls(weights(10, 10), 1, picture(341, 256), 3, crop=crop)
    assert box(panels(figure)[0]) == (58, 16, 133, 91)


@pytest.mark.parametrize(
    ("size", "transform", "expected"),
    [
        ((341, 256), EVALUATION, (58, 16, 282, 240)),
        ((256, 341), EVALUATION, (16, 58, 240, 282)),
        ((682, 512), EVALUATION, (116, 32, 564, 480)),
        ((224, 224), EVALUATION, (14, 14, 210, 210)),
        ((341, 256), chain(resize(256, 0), centre_crop(224)), (58, 16, 282, 240)),
        ((341, 256), chain(resize(256, 3), centre_crop(224), to_normal), (58, 16, 282, 240)),
        ((300, 100), lambda image: image.resize((224, 224)), (0, 0, 300, 100)),
        ((100, 300), lambda image: image.resize((224, 224)), (0, 0, 100, 300)),
        ((32, 32), lambda image: to_normal(image.resize((224, 224))), (0, 0, 32, 32)),
        ((90, 80), lambda image: image.crop((20, 10, 80, 50)), (20, 10, 80, 50)),
        ((90, 80), lambda image: np.asarray(image)[10:50, 20:80], (20, 10, 80, 50)),
        ((90, 80), lambda image: to_normal(image)[None, :, 10:50, 20:80], (20, 10, 80, 50)),
        ((90, 80), lambda image: {"pixel_values": [to_normal(image)]}, (0, 0, 90, 80)),
        ((90, 80), lambda image: image.convert("L"), (0, 0, 90, 80)),
        ((90, 80), lambda image: to_normal(image.convert("L")), (0, 0, 90, 80)),
        ((90, 80), lambda image: np.asarray(image.convert("L")), (0, 0, 90, 80)),
        ((341, 256), lambda image: ImageOps.fit(image, (224, 224)), (42.5, 0, 298.5, 256)),
        ((1600, 1200), centre_crop(224), (688, 488, 912, 712)),
    ],
)
def test_a_transform_is_followed(
    size: tuple[int, int], transform: Transform, expected: tuple[float, ...]
) -> None:
    assert region(size, transform=transform) == pytest.approx(expected, abs=0.6)


def test_a_large_picture() -> None:
    image = Image.new("RGB", (4000, 3000))
    figure = visualize_grid_to_grid(weights(9, 9), 0, image, 3, transform=EVALUATION)
    expected = (58 * 4000 / 341, 16 * 3000 / 256, 282 * 4000 / 341, 240 * 3000 / 256)
    patch = 2625 / 14
    assert edges(panels(figure)[1].images[1]) == pytest.approx(expected, abs=patch / 16)


def test_a_transform_of_tensors() -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")

    def transform(image: Any) -> Any:
        return torch.from_numpy(EVALUATION(image)).bfloat16()[None]

    assert region((341, 256), transform=transform) == pytest.approx((58, 16, 282, 240), abs=1)


@pytest.mark.parametrize("name", ["ViTImageProcessor", "CLIPImageProcessor"])
@pytest.mark.parametrize("kind", [None, "np", "pt"])
def test_image_processors_of_transformers(name: str, kind: str | None) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    processor = getattr(transformers, name)()
    transform = processor if kind is None else lambda im: processor(im, return_tensors=kind)
    expected = {"ViTImageProcessor": (0, 0, 341, 256), "CLIPImageProcessor": (42.5, 0, 298.5, 256)}
    assert region((341, 256), transform=transform) == pytest.approx(expected[name], abs=0.6)


REFUSED: dict[str, Transform] = {
    "horizontal flip": ImageOps.mirror,
    "vertical flip": ImageOps.flip,
    "half a turn": lambda image: image.rotate(180),
    "a quarter of a turn": lambda image: image.rotate(90),
    "a few degrees": lambda image: image.rotate(10),
    "a few degrees, without the corners": lambda image: image.rotate(10).crop((20, 20, 60, 60)),
    "sheared": lambda image: image.transform((40, 40), Image.AFFINE, (1, 0.3, 10, 0, 1, 10)),
    "transposed": lambda image: image.transpose(Image.TRANSPOSE),
    "letterbox": lambda image: ImageOps.pad(image, (64, 48)),
    "black border": lambda image: ImageOps.expand(image, 8, "black"),
    "repeated edge": lambda image: np.pad(np.asarray(image), ((8, 8), (8, 8), (0, 0)), "edge"),
    "mirrored edge": lambda image: np.pad(np.asarray(image), ((8, 8), (8, 8), (0, 0)), "reflect"),
    "padded after normalising": lambda image: np.pad(to_normal(image), ((0, 0), (0, 9), (0, 0))),
    "rolled": lambda image: np.roll(np.asarray(image), 30, axis=1),
    "all black": lambda image: np.zeros((24, 24, 3), np.uint8),
    "five crops": lambda image: np.stack([np.asarray(image)] * 5),
    "no picture": lambda image: np.zeros(7),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_moves_pixels_otherwise_is_refused(name: str) -> None:
    with pytest.raises(PictureError, match="transform"):
        region((80, 80), transform=REFUSED[name])


def random_crop(side: int) -> Transform:
    def apply(image: Any) -> Any:
        left, top = (random.randint(0, length - side) for length in image.size)
        return image.crop((left, top, left + side, top + side))

    return apply


RANDOM: dict[str, Transform] = {
    "crop": random_crop(64),
    "crop by a few pixels": random_crop(78),
    "flip": lambda image: ImageOps.mirror(image) if random.random() < 0.5 else image,
    "vertical flip": lambda image: ImageOps.flip(image) if random.random() < 0.5 else image,
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_is_refused_each_time(name: str) -> None:
    random.seed(0)
    accepted = 0
    for _ in range(20):
        try:
            region((80, 80), transform=RANDOM[name])
            accepted += 1
        except PictureError:
            pass
    assert accepted == 0


@pytest.mark.parametrize("result", [None, {"x": 1}, "a", (1, [2, 3])])
def test_what_returns_no_picture_is_refused(result: Any) -> None:
    with pytest.raises(PictureError, match="transform"):
        region((80, 80), transform=lambda image: result)


def test_padding_is_called_padding() -> None:
    with pytest.raises(PictureError, match="pad"):
        region((80, 60), transform=lambda image: ImageOps.pad(image, (64, 64)))


@pytest.mark.parametrize(
    "crop",
    [(-1, 0, 50, 50), (0, 0, 101, 50), (0, 0, 50, 81), (50, 0, 50, 50), (60, 0, 50, 50), (1, 2, 3)],
)
def test_a_crop_lies_inside(crop: Any) -> None:
    with pytest.raises(PictureError, match=r"crop.*\(left, top, right, bottom\)"):
        region((100, 80), crop=crop)


def test_crop_or_transform() -> None:
    with pytest.raises(PictureError, match="one of them"):
        region((100, 80), crop=(0, 0, 5, 5), transform=EVALUATION)
