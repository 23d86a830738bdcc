"""Which capture a call goes to: by context, by thread, by model; and where it is from."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.block.samples import Attention, SoftmaxAttention, Tiny, numbers, qkv
from visualizer import capture


def attend() -> None:
    F.scaled_dot_product_attention(*qkv())


def run_in_thread(work: Callable[[], Any]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_nested_blocks_both_get_a_call() -> None:
    with capture() as outer:
        attend()
        with capture() as inner:
            attend()
        attend()
    assert (len(outer.attention), len(inner.attention)) == (3, 1)


def test_a_thread_without_a_context_tells_every_open_capture() -> None:
    other_is_open, done, others = threading.Event(), threading.Event(), []

    def other() -> None:
        with capture() as captured:
            others.append(captured)
            other_is_open.set()
            done.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    other_is_open.wait(30)
    with capture() as mine:
        run_in_thread(attend)
        assert (len(mine.attention), len(others[0].attention)) == (1, 1)
        attend()
    done.set()
    thread.join()
    assert (len(mine.attention), len(others[0].attention)) == (2, 1)


def test_a_pool_of_threads_that_is_older_than_the_block() -> None:
    model = Tiny(2)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(attend).result()
        with capture(model) as captured:
            list(pool.map(model, [numbers() for _ in range(6)]))
        pool.submit(attend).result()
    assert len(captured.attention) == 12
    assert sorted(m.call for m in captured.attention["blocks.0.attn"]) == list(range(6))
    assert sorted(m.step for m in captured.attention["blocks.1.attn"]) == list(range(6))


def test_a_thread_whose_own_block_is_over_tells_the_open_ones() -> None:
    def work() -> None:
        with capture():
            attend()
        attend()

    with capture() as captured:
        run_in_thread(work)
    assert len(captured.attention) == 1


def test_a_copied_context_belongs_to_the_block_that_it_was_copied_in() -> None:
    with capture() as first:
        context = contextvars.copy_context()
        with capture() as second:
            context.run(attend)
    assert (len(first.attention), len(second.attention)) == (1, 0)
    context.run(attend)
    assert len(first.attention) == 1


def test_a_block_that_another_thread_closes() -> None:
    captured = capture()
    captured.__enter__()
    run_in_thread(lambda: captured.__exit__(None, None, None))
    attend()
    with capture() as later:
        attend()
    assert (len(captured.attention), len(later.attention)) == (0, 1)


def test_tasks_with_blocks_of_their_own_do_not_mix() -> None:
    async def work(model: nn.Module, calls: int) -> Any:
        with capture() as captured:
            for _ in range(calls):
                await asyncio.sleep(0)
                model(numbers())
        return captured

    async def main() -> Any:
        return await asyncio.gather(*(work(Tiny(1), calls) for calls in (1, 2, 3)))

    assert [len(captured.attention) for captured in asyncio.run(main())] == [1, 2, 3]


def test_a_task_that_is_made_in_the_block_belongs_to_it() -> None:
    async def work() -> None:
        attend()

    async def main() -> Any:
        with capture() as captured:
            await asyncio.gather(work(), work())
        return captured

    assert len(asyncio.run(main()).attention) == 2


def test_only_the_model_that_was_given_counts() -> None:
    model, other = Tiny(2), Tiny(2)
    with capture(model) as captured:
        other(numbers())
        attend()
        model(numbers())
    assert captured.attention.paths == ["blocks.0.attn", "blocks.1.attn"]
    assert len(captured.attention) == 2


def test_two_captures_of_two_models() -> None:
    first, second, x = Tiny(2), Tiny(3), numbers()
    with capture(first) as one, capture(second) as two:
        second(x)
        first(x)
        second(x)
    assert (len(one.attention), len(two.attention)) == (2, 6)
    assert [m.step for m in two.attention["blocks.2.attn"]] == [0, 1]
    assert [m.step for m in one.attention["blocks.1.attn"]] == [0]


def test_two_models_without_a_filter_do_not_mix() -> None:
    first, second, x = Tiny(1), Tiny(1), numbers()
    with capture() as captured:
        first(x)
        second(x)
    assert [m.call for m in captured.attention] == [0, 0]
    assert len(captured.attention.layers) == 2


def test_a_model_that_is_a_part_of_another() -> None:
    whole, x = Tiny(3), numbers()
    with capture(whole.blocks[1]) as captured:
        whole(x)
        whole.blocks[1](x)
        whole.blocks[2](x)
    assert captured.attention.paths == ["attn"]
    assert [m.call for m in captured.attention] == [0, 1]


def test_locals_of_other_models_do_not_count() -> None:
    model, other = Tiny(1, SoftmaxAttention), Tiny(1, SoftmaxAttention)
    with capture(model, locals={SoftmaxAttention.forward: "attn"}) as captured:
        other(numbers())
        model(numbers())
    (entry,) = captured.locals["SoftmaxAttention.forward"]["attn"]
    assert (entry.module_path, entry.call, entry.step) == ("blocks.0.attn", 0, 0)


def test_only_other_models_ran() -> None:
    model, other = Tiny(1, SoftmaxAttention), Tiny(1, SoftmaxAttention)
    with capture(model, locals={SoftmaxAttention.forward: "attn"}) as captured:
        other(numbers())
    assert "but not in a call of the model" in captured.explain()
    assert "none in a call of the model" in captured.explain()


def test_a_function_outside_of_modules() -> None:
    with capture() as captured:
        attend()
        attend()
    assert [(m.module_path, m.layer, m.call, m.step) for m in captured.attention] == [
        (None, None, 0, None),
        (None, None, 1, None),
    ]
    assert captured.attention.paths == []
    assert captured.attention.layers == []


def test_a_function_that_a_module_calls_belongs_to_it() -> None:
    def helper(x: Tensor) -> Tensor:
        q = x.unsqueeze(1)
        return F.scaled_dot_product_attention(q, q, q).squeeze(1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return helper(self.inner(x))

    model = Model()
    with capture() as captured:
        model(numbers())
    (only,) = captured.attention
    assert (only.module_path, only.layer, only.step) == ("", 0, 0)


def test_a_submodule_that_is_called_directly_is_in_no_step() -> None:
    model, x = Tiny(2), numbers()
    with capture(model, modules=["blocks.0"]) as captured:
        model.blocks[0](x)
        model(x)
        model.blocks[0](x)
        model(x)
    assert [m.step for m in captured.attention["blocks.0.attn"]] == [None, 0, None, 1]
    assert [e.step for e in captured.modules["blocks.0"]] == [None, 0, None, 1]
    assert [m.call for m in captured.attention["blocks.0.attn"]] == [0, 1, 2, 3]


def test_a_step_after_a_forward_that_raised() -> None:
    class Fails(Attention):
        fails = True

        def forward(self, x: Tensor) -> Tensor:
            if self.fails:
                raise ValueError
            return super().forward(x)

    model, x = Tiny(2), numbers()
    model.blocks[1].attn = Fails()
    with capture(model) as captured:
        with pytest.raises(ValueError):
            model(x)
        model.blocks[1].attn.fails = False
        model(x)
    assert [m.step for m in captured.attention["blocks.0.attn"]] == [0, 1]
    assert [m.step for m in captured.attention["blocks.1.attn"]] == [1]


@pytest.mark.parametrize("is_given", [True, False])
def test_steps_of_a_call_that_was_looked_up_before(is_given: bool) -> None:
    model, x = Tiny(2), numbers()
    call = model.__call__
    options: Any = {"modules": ["blocks.0"]} if is_given else {}
    with capture(model if is_given else None, **options) as captured:
        call(x)
        model.blocks[0](x)
        call(x)
        with capture(model) as inner:
            call(x)
            model(x)
        model.blocks[0](x)
        call(x)
    steps = [m.step for m in captured.attention["blocks.0.attn"]]
    assert steps == [0, None, 1, 2, 3, None, 4]
    assert [m.step for m in inner.attention["blocks.1.attn"]] == [0, 1]
    if is_given:
        assert [e.step for e in captured.modules["blocks.0"]] == steps


def test_a_block_that_is_opened_within_a_forward() -> None:
    class Opens(Attention):
        def forward(self, x: Tensor) -> Tensor:
            with capture(model) as captured:
                super().forward(x)
                result = super().forward(x)
            found.append(captured)
            return result

    found: list[Any] = []
    model = Tiny(2)
    model.blocks[1].attn = Opens()
    with capture(model) as captured:
        model(numbers())
        model(numbers())
    assert [[m.step for m in each.attention] for each in found] == [[0, 0], [0, 0]]
    assert [m.step for m in captured.attention] == [0, 0, 0, 1, 1, 1]


def test_layers_and_calls_and_steps_over_several_forwards() -> None:
    model, x = Tiny(3), numbers()
    with capture(model) as captured:
        for _ in range(3):
            model(x)
    found = [(m.module_path, m.layer, m.call, m.step) for m in captured.attention]
    assert found == [
        (f"blocks.{layer}.attn", layer, step, step) for step in range(3) for layer in range(3)
    ]


def test_layers_are_numbered_in_order_of_appearance() -> None:
    class Reversed(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            for block in reversed(self.blocks):
                x = block(x)
            return x

    with capture(Reversed(3)) as captured:
        pass
    assert captured.attention.layers == []
    model = Reversed(3)
    with capture(model) as captured:
        model(numbers())
    assert captured.attention.paths == ["blocks.2.attn", "blocks.1.attn", "blocks.0.attn"]
    assert [m.layer for m in captured.attention["blocks.0.attn"]] == [2]


def test_a_shared_layer_is_one_module_with_several_calls() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Attention()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = self.layer(x)
            return x

    model, x = Shared(), numbers()
    with capture(model, modules=["layer"], locals={Attention.forward: "q"}) as captured:
        model(x)
        model(x)
    assert captured.attention.paths == ["layer"]
    found = [(m.layer, m.call, m.step) for m in captured.attention["layer"]]
    assert found == [(0, call, call // 4) for call in range(8)]
    assert [e.call for e in captured.modules["layer"]] == list(range(8))
    assert [e.step for e in captured.modules["layer"]] == [0] * 4 + [1] * 4
    q = captured.locals["Attention.forward"]["q"]
    assert [(e.call, e.step, e.module_path) for e in q] == [
        (call, call // 4, "layer") for call in range(8)
    ]


def test_a_module_that_is_registered_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Attention()
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Twice()
    with capture(model) as captured:
        model(numbers())
    assert captured.attention.paths == ["first"]
    assert [m.call for m in captured.attention["first"]] == [0, 1]


def test_a_module_with_two_attentions() -> None:
    class Two(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x)[:, :3])

    model, x = Two(), numbers(5)
    with capture(model) as captured:
        model(x)
        model(x)
    found = [(m.module_path, m.layer, m.call, m.step, m.shape[2]) for m in captured.attention]
    assert found == [("", 0, 0, 0, 5), ("", 0, 1, 0, 3), ("", 0, 2, 1, 5), ("", 0, 3, 1, 3)]


def test_replicas_of_data_parallel_have_the_modules_paths() -> None:
    model = Tiny(2)
    replicas = [replicate(model) for _ in range(3)]
    with capture(model, modules=["blocks.*.attn"]) as captured:
        for replica in replicas:
            run_in_thread(lambda replica=replica: replica(numbers()))
    assert captured.attention.paths == ["blocks.0.attn", "blocks.1.attn"]
    assert len(captured.attention["blocks.1.attn"]) == 3
    assert len(captured.modules["blocks.0.attn"]) == 3


def replicate(module: nn.Module) -> nn.Module:
    """As DataParallel does it."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter)
    for name, child in module._modules.items():
        replica._modules[name] = replicate(child)
    return replica


class CallsItself(nn.Module):
    """Attends before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()

    def forward(self, x: Tensor, depth: int = 1) -> Tensor:
        x = self.attn(x)
        if depth:
            x = self(x, depth - 1)
        return self.attn(x)


@pytest.mark.parametrize("is_looked_up_before", [False, True])
def test_a_module_that_calls_itself_keeps_its_steps_apart(is_looked_up_before: bool) -> None:
    model = CallsItself()
    call = model.__call__ if is_looked_up_before else lambda x: model(x)
    with capture(model, modules=["attn", ""]) as captured:
        out = call(numbers())
        call(numbers())
    assert [m.step for m in captured.attention] == [0, 1, 1, 0, 2, 3, 3, 2]
    assert [e.step for e in captured.modules["attn"]] == [0, 1, 1, 0, 2, 3, 3, 2]
    if not is_looked_up_before:
        outputs = {e.call: e for e in captured.modules[""]}
        assert np.array_equal(outputs[0].value, out.detach().numpy())
        assert outputs[0].step == 0


def test_a_module_that_is_added_in_the_block() -> None:
    model = Tiny(1)
    with capture(model) as captured:
        model.blocks.append(Tiny(1).blocks[0])
        model(numbers())
    assert len(captured.attention) == 2


def test_the_program_s_own_dict_of_locals_is_not_changed() -> None:
    def main(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        options = locals()
        before = dict(options)
        with capture():
            attend()
        return before, options

    before, after = main(5)
    assert after == before


def test_locals_that_are_deleted_are_freed() -> None:
    import weakref

    def main(number: int) -> Any:
        big = torch.zeros(10)
        watched = weakref.ref(big)
        with capture():
            attend()
        del big
        return watched()

    assert main(1) is None


def test_an_argument_that_is_hostile_to_being_looked_at() -> None:
    class Hostile:
        @property
        def __class__(self) -> type:
            raise RuntimeError("do not look at me")

    def main(hostile: Any) -> Any:
        with capture(locals={local_function: "y"}) as captured:
            attend()
            local_function(3)
        return captured

    captured = main(Hostile())
    assert len(captured.attention) == 1
    assert [e.value for e in captured.locals["local_function"]["y"]] == [4]


def local_function(x: int) -> int:
    y = x + 1
    return y


def test_a_module_that_was_replaced_has_its_path() -> None:
    model, x = Tiny(2), numbers()
    with capture(model):
        model(x)
    model.blocks[0].attn = Attention()
    with capture(model) as captured:
        model(x)
    assert captured.attention.paths == ["blocks.0.attn", "blocks.1.attn"]
    model.blocks[0].attn = nn.Identity()  # after the block, and before anything is read
    with capture(model) as captured:
        model(x)
    model.blocks[1].attn = nn.Identity()
    assert captured.attention.paths == ["blocks.1.attn"]
    assert len(captured.attention) == 1


def test_another_task_of_the_thread_is_not_captured() -> None:
    import asyncio

    async def captured_one() -> Any:
        with capture() as captured:
            await asyncio.sleep(0.01)
            F.scaled_dot_product_attention(*qkv(tokens=3))
        return captured

    async def plain_one() -> None:
        await asyncio.sleep(0.005)
        F.scaled_dot_product_attention(*qkv(tokens=4))

    async def both() -> Any:
        return await asyncio.gather(captured_one(), plain_one())

    captured, _ = asyncio.run(both())
    assert [made.shape[-1] for made in captured.attention] == [3]
