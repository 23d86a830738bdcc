"""A map that is not what the model computed is refused; one that is never is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.block.samples import expected_map, qkv
from visualizer import capture
from visualizer._intercept import check
from visualizer.errors import MapRefusedError

real = F.scaled_dot_product_attention

Corruption = Callable[..., Tensor]


def keyed(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    if mask is None:
        return torch.zeros(q.shape[-2], k.shape[-2])
    return (
        torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
        if not mask.is_floating_point()
        else mask
    )


def of_row(tensor: Tensor, row: int, factor: float) -> Tensor:
    changed = tensor.clone()
    changed[..., row, :] *= factor
    return changed


def hide(mask: Tensor, key: int) -> Tensor:
    changed = mask.clone()
    changed[..., key] = -math.inf
    return changed


CORRUPTIONS: dict[str, Corruption] = {
    "q": lambda q, k, v, mask, scale: real(2 * q, k, v, mask, scale=scale),
    "k": lambda q, k, v, mask, scale: real(q, -k, v, mask, scale=scale),
    "q a little": lambda q, k, v, mask, scale: real(1.01 * q, k, v, mask, scale=scale),
    "q shifted": lambda q, k, v, mask, scale: real(q + 0.1, k, v, mask, scale=scale),
    "q rolled": lambda q, k, v, mask, scale: real(q.roll(1, -2), k, v, mask, scale=scale),
    "k rolled": lambda q, k, v, mask, scale: real(q, k.roll(1, -2), v, mask, scale=scale),
    "heads mixed up": lambda q, k, v, mask, scale: real(q.flip(1), k, v, mask, scale=scale),
    "one key": lambda q, k, v, mask, scale: real(q, of_row(k, 0, -1), v, mask, scale=scale),
    "scale": lambda q, k, v, mask, scale: real(q, k, v, mask, scale=0.7 * scale),
    "scale left out": lambda q, k, v, mask, scale: real(q, k, v, mask, scale=1.0),
    "mask": lambda q, k, v, mask, scale: real(q, k, v, hide(keyed(mask, q, k), 0), scale=scale),
    "mask added to": lambda q, k, v, mask, scale: real(
        q, k, v, keyed(mask, q, k) + torch.arange(k.shape[-2]) / 10, scale=scale
    ),
    "not a number": lambda q, k, v, mask, scale: real(q * math.nan, k, v, mask, scale=scale),
    "infinite": lambda q, k, v, mask, scale: real(q, k * math.inf, v, mask, scale=scale),
}


@pytest.fixture
def corrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Corruption], None]:
    def install(corruption: Corruption) -> None:
        def between(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
            mask = attn_mask
            if is_causal:
                hidden = torch.ones(q.shape[-2], k.shape[-2]).triu(1).bool()
                mask = torch.zeros(q.shape[-2], k.shape[-2]).masked_fill(hidden, -math.inf)
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            return corruption(q, k, v, mask, scale)

        monkeypatch.setattr(F, "scaled_dot_product_attention", between)

    return install


def refused(tensors: Any, keep: Any = "qk", **options: Any) -> None:
    """Require that a call is refused, by name: on leaving the block or when it is read."""
    captured, was_told = capture(keep=keep), False
    try:
        with captured:
            F.scaled_dot_product_attention(*tensors, **options)
    except MapRefusedError as error:
        was_told = "outside of any module, call 0" in str(error)
        assert was_told, error
        assert "disagrees" in captured.explain()
    assert was_told or len(captured.attention) == 1
    for made in captured.attention:
        for read in (np.asarray, lambda m: m[0, 0, 0], lambda m: m.entropy(), lambda m: m.row(0)):
            with pytest.raises(MapRefusedError, match="call 0.*can't be trusted"):
                read(made)
        assert made.confirmed is False
        assert "refuted" in repr(made)


@pytest.mark.parametrize("keep", ["qk", "rows", "weights", "last"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_call_is_refused_every_time(
    corrupt: Callable[[Corruption], None], name: str, keep: str
) -> None:
    corrupt(CORRUPTIONS[name])
    for _ in range(3):
        refused(qkv(tokens=12, dim=16), keep)
        refused(qkv(tokens=12, dim=16), keep, is_causal=True) if "key" not in name else None
        refused(qkv(tokens=40, dim=16, batch=2), keep, attn_mask=torch.randn(40, 40))


class Rows(random.Random):
    """Chooses the rows that a test wants to be looked at."""

    def __init__(self, start: int, step: int) -> None:
        super().__init__(0)
        self.start, self.step = start, step

    def randrange(self, *args: int, **_: Any) -> int:
        return self.start

    def randint(self, *args: int) -> int:
        return self.step


@pytest.mark.parametrize("corrupted", [2, 4, 8])
@pytest.mark.parametrize("what", ["q", "mask", "bias", "mask that is visible"])
def test_a_row_that_is_looked_at_is_refused(
    corrupt: Callable[[Corruption], None],
    monkeypatch: pytest.MonkeyPatch,
    corrupted: int,
    what: str,
) -> None:
    monkeypatch.setattr(check, "_random", Rows(start=2, step=2))

    def corruption(q, k, v, mask, scale):
        mask = keyed(mask, q, k)
        if what == "q":
            return real(of_row(q, corrupted, 1.5), k, v, mask, scale=scale)
        mask = mask.clone()
        if what == "bias":
            mask[..., corrupted, 1] += 3
        elif what == "mask":
            mask[..., corrupted, :2] = -math.inf
        else:
            mask[..., corrupted, :] = 0
        return real(q, k, v, mask, scale=scale)

    corrupt(corruption)
    for _ in range(10):
        visible = torch.rand(10, 10) > 0.3
        visible[:, :4], visible[:, 4] = True, False
        q, k, v = qkv(tokens=10, dim=16)
        refused([q / 3, k / 3, v], attn_mask=visible)


def test_rows_that_are_not_looked_at_are_another_matter(
    corrupt: Callable[[Corruption], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This proves that the test above corrupts one row only."""
    monkeypatch.setattr(check, "_random", Rows(start=2, step=2))
    corrupt(lambda q, k, v, mask, scale: real(of_row(q, 5, 1.5), k, v, mask, scale=scale))
    with capture() as captured:
        F.scaled_dot_product_attention(*qkv(tokens=10))
    assert captured.attention[0].confirmed is True


def test_a_later_call_is_refused_when_it_is_read(corrupt: Callable[[Corruption], None]) -> None:
    calls = iter([1.0, 2.0, 1.0])
    corrupt(lambda q, k, v, mask, scale: real(next(calls) * q, k, v, mask, scale=scale))
    with capture() as captured:
        for _ in range(3):
            F.scaled_dot_product_attention(*qkv())
    np.asarray(captured.attention[0])
    np.asarray(captured.attention[2])
    with pytest.raises(MapRefusedError, match="call 1"):
        np.asarray(captured.attention[1])
    assert [m.confirmed for m in captured.attention] == [True, False, True]


def test_a_refused_module_stops_and_the_others_go_on() -> None:
    class Good(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

    class Bad(Good):
        pass

    model = nn.ModuleDict({"good": Good(), "bad": Bad()})

    def between(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        import sys

        bad = isinstance(sys._getframe(1).f_locals.get("self"), Bad) or _below(sys._getframe(1))
        return real(2 * q if bad else q, *args, **kwargs)

    def _below(frame: Any) -> bool:
        while frame is not None:
            if type(frame.f_locals.get("self")) is Bad:
                return True
            frame = frame.f_back
        return False

    F.scaled_dot_product_attention = between
    try:
        captured = capture(model)
        with pytest.raises(MapRefusedError, match="of 'bad', call 0"):
            with captured:
                for _ in range(3):
                    model["bad"](*qkv(tokens=23))
                    model["good"](*qkv(tokens=23))
            np.asarray(captured.attention["bad"][0])
    finally:
        F.scaled_dot_product_attention = real
    assert len(captured.attention["good"]) == 3
    assert [m.confirmed for m in captured.attention["good"]] == [True] * 3
    assert not any(m.confirmed for m in captured.attention["bad"])


@pytest.mark.filterwarnings("ignore::visualizer.errors.CaptureWarning")
def test_an_exception_is_not_masked_by_a_refusal(corrupt: Callable[[Corruption], None]) -> None:
    corrupt(CORRUPTIONS["q"])
    captured = capture(keep="rows")
    with pytest.raises(ValueError, match="mine"), captured:
        F.scaled_dot_product_attention(*qkv(tokens=21))
        raise ValueError("mine")
    assert captured.attention[0].confirmed is False


def test_dropout_can_not_be_confirmed() -> None:
    q, k, v = qkv()
    with capture() as captured:
        F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    (made,) = captured.attention
    assert made.confirmed is None
    np.testing.assert_allclose(np.asarray(made), expected_map(q, k), atol=1e-6)


def configurations(dtype: torch.dtype) -> Iterator[tuple[list[Tensor], dict[str, Any]]]:
    source = random.Random(str(dtype))
    for _ in range(55):
        batch, groups = source.choice([1, 2, 3]), source.choice([1, 2, 4])
        heads = groups * source.choice([1, 2])
        queries, keys = source.choice([1, 2, 5, 17, 64]), source.choice([1, 2, 5, 17, 64])
        dim, width = source.choice([1, 4, 16, 64]), source.choice([1, 4, 16, 64])
        size = source.choice([0.1, 1, 4])
        q = size * torch.randn(batch, heads, queries, dim)
        k = size * torch.randn(batch, heads // groups, keys, dim)
        v = source.choice([0.01, 1, 100]) * torch.randn(batch, heads // groups, keys, width)
        options: dict[str, Any] = {"enable_gqa": groups > 1}
        if source.random() < 0.3:
            options["scale"] = source.choice([0.01, 0.3, 1.0])  # others make some kernels NaN
        kind = source.choice(["none", "causal", "bool", "bias", "padding", "empty rows"])
        if kind == "causal":
            options["is_causal"] = True
        elif kind == "bool":
            options["attn_mask"] = torch.rand(batch, 1, queries, keys) > 0.4
        elif kind == "bias":
            options["attn_mask"] = (3 * torch.randn(heads, queries, keys)).to(dtype)
        elif kind == "padding":
            visible = torch.arange(keys) < torch.randint(1, keys + 1, (batch, 1, 1, 1))
            options["attn_mask"] = visible.expand(batch, 1, queries, keys)
        elif kind == "empty rows":
            mask = torch.zeros(queries, keys, dtype=dtype)
            mask[0] = -math.inf
            options["attn_mask"] = mask
        layout = source.choice(["plain", "transposed", "fused"])
        tensors = [t.to(dtype) for t in (q, k, v)]
        if layout == "transposed":
            tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
        yield tensors, options


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_not_corrupted_is_never_refused(dtype: torch.dtype) -> None:
    done = 0
    for number, (tensors, options) in enumerate(configurations(dtype)):
        try:
            plain = real(*tensors, **options)
        except RuntimeError:
            continue  # a combination that torch itself refuses
        done += 1
        for keep in ("qk", "auto"):
            with capture(keep=keep) as captured:
                out = F.scaled_dot_product_attention(*tensors, **options)
                F.scaled_dot_product_attention(*tensors, **options)
            assert torch.equal(out.nan_to_num(), plain.nan_to_num())
            assert captured.explain() == "", (number, options)
            for made in captured.attention:
                assert made.confirmed is not False, (number, keep, options, tensors[0].dtype)
                np.asarray(made)
    assert done > 40


def test_the_fused_layers_of_torch_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    native = torch._native_multi_head_attention
    encoder = torch._transformer_encoder_layer_fwd
    x = 3 * torch.randn(2, 9, 16)
    for attribute, function, module in (
        ("_native_multi_head_attention", native, nn.MultiheadAttention(16, 4, batch_first=True)),
        (
            "_transformer_encoder_layer_fwd",
            encoder,
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        ),
    ):
        module.eval()

        def between(*args: Any, function: Any = function, **kwargs: Any) -> Any:
            place = 5 if function is native else 3  # the projection's weight
            changed = args[place].clone()
            changed[:16] *= 2  # of the queries
            return function(*args[:place], changed, *args[place + 1 :], **kwargs)

        inputs = (x, x, x) if attribute.startswith("_native") else (x,)
        with torch.no_grad():
            with capture(module) as captured:
                module(*inputs)
            assert captured.attention[0].confirmed is True
            monkeypatch.setattr(torch, attribute, between)
            with pytest.raises(MapRefusedError, match="call 0"):  # on leaving, or when read
                with capture(module) as captured:
                    module(*inputs)
                np.asarray(captured.attention[0])
            monkeypatch.undo()
