"""Attention of torch.nn: with gradients and without, where fused layers take over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn

import visualizer

HEADS, DIM, TOKENS = 4, 32, 6
PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
ADDED = torch.randn(2 * HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3))
MASKS: dict[str, dict[str, Any]] = {
    "no_mask": {},
    "padding": {"key_padding_mask": PADDING},
    "causal": {"attn_mask": CAUSAL},
    "causal_added": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(TOKENS)},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
    "bias": {"attn_mask": ADDED},
}


def inputs(tokens: int = TOKENS, seed: int = 1) -> Any:
    return torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(seed))


def peaked(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, gain=3.0 if "in_proj" in name else 1.0)
    return module.eval()


def exact_weights(attention: Any, query: Any, key: Any, masks: dict[str, Any]) -> np.ndarray:
    """Compute the weights in float64, by the definition; masks are as the module takes them."""
    projected = []
    for tensor, weight, bias in zip(
        (query, key), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    ):
        rows = tensor.double() @ weight.double().T + bias.double()
        projected.append(rows.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    scores = projected[0] @ projected[1].transpose(-1, -2) / math.sqrt(projected[0].shape[-1])
    mask = masks.get("attn_mask")
    if mask is not None:
        mask = mask.unflatten(0, (-1, attention.num_heads)) if mask.dim() == 3 else mask
        scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    padding = masks.get("key_padding_mask")
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    return scores.softmax(-1).detach().numpy()


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_multi_head_attention(masks: dict[str, Any], gradients: bool, need_weights: bool) -> None:
    attention, x = peaked(nn.MultiheadAttention(DIM, HEADS, batch_first=True)), inputs()
    options = {**masks, "need_weights": need_weights, "average_attn_weights": False}
    with torch.set_grad_enabled(gradients):
        plain = attention(x, x, x, **options)
        with visualizer.capture(attention) as captured:
            output = attention(x, x, x, **options)
    assert torch.equal(plain[0], output[0])
    (made,) = captured.attention
    assert (made.module_path, made.confirmed) == ("", True)
    np.testing.assert_allclose(np.asarray(made), exact_weights(attention, x, x, masks), atol=2e-6)
    if need_weights:
        assert torch.equal(plain[1], output[1])
        np.testing.assert_allclose(np.asarray(made), output[1].detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_cross_attention(need_weights: bool, batch_first: bool) -> None:
    attention = peaked(nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first))
    x, memory = inputs(), inputs(9, seed=2)
    given = [t if batch_first else t.transpose(0, 1) for t in (x, memory, memory)]
    with torch.no_grad(), visualizer.capture(attention) as captured:
        attention(*given, need_weights=need_weights)
    (made,) = captured.attention
    assert made.shape == (2, HEADS, TOKENS, 9)
    np.testing.assert_allclose(np.asarray(made), exact_weights(attention, x, memory, {}), atol=2e-6)


def test_without_a_batch() -> None:
    attention, x = peaked(nn.MultiheadAttention(DIM, HEADS)), inputs()[0]
    for need_weights in (True, False):
        with visualizer.capture(attention) as captured:
            attention(x, x, x, need_weights=need_weights)
        expected = exact_weights(attention, x[None], x[None], {})
        np.testing.assert_allclose(np.asarray(captured.attention[0]), expected, atol=2e-6)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_that_the_module_adds(options: dict[str, Any]) -> None:
    attention, x = peaked(nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options)), inputs()
    with torch.no_grad(), visualizer.capture(attention) as captured:
        _, expected = attention(x, x, x, average_attn_weights=False)
    (made,) = captured.attention
    assert made.shape == (2, HEADS, TOKENS, TOKENS + 1)
    np.testing.assert_allclose(np.asarray(made), expected.numpy(), atol=1e-6)


def test_dropout_is_not_in_the_map() -> None:
    attention = peaked(nn.MultiheadAttention(DIM, HEADS, batch_first=True, dropout=0.5)).train()
    x = inputs()
    for need_weights in (True, False):
        torch.manual_seed(0)
        plain, _ = attention(x, x, x, need_weights=need_weights)
        torch.manual_seed(0)
        with visualizer.capture(attention) as captured:
            output, _ = attention(x, x, x, need_weights=need_weights)
        assert torch.equal(plain, output)
        (made,) = captured.attention
        expected = exact_weights(attention, x, x, {})
        np.testing.assert_allclose(np.asarray(made), expected, atol=2e-6)
        assert made.confirmed is (True if need_weights else None)


LAYER_MASKS: dict[str, dict[str, Any]] = {
    "no_mask": {},
    "padding": {"src_key_padding_mask": PADDING},
    "causal": {"src_mask": CAUSAL},
    "hint": {"src_mask": MASKS["causal_added"]["attn_mask"], "is_causal": True},
    "both": {"src_mask": CAUSAL, "src_key_padding_mask": PADDING},
}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("masks", LAYER_MASKS.values(), ids=LAYER_MASKS)
def test_encoder_layer(masks: dict[str, Any], gradients: bool, norm_first: bool) -> None:
    layer = peaked(
        nn.TransformerEncoderLayer(
            DIM,
            HEADS,
            48,
            batch_first=True,
            norm_first=norm_first,
            activation="gelu" if norm_first else "relu",
        )
    )
    x = inputs()
    with torch.set_grad_enabled(gradients):
        plain = layer(x, **masks)
        with visualizer.capture(layer) as captured:
            output = layer(x, **masks)
    assert torch.equal(plain, output)
    (made,) = captured.attention
    assert made.source == ("sdpa" if gradients else "transformer_encoder_layer")
    assert (made.module_path, made.confirmed) == ("self_attn", True)
    attended = layer.norm1(x) if norm_first else x
    masks = {
        "attn_mask": masks.get("src_mask"),
        "key_padding_mask": masks.get("src_key_padding_mask"),
    }
    expected = exact_weights(layer.self_attn, attended, attended, masks)
    np.testing.assert_allclose(np.asarray(made), expected, atol=5e-6)


def encoder() -> Any:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 48, batch_first=True)
    return peaked(nn.TransformerEncoder(layer, 3))


@pytest.mark.parametrize("gradients", [True, False])
def test_encoder(gradients: bool) -> None:
    model, x = encoder(), inputs()
    with torch.set_grad_enabled(gradients):
        plain = model(x)
        with visualizer.capture(model) as captured:
            output = model(x)
    assert torch.equal(plain, output)
    assert captured.attention.paths == [f"layers.{layer}.self_attn" for layer in range(3)]
    hidden = x
    for made, layer in zip(captured.attention, model.layers, strict=True):
        expected = exact_weights(layer.self_attn, hidden, hidden, {})
        np.testing.assert_allclose(np.asarray(made), expected, atol=1e-5)
        hidden = layer(hidden)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_with_padding_that_becomes_nested() -> None:
    """Without gradients, torch cuts the padding off: such queries then are not computed."""
    model, x = encoder(), inputs()
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=PADDING)
        with visualizer.capture(model) as captured:
            output = model(x, src_key_padding_mask=PADDING)
    assert torch.equal(plain, output)
    assert [made.confirmed for made in captured.attention] == [True] * 3
    first = np.asarray(captured.attention[0])
    expected = exact_weights(model.layers[0].self_attn, x, x, {"key_padding_mask": PADDING})
    seen = ~PADDING.numpy()
    for item in range(2):
        np.testing.assert_allclose(
            first[item][:, seen[item]], expected[item][:, seen[item]], atol=5e-6
        )
    assert not first[1][:, ~seen[1]].any()


@pytest.mark.parametrize("gradients", [True, False])
def test_encoder_and_decoder(gradients: bool) -> None:
    model = peaked(nn.Transformer(DIM, HEADS, 2, 2, 48, batch_first=True))
    x, memory = inputs(), inputs(9, seed=2)
    causal = MASKS["causal_added"]["attn_mask"]
    with torch.set_grad_enabled(gradients):
        plain = model(memory, x, tgt_mask=causal)
        with visualizer.capture(model) as captured:
            output = model(memory, x, tgt_mask=causal)
    assert torch.equal(plain, output)
    assert [made.module_path for made in captured.attention] == [
        "encoder.layers.0.self_attn",
        "encoder.layers.1.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
        "decoder.layers.1.self_attn",
        "decoder.layers.1.multihead_attn",
    ]
    shapes = [made.shape[2:] for made in captured.attention]
    assert shapes == [(9, 9), (9, 9), (6, 6), (6, 9), (6, 6), (6, 9)]
    assert all(made.confirmed for made in captured.attention)
    first = captured.attention["decoder.layers.0.self_attn"][0]
    expected = exact_weights(model.decoder.layers[0].self_attn, x, x, {"attn_mask": causal})
    np.testing.assert_allclose(np.asarray(first), expected, atol=5e-6)


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 2, 3, 5, 8)])
def test_sdpa_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (3 * torch.randn(shape, generator=generator) for _ in range(3))
    with visualizer.capture() as captured:
        torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    (made,) = captured.attention
    scores = query.double() @ key.double().transpose(-1, -2) / math.sqrt(8)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    found = np.asarray(made).reshape(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
    assert made.confirmed is True


@pytest.mark.parametrize("mask_shape", [(5, 7), (1, 7), (4, 1, 7), (2, 1, 5, 7), (2, 4, 5, 7)])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_sdpa_broadcasts(key_heads: int, mask_shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(2, 4, 5, 8, generator=generator)
    key, value = (torch.randn(2, key_heads, 7, 8, generator=generator) for _ in range(2))
    mask = torch.randn(mask_shape, generator=generator)
    options = {"attn_mask": mask, "scale": 0.5, "enable_gqa": key_heads == 2}
    with visualizer.capture() as captured:
        torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    (made,) = captured.attention
    repeated = key.repeat_interleave(4 // key_heads, 1).double()
    expected = (query.double() @ repeated.transpose(-1, -2) * 0.5 + mask).softmax(-1)
    np.testing.assert_allclose(np.asarray(made), expected.numpy(), atol=2e-6)
    assert made.confirmed is True
    assert made.module_path is None
