"""Compiled models: their attention comes out of graphs, the rest as Python runs it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from tests.block.samples import Attention, SoftmaxAttention, Tiny, numbers
from visualizer import capture
from visualizer.captured import Captured

PATHS = ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that counts the graphs that it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


def captured_of(model: nn.Module | None, call: Callable[[], Any]) -> tuple[Captured, Any]:
    with capture(model) as captured:
        output = call()
    return captured, output


def assert_same_maps(found: Captured, expected: Captured) -> None:
    assert found.attention.paths == expected.attention.paths
    for one, other in zip(found.attention, expected.attention, strict=True):
        assert (one.layer, one.call) == (other.layer, other.call)
        assert one.confirmed is other.confirmed
        np.testing.assert_allclose(one[:], other[:], rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_whole_model_as_one_graph(backend: str, mode: Any) -> None:
    model, x = Tiny().eval(), numbers()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with mode():
        plain = compiled(x)
        found, output = captured_of(model, lambda: compiled(x))
        again = compiled(x)
        expected, _ = captured_of(model, lambda: model(x))
    assert torch.equal(plain, output)
    assert torch.equal(plain, again)
    assert found.attention.paths == PATHS
    assert all(made.confirmed for made in found.attention)
    assert_same_maps(found, expected)
    assert not counters["graph_break"]


def test_a_dozen_entries_make_two_graphs() -> None:
    model, x, backend = Tiny().eval(), numbers(), Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        compiled(x)
        assert backend.graphs == 1
        for entry in range(12):
            with capture(model) as captured:
                compiled(x)
                compiled(x)
            assert len(captured.attention) == 6
            assert [made.step for made in captured.attention] == [0, 0, 0, 1, 1, 1]
            compiled(x)
            assert backend.graphs == 2, f"after entry {entry}"
    assert not counters["graph_break"]


def test_a_model_that_is_compiled_in_the_block() -> None:
    model, x, backend = Tiny().eval(), numbers(), Counting()
    with torch.no_grad():
        with capture(model) as captured:
            compiled = torch.compile(model, fullgraph=True, backend=backend)
            inside = compiled(x)
        outside = compiled(x)
    assert captured.attention.paths == PATHS
    assert torch.equal(inside, outside)
    assert backend.graphs == 2


@pytest.mark.parametrize("given", ["model", "compiled", "nothing"])
def test_whichever_is_given(given: str) -> None:
    model, x = Tiny().eval(), numbers()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    which = {"model": model, "compiled": compiled, "nothing": None}[given]
    with capture(which) as captured:
        compiled(x)
        compiled(x)
    assert captured.attention.paths == PATHS
    assert [made.step for made in captured.attention] == [0, 0, 0, 1, 1, 1]


def test_in_place() -> None:
    model, x = Tiny().eval(), numbers()
    model.compile(fullgraph=True, backend="aot_eager")
    found, _ = captured_of(model, lambda: model(x))
    assert found.attention.paths == PATHS


def test_each_block_on_its_own() -> None:
    """They may share a graph, and still have their own names."""
    model, x = Tiny(5).eval(), numbers()
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    model(x)
    found, output = captured_of(model, lambda: model(x))
    assert found.attention.paths == [f"blocks.{layer}.attn" for layer in range(5)]
    plain = Tiny(5).eval()
    plain.load_state_dict(model.state_dict())
    expected, known = captured_of(plain, lambda: plain(x))
    torch.testing.assert_close(output, known)
    assert_same_maps(found, expected)


def test_parts_that_were_replaced_by_compiled_ones() -> None:
    model, x = Tiny().eval(), numbers()
    for index in range(3):
        model.blocks[index] = torch.compile(model.blocks[index], backend="aot_eager")
    found, _ = captured_of(model, lambda: model(x))
    assert found.attention.paths == PATHS


def test_a_compiled_function_that_calls_models() -> None:
    models, x = [Tiny(2).eval(), Tiny(2).eval()], numbers()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) + 1

    for model in models:
        run(model, x)
        found, _ = captured_of(model, lambda model=model: run(model, x))
        expected, _ = captured_of(model, lambda model=model: model(x))
        assert_same_maps(found, expected)
    found, _ = captured_of(models[0], lambda: run(models[1], x))
    assert len(found.attention) == 0


def test_a_break_in_the_middle() -> None:
    class Broken(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks[0](x)
            torch._dynamo.graph_break()
            return self.head(self.blocks[2](self.blocks[1](x)))

    model, x = Broken().eval(), numbers()
    compiled = torch.compile(model, backend="aot_eager")
    plain = compiled(x)
    found, output = captured_of(model, lambda: compiled(x))
    assert torch.equal(plain, output)
    assert found.attention.paths == PATHS


def test_a_layer_that_is_used_again() -> None:
    class Shared(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.blocks[0](x)
            return x

    model, x = Shared(1).eval(), numbers()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, _ = captured_of(model, lambda: compiled(x))
    assert [(made.module_path, made.call) for made in found.attention] == [
        ("blocks.0.attn", 0),
        ("blocks.0.attn", 1),
        ("blocks.0.attn", 2),
    ]


WAYS = {
    "functional": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "in full": lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    "by name": lambda q, k, v: scaled_dot_product_attention(q, k, v),
    "with a mask": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    ),
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5),
}


@pytest.mark.parametrize("name", WAYS)
def test_however_the_function_is_reached(name: str) -> None:
    run = torch.compile(WAYS[name], fullgraph=True, backend="aot_eager")
    q, k, v = (torch.randn(1, 2, 7, 8) for _ in range(3))
    run(q, k, v)
    found, _ = captured_of(None, lambda: run(q, k, v))
    expected, _ = captured_of(None, lambda: WAYS[name](q, k, v))
    assert len(found.attention) == 1
    assert_same_maps(found, expected)


def test_softmax_is_seen_too() -> None:
    model, x = Tiny(attention=SoftmaxAttention).eval(), numbers()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain = compiled(x)
    found, output = captured_of(model, lambda: compiled(x))
    expected, _ = captured_of(model, lambda: model(x))
    assert torch.equal(plain, output)
    assert_same_maps(found, expected)
    assert not counters["graph_break"]


def test_maps_outlive_the_buffers_of_inductor() -> None:
    """What a graph hands over, it uses again for something else."""
    model, x = Tiny(6).eval(), numbers(tokens=40)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        found, _ = captured_of(model, lambda: compiled(x))
        for _ in range(3):
            compiled(torch.randn_like(x))
        expected, _ = captured_of(model, lambda: model(x))
    assert_same_maps(found, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_training_is_undisturbed(backend: str) -> None:
    model, x = Tiny(2), numbers()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results = []
    for capturing in (False, True):
        model.zero_grad()
        with capture(model) if capturing else contextlib.nullcontext() as captured:
            loss = compiled(x).pow(2).sum()
            loss.backward()
        results.append([loss.detach(), *(each.grad.clone() for each in model.parameters())])
    for plain, other in zip(*results, strict=True):
        assert torch.equal(plain, other)
    assert captured is not None
    assert len(captured.attention) == 2


def test_checkpoints_within_a_graph_are_recorded_once() -> None:
    class Checkpointed(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(x)

    model, x = Checkpointed(), numbers()
    compiled = torch.compile(model, backend="aot_eager")
    with capture(model) as captured:
        compiled(x).sum().backward()
    assert [made.module_path for made in captured.attention] == PATHS


def test_another_shape() -> None:
    model = Tiny().eval()
    compiled = torch.compile(model, backend="aot_eager")
    for tokens in (5, 6, 9, 14):
        x = numbers(tokens)
        found, _ = captured_of(model, lambda x=x: compiled(x))
        expected, _ = captured_of(model, lambda x=x: model(x))
        assert found.attention[0].shape == (2, 4, tokens, tokens)
        assert_same_maps(found, expected)


def test_nested_captures_and_other_threads() -> None:
    model, x, backend = Tiny().eval(), numbers(), Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        with torch.no_grad(), capture(model) as captured:
            compiled(x)
        found[number] = captured.attention.paths

    with torch.no_grad(), capture(model) as outer:
        compiled(x)
        with capture(model) as inner:
            compiled(x)
    assert (len(outer.attention), len(inner.attention)) == (6, 3)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(3), PATHS)


@pytest.mark.parametrize("wanted", ["modules", "locals", "gradients"])
def test_the_rest_runs_as_python(wanted: str) -> None:
    """And gives back the compiled graphs afterwards."""
    model, x, backend = Tiny().eval(), numbers(), Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    compiled(x)
    options: dict[str, Any] = {
        "modules": {"modules": ["blocks.*.mlp"]},
        "locals": {"locals": {Attention.forward: ["q", "mixed"]}},
        "gradients": {"gradients": True},
    }[wanted]
    with capture(model, **options) as captured:
        compiled(x).sum().backward()
    assert captured.attention.paths == PATHS
    if wanted == "modules":
        assert len(captured.modules["blocks.1.mlp"]) == 1
    elif wanted == "locals":
        assert len(captured.locals["Attention.forward"]["mixed"]) == 3
    else:
        assert captured.attention[0].gradient().shape == (2, 4, 6, 6)
    assert backend.graphs == 1
    compiled(x)
    assert backend.graphs == 1


def test_a_stance_of_the_program_s_own_is_kept() -> None:
    model, x, backend = Tiny().eval(), numbers(), Counting()
    compiled = torch.compile(model, backend=backend)
    with torch.compiler.set_stance("force_eager"):
        with capture(model) as captured:
            compiled(x)
    assert captured.attention.paths == PATHS
    assert backend.graphs == 0


def test_export_is_left_alone() -> None:
    model, x = Tiny().eval(), numbers()
    with capture(model) as captured:
        program = torch.export.export(model, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert not [target for target in targets if "visualizer" in target]
    assert len(captured.attention) == 0
