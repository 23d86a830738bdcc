"""Models that something is wrapped around: paths and steps are those of the model within."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.block.samples import Attention, Block, Tiny, numbers
from visualizer import capture
from visualizer.errors import UnknownModuleError

pytestmark = pytest.mark.filterwarnings("ignore")  # the wrappers' own
ROOT = Path(__file__).parents[2]
PATTERNS = ["", "blocks.{layer}", "**.attn"]
LOCALS = {Attention.forward: "q"}


@pytest.fixture
def process_group() -> Iterator[None]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    assert not dist.is_initialized()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_blocks(model: Tiny) -> Tiny:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = compiled(block)
    return model


def checkpointed(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapping

    wrapping.apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, Block))
    return model


def fsdp(model: nn.Module, use_orig_params: bool = False) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )


def sharded(model: Tiny) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DDP": DistributedDataParallel,
    "FSDP": fsdp,
    "FSDP, original parameters": lambda model: fsdp(model, use_orig_params=True),
    "fully_shard": sharded,
    "checkpoint_wrapper": checkpointed,
    "compile": compiled,
    "compile in place": compiled_in_place,
    "compiled blocks": compiled_blocks,
    "DDP of compile": lambda model: DistributedDataParallel(compiled(model)),
    "compile of DDP": lambda model: compiled(DistributedDataParallel(model)),
    "checkpoints in FSDP": lambda model: checkpointed(fsdp(model)),
    "compile of checkpoints": lambda model: compiled(checkpointed(model)),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


def trained(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output of two steps, and the gradients."""
    model.zero_grad()
    outputs = [model(x * step) for step in (1, 2)]
    for output in outputs:
        output.square().sum().backward()
    return [*outputs, *(p.grad for p in model.parameters() if p.grad is not None)]


@wrappers
@pytest.mark.parametrize("given", ["the model", "the wrapper", "nothing"])
def test_all_is_as_without_a_wrapper(process_group: None, wrap: Any, given: str) -> None:
    model, x = Tiny(2), numbers()
    plain = [model(x * step).detach().numpy() for step in (1, 2)]
    wrapper = wrap(model)
    expected = trained(wrapper, x)
    of = {"the model": model, "the wrapper": wrapper, "nothing": None}[given]
    with capture(of, locals=LOCALS, modules=() if of is None else PATTERNS) as captured:
        found = trained(wrapper, x)
    torch._dynamo.reset()

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    paths = ["blocks.0.attn", "blocks.1.attn"]
    assert captured.attention.paths == paths
    assert [(m.module_path, m.layer, m.call, m.step) for m in captured.attention] == [
        (path, layer, step, step) for step in (0, 1) for layer, path in enumerate(paths)
    ]
    assert [m.step for m in captured.attention["blocks.1.attn"]] == [0, 1]
    assert [m.confirmed for m in captured.attention] == [True] * 4
    q = captured.locals["Attention.forward"]["q"]
    assert [(e.module_path, e.layer, e.call, e.step) for e in q] == [
        (paths[call % 2], call % 2, call, call // 2) for call in range(4)
    ]
    assert captured.explain() == ""
    if of is None:
        return
    assert sorted(captured.modules) == ["", "blocks.0", "blocks.0.attn", "blocks.1", paths[1]]
    for path, entries in captured.modules.items():
        assert [(e.module_path, e.call, e.step) for e in entries] == [(path, 0, 0), (path, 1, 1)]
    assert [e.layer for e in captured.modules["blocks.1"]] == [1, 1]
    for entry, output in zip(captured.modules[""], plain, strict=True):
        np.testing.assert_allclose(entry.value, output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["DDP", "FSDP", "fully_shard"])
def test_two_processes_capture_each_its_share(kind: str, tmp_path: Path) -> None:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no torch.distributed")
    command = [sys.executable, "-m", "tests.block.parallel_worker", kind]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "".join(e for _, e in ended)
    found = [json.loads(printed.splitlines()[-1]) for printed, _ in ended]
    for each in found:
        assert each["attention"] == [
            [f"blocks.{layer}.attn", layer, step, step] for step in range(2) for layer in range(2)
        ]
        assert each["modules"] == dict.fromkeys(["", "blocks.0", "blocks.1"], [[0, 0], [1, 1]])
        assert each["locals"] == [[f"blocks.{i % 2}.attn", i // 2] for i in range(4)]
        assert each["map_error"] < 1e-5
        assert each["is_own_share"]
        assert each["explanation"] == ""
    assert found[0]["first_number"] != found[1]["first_number"]


def test_a_child_of_the_model_s_own_that_is_called_module() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Tiny(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    model, x = Named(), numbers()
    for called in (model, nn.DataParallel(model)):
        with capture(called, modules=["module.head", "module"]) as captured:
            called(x)
        assert captured.attention.paths == ["module.blocks.0.attn"]
        assert [m.step for m in captured.attention] == [0]
        assert {path: len(entries) for path, entries in captured.modules.items()} == {
            "module.head": 1,
            "module": 1,
        }


@pytest.mark.parametrize("given", ["the model", "the wrapper", "nothing"])
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, compiled, lambda m: nn.DataParallel(compiled(m))]
)
def test_a_wrapper_and_its_model_called_in_turn(wrap: Any, given: str) -> None:
    model, x = Tiny(2), numbers()
    wrapper = wrap(model)
    of = {"the model": model, "the wrapper": wrapper, "nothing": None}[given]
    with capture(of, modules=() if of is None else [""]) as captured:
        for called in (model, wrapper, wrapper, model):
            called(x)
    torch._dynamo.reset()
    assert [m.step for m in captured.attention["blocks.0.attn"]] == [0, 1, 2, 3]
    assert [m.call for m in captured.attention["blocks.1.attn"]] == [0, 1, 2, 3]
    assert len(captured.attention.layers) == 2
    if of is not None:
        assert [(e.call, e.step) for e in captured.modules[""]] == [(i, i) for i in range(4)]


def test_a_wrapper_around_a_part_of_the_model() -> None:
    model, x = Tiny(2), numbers()
    model.blocks[0] = nn.DataParallel(model.blocks[0])
    model.blocks[1].attn = compiled(model.blocks[1].attn)
    with capture(model, modules=["blocks.*", "**.attn"], inputs=True) as captured:
        model(x)
        model.blocks[0](x)
    torch._dynamo.reset()
    assert captured.attention.paths == ["blocks.0.attn", "blocks.1.attn"]
    assert [(m.call, m.step) for m in captured.attention["blocks.0.attn"]] == [(0, 0), (1, None)]
    assert [(e.call, e.step) for e in captured.modules["blocks.0"]] == [(0, 0), (1, None)]
    assert [(e.call, e.step) for e in captured.modules["blocks.1.attn"]] == [(0, 0)]
    np.testing.assert_array_equal(captured.inputs["blocks.0"][0].value.args[0], x.numpy())


def test_patterns_with_a_wrapper_s_part_say_what_the_path_is() -> None:
    with pytest.raises(UnknownModuleError, match=r"Near it: 'blocks\.0\.attn'"):
        capture(nn.DataParallel(Tiny(2)), modules=["module.blocks.0.attn"])


def test_explanations_have_the_inner_paths() -> None:
    model, x = Tiny(2), numbers()
    model.blocks[0].attn.attend = F.scaled_dot_product_attention
    wrapper = nn.DataParallel(model)
    with capture(wrapper, modules=["blocks.*.mlp.0"]) as captured:
        wrapper.module.head(x)
    assert "attention of 'blocks.0.attn' was out of sight" in captured.explain()
    assert "'blocks.0.mlp.0', 'blocks.1.mlp.0' were never called" in captured.explain()
    assert "module." not in captured.explain().replace("module.forward", "")


class InThreads(nn.DataParallel):
    """DataParallel as it is on GPUs: a replica and a thread for each share of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: dict[int, Tensor] = {}

        def run(index: int, share: Tensor) -> None:
            outputs[index] = replica_of(self.module)(share)

        for index, share in enumerate(x.chunk(2)):
            thread = threading.Thread(target=run, args=(index, share))
            thread.start()
            thread.join()  # one after the other: calls have an order
        return torch.cat([outputs[index] for index in sorted(outputs)])


def replica_of(module: nn.Module) -> nn.Module:
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter)
    for name, child in module._modules.items():
        replica._modules[name] = replica_of(child)
    return replica


@pytest.mark.parametrize("given", ["the model", "the wrapper", "nothing"])
def test_replicas_are_parts_of_one_step(given: str) -> None:
    model, x = Tiny(2), numbers()
    wrapper = InThreads(model)
    of = {"the model": model, "the wrapper": wrapper, "nothing": None}[given]
    options = {} if of is None else {"modules": ["", "head"], "inputs": True}
    with capture(of, locals=LOCALS, **options) as captured:
        outputs = [wrapper(x).detach().numpy() for _ in range(3)]
        model(x)
    assert captured.attention.paths == ["blocks.0.attn", "blocks.1.attn"]
    assert [(m.call, m.step, m.shape[0]) for m in captured.attention["blocks.1.attn"]] == [
        *[(call, call // 2, 1) for call in range(6)],
        (6, 3, 2),
    ]
    q = captured.locals["Attention.forward"]["q"]
    assert [e.step for e in q] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    if of is None:
        return
    assert [(e.call, e.step) for e in captured.modules[""]] == [(step, step) for step in range(4)]
    for entry, output in zip(captured.modules[""], outputs, strict=False):
        np.testing.assert_array_equal(entry.value, output)
    assert captured.inputs[""][1].value.args[0].shape == x.shape
    assert [e.step for e in captured.modules["head"]] == [0, 0, 1, 1, 2, 2, 3]


def test_replicas_of_a_part_of_an_unknown_model() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = InThreads(Tiny(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model, x = Whole(), numbers()
    with capture() as captured:
        model(x)
        model(x)
    assert captured.attention.paths == ["body.blocks.0.attn"]
    assert [(m.call, m.step) for m in captured.attention] == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_a_replica_that_raises_ends_its_step() -> None:
    class Fails(Attention):
        fails = True

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if self.fails:
                raise ValueError
            return out

    model, x = nn.DataParallel(Tiny(1, Fails)), numbers()
    with capture(model, modules=[""]) as captured:
        with pytest.raises(ValueError):
            model(x)
        Fails.fails = False
        model.module.blocks[0](x)
        model(x)
    assert [m.step for m in captured.attention] == [0, None, 1]
    assert [(e.call, e.step) for e in captured.modules[""]] == [(1, 1)]


def test_a_compiled_layer_of_torch_s_own() -> None:
    """Its class is called, not what was looked up when it was compiled."""
    layer, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), numbers()
    wrapper = compiled(layer)
    with torch.no_grad():
        for of in (layer, wrapper):
            with capture(of, modules=[""]) as captured:
                wrapper(x)
                wrapper(x)
            assert [(m.module_path, m.step) for m in captured.attention] == [
                ("self_attn", 0),
                ("self_attn", 1),
            ]
            assert [(e.call, e.step) for e in captured.modules[""]] == [(0, 0), (1, 1)]
    torch._dynamo.reset()


def test_a_model_that_is_compiled_in_the_block() -> None:
    model, x = Tiny(2), numbers()
    with capture(model, modules=[""]) as captured:
        model(x)
        compiled(model)(x)
        model.compile(backend="eager")
        model(x)
    torch._dynamo.reset()
    assert [m.step for m in captured.attention["blocks.1.attn"]] == [0, 1, 2]
    assert [(e.call, e.step) for e in captured.modules[""]] == [(0, 0), (1, 1), (2, 2)]


def test_a_part_that_is_wrapped_in_the_block() -> None:
    model, x = Tiny(2), numbers()
    with capture(model, modules=["blocks.*"]) as captured:
        model(x)
        checkpointed(model)
        model(x)
        model.blocks[0] = compiled(model.blocks[0])
        model(x)
    torch._dynamo.reset()
    assert captured.attention.paths == ["blocks.0.attn", "blocks.1.attn"]
    for path in ("blocks.0", "blocks.1"):
        assert [m.step for m in captured.attention[f"{path}.attn"]] == [0, 1, 2]
        assert [(e.call, e.step) for e in captured.modules[path]] == [(i, i) for i in range(3)]


class Adapted(nn.Module):
    """As LoRA replaces a module by one that has it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(16, 2), nn.Linear(2, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_modules_that_are_replaced_and_added_in_the_block() -> None:
    model, x = Tiny(2), numbers()
    base = model.blocks[0].attn
    with capture(model, modules=["blocks.{layer}.attn"]) as captured:
        model(x)
        model.blocks[0].attn = Adapted(base)
        model(x)
        model.blocks.append(Block())
        output = model.blocks[0].attn(model(x)[..., :1].expand(2, 6, 16))
        model.blocks[0].attn = base
        model(x)
    found = [(m.module_path, m.step) for m in captured.attention]
    base_path = "blocks.0.attn.base"
    assert [path for path, step in found if step == 0] == ["blocks.0.attn", "blocks.1.attn"]
    assert [path for path, step in found if step == 1] == [base_path, "blocks.1.attn"]
    assert [p for p, step in found if step == 2] == [base_path, "blocks.1.attn", "blocks.2.attn"]
    assert [path for path, step in found if step is None] == [base_path]
    first = captured.modules["blocks.0.attn"]
    assert [(e.call, e.step) for e in first] == [(0, 0), (1, 1), (2, 2), (3, None), (4, 3)]
    np.testing.assert_array_equal(first[3].value, output.detach().numpy())
    assert [(e.layer, e.step) for e in captured.modules["blocks.2.attn"]] == [(2, 2), (2, 3)]


def test_a_module_that_is_added_after_another_model_ran() -> None:
    model, other, x = Tiny(1), Tiny(1), numbers()
    with capture(model) as captured:
        other(x)
        model(x)
        other(x)
        model.blocks.append(Block())
        model(x)
    assert [(m.module_path, m.step) for m in captured.attention] == [
        ("blocks.0.attn", 0),
        ("blocks.0.attn", 1),
        ("blocks.1.attn", 1),
    ]


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_hooks_that_are_thrown_away_in_the_block(kind: Any) -> None:
    model, x = Tiny(2), numbers()
    for before in (kind, None):  # before the block, too, or not
        if before is not None:
            model._forward_pre_hooks = before()
        with capture(model, modules=["blocks.*", ""]) as captured:
            model(x)
            for module in model.modules():
                module._forward_pre_hooks = kind()
            model(x)
        assert [m.step for m in captured.attention["blocks.1.attn"]] == [0, 1]
        for entries in captured.modules.values():
            assert [(e.call, e.step) for e in entries] == [(0, 0), (1, 1)]


def test_a_child_whose_name_has_a_dot() -> None:
    model, x = Tiny(1), numbers()
    setattr(model, "last.attn", Attention())
    model.blocks.append(getattr(model, "last.attn"))
    with capture(model, modules=["**.attn"]) as captured:
        model(x)
    assert captured.attention.paths == ["blocks.0.attn", "blocks.1"]


def test_models_that_come_and_go_are_not_mistaken_for_each_other() -> None:
    """Some are made in the memory of those before."""
    x = numbers(2)
    with capture() as captured:
        for _ in range(300):
            model = Tiny(1)
            model(x)
            del model
    assert [(m.module_path, m.layer, m.call, m.step) for m in captured.attention] == [
        ("blocks.0.attn", layer, 0, 0) for layer in range(300)
    ]


def test_a_model_that_is_gone_has_no_calls() -> None:
    x, model = numbers(), Tiny(2)
    with capture(model, modules=["**.attn"]) as captured:
        model(x)
        before = model.blocks[1].attn
        model.blocks[1].attn = Attention()
        del before
        for _ in range(20):  # some will be where the one before was
            Tiny(2)(x)
    assert len(captured.attention) == len(captured.modules["blocks.1.attn"]) + 1 == 2


def test_a_part_that_is_called_after_the_first_forward_is_in_no_step() -> None:
    model, x = Tiny(2), numbers()
    with capture() as captured:
        model(x)
        model.blocks[0](x)
        model(x)
    assert [m.step for m in captured.attention] == [0, 0, None, 1, 1]


def test_a_model_that_calls_its_own_wrapper_has_a_step_more() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Attention()

        def forward(self, x: Tensor, again: Any = None) -> Tensor:
            x = self.attn(x)
            return x if again is None else again(x)

    model, x = Twice(), numbers()
    wrapper = nn.DataParallel(model)
    with capture(model, modules=[""]) as captured:
        wrapper(x, wrapper)
    assert [m.step for m in captured.attention] == [0, 1]
    assert sorted((e.call, e.step) for e in captured.modules[""]) == [(0, 0), (1, 1)]
