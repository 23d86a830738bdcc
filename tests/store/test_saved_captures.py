"""A capture that was saved and loaded again is the same, number for number."""

from __future__ import annotations

import contextlib
import io
import itertools
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import visualizer
from tests.block.samples import Attention, SoftmaxAttention, Tiny, numbers, qkv
from tests.store.test_values import same
from visualizer import capture, load
from visualizer.analysis import relevance
from visualizer.errors import (
    MapRefusedError,
    NoGradientError,
    OutOfRangeError,
    OverwrittenError,
    StoreExistsError,
    UnknownKeyError,
    VisualizerError,
)
from visualizer.store import Fields, Skipped, Store, queue

ENTRY = "kind function variable module_path layer call step shape dtype type_name nbytes".split()
MAP = "shape ndim dtype size nbytes module_path layer call step source confirmed".split()
READINGS: dict[str, Callable[[Any], Any]] = {
    "is_causal": lambda made: made.is_causal,
    "weights": lambda made: np.asarray(made),
    "head": lambda made: made.weights(head=-1, item=0),
    "row": lambda made: made.row(0),
    "column": lambda made: made.column(made.shape[-1] - 1),
    "logsumexp": lambda made: made.logsumexp(),
    "entropy": lambda made: made.entropy(),
    "received": lambda made: made.received(),
    "distance": lambda made: made.distance(),
    "gradient": lambda made: made.gradient(),
}


def reading(made: Any, name: str) -> Any:
    """Return what a map says, or why it does not."""
    try:
        return getattr(made, name) if name in MAP else READINGS[name](made)
    except VisualizerError as error:
        return type(error), str(error)


def check_map(found: Any, expected: Any) -> None:
    for name in MAP:
        assert reading(found, name) == reading(expected, name), name
    assert repr(found) == repr(expected)
    for name in READINGS:
        one, other = reading(found, name), reading(expected, name)
        assert type(one) is type(other), (name, one, other)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=name, strict=True)
        else:
            assert one == other, name


def check_value(found: Any, expected: Any) -> None:
    """Compare what was captured; what has a class of its own comes back as `Fields`."""
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, strict=True)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            check_value(found[key], expected[key])
    elif isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_value(one, other)
    elif not isinstance(found, Skipped):
        assert same(found, expected)


def check_entries(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    assert repr(found) == repr(expected)
    for key, entries in expected.items():
        assert len(found[key]) == len(entries)
        for one, other in zip(found[key], entries, strict=True):
            assert [getattr(one, name) for name in ENTRY] == [
                getattr(other, name) for name in ENTRY
            ]
            assert repr(one) == repr(other)
            check_value(one.value, other.value)
            if other.shape is not None:
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def table(captured: Any) -> str:
    """Return what `summary` prints, without the sizes: memory that is shared is stored once."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        captured.summary()
    plain = re.sub(r"[\d.,]+ (bytes|[KMG]?i?B)", "", shown.getvalue())
    return re.sub(r"[ ─━]+", " ", plain).replace(" on the disk; ", " held; ")


def check_same(found: Any, expected: Any) -> None:
    """Compare two captures by everything that can be read of them."""
    assert repr(found) == repr(expected).replace("closed", "loaded").replace("open", "loaded")
    assert found.explain() == expected.explain()
    assert list(found.locals) == list(expected.locals)
    assert repr(found.locals) == repr(expected.locals)
    for function in expected.locals:
        check_entries(found.locals[function], expected.locals[function])
    check_entries(found.modules, expected.modules)
    check_entries(found.inputs, expected.inputs)
    assert repr(found.attention) == repr(expected.attention)
    assert found.attention.paths == expected.attention.paths
    places = {id(made): number for number, made in enumerate(expected.attention)}
    other = {id(made): number for number, made in enumerate(found.attention)}
    assert [[other[id(made)] for made in layer] for layer in found.attention.layers] == [
        [places[id(made)] for made in layer] for layer in expected.attention.layers
    ]
    for one, two in zip(found.attention, expected.attention, strict=True):
        check_map(one, two)
    assert table(found) == table(expected)


def saved(captured: Any, path: Path) -> Any:
    captured.save(path)
    return load(path)


def families() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.attention_models import families

    return families


# Models, as they come.


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("bert", "sdpa"),
        ("bert", "eager"),
        ("bert", "flex_attention"),
        ("llama", "sdpa"),
        ("llama", "flex_attention"),
        ("gemma2", "eager"),
        ("gemma2", "flex_attention"),
        ("gpt_oss", "eager"),
        ("qwen2", "sdpa"),
        ("t5", "sdpa"),
        ("bloom", "eager"),
        ("swin", "sdpa"),
    ],
)
def test_transformers(tmp_path: Path, name: str, implementation: str) -> None:
    family = families().FAMILIES[name]
    model, inputs = families().build(family, implementation), family.inputs(family.can_pad)
    patterns = ["**.{layer}", ""]
    flex = torch.compiler.set_stance("force_eager") if "flex" in implementation else None
    with torch.no_grad(), flex or contextlib.nullcontext():
        with capture(model, modules=patterns, inputs=True) as captured:
            model(**inputs)
    assert len(captured.attention) == family.calls
    assert len(captured.modules) > 1
    found = saved(captured, tmp_path / "run")
    check_same(found, captured)
    output = found.modules[""][0].value
    assert isinstance(output, Fields)
    assert output.last_hidden_state is output["last_hidden_state"] is output[0]


@pytest.mark.parametrize("form", ["auto", "qk", "rows"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_generation(tmp_path: Path, name: str, form: str) -> None:
    families()
    from tests.attention_models import generators

    model, inputs = generators.build(name), generators.prompt(padded=True)
    with torch.no_grad(), capture(model, keep=form) as captured:
        model.generate(**inputs, do_sample=False, max_new_tokens=5, cache_implementation="static")
    found = saved(captured, tmp_path / "run")
    check_same(found, captured)
    for path in captured.attention.paths:
        check_map(found.attention.joined(path), captured.attention.joined(path))


def test_a_bias_that_layers_share_is_stored_once(tmp_path: Path) -> None:
    family = families().FAMILIES["t5"]
    model, inputs = families().build(family, "sdpa"), family.inputs(False)
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    found = saved(captured, tmp_path / "run")
    rows = [row for row in Store(tmp_path / "run").rows if row.kind == "attention"]
    places = [
        tree["stored"]["key"]
        for row in rows
        for name, tree in row.value["items"]
        if name == "bias" and row.module_path.startswith("encoder")
    ]
    assert len(places) == 2
    assert len(set(places)) == 1
    check_same(found, captured)


def test_gradients(tmp_path: Path) -> None:
    family = families().FAMILIES["bert"]
    model, inputs = families().build(family, "sdpa"), family.inputs(True)
    with capture(model, gradients=True) as captured:
        model(**inputs).last_hidden_state[0, 0].square().sum().backward()
    found = saved(captured, tmp_path / "run")
    check_same(found, captured)
    assert captured.attention[0].gradient().any()
    np.testing.assert_array_equal(
        relevance(found.attention, item=1), relevance(captured.attention, item=1)
    )


def test_gradients_that_have_not_come(tmp_path: Path) -> None:
    model = Tiny()
    with capture(model, gradients=True) as captured:
        model(numbers())
    with pytest.raises(NoGradientError) as before:
        captured.attention[0].gradient()
    found = saved(captured, tmp_path / "run")
    with pytest.raises(NoGradientError, match=re.escape(str(before.value))):
        found.attention[0].gradient()
    check_same(found, captured)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Tiny().to(dtype)
    with torch.no_grad(), capture(model, modules="**", inputs=True) as captured:
        model(numbers().to(dtype))
    found = saved(captured, tmp_path / "run")
    check_same(found, captured)
    assert found.modules["head"][0].dtype == str(dtype).removeprefix("torch.")
    if dtype is torch.bfloat16:  # though `get_local` and `capture` give it as float32
        (row,) = [row for row in Store(tmp_path / "run").rows if row.module_path == "head"][:1]
        assert row.value["stored"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("keep", ["all", "last", 2, "rows", "weights", "qk", (2, "rows")])
def test_every_keep(tmp_path: Path, keep: Any) -> None:
    model = Tiny(2, SoftmaxAttention)
    with torch.no_grad():
        taken = capture(
            model,
            keep=keep,
            locals={SoftmaxAttention.forward: ["attn", "q", "x", "self"]},
            modules=["blocks.{layer}.mlp", "head"],
            inputs=True,
        )
        with taken as captured:
            for _ in range(3):
                model(numbers())
    found = saved(captured, tmp_path / "run")
    check_same(found, captured)
    name = "SoftmaxAttention.forward"
    key = f"{SoftmaxAttention.__module__}:{name}"
    assert [e.call for e in found.locals[key]["attn"]] == [
        e.call for e in captured.locals[name]["attn"]
    ]
    with pytest.raises(UnknownKeyError, match="attn"):
        _ = found.locals[name]["atn"]


def test_fused_layers_of_torch(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.no_grad(), capture(model) as captured:
        model(numbers(), src_key_padding_mask=padding)
        model(numbers(), mask=nn.Transformer.generate_square_subsequent_mask(6), is_causal=True)
    assert len(captured.attention) == 4
    check_same(saved(captured, tmp_path / "run"), captured)


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """The library, beside a stand-in for torchvision where that is missing."""
    stubs = str(Path(__file__).parent.parent / "stubs")
    sys.path.append(stubs)
    yield pytest.importorskip("timm", reason="timm is not installed")
    sys.path.remove(stubs)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(stubs):
            del sys.modules[name]  # transformers would take it for the real one


def test_timm(tmp_path: Path, timm: Any) -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=3)
    with torch.no_grad(), capture(model.eval(), modules="blocks.{layer}") as captured:
        model(torch.randn(1, 3, 64, 64))
    captured.annotate(grid=4, prefix_tokens=1)
    found = saved(captured, tmp_path / "run")
    assert found.annotations == captured.annotations
    check_same(found, captured)


def test_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tests.attention_models.diffusion import KINDS, build

    kind = KINDS["unet_padded"]
    model = build(kind)
    with torch.no_grad(), capture(model) as captured:
        for step in (10, 3):
            model(**kind.inputs(), timestep=torch.tensor([step, step]))
    assert len(captured.attention) == 2 * kind.calls
    check_same(saved(captured, tmp_path / "run"), captured)


MASKS: dict[str, Any] = {
    "none": {},
    "causal": {"is_causal": True},
    "dense": {"attn_mask": torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))},
    "hides a row": {"attn_mask": torch.eye(6, dtype=torch.bool)[[0, 1, 2, 3, 4, 4]].tril(-1)},
    "hides some": {"attn_mask": torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.6},
    "keys": {"attn_mask": torch.tensor([True, True, False, True, True, False])[None]},
    "infinite": {"attn_mask": torch.full((6, 6), -torch.inf).triu(1)},
    "scaled": {"scale": 0.123456789},
}


@pytest.mark.parametrize("name", MASKS)
def test_every_mask(tmp_path: Path, name: str) -> None:
    with capture() as captured:
        F.scaled_dot_product_attention(*qkv(6, batch=2), **MASKS[name])
    assert len(captured.attention) == 1
    check_same(saved(captured, tmp_path / "run"), captured)


# What was not captured, and what can't be read.


def test_a_refused_map_stays_refused(tmp_path: Path) -> None:
    query, key, value = qkv(tokens=300)
    with capture() as captured:
        F.scaled_dot_product_attention(query, key, value)
        F.scaled_dot_product_attention(query, key + 1, value)
    key.zero_()
    with pytest.raises(OverwrittenError) as before:
        np.asarray(captured.attention[0])
    found = saved(captured, tmp_path / "run")
    with pytest.raises(OverwrittenError, match=re.escape(str(before.value))):
        np.asarray(found.attention[0])
    check_same(found, captured)
    check_same(saved(found, tmp_path / "again"), captured)


def test_a_map_that_disagrees_stays_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **kwargs: kernel(*args, **kwargs) * 2
    )
    taken = capture()
    with contextlib.suppress(MapRefusedError), taken as captured:
        F.scaled_dot_product_attention(*qkv())
    with pytest.raises(MapRefusedError) as before:
        np.asarray(captured.attention[0])
    found = saved(captured, tmp_path / "run")
    with pytest.raises(MapRefusedError, match=re.escape(str(before.value))):
        np.asarray(found.attention[0])


def test_nothing_in_it(tmp_path: Path) -> None:
    with capture(Tiny(), modules="head", locals={Attention.forward: "q"}) as captured:
        pass
    found = saved(captured, tmp_path / "run")
    check_same(found, captured)
    assert "head" in found.explain()
    with pytest.raises(OutOfRangeError) as one, contextlib.nullcontext():
        _ = found.attention[0]
    with pytest.raises(OutOfRangeError) as other:
        _ = captured.attention[0]
    assert str(one.value) == str(other.value)


def test_without_attention(tmp_path: Path) -> None:
    model = Tiny()
    with capture(model, modules="head", attention=False) as captured:
        model(numbers())
    found = saved(captured, tmp_path / "run")
    check_same(found, captured)
    assert found.modules["head"][0].value.shape == (2, 6, 5)


def test_in_an_open_block(tmp_path: Path) -> None:
    model = Tiny()
    with torch.no_grad(), capture(model, modules="head") as captured:
        model(numbers())
        found = saved(captured, tmp_path / "run")
        check_same(found, captured)
        model(numbers())
    assert (len(captured.attention), len(found.attention)) == (6, 3)
    assert len(captured.modules["head"]) == 2
    assert len(load(tmp_path / "run").modules["head"]) == 1


def test_saved_again(tmp_path: Path) -> None:
    model = Tiny()
    with torch.no_grad(), capture(model, modules="**", inputs=True) as captured:
        model(numbers())
    captured.annotate(tokens="abcdef", grid=(2, 3))
    once = saved(captured, tmp_path / "a")
    twice = saved(once, tmp_path / "b")
    check_same(twice, captured)
    assert twice.annotations == once.annotations
    facts = [[(row.kind, row.shape, row.facts) for row in Store(tmp_path / p).rows] for p in "ab"]
    assert facts[0] == facts[1]
    with pytest.raises(StoreExistsError):
        once.save(tmp_path / "a")
    once.save(tmp_path / "a", overwrite=True)  # itself
    check_same(load(tmp_path / "a"), captured)


def test_a_loaded_capture_takes_nothing_any_more(tmp_path: Path) -> None:
    with capture() as captured:
        pass
    found = saved(captured, tmp_path / "run")
    with pytest.raises(RuntimeError, match="loaded"), found:
        pass


# Annotations.


def told(captured: Any, path: Path, **annotations: Any) -> Any:
    captured.annotate(**annotations)
    return saved(captured, path).annotations


@pytest.fixture
def empty() -> Any:
    with capture() as captured:
        pass
    return captured


def test_annotations(tmp_path: Path, empty: Any) -> None:
    found = told(
        empty,
        tmp_path / "run",
        tokens=["[CLS]", "▁é\ud800", 7],
        grid=(np.int64(2), np.int64(3)),
        prefix_tokens=np.int64(1),
    )
    assert found.tokens == ["[CLS]", "▁é\ud800", 7]
    assert (found.grid, found.prefix_tokens, found.image) == ((2, 3), 1, None)


@pytest.mark.parametrize(
    "mode", "1 L P PA RGB RGBA RGBX RGBa La CMYK YCbCr LAB HSV I F LA I;16".split()
)
def test_a_picture_of_every_mode(tmp_path: Path, empty: Any, mode: str) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    picture = Image.fromarray(bands)
    if mode in ("P", "PA"):
        picture = picture.quantize(17)
    if mode == "PA":
        picture = picture.convert("PA")
    elif mode in ("RGBa", "La"):
        picture = picture.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    elif mode in ("LAB", "HSV", "I;16"):
        picture = Image.frombytes(mode, (7, 5), bytes(range(35)) * (2 if mode == "I;16" else 3))
    elif mode not in ("P", "PA"):
        picture = picture.convert(mode)
    assert picture.mode == mode
    found = told(empty, tmp_path / "run", image=picture).image
    assert (found.mode, found.size) == (picture.mode, picture.size)
    assert found.tobytes() == picture.tobytes()
    assert found.getpalette() == picture.getpalette()


def test_a_picture_with_a_transparent_colour(tmp_path: Path, empty: Any) -> None:
    picture = Image.effect_noise((6, 4), 50).quantize(5)
    picture.info["transparency"] = 2
    found = told(empty, tmp_path / "a", image=picture).image
    assert found.convert("RGBA").tobytes() == picture.convert("RGBA").tobytes()
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([1, 2, 3, 4, 50, 60, 70, 80], "RGBA")
    found = told(empty, tmp_path / "b", image=palette).image
    assert found.convert("RGBA").getpixel((0, 0)) == (50, 60, 70, 80)


def test_a_pictures_file(tmp_path: Path, empty: Any) -> None:
    file = tmp_path / "picture.png"
    picture = Image.effect_noise((300, 300), 50)
    picture.save(file)
    for number, path in enumerate((file, str(file))):
        found = told(empty, tmp_path / str(number), image=path).image
        file.unlink()
        assert (found.size, found.tobytes()) == (picture.size, picture.tobytes())
        picture.save(file)


def test_a_file_that_is_no_picture_or_not_there(tmp_path: Path, empty: Any) -> None:
    text = tmp_path / "text.svg"
    text.write_text("<svg/>")
    assert told(empty, tmp_path / "a", image=text).image == str(text)
    assert told(empty, tmp_path / "b", image=tmp_path / "none.png").image == str(
        tmp_path / "none.png"
    )
    assert told(empty, tmp_path / "c", image=tmp_path).image == str(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert told(empty, tmp_path / "d", image=tmp_path / "pipe").image == str(tmp_path / "pipe")


@pytest.mark.parametrize(
    "image", [np.random.default_rng(0).random((4, 5, 3)), torch.rand(3, 4, 5), None]
)
def test_a_picture_that_is_an_array(tmp_path: Path, empty: Any, image: Any) -> None:
    found = told(empty, tmp_path / "run", image=image).image
    assert type(found) is type(image)
    assert image is None or np.array_equal(np.asarray(found), np.asarray(image))


# What is read when.

_watched: list[list[str]] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "mmap.__new__", "pickle.find_class"):
        _watched[-1].append(
            os.fspath(args[0])
            if event == "open" and isinstance(args[0], str)
            else str(args[0])
            if event == "open"
            else event
        )


sys.addaudithook(_hear)


@contextlib.contextmanager
def opened() -> Iterator[list[str]]:
    """Watch which files are opened, and whether any is mapped or unpickled."""
    found: list[str] = []
    _watched.append(found)
    try:
        yield found
    finally:
        _watched.remove(found)


def test_that_opening_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with opened() as found, (tmp_path / "a").open("rb") as file:
        mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ).close()
    assert found == [str(tmp_path / "a"), "mmap.__new__"]


def large(path: Path) -> Any:
    """Save a capture of several units, a layer or more in each."""
    model = Tiny(4)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("visualizer.store.writer.UNIT_BYTES", 4000)
        with capture(model, modules="**", inputs=True) as captured:
            model(numbers(16))
        captured.save(path)
    return captured


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    captured = large(tmp_path / "run")
    indexes = {str(file) for file in (tmp_path / "run" / "index").iterdir()}
    assert len(indexes) > 5
    with opened() as files:
        found = load(tmp_path / "run")
        found.explain()
        repr([found, found.modules, found.inputs, found.attention, *found.attention])
        table(found)
        assert [made.confirmed for made in found.attention] == [True] * 4
    ours = {file for file in files if file.startswith(str(tmp_path))}
    assert ours == indexes | {str(tmp_path / "run" / "store.json")}
    rows = Store(tmp_path / "run").rows
    for number, (made, expected) in enumerate(
        zip(found.attention, captured.attention, strict=True)
    ):
        (row,) = [
            row for row in rows if row.module_path == made.module_path and (row.kind == "attention")
        ]
        units = {tree["stored"]["unit"] for _, tree in row.value["items"]}
        with opened() as files:
            weights = np.asarray(made)
        assert {Path(file).name for file in files} == {f"u{unit:08d}.safetensors" for unit in units}
        np.testing.assert_array_equal(weights, np.asarray(expected), err_msg=str(number))
    with opened() as files:
        _ = [made.entropy() for made in found.attention]
        _ = found.attention[0].row(3)
    assert files == []  # they were read just now
    with opened() as files:
        value = found.modules["blocks.2.mlp"][0].value
    assert len(files) == 1
    np.testing.assert_array_equal(value, captured.modules["blocks.2.mlp"][0].value)
    check_same(found, captured)


def test_loading_needs_no_model(tmp_path: Path) -> None:
    """Neither its library, nor its class, nor pickle."""
    family = families().FAMILIES["bert"]
    model, inputs = families().build(family, "sdpa"), family.inputs(True)
    with torch.no_grad(), capture(model, modules=["", "**.attention"]) as captured:
        model(**inputs)
    captured.save(tmp_path / "run")
    expected = float(np.asarray(captured.attention[1], np.float64).sum())
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    code = f"""
import sys, pickle
pickle.loads = pickle.load = pickle.Unpickler = None
import visualizer, numpy as np
found = visualizer.load({str(tmp_path / "elsewhere")!r})
found.summary()
print(found.modules[""][0].value.last_hidden_state.shape)
print(repr(float(np.asarray(found.attention[1], np.float64).sum())))
print([name for name in sys.modules if name.partition(".")[0] in ("transformers", "tests")])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    shape, total, modules = ran.stdout.splitlines()[-3:]
    assert shape == "(2, 24, 64)"
    assert float(total) == expected
    assert modules == "[]"


# In the background.


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Let nothing be written before this is set."""
    free = threading.Event()
    future = queue.queue.submit(0, free.wait)
    yield free
    free.set()
    future.result()


def test_in_the_background(tmp_path: Path, held: threading.Event) -> None:
    model = Tiny()
    with torch.no_grad(), capture(model, modules="**", inputs=True) as captured:
        model(numbers())
    saving = captured.save(tmp_path / "run", background=True)
    assert not saving.is_done
    assert repr(saving).endswith("on its way; .wait()>")
    held.set()
    saving.wait()
    assert saving.is_done
    assert saving.path == tmp_path / "run"
    check_same(load(tmp_path / "run"), captured)


def test_what_is_changed_meanwhile_is_left_out(tmp_path: Path, held: threading.Event) -> None:
    model = Tiny()
    patterns = ["blocks.*.mlp", "head"]
    with torch.no_grad(), capture(model, modules=patterns) as captured:
        model(numbers())
    before = captured.modules["blocks.1.mlp"][0].value.copy()
    maps = [np.asarray(made) for made in captured.attention]
    saving = captured.save(tmp_path / "run", background=True)
    captured.modules["head"][0].value[0, 0, 0] += 1
    held.set()
    with pytest.raises(OverwrittenError, match="the output of head, call 0"):
        saving.wait()
    found = load(tmp_path / "run")
    assert found.modules["head"] == []
    np.testing.assert_array_equal(found.modules["blocks.1.mlp"][0].value, before)
    for made, expected in zip(found.attention, maps, strict=True):
        np.testing.assert_array_equal(np.asarray(made), expected)
    assert visualizer.verify(tmp_path / "run").ok


def test_a_map_that_is_changed_meanwhile_is_refused(tmp_path: Path, held: threading.Event) -> None:
    query, key, value = qkv(tokens=300)
    with capture() as captured:
        F.scaled_dot_product_attention(query, key, value)
        F.scaled_dot_product_attention(query, query, value)
    expected = np.asarray(captured.attention[1])
    saving = captured.save(tmp_path / "run", background=True)
    key.zero_()
    held.set()
    with contextlib.suppress(OverwrittenError):
        saving.wait()
    found = load(tmp_path / "run")
    for made in found.attention:
        if made.call == captured.attention[1].call:
            np.testing.assert_array_equal(np.asarray(made), expected)
        else:
            with pytest.raises(OverwrittenError):
                np.asarray(made)
    assert visualizer.verify(tmp_path / "run").ok


def test_an_error_nobody_waited_for_is_raised_by_the_next_block(
    tmp_path: Path, held: threading.Event
) -> None:
    model = Tiny()
    with torch.no_grad(), capture(model, modules="head") as captured:
        model(numbers())
    saving = captured.save(tmp_path / "run", background=True)
    captured.modules["head"][0].value[:] = 0
    held.set()
    queue.queue.submit(0, lambda: None).result()
    assert saving.is_done
    with pytest.raises(OverwrittenError, match="head"), capture():
        pytest.fail("the block was entered")
    with capture():
        pass


def test_many_at_once(tmp_path: Path) -> None:
    model = Tiny()
    taken = []
    for seed in range(4):
        torch.manual_seed(seed)
        with torch.no_grad(), capture(model, modules="**") as captured:
            model(torch.randn(2, 6, 16))
        taken.append(captured)
    savings = [
        captured.save(tmp_path / str(number), background=True)
        for number, captured in enumerate(taken)
    ]
    for saving, captured in zip(savings, taken, strict=True):
        saving.wait()
        check_same(load(saving.path), captured)
    assert not any(
        np.array_equal(np.asarray(one.attention[0]), np.asarray(other.attention[0]))
        for one, other in itertools.combinations(map(load, (each.path for each in savings)), 2)
    )
