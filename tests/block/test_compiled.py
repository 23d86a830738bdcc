"""Attention of compiled models: from graphs of their own, with the same bits."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.block.samples import Attention, SoftmaxAttention, Tiny, expected_map, numbers
from visualizer import capture

PATHS = ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.eval_frame.cached_backends.clear()


class Backend:
    """Counts the graphs that it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return aot_eager(graph, inputs)


def paths(captured: Any) -> list[str | None]:
    return [each.module_path for each in captured.attention]


def maps(model: nn.Module, x: Tensor, depth: int | None = None) -> list[Any]:
    """Return the maps of a `Tiny`, written out in float64."""
    found = []
    with torch.no_grad():
        for block in model.blocks[:depth]:
            q, k, _ = block.attn.project(x).unbind(0)
            mask = torch.zeros(q.shape[-2], k.shape[-2])
            if block.attn.is_causal:
                mask = mask.masked_fill(torch.ones_like(mask).triu(1).bool(), -math.inf)
            found.append(expected_map(q, k, mask))
            x = block(x)
    return found


def assert_maps(captured: Any, expected: list[Any], atol: float = 1e-6) -> None:
    assert len(captured.attention) == len(expected)
    for each, wanted in zip(captured.attention, expected, strict=True):
        np.testing.assert_allclose(each.weights(), wanted, rtol=0, atol=atol)


def as_model(model: nn.Module, backend: Any) -> Callable[..., Any]:
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model: nn.Module, backend: Any) -> Callable[..., Any]:
    model.compile(backend=backend, fullgraph=True)
    return model


def as_function(model: nn.Module, backend: Any) -> Callable[..., Any]:
    return torch.compile(lambda x: model(x) + 1, backend=backend, fullgraph=True)


def as_argument(model: nn.Module, backend: Any) -> Callable[..., Any]:
    function = torch.compile(lambda model, x: model(x) + 1, backend=backend, fullgraph=True)
    return lambda x: function(model, x)


WAYS = [as_model, in_place, as_function, as_argument]


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_two_graphs_after_a_dozen_entries(way: Any, is_given: bool) -> None:
    model, x, backend = Tiny(), numbers(), Backend()
    expected = maps(model, x)
    call = way(model, backend)
    with torch.no_grad():
        plain = call(x)
        for _ in range(12):
            with capture(model) if is_given else capture() as captured:
                assert torch.equal(call(x), plain)
            assert torch.equal(call(x), plain)
    assert backend.graphs == 2
    assert not counters["graph_break"]
    found = [None if path is None else path.removeprefix("_orig_mod.") for path in paths(captured)]
    assert found == PATHS
    assert_maps(captured, expected)
    assert all(each.confirmed for each in captured.attention)
    assert captured.explain() == ""


def test_blocks_with_and_without_a_model_share_a_graph() -> None:
    model, x, backend = Tiny(1), numbers(), Backend()
    call = as_argument(model, backend)
    with torch.no_grad():
        call(x)
        for each in (capture(model), capture(), capture(model.blocks[0]), capture()):
            with each as captured:
                call(x)
            assert len(captured.attention) == 1
    assert backend.graphs == 2


def test_each_backend_makes_its_own_graph() -> None:
    model, x, backends = Tiny(1), numbers(), (Backend(), Backend())
    with torch.no_grad():
        for backend in backends:
            compiled = as_model(model, backend)
            compiled(x)
            with capture(model):
                compiled(x)
            compiled(x)
    assert [backend.graphs for backend in backends] == [2, 2]


def test_blocks_compiled_one_by_one_share_a_graph_and_keep_their_names() -> None:
    model, x, backend = Tiny(), numbers(), Backend()
    expected = maps(model, x)
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        plain = model(x)
        for _ in range(3):
            with capture(model) as captured:
                assert torch.equal(model(x), plain)
    assert backend.graphs == 2
    assert paths(captured) == PATHS
    assert_maps(captured, expected)


def test_models_that_share_a_graph_are_told_apart() -> None:
    first, second, x, backend = Tiny(1), Tiny(1), numbers(), Backend()
    compiled = [as_model(model, backend) for model in (first, second)]
    function = torch.compile(lambda model, x: model(x), backend=backend, fullgraph=True)
    with torch.no_grad():
        for calls in (compiled, [lambda x: function(first, x), lambda x: function(second, x)]):
            with capture(first) as captured, capture(second) as other:
                for call in calls:
                    call(x)
            assert paths(captured) == paths(other) == PATHS[:1]
            assert_maps(captured, maps(first, x))
            assert_maps(other, maps(second, x))


class Within(nn.Module):
    """A model with another one as a part."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny(depth=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tiny(x) + self.tiny(2 * x)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("is_given", [True, False])
def test_each_forward_within_a_compiled_function_is_a_step(is_given: bool, backend: str) -> None:
    model, x = Tiny(depth=2), numbers()

    @torch.compile(backend=backend, fullgraph=True)
    def once(x: Tensor) -> Tensor:
        return model(x)

    @torch.compile(backend=backend, fullgraph=True)
    def twice(x: Tensor) -> Tensor:
        return model(x) + model(2 * x)

    with torch.no_grad(), capture(model if is_given else None) as captured:
        for run in (twice, once, once, model, once, twice):
            run(x)
    seen = [(each.module_path, each.step) for each in captured.attention]
    assert seen == [(path, step) for step in range(8) for path in PATHS[:2]]


def test_steps_of_a_part_of_what_a_compiled_function_calls() -> None:
    outer, x = Within(), numbers()
    compiled = torch.compile(lambda x: outer(x), backend="aot_eager", fullgraph=True)
    found = []
    for model in (outer, outer.tiny, None):
        with torch.no_grad(), capture(model) as captured:
            compiled(x)
            compiled(x)
        found.append([each.step for each in captured.attention])
    assert found == [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 1, 1]]


def test_steps_of_layers_that_are_compiled_one_by_one_are_the_models() -> None:
    model, x = Tiny(depth=2), numbers()
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    with torch.no_grad(), capture() as captured:
        model(x)
        model(x)
    assert [each.step for each in captured.attention] == [0, 0, 1, 1]


class Broken(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1:
                torch._dynamo.graph_break()
        return self.head(x)


class Shared(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.blocks[0](x)
        return self.head(x)


def test_a_break_of_the_programs_own() -> None:
    model, x, backend = Broken(), numbers(), Backend()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        plain = compiled(x)
        graphs = backend.graphs
        with capture(model) as captured:
            assert torch.equal(compiled(x), plain)
    assert backend.graphs == 2 * graphs
    assert paths(captured) == PATHS
    assert_maps(captured, maps(model, x))


def test_a_layer_that_runs_again() -> None:
    model, x = Shared(1), numbers()
    compiled = as_model(model, Backend())
    with torch.no_grad(), capture(model) as captured:
        compiled(x)
    assert paths(captured) == PATHS[:1] * 3
    assert [each.call for each in captured.attention] == [0, 1, 2]


class Dropping(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 * self.training)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Grouped(Attention):
    """Two heads of keys for four of queries, and something that is fused with the repetition."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        k = k[:, :2] * torch.arange(k.shape[-1]).float().cos()
        mixed = F.scaled_dot_product_attention(q, k, v[:, :2], is_causal=True, enable_gqa=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Checkpointed(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


TRAINED = {
    "sdpa": lambda: Tiny(),
    "dropout": lambda: Tiny(attention=Dropping),
    "grouped": lambda: Tiny(attention=Grouped),
    "softmax": lambda: Tiny(attention=SoftmaxAttention),
    "checkpoints": lambda: Checkpointed(),
}


def train(model: nn.Module, call: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """Return the output of a forward and the gradients of a backward pass."""
    torch.manual_seed(3)
    model.zero_grad()
    output = call(x)
    output.square().sum().backward()
    gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    return [output.detach(), *gradients]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", TRAINED)
def test_training_is_the_same_to_the_bit(kind: str, backend: str) -> None:
    model, x = TRAINED[kind]().train(), numbers()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    plain = train(model, compiled, x)
    for _ in range(2):
        with capture(model) as captured:
            found = train(model, compiled, x)
        assert all(map(torch.equal, found, plain))
        assert len(found) == len(plain)
    assert paths(captured) == PATHS
    confirmed = None if kind in ("dropout", "softmax") else True
    assert [each.confirmed for each in captured.attention] == [confirmed] * 3


MODES = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    model, x = Tiny(), numbers()
    compiled = as_model(model, "aot_eager")
    with MODES[mode]():
        plain = compiled(x)
        with capture(model) as captured:
            assert torch.equal(compiled(x), plain)
    assert paths(captured) == PATHS
    assert all(each.confirmed for each in captured.attention)


class Separate(Attention):
    """Queries and keys have memory of their own, of the size of the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

    def project(self, x: Tensor) -> Tensor:
        found = [each(x).unflatten(-1, (4, -1)).transpose(1, 2) for each in (self.q, self.k)]
        return torch.stack((*found, found[1])) if not torch.compiler.is_compiling() else found

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.project(x)[:2]
        mixed = F.scaled_dot_product_attention(q, k, k)
        return self.proj(mixed.transpose(1, 2).flatten(2))


SIZES = [(40, 2, False), (40, 2, True), (64, 720, False)]
"""Tokens, batch, and whether the graph is one for any; calls that are small, and that are not."""


@pytest.mark.parametrize(("tokens", "batch", "is_dynamic"), SIZES)
@pytest.mark.parametrize("attention", [Attention, Separate, SoftmaxAttention])
def test_maps_of_inductor_are_right_when_they_are_read_later(
    attention: Any, tokens: int, batch: int, is_dynamic: bool
) -> None:
    """The graph's memory was written to again by then: by later layers, and by other calls."""
    model, x = Tiny(attention=attention), numbers(tokens, batch)
    expected = maps(model, x)
    compiled = torch.compile(model, backend="inductor", fullgraph=True, dynamic=is_dynamic)
    with torch.no_grad():
        plain = compiled(x)
        with capture(model) as captured:
            assert torch.equal(compiled(x), plain)
            for _ in range(3):
                compiled(torch.randn_like(x))
    first = [captured.attention[index] for index in range(3)]
    for each, wanted in zip(first, expected, strict=True):
        np.testing.assert_allclose(each.weights(), wanted, rtol=0, atol=1e-6)
    assert len(captured.attention) == 12


class Caching(Attention):
    """Attends to a cache as it was, is, and will be: it is written to before and in between."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.randn(2, 4, 40, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        q = F.scaled_dot_product_attention(q, self.keys, v)
        self.keys.copy_(k)
        mixed = F.scaled_dot_product_attention(q, self.keys, v)
        self.keys[:, :, 20:] = mixed[:, :, 20:]
        mixed = F.scaled_dot_product_attention(mixed, self.keys, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_cache_that_a_graph_writes_to_between_calls(backend: str) -> None:
    model, x = Caching(), numbers(40)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        q, k, v = model.project(x).unbind(0)
        before = model.keys.clone()
        plain = compiled(x)
        model.keys.copy_(before)
        wanted = [expected_map(q, before)]
        q = F.scaled_dot_product_attention(q, before, v)
        mixed = F.scaled_dot_product_attention(q, k, v)
        written = torch.cat((k[:, :, :20], mixed[:, :, 20:]), dim=2)
        wanted += [expected_map(q, k), expected_map(mixed, written)]
        with capture(model) as captured:
            assert torch.equal(compiled(x), plain)
            compiled(x + 1)
    first = [each.weights() for each in captured.attention if each.step == 0]
    np.testing.assert_allclose(first, wanted, rtol=0, atol=1e-6)


class Masked(Attention):
    """Its mask is made in the graph, another one in each call."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        mask = (q.sum(-1, keepdim=True) + k.sum(-1).unsqueeze(-2)) * 0.3
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_masks_of_a_graph_are_kept_apart(backend: str) -> None:
    model, x = Tiny(attention=Masked), numbers()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad(), capture(model) as captured:
        compiled(x)
        compiled(x + 1)
    with torch.no_grad(), capture(model) as eager:
        model(x)
        model(x + 1)
    for each, wanted in zip(captured.attention, eager.attention, strict=True):
        np.testing.assert_allclose(each.weights(), wanted.weights(), rtol=0, atol=1e-6)
    assert all(each.confirmed for each in captured.attention)


def test_a_mask_that_layers_share_is_kept_once() -> None:
    class Same(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.project(x).unbind(0)
            mask = (torch.arange(x.shape[1]) * 0.1).sin().expand(1, 1, x.shape[1], -1).clone()
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return self.proj(mixed.transpose(1, 2).flatten(2))

    model, x = Tiny(attention=Same), numbers(tokens=32)
    compiled = as_model(model, "aot_eager")
    with torch.no_grad(), capture(model) as captured:
        compiled(x)
    biases = [each.record.read().mask.bias for each in captured.attention]
    assert len({each.untyped_storage().data_ptr() for each in biases}) == 1


class Chain(Attention):
    """A softmax of many steps, each of which changes the map."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        scores = torch.matmul(q * 0.5, k.transpose(-1, -2)) / 1.5
        scores = scores + torch.arange(x.shape[1]) * 0.2
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        attn = self.take(scores.masked_fill(later, float("-inf")))
        return self.proj((attn @ v).transpose(1, 2).flatten(2))

    def take(self, scores: Tensor) -> Tensor:
        return F.softmax(scores, dim=-1, dtype=torch.float32)


class ChainOfTorch(Chain):
    def take(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, -1)


class ChainOfMethod(Chain):
    def take(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)


class ChainOfModule(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.taken = nn.Softmax(-1)

    def take(self, scores: Tensor) -> Tensor:
        return self.taken(scores)


@pytest.mark.parametrize("attention", [Chain, ChainOfTorch, ChainOfMethod, ChainOfModule])
def test_softmax_step_by_step(attention: Any) -> None:
    model, x, backend = Tiny(1, attention), numbers(), Backend()
    compiled = as_model(model, backend)
    with torch.no_grad():
        plain = compiled(x)
        for _ in range(2):
            with capture(model) as captured:
                assert torch.equal(compiled(x), plain)
        q, k, _ = model.blocks[0].attn.project(x).unbind(0)
    scores = (0.5 * q.double() @ k.double().transpose(-1, -2)) / 1.5 + torch.arange(6) * 0.2
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
    assert backend.graphs == 2
    assert paths(captured) == PATHS[:1]
    assert_maps(captured, [scores.softmax(-1).numpy()])
    assert captured.attention[0].confirmed is None


class Einsum(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        attn = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).flatten(2))


def test_scores_made_in_another_way_give_the_weights_themselves() -> None:
    model, x = Tiny(1, Einsum), numbers()
    compiled = as_model(model, "aot_eager")
    with torch.no_grad():
        plain = compiled(x)
        with capture(model) as captured:
            assert torch.equal(compiled(x), plain)
        q, k, _ = model.blocks[0].attn.project(x).unbind(0)
    assert_maps(captured, [(q @ k.transpose(-1, -2)).double().softmax(-1).numpy()])


def test_what_is_no_attention_is_left_alone() -> None:
    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(-1, -2)).softmax(-1) @ x

    model, x = Router(), numbers()
    compiled = as_model(model, "aot_eager")
    with torch.no_grad(), capture(model) as captured:
        compiled(x)
    assert len(captured.attention) == 0


HIDDEN = torch.ones(6, 6, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)
MULTI_HEAD = {
    "plain": ({}, {}),
    "mask": ({}, {"attn_mask": HIDDEN}),
    "padding": ({}, {"key_padding_mask": PADDED}),
    "both": ({}, {"attn_mask": HIDDEN, "key_padding_mask": PADDED}),
    "float mask": ({}, {"attn_mask": torch.linspace(-1, 1, 36).reshape(6, 6)}),
    "bias": ({"add_bias_kv": True}, {}),
    "zeros": ({"add_zero_attn": True}, {}),
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("case", MULTI_HEAD)
def test_multi_head_attention(case: str, need_weights: bool) -> None:
    made, called = MULTI_HEAD[case]
    model, x, backend = nn.MultiheadAttention(16, 4, batch_first=True, **made), numbers(), Backend()
    compiled = as_model(model, backend)
    called = {**called, "need_weights": need_weights, "average_attn_weights": False}
    plain, _ = compiled(x, x, x, **called)
    for _ in range(2):
        with capture(model) as captured:
            assert torch.equal(compiled(x, x, x, **called)[0], plain)
    _, weights = model(x, x, x, **{**called, "need_weights": True})
    assert backend.graphs == 2
    assert not counters["graph_break"]
    assert paths(captured)[0] in ("", "_orig_mod")
    assert_maps(captured, [weights.detach().numpy()])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("is_training", [True, False])
def test_encoder_layers(is_training: bool, backend: str) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    model, x = nn.TransformerEncoder(layer, 2).train(is_training), numbers()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(is_training):
        plain = compiled(x)
        with capture(model) as captured:
            assert torch.equal(compiled(x), plain)
        with capture(model) as eager:
            model(x)
    assert paths(captured) == ["layers.0.self_attn", "layers.1.self_attn"]
    for each, wanted in zip(captured.attention, eager.attention, strict=True):
        np.testing.assert_allclose(each.weights(), wanted.weights(), rtol=0, atol=1e-6)
    assert all(each.confirmed for each in captured.attention)


def test_other_shapes_take_no_more_graphs_than_without_us() -> None:
    model, backend = Tiny(), Backend()
    compiled = as_model(model, backend)
    with torch.no_grad():
        for tokens in (6, 8, 10, 12):
            compiled(numbers(tokens))
        plain, backend.graphs = backend.graphs, 0
        for tokens in (6, 8, 10, 12):
            x = numbers(tokens)
            with capture(model) as captured:
                compiled(x)
            assert_maps(captured, maps(model, x))
    assert backend.graphs <= plain


def test_all_shapes_dynamic() -> None:
    model, backend = Tiny(), Backend()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (6, 9):
            compiled(numbers(tokens))
            with capture(model) as captured:
                compiled(numbers(tokens))
            assert [each.shape[-1] for each in captured.attention] == [tokens] * 3
    assert backend.graphs == 2


def test_nested_blocks_and_threads_share_a_graph() -> None:
    model, x, backend = Tiny(1), numbers(), Backend()
    compiled = as_model(model, backend)
    own = []

    def run() -> None:
        with torch.no_grad():
            compiled(x)

    def run_captured() -> None:
        with capture(model) as captured:
            run()
        own.append(len(captured.attention))

    run()
    with capture(model) as outer:
        run()
        with capture(model) as inner:
            run()
        for target in (run, run_captured):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert (len(outer.attention), len(inner.attention), own) == (3, 1, [1])
    assert backend.graphs == 2


@pytest.mark.parametrize(
    "config",
    [
        {"error_on_recompile": True},
        {"recompile_limit": 1},
        {"recompile_limit": 1, "fail_on_recompile_limit_hit": True},
    ],
)
def test_limits_of_recompilations_are_the_programs_own(config: dict[str, Any]) -> None:
    model, x, backend = Tiny(1), numbers(), Backend()
    compiled = as_model(model, backend)
    with torch.no_grad(), torch._dynamo.config.patch(**config):
        compiled(x)
        for _ in range(3):
            with capture(model) as captured:
                compiled(x)
            compiled(x)
    assert (backend.graphs, len(captured.attention)) == (2, 1)


def stance() -> str:
    return str(torch._dynamo.eval_frame._stance.stance)


def test_the_programs_own_graph_is_used_again() -> None:
    model, x = Tiny(1), numbers()
    compiled = as_model(model, "aot_eager")
    with torch.no_grad():
        compiled(x)
        with capture(model):
            compiled(x)
            assert stance() == "default"
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(x)


def test_a_stance_within_the_block_holds() -> None:
    model, x, backend = Tiny(1), numbers(), Backend()
    compiled = as_model(model, backend)
    with torch.no_grad():
        with capture(model):
            compiled(x)
        with capture(model) as captured:
            for each in ("fail_on_recompile", "force_eager"):
                with torch.compiler.set_stance(each):
                    compiled(x)
    assert (backend.graphs, len(captured.attention)) == (1, 2)


@pytest.mark.parametrize("name", ["eager_on_recompile", "fail_on_recompile", "force_eager"])
def test_a_stance_around_the_block_makes_no_graph(name: str) -> None:
    model, x, backend = Tiny(1), numbers(), Backend()
    compiled = as_model(model, backend)
    with torch.no_grad():
        plain = compiled(x)
        with torch.compiler.set_stance(name):
            with capture(model) as captured:
                assert torch.equal(compiled(x), plain)
            assert stance() == name
    assert (backend.graphs, len(captured.attention)) == (1, 1)


@pytest.mark.parametrize(
    "options", [{"modules": ["head"]}, {"locals": {SoftmaxAttention.forward: "attn"}}]
)
def test_locals_and_modules_run_as_python(options: dict[str, Any]) -> None:
    model, x, backend = Tiny(1, SoftmaxAttention), numbers(), Backend()
    compiled = as_model(model, backend)
    with torch.no_grad():
        compiled(x)
        with capture(model, **options) as captured:
            assert stance() == "force_eager"
            compiled(x)
        assert stance() == "default"
        compiled(x)
    assert backend.graphs == 1
    assert len(captured.attention) == 1


def test_a_torch_without_what_it_takes_runs_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, backend = Tiny(1), numbers(), Backend()
    compiled = as_model(model, backend)
    with torch.no_grad():
        compiled(x)
        monkeypatch.delattr(torch._dynamo.eval_frame, "innermost_backend")
        with capture(model) as captured:
            assert stance() == "force_eager"
            compiled(x)
    assert (backend.graphs, len(captured.attention)) == (1, 1)


def test_what_is_exported_has_nothing_of_ours() -> None:
    model, x = Tiny(1), numbers()
    plain = torch.export.export(model, (x,)).graph_module.code
    with capture(model) as captured:
        for strict in (True, False):
            assert torch.export.export(model, (x,), strict=strict).graph_module.code == plain
    assert len(captured.attention) == 0


def test_an_error_of_ours_does_not_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("ours")

    model, x = Tiny(1, SoftmaxAttention), numbers()
    compiled = as_model(model, "aot_eager")
    with torch.no_grad():
        plain = compiled(x)
        for name in ("tracing.add_spot", "compiled_softmax.find_scores", "compiled.keep_parts"):
            torch._dynamo.reset()
            with monkeypatch.context() as patched:
                patched.setattr(f"visualizer._intercept.{name}", fail)
                with capture(model) as captured:
                    assert torch.equal(compiled(x), plain)
            assert "ours" in captured.explain()


def test_a_model_that_is_gone_is_not_kept_alive() -> None:
    import gc
    import weakref

    model, x = Tiny(1), numbers()
    compiled = as_model(model, "aot_eager")
    with torch.no_grad(), capture(model):
        compiled(x)
    gone = weakref.ref(model)
    del model, compiled
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


COMPILED_WITHIN = """
import sys, torch
from tests.block.samples import Tiny, numbers
from visualizer import capture
model, x = Tiny(1), numbers()
assert "torch._dynamo" not in sys.modules
hooks = list(sys.meta_path)
with torch.no_grad():
    with capture(model) as captured:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        compiled(x)
    assert [each.module_path for each in captured.attention] == ["blocks.0.attn"]
    assert not any("visualizer" in type(hook).__module__ for hook in sys.meta_path)
    frames = torch._dynamo.eval_frame
    assert "visualizer" not in frames._callback_from_stance.__module__
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(x)
        with capture(model):
            pass
"""


def test_the_compiler_may_be_imported_within_the_block() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED_WITHIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
