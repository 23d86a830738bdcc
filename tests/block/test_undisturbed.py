"""The program notices nothing: outputs, gradients, randomness, modes, tracers and errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.block.samples import Attention, SoftmaxAttention, Tiny, expected_map, numbers, qkv
from visualizer import capture

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*performance drop.*"
)

LOCALS = {"tests.block.samples:SoftmaxAttention.forward": ["attn", "q"]}


class Mixed(nn.Module):
    """Attention of every kind."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.fused = Attention()
        self.eager = SoftmaxAttention()
        self.torchs = nn.MultiheadAttention(16, 4, dropout=dropout, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.eager(self.fused(x))
        return self.layer(self.torchs(x, x, x)[0])


def options(model: nn.Module, **more: Any) -> dict[str, Any]:
    return {"model": model, "locals": LOCALS, "modules": ["**"], "inputs": True, **more}


@pytest.mark.parametrize("keep", ["qk", "rows", "weights", "auto", "last"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_outputs_are_bit_identical(mode: Any, keep: str) -> None:
    model, x = Mixed().eval(), numbers()
    with mode():
        plain = model(x)
        with capture(**options(model, keep=keep)) as captured:
            out = model(x)
    assert torch.equal(out, plain)
    assert out.requires_grad == plain.requires_grad
    assert len(captured.attention) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_outputs_of_other_types_are_bit_identical(dtype: torch.dtype) -> None:
    model, x = Mixed().eval().to(dtype), numbers().to(dtype)
    with torch.no_grad():
        plain = model(x)
        with capture(**options(model)) as captured:
            assert torch.equal(model(x), plain)
    assert len(captured.attention) == 4
    assert not any(m.confirmed is False for m in captured.attention)


def test_maps_of_float64_are_exact() -> None:
    q, k, v = (t.double() for t in qkv())
    with capture() as captured:
        F.scaled_dot_product_attention(q, k, v)
    (made,) = captured.attention
    assert made.confirmed is True
    np.testing.assert_allclose(np.asarray(made), expected_map(q, k), atol=1e-14)


def test_outputs_under_autocast_are_bit_identical() -> None:
    model, x = Mixed().eval(), numbers()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        with capture(**options(model)) as captured:
            assert torch.equal(model(x), plain)
    assert len(captured.attention) == 4
    assert not any(m.confirmed is False for m in captured.attention)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    return [x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_gradients_are_equal_and_backward_is_not_recorded() -> None:
    model, x = Mixed().train(), numbers()
    plain = gradients(model, x)
    with capture(**options(model)) as captured:
        found = gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert len(captured.attention) == 4


def states() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()],
    )


def test_randomness_is_not_touched() -> None:
    model, x = Mixed().eval(), numbers()
    before = states()
    with torch.no_grad(), capture(**options(model)) as captured:
        for tokens in range(1, 6):
            model(x[:, :tokens])
    for made in captured.attention:
        np.asarray(made), made.entropy(), made.confirmed
    assert states() == before


def test_dropout_is_the_same() -> None:
    model, x = Mixed(dropout=0.5).train(), numbers()
    torch.manual_seed(3)
    plain = model(x)
    after = torch.rand(1)
    torch.manual_seed(3)
    with capture(**options(model)) as captured:
        out = model(x)
    assert torch.equal(out, plain)
    assert torch.equal(torch.rand(1), after)
    confirmed = {m.module_path: m.confirmed for m in captured.attention}
    assert confirmed["fused"] is True
    assert confirmed["layer.self_attn"] is None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_are_recorded_once(use_reentrant: bool) -> None:
    class Checkpointed(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=use_reentrant)
            return self.head(x)

    model, x = Checkpointed(3, SoftmaxAttention), numbers()
    plain = gradients(model, x)
    with capture(model, locals=LOCALS, modules=["blocks.*", "blocks.*.mlp", ""]) as captured:
        for _ in range(2):
            found = gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert [(m.layer, m.call, m.step) for m in captured.attention] == [
        (layer, step, step) for step in range(2) for layer in range(3)
    ]
    attn = captured.locals["SoftmaxAttention.forward"]["attn"]
    assert [(e.call, e.step) for e in attn] == [(call, call // 3) for call in range(6)]
    for path in ("blocks.1", "blocks.1.mlp", ""):
        assert [(e.call, e.step) for e in captured.modules[path]] == [(0, 0), (1, 1)]
    assert captured.explain() == ""


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_model_that_is_checkpointed_as_a_whole_has_its_steps(use_reentrant: bool) -> None:
    model = Tiny(2)
    with capture(model, modules=["head"], keep=("all", 2)) as captured:
        for _ in range(3):
            x = numbers().requires_grad_()
            checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    assert [(m.call, m.step) for m in captured.attention["blocks.0.attn"]] == [(0, 0), (2, 2)]
    assert [(e.call, e.step) for e in captured.modules["head"]] == [(0, 0), (2, 2)]


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("mode", [Operations, Functions])
def test_modes_see_the_same_operations(mode: Any, grad: bool) -> None:
    model, x = Mixed().eval(), numbers()

    def run() -> list[Any]:
        with torch.set_grad_enabled(grad), mode() as seen:
            model(x)
        return seen.seen

    plain = run()
    with capture(**options(model)) as captured:
        found = run()
    assert found == plain
    assert len(captured.attention) == 4


def test_a_flop_counter_counts_the_same() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, x = Mixed().train(), numbers()

    def run() -> int:
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        return counter.get_total_flops()

    plain = run()
    with capture(**options(model)) as captured:
        assert run() == plain
    assert len(captured.attention) == 4


def test_the_profiler_of_memory_does_not_break() -> None:
    model, x = Mixed().eval(), numbers()
    with torch.profiler.profile(profile_memory=True), capture(**options(model)) as captured:
        model(x)
    assert len(captured.attention) == 4


def nodes(graph: Any) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in graph.nodes]


def make_fx(model: nn.Module, x: Tensor, mode: str) -> Any:
    from torch.fx.experimental import proxy_tensor

    return proxy_tensor.make_fx(lambda y: model(y), tracing_mode=mode)(x)


TRACERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "make_fx real": lambda model, x: make_fx(model, x, "real"),
    "make_fx fake": lambda model, x: make_fx(model, x, "fake"),
    "export": lambda model, x: torch.export.export(model, (x,), strict=False).module(),
}


class BySdpa(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class BySoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x @ x.transpose(-2, -1), dim=-1) @ x


class ByMethod(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.transpose(-2, -1)).softmax(dim=-1) @ x


@pytest.mark.parametrize("kind", [BySdpa, BySoftmax, ByMethod])
@pytest.mark.parametrize("tracer", TRACERS)
def test_traced_graphs_are_those_without_us(tracer: str, kind: type[nn.Module]) -> None:
    model, x = nn.Sequential(kind()), torch.randn(1, 2, 5, 4)
    trace = TRACERS[tracer]
    plain = trace(model, x)
    with capture(**options(model)) as captured:
        found = trace(model, x)
        out = model(x)
    assert nodes(found.graph) == nodes(plain.graph)
    assert torch.equal(out, model(x))
    assert captured.attention[-1].confirmed is not False


@pytest.mark.parametrize("kind", [BySdpa, BySoftmax, ByMethod])
def test_jit_traces_are_those_without_us(kind: type[nn.Module]) -> None:
    model, x = nn.Sequential(kind()), torch.randn(1, 2, 5, 4)

    def kinds(traced: Any) -> list[str]:
        return [node.kind() for node in traced.inlined_graph.nodes()]

    plain = torch.jit.trace(model, (x,), check_trace=False)
    with capture(**options(model)) as captured:
        traced = torch.jit.trace(model, (x,), check_trace=False)
    assert kinds(traced) == kinds(plain)
    assert torch.equal(traced(x), plain(x))
    assert len(captured.attention) == 0
    assert "torch.jit.trace" in captured.explain()


@pytest.mark.parametrize("kind", [BySdpa, BySoftmax, ByMethod])
def test_scripting_within_the_block_works(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(1, 2, 5, 4)
    plain = model(x)
    with capture(model):
        scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), plain)


def test_compiling_within_the_block_works() -> None:
    model, x = Tiny(1), numbers()
    plain = model(x)
    compiled = torch.compile(model, backend="eager")
    with capture(model, modules=["head"]) as captured:
        assert torch.equal(compiled(x), plain)
    assert torch.equal(compiled(x), plain)
    torch._dynamo.reset()
    assert len(captured.attention) == len(captured.modules["head"]) == 1


def test_transforms_give_the_same_results() -> None:
    q = torch.randn(3, 1, 2, 5, 4)

    def function(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q) + (q @ q.mT).softmax(-1) @ q

    def run() -> list[Any]:
        func = torch.func
        return [
            torch.vmap(function)(q),
            func.grad(lambda q: function(q).sum())(q[0]),
            torch.vmap(func.grad(lambda q: function(q).sum()))(q),
            func.vjp(function, q[0])[0],
        ]

    plain = run()
    with capture() as captured:
        found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert "torch.func" in captured.explain()


def test_forward_mode_gradients_are_the_same() -> None:
    import torch.autograd.forward_ad as forward

    q, k, v = qkv()
    tangent = torch.randn_like(q)

    def run() -> Tensor:
        with forward.dual_level():
            x = forward.make_dual(q, tangent)
            out = (x @ k.mT).softmax(-1) @ v
            return forward.unpack_dual(out).tangent

    plain = run()
    with capture() as captured:
        assert torch.equal(run(), plain)
    np.asarray(captured.attention[0])


def test_meta_and_fake_tensors_pass_and_are_reported() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = Attention().to("meta")
    with capture(model, modules=["qkv"]) as captured:
        assert model(numbers().to("meta")).is_meta
    assert "meta device" in captured.explain()
    with FakeTensorMode() as mode, capture() as captured:
        q = mode.from_tensor(qkv()[0])
        F.scaled_dot_product_attention(q, q, q)
    assert len(captured.attention) == 0
    assert "no values" in captured.explain()
    with capture() as captured:
        F.scaled_dot_product_attention(*qkv())
    assert captured.attention[0].confirmed is True


class Duck:
    """Takes the place of tensors, as torch lets any class do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return f"quack {func.__name__}"


@pytest.mark.parametrize(
    "call",
    [
        lambda duck: F.softmax(duck, dim=-1),
        lambda duck: torch.softmax(duck, -1),
        lambda duck: F.scaled_dot_product_attention(duck, duck, duck),
        lambda duck: torch.bmm(duck, duck),
        lambda duck: torch.baddbmm(duck, duck, duck),
    ],
)
def test_what_takes_the_place_of_tensors(call: Callable[[Any], Any]) -> None:
    plain = call(Duck())
    with capture():
        assert call(Duck()) == plain


class Strange(Tensor):
    """A tensor that does not like to be asked."""

    def dim(self) -> int:
        raise RuntimeError("no")

    @property
    def shape(self) -> Any:
        raise RuntimeError("no")

    def is_floating_point(self) -> bool:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.softmax(x, dim=-1),
        lambda x: x.softmax(-1),
        lambda x: torch.softmax(x, -1),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: torch.bmm(x[0], x[0]),
    ],
)
def test_subclasses_that_do_not_like_to_be_asked(call: Callable[[Any], Any]) -> None:
    x = torch.randn(1, 2, 5, 5).as_subclass(Strange)
    plain = call(x)
    with capture():
        out = call(x)
    assert torch.equal(out.as_subclass(Tensor), plain.as_subclass(Tensor))


class Hostile:
    """An object that raises whatever one does with it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("do not touch")


class Arrays:
    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no array")


@pytest.mark.parametrize("kind", [Hostile, Arrays])
def test_values_that_can_not_be_recorded_do_not_reach_the_model(kind: type) -> None:
    value = kind()

    class Model(nn.Module):
        def forward(self, given: Any) -> Any:
            y = given
            return y

    model = Model()
    with capture(model, modules=[""], inputs=True, locals={Model.forward: "y"}) as captured:
        assert model(value) is value
        assert float(model(torch.ones(()))) == 1
    assert [e.call for e in captured.modules[""] if e.shape is not None] == [1]
    assert captured.explain()


def test_errors_of_our_recording_do_not_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from visualizer._block.modules_tap import ModulesTap
    from visualizer._block.places import Places
    from visualizer._block.sites import SiteRecorder

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("ours")

    model, x = Tiny(2, SoftmaxAttention), numbers()
    plain = model(x)
    for cls, name in ((SiteRecorder, "begin"), (Places, "find"), (ModulesTap, "_record")):
        with monkeypatch.context() as patch:
            patch.setattr(cls, name, fail)
            with capture(**options(model)) as captured:
                assert torch.equal(model(x), plain)
            assert "ZeroDivisionError: ours" in captured.explain()


def test_wrong_calls_raise_what_they_raise_without_us() -> None:
    q, k, v = qkv()
    wrong: list[Callable[[], Any]] = [
        lambda: F.scaled_dot_product_attention(q),
        lambda: F.scaled_dot_product_attention(q, k[..., :3], v),
        lambda: F.softmax(),
        lambda: F.softmax(3, dim=-1),
        lambda: torch.bmm(q),
        lambda: torch.bmm(q, k),
        lambda: torch.baddbmm(q),
        lambda: F.multi_head_attention_forward(),
        lambda: q.softmax(),
        lambda: torch.softmax(q, 17),
    ]

    def error_of(call: Callable[[], Any]) -> type[BaseException]:
        with pytest.raises(BaseException) as raised:
            call()
        return raised.type

    plain = [error_of(call) for call in wrong]
    with capture() as captured:
        assert [error_of(call) for call in wrong] == plain
    assert len(captured.attention) == 0


def test_keyword_calls_of_what_is_replaced() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 3)
    c = torch.randn(2, 3, 3)

    def run() -> list[Tensor]:
        out = torch.empty(2, 3, 3)
        return [
            torch.bmm(input=a, mat2=b),
            torch.bmm(a, mat2=b),
            torch.bmm(a, b, out=out),
            torch.baddbmm(input=c, batch1=a, batch2=b),
            torch.baddbmm(c, a, b, beta=2, alpha=3),
            F.softmax(input=c, dim=-1, dtype=torch.float64),
            torch.softmax(c, dim=-1),
            torch.softmax(c, -1, dtype=torch.float64),
            c.softmax(dim=-1),
            Tensor.softmax(c, -1),
            F.scaled_dot_product_attention(query=a, key=a, value=a, is_causal=True),
        ]

    plain = run()
    with capture() as captured:
        found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert captured.attention[-1].is_causal


def test_softmax_that_is_no_attention_is_left_alone() -> None:
    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1)

    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(x, dim=-1)

    with capture() as captured:
        Router()(torch.randn(2, 4, 4))
        Head()(torch.randn(2, 7, 100))
        torch.randn(5, 5).softmax(-1)
        torch.randn(2, 5, 5).softmax(1)
    assert len(captured.attention) == 0
