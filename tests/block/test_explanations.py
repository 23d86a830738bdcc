"""What a capture says of itself: its table, its representation, and why something is missing."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.block.samples import Attention, SoftmaxAttention, Tiny, numbers, qkv
from visualizer import capture
from visualizer.errors import MapRefusedError, OutOfRangeError, ShapeError, UnknownKeyError

TARGET = "tests.block.samples:SoftmaxAttention.forward"

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def printed(captured: Any, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    captured.summary()
    return capsys.readouterr().out


def test_the_summary_shows_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    model = Tiny(3, SoftmaxAttention)
    with (
        torch.no_grad(),
        capture(
            model, locals={TARGET: "q"}, modules=["head", "blocks.*.mlp"], inputs=True
        ) as captured,
    ):
        model(numbers())
        model(numbers())
    out = printed(captured, capsys)
    rows = [line.split() for line in out.splitlines()]
    assert ["local", "q", "SoftmaxAttention.forward", "6"] in [row[:4] for row in rows]
    assert ["output", "head", "2", "float32", "(2,", "6,", "5)", "480", "B"] in rows
    assert ["output", "blocks.*.mlp", "×", "3", "6"] in [row[:5] for row in rows]
    assert ["inputs", "head", "2"] in [row[:3] for row in rows]
    attention = next(row for row in rows if row[:1] == ["attention"])
    assert attention[1:6] == ["(softmax)", "blocks.*.attn", "×", "3", "6"]
    assert "(2, 4, 6, 6)" in " ".join(attention)
    assert "held" in out
    assert "•" not in out


def test_the_summary_within_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    with capture(locals={TARGET: "q"}) as captured:
        F.scaled_dot_product_attention(*qkv())
        out = printed(captured, capsys)
        F.scaled_dot_product_attention(*qkv())
    assert "attention (sdpa)" in out
    assert "outside of modules" in out
    assert "never returned while the block was open" in out
    assert len(captured.attention) == 2


def test_the_summary_of_markup_and_of_the_model_itself(capsys: pytest.CaptureFixture[str]) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.ModuleDict({"[red]": Odd(), "[/]": Odd()})
    with capture(model, modules=["**"], attention=False) as captured:
        model["[red]"](torch.ones(1))
    out = printed(captured, capsys)
    assert "[red]" in out
    assert "'[/]' was never called" in out


def test_an_empty_capture_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = Tiny(1)
    with capture(model, locals={TARGET: "attn"}, modules=["head"]) as captured:
        pass
    out = printed(captured, capsys)
    assert "Nothing was captured." in out
    assert "SoftmaxAttention.forward() never returned" in out
    assert "the module 'head' was never called" in out
    assert "no attention call was seen" in out
    assert out.count("•") == 3


def test_a_block_that_was_never_entered(capsys: pytest.CaptureFixture[str]) -> None:
    captured = capture(Tiny(1))
    assert "never entered" in captured.explain()
    assert "never entered" in printed(captured, capsys)
    assert "never entered" in repr(captured.attention)
    with pytest.raises(OutOfRangeError, match="never entered"):
        captured.attention[0]
    with pytest.raises(UnknownKeyError, match="never entered"):
        captured.attention["head"]


def test_nothing_is_explained_where_nothing_is_missing() -> None:
    model = Tiny(2, SoftmaxAttention)
    with capture(model, locals={TARGET: "attn"}, modules=["**"], inputs=True) as captured:
        model(numbers())
    missing = [line for line in captured.explain().splitlines() if "'blocks'" not in line]
    assert missing == []
    with capture(attention=False) as captured:
        pass
    assert captured.explain() == ""


def test_attention_that_was_not_asked_for() -> None:
    with capture(attention=False) as captured:
        F.scaled_dot_product_attention(*qkv())
    assert len(captured.attention) == 0
    with pytest.raises(OutOfRangeError, match="attention=False"):
        captured.attention[0]


def test_the_model_never_ran() -> None:
    with capture(Tiny(1)) as captured:
        pass
    assert re.search("Did (the|a) model run inside the block", captured.explain())
    assert re.search("Did (the|a) model run inside the block", repr(captured.attention))
    with pytest.raises(OutOfRangeError, match="Did (the|a) model run"):
        captured.attention[0]
    with pytest.raises(UnknownKeyError, match="Did (the|a) model run"):
        captured.attention["blocks.0.attn"]


class Keeps(nn.Module):
    def __init__(self, attend: Any = F.scaled_dot_product_attention) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        return self.attend(x, x, x).squeeze(1)


def test_a_forward_that_is_one_of_the_functions_is_out_of_sight() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x = numbers()
    model[0].forward = functools.partial(F.scaled_dot_product_attention, key=x, value=x)
    model[1].other = F.scaled_dot_product_attention  # which torch's own module never calls
    with capture(model) as captured:
        model(x)
    assert "attention of '0' was out of sight" in captured.explain()
    assert "attribute 'forward'" in captured.explain()
    assert "'1'" not in captured.explain()


def test_a_module_whose_class_torch_replaced_is_looked_at() -> None:
    """As with a parametrization: the class then says that it is of torch.nn."""
    model = nn.Sequential(Keeps())
    model[0].register_parameter("scale", nn.Parameter(torch.ones(1)))
    nn.utils.parametrize.register_parametrization(model[0], "scale", nn.Identity())
    assert type(model[0]).__module__.startswith("torch.nn.")
    with capture(model) as captured:
        model(numbers())
    assert "attention of '0' was out of sight" in captured.explain()


def test_a_function_kept_in_an_attribute_is_out_of_sight() -> None:
    model = nn.Sequential(Keeps())
    with capture(model) as captured:
        model(numbers())
    assert len(captured.attention) == 0
    assert "attention of '0' was out of sight" in captured.explain()
    assert "torch.nn.functional.scaled_dot_product_attention" in captured.explain()
    assert "attribute 'attend'" in captured.explain()


def test_a_function_kept_in_an_attribute_inside_another_capture() -> None:
    model = nn.Sequential(Keeps())
    with capture():
        with capture(model) as captured:
            model(numbers())
    assert "attribute 'attend'" in captured.explain()


def test_a_function_kept_in_a_class_is_seen_or_reported() -> None:
    class ByClass(nn.Module):
        attend = staticmethod(F.scaled_dot_product_attention)

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, x, x)

    model = ByClass()
    with capture(model) as captured:
        model(numbers())
    assert len(captured.attention) == 1 or "attend" in captured.explain()


def test_a_function_kept_in_a_partial_is_seen_or_reported() -> None:
    import functools

    model = Keeps(functools.partial(F.scaled_dot_product_attention, scale=1.0))
    with capture(model) as captured:
        model(numbers())
    assert len(captured.attention) == 1 or "attend" in captured.explain()


def test_a_traced_model_is_out_of_sight() -> None:
    model, x = Tiny(2), numbers()
    traced = torch.jit.trace(model, (x,))
    with capture(traced, modules=["**"]) as captured:
        traced(x)
    assert re.search("Did (the|a) model run inside the block", captured.explain())


def test_tracing_within_the_block_is_reported() -> None:
    model, x = Tiny(2), numbers()
    with capture(model, modules=["head"]) as captured:
        torch.jit.trace(model, (x,), check_trace=False)
    lines = captured.explain().splitlines()
    assert any(
        re.search("attention.*blocks.0.attn.*torch.jit.trace was rec", line) for line in lines
    )
    assert "the output of head was not recorded 1×, because torch.jit.trace" in captured.explain()


def test_vmap_within_the_block_is_reported() -> None:
    def function(q: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(q, q, q)
        return y

    q = torch.randn(3, 1, 2, 5, 4)
    expected = torch.stack([F.scaled_dot_product_attention(x, x, x) for x in q])
    with capture(locals={function: "y"}) as captured:
        assert torch.allclose(torch.vmap(function)(q), expected, atol=1e-6)
    assert len(captured.attention) == 0
    assert "out of sight" in captured.explain()
    assert "vmap" in captured.explain()


def test_the_fallback_is_marked() -> None:
    module = SoftmaxAttention()
    with capture(module) as captured:
        module(numbers())
    (made,) = captured.attention
    assert made.source == "softmax"
    assert made.confirmed is None
    assert "not confirmed" in repr(made)


def test_representations() -> None:
    model = Tiny(2)
    captured = capture(model, modules=["head"])
    assert "closed" in repr(captured)
    with captured:
        assert repr(captured).startswith("<capture, open: 0 functions, 1 modules, 0 attention")
        model(numbers())
    assert repr(captured) == (
        "<capture, closed: 0 functions, 1 modules, 2 attention maps; captured.summary() shows them>"
    )
    assert repr(captured.attention) == "<captured.attention: 2 maps of 2 modules>"
    assert repr(captured.attention[1]) == (
        "<AttentionMap 2×4×6×6, 'blocks.1.attn', layer 1, sdpa, confirmed>"
    )


def test_names_that_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Sequential()
    names = ["\x1b[31mred", "bell\x07\x9b2J", "turned\u202eround", "new\nline", "long" * 5000]
    for name in names:
        model.add_module(name, torch.nn.Identity())
    with capture(model, modules="*", attention=False) as captured:
        model(numbers())
    out = printed(captured, capsys)
    shown = [r"\x1b[31mred", r"bell\x07\x9b2J", r"turned\u202eround", r"new\nline"]
    for text in (out, repr(captured.modules), *(repr(captured.modules[name]) for name in names)):
        assert all(line.isprintable() for line in text.splitlines())
    for name, text in zip(names, shown):
        assert text in out
        assert repr(captured.modules[name][0]) == f"<output of {text}, call 0: float32[2, 6, 16]>"
    assert len(out) < 5000
    assert "…" in out


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_summary_breaks_paths_at_their_dots(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    model = torch.nn.Sequential()
    part, names = model, ["encoder", "transformer", "attention", "projection"]
    for name in names:
        part.add_module(name, torch.nn.Sequential())
        part = getattr(part, name)
    with capture(model, modules="**.projection", attention=False) as captured:
        model(numbers())
    lines = printed(captured, capsys).splitlines()
    assert max(map(len, lines)) <= width
    pieces = [piece for piece in " ".join(lines).split() if piece.split(".")[0] in names]
    assert "".join(pieces) == ".".join(names)
    assert len(pieces) > 1


def test_the_summary_of_a_map_that_was_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    q, k, v = qkv()
    with capture(keep="qk") as captured:
        F.scaled_dot_product_attention(q, k, v)
    q.zero_()
    out = printed(captured, capsys)
    assert "(1, 2, 7, 7)" in out


def test_the_summary_of_a_map_that_was_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **kw: real(3 * q, k, v, **kw)
    )
    captured = capture()
    with pytest.raises(MapRefusedError):
        with captured:
            F.scaled_dot_product_attention(*qkv(tokens=19))
        captured.attention[0].weights()
    out = printed(captured, capsys)
    assert "(1, 2, 19, 19)" in out
    assert "disagrees" in out


def test_a_summary_reads_no_map(capsys: pytest.CaptureFixture[str]) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    with torch.no_grad(), capture(layer) as captured:
        layer(numbers())
    before = captured.nbytes
    assert "(2, 4, 6, 6)" in printed(captured, capsys)
    assert captured.nbytes == before


def test_annotations() -> None:
    captured = capture()
    assert captured.annotate(tokens=("a", "b"), grid=14, prefix_tokens=1) is captured
    assert captured.annotations.tokens == ["a", "b"]
    assert captured.annotations.grid == (14, 14)
    assert captured.annotations.prefix_tokens == 1
    for wrong in ({"grid": 0}, {"grid": (3, 0)}, {"grid": (1, 2, 3)}, {"prefix_tokens": -1}):
        with pytest.raises(ShapeError):
            captured.annotate(**wrong)


def test_a_compiled_model_is_told_of_in_words_that_fit() -> None:
    import warnings

    compiled = torch.compile(Attention(), backend="eager")
    compiled(numbers())
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        with capture(compiled) as captured:
            compiled(numbers())
    torch._dynamo.reset()
    assert len(captured.attention) == 1
    for warning in recorded:
        assert "get_local.deactivate" not in str(warning.message)
