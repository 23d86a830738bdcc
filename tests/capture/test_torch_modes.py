"""Functions run under torch's modes, transforms and tracers: right values, or one line why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*functional optimizers.*"
)


def make_model() -> Any:
    """Return a module with a decorated forward."""

    class Model(torch.nn.Module):  # type: ignore[misc]
        @get_local("attn")
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            attn = (x * x.sum(-1, keepdim=True)).softmax(-1)
            return attn * 2

    return Model()


X = torch.linspace(0, 1, 8).reshape(2, 4)


def expected() -> Any:
    return (X * X.sum(-1, keepdim=True)).softmax(-1).numpy()


def read() -> list[Any]:
    """Return the entries without a warning that there are none."""
    return list(get_local.cache.pop("forward", []))


def nodes(graph: Any) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in graph.nodes]


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "default device": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_as_blocks(mode: Callable[[], Any]) -> None:
    get_local.activate()
    model = make_model()
    with mode():
        model(X)
    (taken,) = read()
    np.testing.assert_allclose(taken, expected(), rtol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("is_above", [True, False])
def test_modes_as_decorators(mode: Callable[[], Any], is_above: bool) -> None:
    get_local.activate()

    def attend(x: Any) -> Any:
        attn = x + 1
        return attn

    layers = [mode(), get_local("attn")] if is_above else [get_local("attn"), mode()]
    for layer in layers:
        attend = layer(attend)
    assert torch.equal(attend(X), X + 1)
    assert [taken.tolist() for taken in get_local.cache["attend"]] == [(X + 1).tolist()]


def test_autocast_gives_the_value_that_it_made() -> None:
    get_local.activate()

    @get_local("attn")
    def attend(x: Any) -> Any:
        attn = x @ x.T
        return attn

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(X / 3)
    assert out.dtype == torch.bfloat16
    (taken,) = get_local.cache["attend"]
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, out.float().numpy())


def test_an_inference_tensor_changed_afterwards() -> None:
    get_local.activate()
    model = make_model()
    with torch.inference_mode():
        model(X).zero_()
    np.testing.assert_allclose(read()[0], expected(), rtol=1e-6)


def test_grad_and_jvp_and_jacobians_give_values() -> None:
    get_local.activate()
    model = make_model()
    func = torch.func
    func.grad(lambda x: model(x).sum())(X)
    func.grad(lambda x: func.grad(lambda y: model(y).sum())(x).sum())(X)
    func.jvp(model, (X,), (torch.ones_like(X),))
    func.vjp(model, X)
    entries = read()
    assert len(entries) == 4
    for taken in entries:
        assert type(taken) is np.ndarray
        np.testing.assert_allclose(taken, expected(), rtol=1e-6)


def test_transforms_give_the_same_results() -> None:
    def run() -> list[Any]:
        model = make_model()
        func = torch.func
        return [
            func.grad(lambda x: model(x).square().sum())(X),
            func.jvp(model, (X,), (torch.ones_like(X),))[1],
            torch.vmap(model)(X),
            func.jacrev(lambda x: model(x).sum(0))(X),
            func.jacfwd(lambda x: model(x).sum(0))(X),
            torch.vmap(func.grad(lambda x: model(x).square().sum()))(X),
        ]

    plain = run()
    get_local.activate()
    with pytest.warns(UserWarning, match="torch.vmap"):
        captured = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))


def test_vmap_says_what_to_do(captured_warnings: Recorded) -> None:
    get_local.activate()
    model = make_model()
    torch.vmap(model)(X)
    torch.vmap(model)(X)
    (warning,) = captured_warnings
    assert str(warning.message) == (
        "'attn' of make_model.<locals>.Model.forward() was not captured, because it ran under "
        "torch.vmap, where a value is a slice of a larger one; call it without vmap, over a loop "
        "or with a batch axis of its own."
    )
    assert warning.filename == __file__
    assert "ran, but was not recorded, because it ran under torch.vmap" in repr(get_local.cache)
    with pytest.raises(IndexError, match="because it ran under torch.vmap"):
        get_local.cache["forward"][0]
    model(X)
    np.testing.assert_allclose(read()[0], expected(), rtol=1e-6)


def test_meta_tensors_say_what_they_are(captured_warnings: Recorded) -> None:
    get_local.activate()
    model = make_model().to("meta")
    assert model(X.to("meta")).shape == (2, 4)
    assert read() == []
    assert "its tensors are on the meta device, where they have no values." in str(
        captured_warnings[0].message
    )


def test_fake_tensors_say_what_they_are(captured_warnings: Recorded) -> None:
    fakes = pytest.importorskip("torch._subclasses.fake_tensor")
    get_local.activate()
    with fakes.FakeTensorMode() as mode:
        model = make_model()
        assert model(mode.from_tensor(X)).shape == (2, 4)
    assert read() == []
    assert "it was being traced" in str(captured_warnings[0].message)


def make_fx(model: Any, tracing_mode: str) -> Any:
    from torch.fx.experimental import proxy_tensor

    return proxy_tensor.make_fx(lambda x: model(x), tracing_mode=tracing_mode)(X)


TRACERS: dict[str, Callable[[Any], Any]] = {
    "torch.fx": lambda model: torch.fx.symbolic_trace(model),
    "make_fx real": lambda model: make_fx(model, "real"),
    "make_fx fake": lambda model: make_fx(model, "fake"),
    "make_fx symbolic": lambda model: make_fx(model, "symbolic"),
    "torch.export": lambda model: torch.export.export(model, (X,), strict=False).module(),
    "torch.export strict": lambda model: torch.export.export(model, (X,), strict=True).module(),
}


@pytest.mark.parametrize("trace", TRACERS.values(), ids=TRACERS)
def test_graphs_are_those_without_us(
    trace: Callable[[Any], Any], captured_warnings: Recorded
) -> None:
    model = make_model()
    plain = trace(model)
    get_local.activate()
    captured = trace(model)
    assert nodes(captured.graph) == nodes(plain.graph)
    get_local.deactivate()
    assert torch.equal(captured(X), model(X))
    for warning in captured_warnings:
        assert "call the Python model itself" in str(warning.message)
    for taken in read():
        assert type(taken) is np.ndarray
        np.testing.assert_allclose(taken, expected(), rtol=1e-6)


def test_tracing_leaves_the_model_capturable() -> None:
    get_local.activate()
    model = make_model()
    with pytest.warns(UserWarning):
        for trace in TRACERS.values():
            trace(model)
    get_local.clear()
    model(X)
    (taken,) = read()
    np.testing.assert_allclose(taken, expected(), rtol=1e-6)


def jit_graph(made: Any) -> list[str]:
    return [node.kind() for node in made.inlined_graph.nodes()]


def test_jit_trace_says_what_to_do(captured_warnings: Recorded) -> None:
    model = make_model()
    plain = torch.jit.trace(model, (X,))
    get_local.activate()
    traced = torch.jit.trace(model, (X,))
    assert jit_graph(traced) == jit_graph(plain)
    messages = [str(warning.message) for warning in captured_warnings]
    assert messages == [
        "'attn' of make_model.<locals>.Model.forward() was not captured, because torch.jit.trace "
        "was recording it, and copies would become part of the trace; call the Python model "
        "itself."
    ]
    get_local.clear()
    assert torch.equal(traced(X), model(X))
    assert len(read()) == 1  # that of the Python model; the traced one runs no Python


def test_jit_script_ignores_us() -> None:
    get_local.activate()
    model = make_model()
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(X), model(X))
    assert len(read()) == 1
    kinds = jit_graph(scripted)
    get_local.deactivate()
    assert jit_graph(torch.jit.script(make_model())) == kinds


def test_a_scripted_function_can_not_be_decorated() -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        attn = x + 1
        return attn

    attend.__annotations__ = {"x": torch.Tensor, "return": torch.Tensor}
    with pytest.raises(TypeError, match="from before torch.jit.script"):
        get_local("attn")(torch.jit.script(attend))


def checkpointed(model: Any, use_reentrant: bool) -> Any:
    from torch.utils.checkpoint import checkpoint

    x = X.clone().requires_grad_()
    out = checkpoint(model, x, use_reentrant=use_reentrant)
    out.square().sum().backward()
    return x.grad


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_is_recorded_once(use_reentrant: bool) -> None:
    plain = checkpointed(make_model(), use_reentrant)
    get_local.activate()
    captured = checkpointed(make_model(), use_reentrant)
    assert torch.equal(plain, captured)
    (taken,) = read()
    np.testing.assert_allclose(taken, expected(), rtol=1e-6)


def test_a_custom_function_of_autograd() -> None:
    get_local.activate()

    class Square(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        @get_local("squared")
        def forward(ctx: Any, x: Any) -> Any:
            squared = x * x
            ctx.save_for_backward(x)
            return squared

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    x = X.clone().requires_grad_()
    Square.apply(x).sum().backward()
    assert torch.equal(x.grad, 2 * X)
    (taken,) = get_local.cache["Square.forward"]
    np.testing.assert_array_equal(taken, (X * X).numpy())


def test_modes_of_others_see_nothing_of_us() -> None:
    """A dispatch mode (a profiler, a counter) sees the same operations with and without us."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    def run() -> list[str]:
        model = make_model()
        with Seen() as seen:
            model(X)
        return seen.names

    plain = run()
    get_local.activate()
    assert run() == plain
    assert len(read()) == 1
