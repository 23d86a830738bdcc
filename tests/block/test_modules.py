"""Outputs and inputs of modules, by pattern."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.block.samples import Attention, Tiny, numbers
from visualizer import capture
from visualizer.errors import UnknownKeyError, UnknownModuleError, VisualizerError

PATHS = [path for path, _ in Tiny(12).named_modules()]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("head", ["head"]),
        ("blocks.3.attn", ["blocks.3.attn"]),
        ("", [""]),
        ("*", ["blocks", "head"]),
        ("**", PATHS),
        ("blocks.*", [f"blocks.{i}" for i in range(12)]),
        ("blocks.*.attn", [f"blocks.{i}.attn" for i in range(12)]),
        ("blocks.?.attn", [f"blocks.{i}.attn" for i in range(10)]),
        ("blocks.1?.attn", ["blocks.10.attn", "blocks.11.attn"]),
        ("blocks.[1-3].attn", [f"blocks.{i}.attn" for i in (1, 2, 3)]),
        ("blocks.[13].attn", ["blocks.1.attn", "blocks.3.attn"]),
        ("blocks.[!1-8].attn", ["blocks.0.attn", "blocks.9.attn"]),
        ("blocks.{layer}.attn", [f"blocks.{i}.attn" for i in range(12)]),
        ("blocks.{layer}.mlp.{layer}", ["blocks.0.mlp.0", "blocks.1.mlp.1"]),
        ("**.proj", [f"blocks.{i}.attn.proj" for i in range(12)]),
        ("**.head", ["head"]),
        ("blocks.**.0.mlp", ["blocks.0.mlp"]),
        ("*.0.attn", ["blocks.0.attn"]),
        ("bl*s.0", ["blocks.0"]),
        ("blocks.**.proj", [f"blocks.{i}.attn.proj" for i in range(12)]),
        ("blocks.0.mlp.**", None),
    ],
)
def test_patterns(pattern: str, expected: list[str] | None) -> None:
    captured = capture(Tiny(12), modules=[pattern])
    if expected is not None:
        assert list(captured.modules) == expected
    else:
        assert {"blocks.0.mlp.0", "blocks.0.mlp.1"} <= set(captured.modules)


def test_a_pattern_may_stand_alone_and_several_may_overlap() -> None:
    assert list(capture(Tiny(2), modules="head").modules) == ["head"]
    captured = capture(Tiny(2), modules=["blocks.*", "blocks.{layer}", "blocks.0"])
    assert sorted(captured.modules) == ["blocks.0", "blocks.1"]


def test_a_layer_is_what_the_pattern_says() -> None:
    model = Tiny(4)
    patterns = ["blocks.{layer}.mlp", "blocks.*.attn", "head"]
    with capture(model, modules=patterns) as captured:
        model.blocks[2](numbers())
        model(numbers())
    assert [e.layer for e in captured.modules["blocks.3.mlp"]] == [3]
    assert [e.layer for e in captured.modules["blocks.2.mlp"]] == [2, 2]
    assert [e.layer for e in captured.modules["blocks.2.attn"]] == [0, 0]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("block.0.attn", "'blocks.0.attn'"),
        ("blocks.0.atn", "'blocks.0.attn'"),
        ("attn", "'\\*\\*.attn' fits at any depth"),
        ("*.mlp", "'blocks.0.mlp'"),
        ("blocks.{layer}.mpl", "'blocks.0.mlp'"),
        ("blocks.7.attn", "'blocks.\\d.attn'"),
        ("nothing like it", "named_modules"),
        ("blocks.{block}.attn", "named_modules"),
        ("blocks", None),
    ],
)
def test_a_pattern_that_fits_nothing_says_what_is_near(pattern: str, near: str | None) -> None:
    model = Tiny(2)
    if near is None:
        capture(model, modules=[pattern])
        return
    with pytest.raises(UnknownModuleError, match=near) as raised:
        capture(model, modules=["head", pattern])
    assert repr(pattern) in str(raised.value)


@pytest.mark.parametrize("pattern", ["blocks.[3-1].attn", "blocks.[]", "[", "blocks.[", "(", "+"])
def test_patterns_that_are_no_regular_expressions(pattern: str) -> None:
    with pytest.raises(VisualizerError):
        capture(Tiny(2), modules=[pattern])


def test_something_else_than_a_pattern() -> None:
    model = Tiny(2)
    with pytest.raises(UnknownModuleError, match="expected paths or patterns"):
        capture(model, modules=[model.head])
    with pytest.raises(TypeError):
        capture(model, modules=3)


@pytest.mark.parametrize("modules", ["head", ["head"], ("**",), "", [""]])
def test_modules_without_a_model(modules: Any) -> None:
    with pytest.raises(TypeError, match="needs the model"):
        capture(modules=modules)


@pytest.mark.parametrize("model", [Tiny, "gpt2", numbers(), 3, lambda x: x])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(TypeError, match="torch.nn.Module"):
        capture(model)


def test_every_call_is_kept_with_its_facts() -> None:
    model, xs = Tiny(2), [numbers(3 + i) for i in range(3)]
    with capture(model, modules=["blocks.{layer}", ""]) as captured:
        outs = [model(x) for x in xs]
    entries = captured.modules[""]
    assert [(e.call, e.step, e.shape) for e in entries] == [(i, i, (2, 3 + i, 5)) for i in range(3)]
    for entry, out in zip(entries, outs, strict=True):
        np.testing.assert_array_equal(entry.value, out.detach().numpy())
    one = captured.modules["blocks.1"][2]
    assert (one.kind, one.function, one.variable) == ("output", None, None)
    assert (one.module_path, one.layer, one.dtype) == ("blocks.1", 1, "float32")
    assert repr(entries[0]) == "<output of the model, call 0: float32[2, 3, 5]>"
    assert captured.inputs == {}


class Takes(nn.Module):
    def forward(self, x: Tensor, *, scale: float = 1.0, extra: Any = None) -> Tensor:
        x.mul_(scale)
        return x


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Takes()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, scale=3.0, extra={"mask": torch.ones(2)})


def test_inputs_are_taken_before_they_are_changed_in_place() -> None:
    model = Calls()
    with capture(model, modules=["inner"], inputs=True) as captured:
        model(torch.ones(2))
        model(torch.ones(3))
    (first, second) = captured.inputs["inner"]
    assert first.value.args[0].tolist() == [1, 1]
    assert first.value.kwargs["scale"] == 3.0
    assert first.value.kwargs["extra"]["mask"].tolist() == [1, 1]
    assert (first.kind, first.shape, first.module_path) == ("input", None, "inner")
    assert (second.call, second.step) == (1, 1)
    assert captured.modules["inner"][0].value.tolist() == [3, 3]
    assert list(captured.inputs) == ["inner"]


def test_inputs_that_raise_are_taken_all_the_same() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() < 0:
                raise ValueError("negative")
            return x

    model = nn.Sequential(Fails())
    with capture(model, modules=["0"], inputs=True) as captured:
        model(torch.ones(2))
        with pytest.raises(ValueError, match="negative"):
            model(-torch.ones(2))
        model(2 * torch.ones(2))
    assert [e.call for e in captured.inputs["0"]] == [0, 1, 2]
    assert [(e.call, e.value[0]) for e in captured.modules["0"]] == [(0, 1.0), (2, 2.0)]


Pair = namedtuple("Pair", "a b")


@dataclass
class Output:
    logits: Tensor
    other: Any = None


class Gives(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Any:
        return self.value


def output_of(value: Any) -> Any:
    module = Gives(value)
    with capture(module, modules=[""]) as captured:
        assert module() is value
    return captured.modules[""][0]


def test_outputs_that_are_no_tensors() -> None:
    ones = torch.ones(2)
    assert [part.tolist() for part in output_of((ones, [ones])).value[1]] == [[1, 1]]
    pair = output_of(Pair(ones, 3)).value
    assert type(pair) is Pair
    assert pair.a.tolist() == [1, 1]
    assert output_of({"x": ones}).value["x"].tolist() == [1, 1]
    assert output_of(Output(ones)).value.logits.tolist() == [1, 1]
    assert output_of(None).value is None
    assert output_of((ones,)).shape is None


def test_an_output_of_transformers() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    made = outputs.BaseModelOutput(last_hidden_state=torch.ones(1, 2), hidden_states=None)
    value = output_of(made).value
    assert type(value) is type(made)
    assert type(value.last_hidden_state) is np.ndarray
    assert value["last_hidden_state"].tolist() == [[1, 1]]
    assert value[0] is value.last_hidden_state


def test_an_output_that_is_changed_afterwards() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(5, 4)
    with capture(model, modules=["0", "1"]) as captured:
        model(x)
    assert captured.modules["0"][0].value.min() < 0
    assert captured.modules["1"][0].value.min() == 0


def test_hooks_of_the_user_come_before() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    handles = [
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * 0,)),
        model[0].register_forward_hook(lambda module, args, output: output + 100),
        nn.modules.module.register_module_forward_hook(
            lambda module, args, output: output + 1000 if type(module) is nn.Linear else None
        ),
    ]
    with capture(model, modules=["0"]) as captured:
        out = model(torch.randn(5, 4))
    for handle in handles:
        handle.remove()
    np.testing.assert_array_equal(captured.modules["0"][0].value, out.detach().numpy())
    assert out.min() > 1000


def test_a_hook_that_is_added_and_removed_in_the_block() -> None:
    model, seen = nn.Sequential(nn.Linear(4, 4)), []
    with capture(model, modules=["0"]) as captured:
        handle = model[0].register_forward_hook(lambda *args: seen.append(args))
        model(torch.randn(5, 4))
        handle.remove()
        model(torch.randn(5, 4))
    assert len(seen) == 1
    assert len(captured.modules["0"]) == 2


class Recursive(nn.Module):
    def forward(self, x: Tensor, depth: int, fails: bool = False) -> Tensor:
        if depth == 0:
            if fails:
                raise ValueError
            return x
        try:
            return self(x, depth - 1, fails) + 1
        except ValueError:
            return x - 1


def test_recursion() -> None:
    module = Recursive()
    with capture(module, modules=[""], inputs=True) as captured:
        module(torch.zeros(1), 3)
    outputs = {e.call: float(e.value[0]) for e in captured.modules[""]}
    assert outputs == {0: 3.0, 1: 2.0, 2: 1.0, 3: 0.0}
    assert {e.call: e.value.args[1] for e in captured.inputs[""]} == {0: 3, 1: 2, 2: 1, 3: 0}


def test_recursion_whose_innermost_call_raises() -> None:
    module = Recursive()
    with capture(module, modules=[""]) as captured:
        module(torch.zeros(1), 2, fails=True)
        module(torch.ones(1), 0)
    outputs = {e.call: float(e.value[0]) for e in captured.modules[""]}
    assert outputs == {0: 0.0, 1: -1.0, 3: 1.0}


def test_a_module_with_a_call_of_its_own() -> None:
    class Own(nn.Linear):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) * 2

    class Derived(Own):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) + 1

    model = nn.ModuleList([Own(2, 2), Derived(2, 2), nn.Linear(2, 2)])
    x = torch.ones(1, 2)
    plain = [module(x) for module in model]
    with capture(model, modules=["*"]) as captured:
        outs = [module(x) for module in model]
    for i, (out, expected) in enumerate(zip(outs, plain, strict=True)):
        assert torch.equal(out, expected)
        (entry,) = captured.modules[str(i)]
        np.testing.assert_array_equal(entry.value, expected.detach().numpy())


def test_a_lazy_module_is_captured_after_it_has_become_another() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with capture(model, modules=["0"]) as captured:
        model(torch.ones(2, 4))
        model(torch.ones(2, 4))
    assert type(model[0]) is nn.Linear
    assert [e.call for e in captured.modules["0"]] == [0, 1]


def test_a_module_that_is_called_as_forward_is_not_seen() -> None:
    model = Tiny(1)
    with capture(model, modules=["head"]) as captured:
        model.head.forward(numbers())
    assert captured.modules["head"] == []
    assert "'head' was never called" in captured.explain()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_fast_path_stays_bit_identical(mode: Any, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x, padding = numbers(), torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    with mode():
        plain, padded = model(x), model(x, src_key_padding_mask=padding)
        with capture(model, modules=["**"], inputs=True) as captured:
            assert torch.equal(model(x), plain)
            assert torch.equal(model(x, src_key_padding_mask=padding), padded)
    assert len(captured.modules["layers.1"]) == 2
    assert len(captured.attention) == 4
    assert [m.confirmed for m in captured.attention] == [True] * 4
    if mode is not torch.enable_grad:
        assert captured.modules["layers.0.self_attn"] == []
        assert "'layers.0.self_attn', 'layers.1.self_attn' were never" in captured.explain()
        assert "fused layer" in captured.explain()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # said once a process
def test_nested_tensors_of_the_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = numbers(), torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=padding)
    with torch.no_grad(), capture(model, modules=["layers.0", ""]) as captured:
        assert torch.equal(model(x, src_key_padding_mask=padding), plain)
    (entry,) = captured.modules["layers.0"]
    assert [part.shape for part in entry.value] == [(6, 16), (4, 16)]
    assert captured.modules[""][0].shape == (2, 6, 16)
    assert len(captured.attention) == 2


def test_unknown_paths_say_what_was_asked_for() -> None:
    with capture(Tiny(2), modules=["blocks.*.attn"]) as captured:
        pass
    with pytest.raises(UnknownKeyError, match="'blocks.0.attn', 'blocks.1.attn'"):
        captured.modules["blocks.0.atn"]
    with pytest.raises(UnknownKeyError, match="not asked for"):
        captured.inputs["blocks.0.attn"]
    assert repr(captured.modules) == "<captured.modules: blocks.0.attn, blocks.1.attn>"


def test_shared_class_of_tapped_and_other_modules() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    other = nn.Linear(2, 2)
    with capture(model, modules=["1"]) as captured:
        other(torch.ones(2))
        model(torch.ones(2))
    assert list(captured.modules) == ["1"]
    assert len(captured.modules["1"]) == 1


def test_attention_in_a_module_that_is_tapped_too() -> None:
    module = Attention()
    with capture(module, modules=[""], inputs=True) as captured:
        module(numbers())
    assert len(captured.attention) == len(captured.modules[""]) == len(captured.inputs[""]) == 1


def test_scripted_modules_do_not_break() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    plain = scripted(torch.ones(2))
    with capture(scripted, modules=["", "0"]) as captured:
        assert torch.equal(scripted(torch.ones(2)), plain)
    assert captured.explain()


def test_lists_of_modules_are_never_called_and_that_is_not_told() -> None:
    model = Tiny(1)
    with capture(model, modules=["**"], attention=False) as captured:
        model(numbers())
    assert captured.explain() == ""


def test_inputs_of_no_modules_are_a_mistake() -> None:
    with pytest.raises(TypeError, match="inputs=True"):
        capture(Tiny(1), inputs=True)
