"""What counts as a picture; the small functions of the original notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plot.samples import Image, np, panels, picture, save, weights
from visualizer.errors import NotWeightsError, OutOfRangeError, PictureError, ShapeError
from visualizer.plot import (
    cls_padding,
    gray2rgb,
    grid_show,
    highlight_grid,
    visualize_grid_to_grid,
)

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def as_rgb(image: Any) -> Any:
    """The picture as every figure sees it."""
    return highlight_grid(image, [], 1)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_gray2rgb_repeats_gray_and_keeps_colour(dtype: str) -> None:
    values = PIXELS.astype(dtype)
    for gray in (values[..., 0], values[..., :1]):
        made = gray2rgb(gray)
        assert made.dtype == values.dtype
        assert np.array_equal(made, np.stack([values[..., 0]] * 3, axis=-1))
    assert np.array_equal(gray2rgb(values), values)
    assert np.array_equal(gray2rgb(Image.fromarray(PIXELS)), PIXELS)
    for shape in ((4,), (2, 4, 6, 3), (4, 6, 2)):
        with pytest.raises(PictureError, match=r"expected \(height, width\)"):
            gray2rgb(np.zeros(shape))


def test_arrays_of_pixels() -> None:
    chw = PIXELS.transpose(2, 0, 1)
    for given in (
        PIXELS,
        PIXELS[None],
        chw,
        chw[None],
        PIXELS.astype(np.int64),
        PIXELS / 255,
        (chw / 255).astype(np.float32),
        PIXELS.tolist(),
        Image.fromarray(PIXELS),
    ):
        made = as_rgb(given)
        assert (made.size, made.mode) == ((6, 4), "RGB")
        assert np.array_equal(np.asarray(made), PIXELS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "uint8"])
def test_tensors(dtype: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    values = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())
    given = values if dtype == "uint8" else (values / 255).to(getattr(torch, dtype))
    made = np.asarray(as_rgb(given)).astype(int)
    assert np.abs(made - PIXELS).max() <= 1


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (1, 4, 6), (1, 1, 4, 6)])
def test_gray_arrays(shape: tuple[int, ...]) -> None:
    values = PIXELS[..., 0]
    made = np.asarray(as_rgb(values.reshape(shape)))
    assert np.array_equal(made, np.repeat(values[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes(mode: str) -> None:
    made = np.asarray(as_rgb(picture(30, 20, mode=mode))).astype(int)
    assert made.shape == (20, 30, 3)
    assert made[0, 0].min() > 200
    assert made[-1, -1].max() < 60


def test_what_is_transparent_is_white() -> None:
    made = as_rgb(Image.new("RGBA", (2, 2), (9, 9, 9, 0)))
    assert made.getpixel((0, 0)) == (255, 255, 255)


def test_16_bits_keep_their_range() -> None:
    values = np.array([[0, 32768, 40000]], dtype=np.uint16)
    made = np.asarray(as_rgb(Image.fromarray(values)))
    assert made[0, :, 0].tolist() == [0, 128, 156]


def test_float_pictures_of_pillow_keep_their_range() -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    made = np.asarray(as_rgb(Image.fromarray(values)))
    assert np.array_equal(made, np.asarray(as_rgb(values)))
    assert made[0, 2, 0] == 255


def test_files(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    for path in (tmp_path / "picture.png", str(tmp_path / "picture.png")):
        assert np.array_equal(np.asarray(as_rgb(path)), PIXELS)
        visualize_grid_to_grid(weights(4, 4), 0, path, 2)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes((tmp_path / "picture.png").read_bytes()[:50])
    for name in ("text.png", "half.png", "nowhere.png"):
        with pytest.raises(PictureError, match=name):
            as_rgb(tmp_path / name)


@pytest.mark.parametrize("shape", [(5,), (2, 4, 6, 3), (5, 6, 2), (5, 6, 5), (0, 4, 3), ()])
def test_other_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(PictureError) as error:
        as_rgb(np.zeros(shape, np.uint8))
    assert str(shape) in str(error.value)
    assert "(height, width, 3)" in str(error.value)


@pytest.mark.parametrize("values", [PIXELS / 255 - 0.5, PIXELS / 20, np.full((4, 6), np.nan)])
def test_normalised_pictures_are_refused(values: Any) -> None:
    with pytest.raises(PictureError, match="normalised"):
        as_rgb(values)


@pytest.mark.parametrize("value", [None, object(), {"a": 1}])
def test_what_is_no_picture_is_refused(value: Any) -> None:
    with pytest.raises(PictureError):
        as_rgb(value)


@pytest.mark.parametrize(("count", "cols"), [(1, 1), (3, 3), (3, 1), (5, 2), (2, 9)])
def test_one_row_and_one_column(count: int, cols: int) -> None:
    figure = grid_show([(PIXELS, f"picture {index}") for index in range(count)], cols)
    assert [ax.get_title() for ax in panels(figure)] == [f"picture {i}" for i in range(count)]
    for ax in panels(figure):
        assert np.array_equal(ax.images[0].get_array(), PIXELS)
    save(figure)


def test_matrices_and_pictures_of_every_kind() -> None:
    matrix = weights(5, 5)
    shown = [(matrix, "a"), (picture(mode="L"), "b"), (PIXELS / 255, "c"), (PIXELS, "d")]
    drawn = panels(grid_show(shown, 2))
    assert np.array_equal(drawn[0].images[0].get_array(), matrix)
    assert np.array_equal(drawn[1].images[0].get_array(), np.asarray(picture()))
    assert np.array_equal(drawn[2].images[0].get_array(), PIXELS)


def test_titles_are_drawn_literally_and_whole() -> None:
    title = "Attention of layer 11 from the [CLS] token"
    drawn = panels(
        grid_show([(PIXELS, "$x_{$"), (PIXELS, "a\nb"), (PIXELS, 5), (PIXELS, title)], 4)
    )
    save(drawn[0])
    assert drawn[0].get_title() == "$x_{$"
    assert drawn[2].get_title() == "5"
    assert drawn[3].get_title() == title


def test_grid_show_refuses_what_it_cannot_show() -> None:
    for given in ([], [PIXELS], [(PIXELS,)]):
        with pytest.raises(ShapeError, match="pairs"):
            grid_show(given, 2)
    with pytest.raises(OutOfRangeError, match="cols is 0"):
        grid_show([(PIXELS, "a")], 0)


def test_padding_for_cls() -> None:
    mask = np.full((70, 280), 0.1)
    mask[0, 0] = 0.4
    padded, padded_mask, cover = cls_padding(picture(280, 70), mask, 0.2, (2, 7))
    assert padded.size == (320, 70)
    assert np.array_equal(np.asarray(padded)[:, 40:], np.asarray(picture(280, 70)))
    assert np.asarray(padded)[35:, :40].min() == 255
    assert np.asarray(padded)[:35, :40].min() < 100  # the name of the tile
    assert padded_mask.shape == (70, 320)
    assert np.allclose(padded_mask[:35, :40], 0.5)
    assert padded_mask[0, 40] == padded_mask.max() == 1
    assert np.allclose(padded_mask[35:, :40], 0.25)
    assert cover[35:, :40].min() == 1
    assert not cover[:35].any()
    assert not cover[:, 40:].any()


@pytest.mark.parametrize("side", [28, 224])
def test_the_name_of_the_tile_is_not_written_upon_the_picture(side: int) -> None:
    padded, _, _ = cls_padding(picture(side, side), np.ones((side, side)), 0.2, 14)
    assert np.array_equal(np.asarray(padded)[:, side // 14 :], np.asarray(picture(side, side)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_padding_of_any_picture_and_mask(mode: str) -> None:
    mask = Image.fromarray(np.full((28, 28), 0.25, np.float32))
    padded, padded_mask, _ = cls_padding(picture(28, 28, mode=mode), mask, 0.5, 14)
    assert padded.mode == "RGB"
    assert padded_mask[0, 0] == 1
    assert np.allclose(padded_mask[:, 2:], 0.5)


def test_the_padding_grows_with_the_weight_of_cls() -> None:
    mask = np.full((28, 28), 0.4)
    shown = [cls_padding(picture(28, 28), mask, w, 14)[1][0, 0] for w in (0, 0.1, 0.2, 0.3)]
    assert np.allclose(shown, [0, 0.25, 0.5, 0.75])


def test_padding_refuses() -> None:
    with pytest.raises(ShapeError, match=r"\(14, 14\).*\(28, 28\)"):
        cls_padding(picture(28, 28), np.zeros((14, 14)), 0.1, 14)
    with pytest.raises(NotWeightsError, match=r"-0\.2"):
        cls_padding(picture(28, 28), np.full((28, 28), -0.2), 0.1, 14)
    with pytest.raises(NotWeightsError, match=r"-0\.1"):
        cls_padding(picture(28, 28), np.full((28, 28), 0.2), -0.1, 14)
