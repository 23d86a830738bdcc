"""After a block, whatever happened in it, everything *is* what it was."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.block.samples import Attention, SoftmaxAttention, Tiny, changes, everything, numbers, qkv
from tests.capture.conftest import WriteModule
from visualizer import capture, get_local
from visualizer.errors import (
    CaptureWarning,
    TargetNotFoundError,
    UnknownLocalError,
    VisualizerError,
)

LOCALS = {"tests.block.samples:SoftmaxAttention.forward": ["attn"]}


def make_model() -> Tiny:
    return Tiny(2, SoftmaxAttention).eval()


def options(model: nn.Module) -> dict[str, Any]:
    return {"model": model, "locals": LOCALS, "modules": ["**"], "inputs": True}


def test_a_block_that_ends() -> None:
    model, x = make_model(), numbers()
    model(x)
    before = everything(model)
    with capture(**options(model)) as captured:
        model(x)
        assert changes(before, everything(model))  # else this test proves nothing
    assert changes(before, everything(model)) == []
    assert len(captured.attention) == 2


class Odd(BaseException):
    pass


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, Odd])
def test_a_block_that_is_left_by_an_exception(kind: type[BaseException]) -> None:
    model, x = make_model(), numbers()
    before = everything(model)
    with pytest.raises(kind) as raised, capture(**options(model)) as captured:
        model(x)
        raise kind("on purpose")
    assert changes(before, everything(model)) == []
    assert raised.value.__context__ is None
    assert len(captured.attention) == 2


def test_a_keyboard_interrupt_within_the_model() -> None:
    class Interrupted(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise KeyboardInterrupt

    model = Tiny(2, Interrupted)
    before = everything(model)
    with pytest.raises(KeyboardInterrupt), capture(model, modules=["**"]) as captured:
        model(numbers())
    assert changes(before, everything(model)) == []
    assert len(captured.attention) == 1
    assert captured.modules["blocks.0.attn"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"locals": {"tests.block.samples:Nothing.forward": ["x"]}},
        {"locals": {"tests.block.no_such_module:f": ["x"]}},
        {"locals": {"tests.block.samples:Attention.forward": ["no_such_name"]}},
        {"locals": {**LOCALS, len: ["x"]}},
        {"modules": ["**", "no.such.module"]},
        {"keep": "everything"},
        {"max_bytes": -1},
    ],
)
def test_a_capture_that_can_not_be_opened(wrong: dict[str, Any]) -> None:
    model = make_model()
    before = everything(model)
    with pytest.raises(VisualizerError):
        capture(**{**options(model), **wrong}).__enter__()
    assert changes(before, everything(model)) == []


def test_an_entering_that_fails_half_way_takes_everything_out_again() -> None:
    class Stubborn(type):
        def __setattr__(cls, name: str, value: Any) -> None:
            raise AttributeError("this class does not change")

    class Fixed(nn.Linear, metaclass=Stubborn):
        pass

    model = make_model()
    model.last = Fixed(2, 2)
    before = everything(model)
    try:
        with capture(**options(model)):
            pass
    except AttributeError:
        pass
    assert changes(before, everything(model)) == []


def test_nested_blocks_that_are_closed_in_order() -> None:
    model, x = make_model(), numbers()
    before = everything(model)
    with capture(**options(model)) as outer:
        with capture(**options(model)) as inner:
            model(x)
        between = everything(model)
        model(x)
    assert changes(before, between)
    assert changes(before, everything(model)) == []
    assert (len(outer.attention), len(inner.attention)) == (4, 2)
    entries = outer.locals["SoftmaxAttention.forward"]["attn"]
    assert len(entries) == 4


def test_nested_blocks_that_are_closed_out_of_order() -> None:
    model, x = make_model(), numbers()
    before = everything(model)
    outer, inner = capture(**options(model)), capture(**options(model))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    model(x)
    inner.__exit__(None, None, None)
    assert changes(before, everything(model)) == []
    assert (len(outer.attention), len(inner.attention)) == (0, 2)
    assert len(inner.locals["SoftmaxAttention.forward"]["attn"]) == 2
    assert len(outer.locals["SoftmaxAttention.forward"]["attn"]) == 0
    assert len(inner.modules["blocks.0.mlp"]) == 1


def test_a_generator_that_is_left_half_way() -> None:
    model, x = make_model(), numbers()

    def steps() -> Iterator[Any]:
        with capture(**options(model)) as captured:
            while True:
                model(x)
                yield captured

    before = everything(model)
    generator = steps()
    captured = next(generator)
    del generator
    gc.collect()
    assert changes(before, everything(model)) == []
    model(x)
    assert len(captured.attention) == 2


def test_a_generator_that_is_collected_in_another_thread() -> None:
    model, x = make_model(), numbers()

    def steps() -> Iterator[Any]:
        with capture(**options(model)):
            model(x)
            yield

    before = everything(model)
    generators = [steps()]
    next(generators[0])
    thread = threading.Thread(target=generators.clear)
    thread.start()
    thread.join()
    assert changes(before, everything(model)) == []
    with capture(model) as later:
        model(x)
    assert len(later.attention) == 2


def test_threads_with_blocks_of_their_own() -> None:
    models = [make_model() for _ in range(4)]
    before = [everything(model) for model in models]
    barrier, captures, failed = threading.Barrier(4), {}, []

    def work(number: int) -> None:
        try:
            x = numbers()
            for _ in range(3):
                barrier.wait(30)
                with capture(**options(models[number])) as captured:
                    for _ in range(number + 1):
                        models[number](x)
                captures[number] = captured
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for number, model in enumerate(models):
        assert changes(before[number], everything(model)) == []
        assert len(captures[number].attention) == 2 * (number + 1)
        assert len(captures[number].modules["blocks.1.attn"]) == number + 1
        attn = captures[number].locals["SoftmaxAttention.forward"]["attn"]
        assert len(attn) == 2 * (number + 1)


BY_NAME = """
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.functional import scaled_dot_product_attention as renamed
from torch.nn.functional import softmax

def attend(q, k, v):
    return scaled_dot_product_attention(q, k, v)

def attend_renamed(q, k, v):
    return renamed(q, k, v)

def attend_by_softmax(q, k, v):
    return softmax(q @ k.mT, dim=-1) @ v
"""


def test_modules_that_imported_the_function_by_name_are_seen_and_restored(
    write_module: WriteModule,
) -> None:
    module = write_module("captured_by_name", BY_NAME)
    before = everything()
    with capture() as captured:
        module.attend(*qkv())
        module.attend_renamed(*qkv())
        module.attend_by_softmax(*qkv())
    assert len(captured.attention) == 3
    assert changes(before, everything()) == []
    assert module.renamed is F.scaled_dot_product_attention


def test_modules_that_are_imported_during_the_block(write_module: WriteModule) -> None:
    original = F.scaled_dot_product_attention
    with capture() as captured:
        module = write_module("captured_within", BY_NAME)
        module.attend(*qkv())
        module.attend_by_softmax(*qkv())
    assert len(captured.attention) == 2
    assert module.scaled_dot_product_attention is module.renamed is original
    assert module.softmax is F.softmax


def test_modules_that_are_imported_during_nested_blocks(write_module: WriteModule) -> None:
    original = F.scaled_dot_product_attention
    with capture() as outer:
        with capture():
            module = write_module("captured_nested", BY_NAME)
        module.attend(*qkv())
    module.attend(*qkv())
    assert len(outer.attention) == 1
    assert module.scaled_dot_product_attention is original


def test_a_name_that_is_bound_anew_during_the_block(write_module: WriteModule) -> None:
    """A module that has as many names as before, one of which is bound lazily."""
    module = write_module(
        "captured_lazily",
        "from torch.nn import functional\n"
        "attention = None\n"
        "def attend(q, k, v):\n"
        "    global attention\n"
        "    if attention is None:\n"
        "        attention = functional.scaled_dot_product_attention\n"
        "    return attention(q, k, v)\n",
    )
    original = F.scaled_dot_product_attention
    with capture():
        pass
    with capture() as captured:
        module.attend(*qkv())
    assert module.attention is original
    assert len(captured.attention) == 1


def test_a_name_that_was_bound_anew_between_blocks_is_seen(write_module: WriteModule) -> None:
    module = write_module("captured_rebound", BY_NAME)
    module.scaled_dot_product_attention = None
    with capture():
        pass
    module.scaled_dot_product_attention = F.scaled_dot_product_attention
    with capture() as captured:
        module.attend(*qkv())
    assert len(captured.attention) == 1
    assert module.scaled_dot_product_attention is F.scaled_dot_product_attention


def test_a_module_reloaded_in_the_block_has_the_originals(write_module: WriteModule) -> None:
    write_module("captured_reloaded", BY_NAME)
    with capture() as captured:
        module = write_module("captured_reloaded", BY_NAME)
        module.attend(*qkv())
    assert module.scaled_dot_product_attention is F.scaled_dot_product_attention
    assert len(captured.attention) == 1


def test_a_function_that_a_model_made_in_the_block_keeps_is_the_original() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = F.scaled_dot_product_attention

        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return self.attend(q, k, v)

    original = F.scaled_dot_product_attention
    with capture() as captured:
        model = Keeps()
        model(*qkv())
    assert len(captured.attention) == 1
    model(*qkv())
    assert model.attend is original, "its model can't be pickled any more"


def test_somebody_elses_patch_stays_with_a_warning() -> None:
    original = F.scaled_dot_product_attention

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    try:
        with pytest.warns(CaptureWarning, match="scaled_dot_product_attention.*somebody else"):
            with capture():
                F.scaled_dot_product_attention = theirs
        assert F.scaled_dot_product_attention is theirs
    finally:
        F.scaled_dot_product_attention = original


def test_after_somebody_elses_patch_over_ours_calls_are_seen_once() -> None:
    original = F.scaled_dot_product_attention
    try:
        with pytest.warns(CaptureWarning), capture():
            ours = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = lambda *args, **kw: ours(*args, **kw)
        with capture() as captured:
            F.scaled_dot_product_attention(*qkv())
        assert len(captured.attention) == 1
        F.scaled_dot_product_attention = ours  # they undo their patch, late
        with capture() as captured:
            F.scaled_dot_product_attention(*qkv())
        assert len(captured.attention) == 1
    finally:
        F.scaled_dot_product_attention = original


def test_warnings_as_errors_leave_nothing_behind() -> None:
    original = torch.softmax
    model = make_model()
    before = everything(model)
    forward = SoftmaxAttention.forward
    code = forward.__code__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CaptureWarning)
            with pytest.raises(CaptureWarning, match="somebody else"):
                with capture(**options(model)):
                    torch.softmax = lambda *args, **kwargs: None
    finally:
        torch.softmax = original
    assert changes(before, everything(model)) == []
    assert forward.__code__ is code


def test_warnings_as_errors_give_every_function_its_code_back() -> None:
    def first(x: int) -> int:
        y = x
        return y

    def second(x: int) -> int:
        y = x
        return y

    def third(x: int) -> int:
        y = x
        return y

    functions = [first, second, third]
    codes = [function.__code__ for function in functions]
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptureWarning)
        with pytest.raises(CaptureWarning), capture(locals=dict.fromkeys(functions, "y")):
            for function in functions:
                function(1)
            second.__code__ = (lambda x: x).__code__
    assert [first.__code__, third.__code__] == [codes[0], codes[2]]


def test_code_that_somebody_else_replaced_stays_with_a_warning() -> None:
    def first(x: int) -> int:
        y = x
        return y

    theirs = (lambda x: -x).__code__
    with pytest.warns(CaptureWarning, match="replaced"), capture(locals={first: "y"}) as captured:
        first(1)
        first.__code__ = theirs
    assert first.__code__ is theirs
    assert len(captured.locals[first.__qualname__]["y"]) == 1


def test_an_active_get_local_stays_active() -> None:
    model, x = make_model(), numbers()
    code = SoftmaxAttention.forward.__code__
    get_local.activate()
    with get_local.patch(SoftmaxAttention.forward, "attn"):
        with capture(model, locals=LOCALS) as captured:
            model(x)
        model(x)
    get_local.deactivate()
    assert SoftmaxAttention.forward.__code__ is code
    assert len(get_local.cache["SoftmaxAttention.forward"]) == 4
    assert len(captured.locals["SoftmaxAttention.forward"]["attn"]) == 2


def test_get_local_that_ends_during_the_block() -> None:
    model, x = make_model(), numbers()
    code = SoftmaxAttention.forward.__code__
    get_local.activate()
    patch = get_local.patch(SoftmaxAttention.forward, "attn")
    with capture(model, locals=LOCALS) as captured:
        model(x)
        patch.remove()
        get_local.deactivate()
        model(x)
    assert SoftmaxAttention.forward.__code__ is code
    assert len(get_local.cache["SoftmaxAttention.forward"]) == 2
    assert len(captured.locals["SoftmaxAttention.forward"]["attn"]) == 4


def test_the_model_and_the_capture_are_collected() -> None:
    model, x = make_model(), numbers()
    with capture(**options(model)) as captured:
        model(x)
    with capture() as other:
        model(x)
    watched = [weakref.ref(model), weakref.ref(model.blocks[0].attn)]
    del model
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
    ends = [weakref.ref(captured), weakref.ref(captured._record), weakref.ref(other._record)]
    del captured, other
    gc.collect()
    assert [ref() for ref in ends] == [None, None, None]


def test_a_capture_opens_once() -> None:
    captured = capture()
    with captured:
        pass
    with pytest.raises(RuntimeError, match="capture\\(\\) again"), captured:
        pass


def test_entering_twice_keeps_the_block_open() -> None:
    captured = capture()
    with captured:
        with pytest.raises(RuntimeError):
            captured.__enter__()
        F.scaled_dot_product_attention(*qkv())
    assert len(captured.attention) == 1


def test_errors_say_which_target_it_was() -> None:
    with pytest.raises(TargetNotFoundError, match="Nothing"):
        capture(locals={"tests.block.samples:Nothing.forward": ["x"]})
    with pytest.raises(UnknownLocalError, match="atn.*attn"):
        capture(locals={"tests.block.samples:SoftmaxAttention.forward": ["atn"]})
