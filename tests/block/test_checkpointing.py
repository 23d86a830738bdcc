"""Gradient checkpointing: what is computed a second time is recorded once, and nothing changes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.block.samples import Attention, SoftmaxAttention, Tiny, numbers
from visualizer import capture, get_local

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
LOCALS = {Attention.forward: ["q", "mixed"]}
Run = Callable[[list[nn.Module], Tensor], Tensor]


class Dropping(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Checkpointed(Tiny):
    """Runs its blocks as it is told."""

    def __init__(self, run: Run, depth: int = 3, attention: type[Attention] = Attention) -> None:
        super().__init__(depth, attention)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(list(self.blocks), x))


def one_by_one(blocks: list[nn.Module], x: Tensor, **options: Any) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, **options)
    return x


def all_in_one(blocks: list[nn.Module], x: Tensor, **options: Any) -> Tensor:
    return checkpoint(functools.partial(in_turn, blocks), x, **options)


def in_turn(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def nested(outer: bool, inner: bool) -> Run:
    """Return what checkpoints each block, and all of that."""

    def run(blocks: list[nn.Module], x: Tensor) -> Tensor:
        return checkpoint(
            lambda x: one_by_one(blocks, x, use_reentrant=inner), x, use_reentrant=outer
        )

    return run


def selective(*kept: Any) -> Run:
    """Return what computes everything again but some operations."""

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
        choices = checkpointing.CheckpointPolicy
        return choices.MUST_SAVE if operation in kept else choices.PREFER_RECOMPUTE

    contexts = functools.partial(checkpointing.create_selective_checkpoint_contexts, policy)
    return functools.partial(one_by_one, use_reentrant=False, context_fn=contexts)


def without_early_stop(blocks: list[nn.Module], x: Tensor) -> Tensor:
    with checkpointing.set_checkpoint_early_stop(False):
        return all_in_one(blocks, x, use_reentrant=False)


def sequential(use_reentrant: bool) -> Run:
    return lambda blocks, x: checkpoint_sequential(blocks, 2, x, use_reentrant=use_reentrant)


_ATEN = torch.ops.aten
WAYS: dict[str, Run] = {
    "reentrant": functools.partial(one_by_one, use_reentrant=True),
    "not reentrant": functools.partial(one_by_one, use_reentrant=False),
    "reentrant, in one": functools.partial(all_in_one, use_reentrant=True),
    "not reentrant, in one": functools.partial(all_in_one, use_reentrant=False),
    "without early stop": without_early_stop,
    "sequential, reentrant": sequential(True),
    "sequential, not reentrant": sequential(False),
    "reentrant in reentrant": nested(True, True),
    "reentrant in the other": nested(False, True),
    "the other in reentrant": nested(True, False),
    "not reentrant in itself": nested(False, False),
    "selective": selective(_ATEN.mm.default, _ATEN.addmm.default),
    "selective, attention kept": selective(
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default
    ),
}
ways = pytest.mark.parametrize("run", WAYS.values(), ids=WAYS.keys())


def forward_and_gradients(model: nn.Module, x: Tensor, steps: int = 2) -> list[Tensor]:
    model.zero_grad()
    found = []
    torch.manual_seed(5)
    for step in range(steps):
        given = (x * (step + 1)).requires_grad_()
        output = model(given)
        loss = output.square().mean()
        loss.backward()
        found += [output, loss, given.grad]
    return [*found, *(p.grad for p in model.parameters())]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@ways
@pytest.mark.parametrize("attention", [Attention, SoftmaxAttention, Dropping])
def test_each_call_is_recorded_once(run: Run, attention: type[Attention]) -> None:
    model, x = Checkpointed(run, attention=attention), numbers()
    expected = forward_and_gradients(model, x)
    options: dict[str, Any] = {"modules": ["", "blocks.*", "**.attn", "head"], "inputs": True}
    if attention is Attention:
        options["locals"] = LOCALS
    with capture(model, **options) as captured:
        found = forward_and_gradients(model, x)
    assert same(found, expected)
    plain = Checkpointed(in_turn, attention=attention)
    plain.load_state_dict(model.state_dict())
    with capture(plain, **options) as wanted:
        forward_and_gradients(plain, x)

    paths = [f"blocks.{layer}.attn" for layer in range(3)]
    facts = [(m.module_path, m.layer, m.call, m.step, m.confirmed) for m in captured.attention]
    confirmed = None if attention is SoftmaxAttention else True
    assert facts == [
        (path, layer, step, step, confirmed) for step in (0, 1) for layer, path in enumerate(paths)
    ]
    assert list(captured.modules) == list(wanted.modules)
    pairs = [(captured.modules[path], wanted.modules[path]) for path in wanted.modules]
    pairs += [(captured.inputs[path], wanted.inputs[path]) for path in wanted.inputs]
    if attention is Attention:
        variables = captured.locals["Attention.forward"]
        pairs += [
            (variables[name], values) for name, values in wanted.locals["Attention.forward"].items()
        ]
    for got, want in pairs:
        assert [(e.module_path, e.layer, e.call, e.step, e.shape) for e in got] == [
            (e.module_path, e.layer, e.call, e.step, e.shape) for e in want
        ]
        assert len(got) in (2, 6)
    if attention is not Dropping:
        for made, want in zip(captured.attention, wanted.attention, strict=True):
            np.testing.assert_array_equal(np.asarray(made), np.asarray(want))
    assert captured.explain() == ""


@ways
def test_a_backward_pass_after_the_block(run: Run) -> None:
    model, x = Checkpointed(run), numbers()
    expected = forward_and_gradients(model, x, steps=1)
    model.zero_grad()
    torch.manual_seed(5)
    given = x.clone().requires_grad_()
    with capture(model, locals=LOCALS, modules=["**"]) as captured:
        output = model(given)
    loss = output.square().mean()
    loss.backward()
    found = [output, loss, given.grad, *(p.grad for p in model.parameters())]
    assert same(found, expected)
    assert [m.call for m in captured.attention] == [0, 0, 0]
    assert len(captured.locals["Attention.forward"]["q"]) == 3


@ways
def test_a_block_around_the_backward_pass_only(run: Run) -> None:
    model, x = Checkpointed(run), numbers()
    expected = forward_and_gradients(model, x, steps=1)
    model.zero_grad()
    torch.manual_seed(5)
    given = x.clone().requires_grad_()
    output = model(given)
    loss = output.square().mean()
    with capture(model, locals=LOCALS, modules=["**"]) as captured:
        loss.backward()
    assert same([output, loss, given.grad, *(p.grad for p in model.parameters())], expected)
    assert len(captured.attention) == 0
    assert not any(captured.modules.values())
    assert captured.locals["Attention.forward"]["q"] == []


@pytest.mark.parametrize("name", ["not reentrant", "not reentrant in itself"])
def test_two_backward_passes_through_one_graph(name: str) -> None:
    model, x = Checkpointed(WAYS[name], attention=SoftmaxAttention), numbers()

    def run() -> list[Tensor]:
        given = x.clone().requires_grad_()
        output = model(given)
        (first,) = torch.autograd.grad(output.square().sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given, retain_graph=True)
        (third,) = torch.autograd.grad(output.sum(), given)
        return [output, first, second, third]

    expected = run()
    with capture(model, modules=["blocks.1"]) as captured:
        found = run()
    assert same(found, expected)
    assert [(m.layer, m.call, m.step) for m in captured.attention] == [(i, 0, 0) for i in range(3)]
    assert len(captured.modules["blocks.1"]) == 1


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_that_are_accumulated(use_reentrant: bool) -> None:
    model = Checkpointed(functools.partial(one_by_one, use_reentrant=use_reentrant))
    xs = [numbers().requires_grad_() for _ in range(4)]

    def run() -> list[Tensor]:
        model.zero_grad()
        outputs = [model(x) for x in xs]  # all forwards, then all backward passes
        for output in outputs[::-1]:
            output.square().mean().backward()
        return [*outputs, *(p.grad for p in model.parameters())]

    expected = run()
    with capture(model, modules=["head"]) as captured:
        found = run()
    assert same(found, expected)
    assert [m.step for m in captured.attention["blocks.2.attn"]] == [0, 1, 2, 3]
    assert [e.step for e in captured.modules["head"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_without_gradients_nothing_is_computed_twice(use_reentrant: bool) -> None:
    model = Checkpointed(functools.partial(one_by_one, use_reentrant=use_reentrant))
    with torch.no_grad(), capture(model) as captured:
        model(numbers())
    assert len(captured.attention) == 3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_forward_that_raises_in_a_checkpoint(use_reentrant: bool) -> None:
    class Fails(Attention):
        fails = True

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if self.fails:
                raise ValueError
            return out

    run = functools.partial(one_by_one, use_reentrant=use_reentrant)
    model, x = Checkpointed(run, attention=Fails), numbers().requires_grad_()
    with capture(model, modules=["blocks.*", ""]) as captured:
        with pytest.raises(ValueError):
            model(x)
        Fails.fails = False
        model(x).sum().backward()
        Fails.fails = True
        output = model.head(x)
        Fails.fails = False
        output.sum().backward()
        model(x)
    assert [m.step for m in captured.attention["blocks.0.attn"]] == [0, 1, 2]
    assert [(e.call, e.step) for e in captured.modules["blocks.0"]] == [(1, 1), (2, 2)]
    assert [(e.call, e.step) for e in captured.modules[""]] == [(1, 1), (2, 2)]


Hook = Callable[[Tensor, Callable[[], None]], Any]


def on_tensor(x: Tensor, run: Callable[[], None]) -> Any:
    return x.register_hook(lambda gradient: run())


def on_node(x: Tensor, run: Callable[[], None]) -> Any:
    return x.grad_fn.register_hook(lambda *gradients: run())


def before_node(x: Tensor, run: Callable[[], None]) -> Any:
    return x.grad_fn.register_prehook(lambda gradients: run())


def on_several(x: Tensor, run: Callable[[], None]) -> Any:
    return torch.autograd.graph.register_multi_grad_hook([x], lambda gradients: run())


@pytest.mark.parametrize("hook", [on_tensor, on_node, before_node, on_several])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_forward_that_a_hook_makes_counts(use_reentrant: bool, hook: Hook) -> None:
    model = Checkpointed(functools.partial(one_by_one, use_reentrant=use_reentrant))
    teacher, x = Tiny(2), numbers()

    def run() -> list[Tensor]:
        model.zero_grad()
        hidden = model(x.clone().requires_grad_()) * 2
        hook(hidden, lambda: ran(teacher, x))
        hidden.square().mean().backward()
        return [p.grad for p in model.parameters()]

    expected = run()
    with (
        capture(teacher, modules=["", "**.attn"], locals=LOCALS) as of_teacher,
        capture(model) as of_model,
    ):
        found = [run(), run()]
    assert same(found[0], expected)
    assert same(found[1], expected)
    assert [(m.module_path, m.call, m.step) for m in of_teacher.attention] == [
        (f"blocks.{layer}.attn", step, step) for step in range(2) for layer in range(2)
    ]
    assert [(e.call, e.step) for e in of_teacher.modules[""]] == [(0, 0), (1, 1)]
    assert len(of_teacher.locals["Attention.forward"]["q"]) == 4
    assert [(m.layer, m.step) for m in of_model.attention] == [
        (layer, step) for step in range(2) for layer in range(3)
    ]


def ran(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_hook_within_what_is_computed_again(use_reentrant: bool) -> None:
    teacher, x = Tiny(1), numbers()
    hooked = []

    class Hooked(Attention):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if out.requires_grad:
                out.register_hook(lambda gradient: hooked.append(ran(teacher, x.detach())))
            return out

    model = Checkpointed(
        functools.partial(one_by_one, use_reentrant=use_reentrant), attention=Hooked
    )
    with capture(teacher) as captured, capture(model) as of_model:
        model(x.clone().requires_grad_()).square().mean().backward()
    assert len(hooked) == 3
    assert [(m.call, m.step) for m in captured.attention] == [(i, i) for i in range(3)]
    assert len(of_model.attention) == 3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_forwards_of_hooks_of_modules_and_parameters_count(use_reentrant: bool) -> None:
    model = Checkpointed(functools.partial(one_by_one, use_reentrant=use_reentrant))
    teacher, x = Tiny(1), numbers()
    model.head.register_full_backward_hook(lambda *facts: ran(teacher, x))
    model.head.register_full_backward_pre_hook(lambda *facts: ran(teacher, x))
    model.head.weight.register_post_accumulate_grad_hook(lambda parameter: ran(teacher, x))
    with capture(teacher) as captured, capture(model) as of_model:
        model(x.clone().requires_grad_()).sum().backward()
    assert [m.step for m in captured.attention] == [0, 1, 2]
    assert [m.step for m in of_model.attention] == [0, 0, 0]


def test_a_checkpointed_forward_that_a_hook_makes_counts_once() -> None:
    model = Checkpointed(functools.partial(one_by_one, use_reentrant=False))
    x = numbers()
    again: list[Tensor] = []

    def forward_and_backward(gradient: Tensor) -> None:
        with torch.enable_grad():
            given = x.clone().requires_grad_()
            model(given).sum().backward()
            again.append(given.grad)

    y = (x * 2).requires_grad_()
    with capture(model, modules=["head"]) as captured:
        z = y * 3
        z.register_hook(forward_and_backward)
        z.sum().backward()
    assert len(again) == 1
    assert [(m.layer, m.call, m.step) for m in captured.attention] == [(i, 0, 0) for i in range(3)]
    assert len(captured.modules["head"]) == 1


def test_a_function_of_the_program_s_own_that_computes_again() -> None:
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, module: nn.Module, x: Tensor) -> Tensor:
            context.module = module
            context.save_for_backward(x)
            return module(x)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Any:
            x = context.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                context.module(x).backward(gradient)
            return None, x.grad

    def run(blocks: list[nn.Module], x: Tensor) -> Tensor:
        for block in blocks:
            x = Again.apply(block, x)
        return x

    model, x = Checkpointed(run), numbers()
    expected = forward_and_gradients(model, x)
    with capture(model, modules=["blocks.*"]) as captured:
        found = forward_and_gradients(model, x)
    assert same(found, expected)
    assert [(m.layer, m.step) for m in captured.attention] == [
        (layer, step) for step in range(2) for layer in range(3)
    ]
    assert [e.step for e in captured.modules["blocks.0"]] == [0, 1]


def test_saved_tensors_that_somebody_looks_at() -> None:
    model, x = Checkpointed(functools.partial(one_by_one, use_reentrant=False)), numbers()
    with capture(model, locals=LOCALS, modules=["blocks.0.attn"]) as captured:
        output = model(x.requires_grad_())
        nodes, seen = [output.grad_fn], []
        for node in nodes:  # as tools do that draw the graph
            seen += [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
            nodes += [each for each, _ in node.next_functions if each not in (None, *nodes)]
    assert any(isinstance(value, Tensor) for value in seen)
    assert [(m.layer, m.call) for m in captured.attention] == [(0, 0), (1, 0), (2, 0)]
    assert len(captured.modules["blocks.0.attn"]) == 1
    assert len(captured.locals["Attention.forward"]["q"]) == 3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_get_local_takes_a_hook_s_call_and_no_second_one(use_reentrant: bool) -> None:
    class Scaled(nn.Module):
        @get_local("y")
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            return y.sin()

    module, x = Scaled(), numbers().requires_grad_()
    get_local.activate()
    try:
        output = checkpoint(module, x, use_reentrant=use_reentrant)
        output.register_hook(lambda gradient: ran(module, -x.detach()))
        output.sum().backward()
        (name,) = [key for key in get_local.cache if "Scaled" in key]
        taken = get_local.cache[name]
    finally:
        get_local.deactivate()
    assert len(taken) == 2
    np.testing.assert_array_equal(taken[1], -taken[0])
    get_local.clear()


class Alive(TorchDispatchMode):
    """Says how many bytes of what was computed in it still exist."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(result):
            if isinstance(each, Tensor):
                reference = StorageWeakRef(each.untyped_storage())
                self._storages[reference.cdata] = reference, each.untyped_storage().nbytes()
        return result

    @property
    def nbytes(self) -> int:
        return sum(size for reference, size in self._storages.values() if not reference.expired())


class Separate(Attention):
    """Its queries and keys are no parts of larger tensors."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (F.linear(x, w).view(shape).transpose(1, 2) for w in self.qkv.weight.chunk(3))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", [Attention, Separate])
@pytest.mark.parametrize(
    "name", ["reentrant", "not reentrant", "not reentrant, in one", "not reentrant in itself"]
)
def test_nothing_but_queries_and_keys_is_kept_of_a_checkpoint(
    name: str, attention: type[Attention]
) -> None:
    model, x = Checkpointed(WAYS[name], attention=attention), numbers(512, batch=16)
    x.requires_grad_()

    with Alive() as alive:
        output = model(x)
    checkpointed = alive.nbytes
    del output
    with capture(model) as captured, Alive() as alive:
        output = model(x)
        with_capture = alive.nbytes
    queries_and_keys = 3 * 2 * x.nbytes
    own = captured.nbytes if attention is Attention else 0  # its copies are not seen by the mode
    small = 3 * (
        16 * 4 * 512 * 8 + 16 * 1024
    )  # a number a key and head, and four rows of the output
    assert with_capture + own <= checkpointed + queries_and_keys + small
    assert captured.nbytes <= queries_and_keys + small
    output.sum().backward()
    assert [m.confirmed for m in captured.attention] == [True] * 3


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "llama", "vit", "t5"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable. is deprecated")
def test_transformers_own_checkpointing(
    name: str, implementation: str, use_reentrant: bool
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.attention_models.families import FAMILIES, build

    family = FAMILIES[name]
    function, variable = family.weights
    options: dict[str, Any] = {"modules": ["**.{layer}", ""]}
    if implementation == "eager":
        options["locals"] = {function: variable}

    def train(opened: Any, checkpointed: bool) -> list[Tensor]:
        model = build(family, implementation).train()
        model.config.use_cache = False
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        captures.append(opened(model, **options))
        torch.manual_seed(3)
        with captures[-1]:
            for _ in range(2):
                output = model(**family.inputs(False)).last_hidden_state
                output.square().mean().backward()
        return [output, *(p.grad for p in model.parameters() if p.grad is not None)]

    captures: list[Any] = []
    expected = train(lambda *args, **kwargs: contextlib.nullcontext(), True)
    train(capture, False)
    assert same(train(capture, True), expected)
    _, plain, captured = captures
    facts = [(m.module_path, m.layer, m.call, m.step, m.shape) for m in captured.attention]
    assert facts == [(m.module_path, m.layer, m.call, m.step, m.shape) for m in plain.attention]
    assert len(facts) == 2 * family.calls
    for path, entries in plain.modules.items():
        assert [(e.layer, e.call, e.step) for e in captured.modules[path]] == [
            (e.layer, e.call, e.step) for e in entries
        ]
    if implementation == "eager":
        for got, want in zip(captured.locals.values(), plain.locals.values(), strict=True):
            assert [(e.module_path, e.call, e.step) for e in got[variable]] == [
                (e.module_path, e.call, e.step) for e in want[variable]
            ]
            assert len(got[variable]) == 2 * family.calls
