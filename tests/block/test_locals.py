"""Locals of functions: by object and by name, values and facts, and what can't be had."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.block.samples import Attention, SoftmaxAttention, Tiny, expected_map, numbers
from tests.capture.conftest import WriteModule
from visualizer import Reference, capture, get_local
from visualizer.errors import (
    AmbiguousKeyError,
    NotInstrumentableError,
    TargetNotFoundError,
    UnknownKeyError,
    UnknownLocalError,
)

TARGET = "tests.block.samples:SoftmaxAttention.forward"
NAME = "SoftmaxAttention.forward"


@pytest.mark.parametrize(
    "target",
    [SoftmaxAttention.forward, TARGET, SoftmaxAttention().forward],
    ids=["function", "name", "method"],
)
@pytest.mark.parametrize("names", ["attn", ["attn"], ("attn",), {"attn"}])
def test_a_target_is_a_function_a_name_or_a_method(target: Any, names: Any) -> None:
    model = Tiny(2, SoftmaxAttention)
    with capture(model, locals={target: names}, attention=False) as captured:
        model(numbers())
    assert list(captured.locals) == [NAME]
    assert len(captured.locals[NAME]["attn"]) == 2
    assert captured.locals[TARGET]["attn"] is captured.locals[NAME]["attn"]


def test_values_are_those_of_the_program() -> None:
    module, x = SoftmaxAttention(), numbers()
    with capture(module, locals={TARGET: ["q", "attn"]}) as captured:
        module(x)
    q, k, _ = module.project(x).unbind(0)
    (attn,) = captured.locals[NAME]["attn"]
    assert type(attn.value) is np.ndarray
    np.testing.assert_array_equal(captured.locals[NAME]["q"][0].value, q.detach().numpy())
    np.testing.assert_allclose(attn, expected_map(q, k), atol=1e-6)


def test_facts_of_an_entry() -> None:
    model = Tiny(3, SoftmaxAttention)
    with capture(model, locals={TARGET: ["attn", "x"]}) as captured:
        model(numbers(6))
        model(numbers(4))
    entries = captured.locals[NAME]["attn"]
    assert [(e.layer, e.call, e.step) for e in entries] == [
        (layer, 3 * step + layer, step) for step in range(2) for layer in range(3)
    ]
    last = entries[-1]
    assert (last.kind, last.function, last.variable) == ("local", TARGET, "attn")
    assert (last.module_path, last.shape, last.dtype) == (
        "blocks.2.attn",
        (2, 4, 4, 4),
        "float32",
    )
    assert repr(last) == "<attn of blocks.2.attn, call 5: float32[2, 4, 4, 4]>"
    with pytest.raises(AttributeError):
        last.call = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.bfloat16, "float32"),
        (torch.float16, "float16"),
        (torch.float64, "float64"),
        (torch.int32, "int32"),
        (torch.bool, "bool"),
        (torch.complex64, "complex64"),
    ],
)
def test_the_type_is_the_programs(dtype: torch.dtype, kept: str) -> None:
    def function(x: Tensor) -> None:
        y = x

    with capture(locals={function: "y"}) as captured:
        function(torch.ones(2, 3).to(dtype))
    (entry,) = captured.locals[function.__qualname__]["y"]
    assert entry.dtype == str(dtype).removeprefix("torch.")
    assert entry.value.dtype == kept
    assert entry.shape == (2, 3)


def test_values_that_are_no_arrays() -> None:
    def function(y: Any) -> None:
        pass

    thing = object()
    with capture(locals={function: "y"}) as captured:
        for value in (3, "text", None, [torch.ones(2), 4], {"a": torch.zeros(1)}, thing):
            function(value)
    entries = captured.locals[function.__qualname__]["y"]
    assert [e.value for e in entries[:3]] == [3, "text", None]
    assert [e.shape for e in entries] == [None] * 6
    assert [e.dtype for e in entries] == [None] * 6
    np.testing.assert_array_equal(entries[3].value[0], [1, 1])
    assert entries[4].value["a"].tolist() == [0]
    assert entries[5].value == Reference(thing)
    assert "list" in repr(entries[3])


def test_a_captured_value_is_nobody_elses() -> None:
    def function(y: Tensor) -> None:
        pass

    y = torch.ones(3)
    with capture(locals={function: "y"}) as captured:
        function(y)
        y.zero_()
    (entry,) = captured.locals[function.__qualname__]["y"]
    entry.value[0] = 7
    assert entry.value.tolist() == [7, 1, 1]
    assert y.tolist() == [0, 0, 0]
    assert np.asarray(entry).tolist() == [7, 1, 1]


def test_a_name_that_is_not_bound() -> None:
    def function(y: int) -> None:
        if y > 0:
            z = y

    name = function.__qualname__
    with capture(locals={function: ["y", "z"]}, attention=False) as captured:
        for number in (1, 0, 2):
            function(number)
    assert [(e.call, e.value) for e in captured.locals[name]["z"]] == [(0, 1), (2, 2)]
    assert [e.value for e in captured.locals[name]["y"]] == [1, 0, 2]
    assert f"'z' of {name}() was never bound in 1 of 3 calls" in captured.explain()
    assert "attention=True" in captured.explain()


def test_a_function_that_raises_hands_nothing_over() -> None:
    def function(y: int) -> float:
        z = 1 / y
        return z

    with capture(locals={function: "z"}) as captured:
        function(2)
        with pytest.raises(ZeroDivisionError):
            function(0)
        function(4)
    assert [e.value for e in captured.locals[function.__qualname__]["z"]] == [0.5, 0.25]


def test_an_exception_that_leaves_the_block_keeps_what_there_is() -> None:
    def function(y: int) -> None:
        pass

    captured = capture(locals={function: "y"})
    with pytest.raises(KeyError), captured:
        function(1)
        raise KeyError
    assert [e.value for e in captured.locals[function.__qualname__]["y"]] == [1]


def test_arguments_cells_and_free_variables() -> None:
    free = 5

    def function(argument: int) -> int:
        cell = argument * 2
        shown = lambda: cell + free  # noqa: E731
        return shown()

    with capture(locals={function: ["argument", "cell", "free"]}) as captured:
        assert function(3) == 11
    view = captured.locals[function.__qualname__]
    assert {name: entries[0].value for name, entries in view.items()} == {
        "argument": 3,
        "cell": 6,
        "free": 5,
    }


def test_generators_and_coroutines_hand_over_at_their_end() -> None:
    def function(n: int) -> Iterator[int]:
        for i in range(n):
            yield i

    with capture(locals={function: "i"}) as captured:
        assert list(function(3)) == [0, 1, 2]
        next(function(3))
    assert [e.value for e in captured.locals[function.__qualname__]["i"]] == [2]


def test_wrapped_functions() -> None:
    def decorator(inner: Any) -> Any:
        @functools.wraps(inner)
        def wrapper(*args: Any) -> Any:
            return inner(*args)

        return wrapper

    @decorator
    def function(y: int) -> int:
        z = y + 1
        return z

    with capture(locals={function: "z"}) as captured:
        function(1)
    ((view,),) = [captured.locals.values()]
    assert [e.value for e in view["z"]] == [2]


def test_functions_of_the_standard_library() -> None:
    import statistics

    with capture(locals={"statistics:variance": ["ss"]}, attention=False) as captured:
        statistics.variance([1.0, 2.0, 3.0])
    assert [float(e.value) for e in captured.locals["variance"]["ss"]] == [2.0]


def test_torchs_own_functions() -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    target = "torch.nn.modules.activation:MultiheadAttention.forward"
    with capture(layer, locals={target: ["attn_output", "is_batched"]}) as captured:
        x = numbers()
        layer(x, x, x)
    view = captured.locals["MultiheadAttention.forward"]
    assert view["is_batched"][0].value is True
    assert view["attn_output"][0].module_path == ""


def test_the_same_function_asked_for_twice() -> None:
    locals_ = {TARGET: ["attn"], SoftmaxAttention.forward: ["q", "attn"]}
    module = SoftmaxAttention()
    with capture(module, locals=locals_) as captured:
        module(numbers())
    view = captured.locals[NAME]
    assert {name: len(entries) for name, entries in view.items()} == {"attn": 1, "q": 1}
    assert len(captured.locals) == 1


def test_get_local_is_active_on_the_same_function() -> None:
    def function(y: int) -> int:
        z = y + 1
        return z

    code = function.__code__
    get_local("y", "z")(function)
    get_local.activate()
    with capture(locals={function: "z"}) as captured:
        function(1)
        assert [e.value for e in captured.locals[function.__qualname__]["z"]] == [2]
    function(2)
    get_local.deactivate()
    assert function.__code__ is code
    assert get_local.cache[f"{function.__qualname__}.z"] == [2, 3]
    assert len(captured.locals[function.__qualname__]["z"]) == 1


def test_two_functions_of_one_name(write_module: WriteModule) -> None:
    source = "class A:\n    def forward(self, x):\n        y = x {} 1\n        return y\n"
    one, two = (write_module(f"same_{i}", source.format(sign)) for i, sign in enumerate("+-"))
    with capture(locals={"same_0:A.forward": "y", two.A.forward: "y"}) as captured:
        one.A().forward(5)
        two.A().forward(5)
    assert list(captured.locals) == ["same_0:A.forward", "same_1:A.forward"]
    assert captured.locals["same_0:A.forward"]["y"][0].value == 6
    assert captured.locals["same_1:A.forward"]["y"][0].value == 4
    with pytest.raises(AmbiguousKeyError, match="same_0:A.forward.*same_1:A.forward"):
        captured.locals["A.forward"]


def test_closures_of_one_factory_can_be_read() -> None:
    def make() -> Any:
        def function(x: int) -> int:
            y = x
            return y

        return function

    first, second = make(), make()
    with capture(locals={first: "y", second: "y"}) as captured:
        first(1)
        second(2)
        assert "1 functions" in repr(captured) or "2 functions" in repr(captured)
    values = [e.value for view in captured.locals.values() for e in view["y"]]
    assert sorted(values) == [1, 2]
    for key in captured.locals:
        assert captured.locals[key]["y"]


@pytest.mark.parametrize(
    ("locals_", "error", "message"),
    [
        ({TARGET: ["atn"]}, UnknownLocalError, "Did you mean 'attn'"),
        ({TARGET: ["attn", "atn"]}, UnknownLocalError, "'atn'"),
        ({"tests.block.samples:Nobody": ["x"]}, TargetNotFoundError, "Nobody"),
        ({"no_such_package_at_all:f": ["x"]}, TargetNotFoundError, "no_such_package_at_all"),
        ({"without a colon": ["x"]}, TargetNotFoundError, "without a colon"),
        ({len: ["x"]}, NotInstrumentableError, "len"),
        ({3: ["x"]}, NotInstrumentableError, "int"),
        ({Attention: ["x"]}, NotInstrumentableError, "Attention"),
        ({torch.add: ["x"]}, NotInstrumentableError, "add"),
        ({TARGET: []}, TypeError, "expected names of locals"),
        ({TARGET: [3]}, TypeError, "expected names of locals"),
        ([(TARGET, ["attn"])], TypeError, "expected \\{function or"),
        (TARGET, TypeError, "expected \\{function or"),
        ({"attn"}, TypeError, "expected \\{function or"),
    ],
)
def test_wrong_use_says_what_is_wrong(locals_: Any, error: type[Exception], message: str) -> None:
    code = SoftmaxAttention.forward.__code__
    with pytest.raises(error, match=message):
        capture(locals=locals_)
    assert SoftmaxAttention.forward.__code__ is code


def test_none_in_place_of_names_says_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="expected names of locals"):
        capture(locals={TARGET: None})


def test_unknown_keys_say_what_there_is() -> None:
    with capture(locals={TARGET: ["attn", "q"]}) as captured:
        pass
    with pytest.raises(UnknownKeyError, match="SoftmaxAttention.forward"):
        captured.locals["Attention.forwrd"]
    with pytest.raises(UnknownKeyError, match="has no 'k'; it has 'attn', 'q'"):
        captured.locals[NAME]["k"]
    with pytest.raises(UnknownKeyError):
        captured.locals[3]  # type: ignore[index]
    with capture() as captured:
        pass
    with pytest.raises(UnknownKeyError, match="'f' was not asked for in capture"):
        captured.locals["f"]


def test_a_function_outside_of_modules_has_no_path() -> None:
    with capture(locals={math_function: "y"}) as captured:
        math_function(4)
    (entry,) = captured.locals["math_function"]["y"]
    assert (entry.module_path, entry.layer, entry.step, entry.call) == (None, None, None, 0)
    assert entry.function == f"{__name__}:math_function"


def math_function(x: float) -> float:
    y = math.sqrt(x)
    return y


def test_a_function_that_a_module_calls_has_its_path() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: float) -> float:
            return self.inner(x)

    class Inner(nn.Module):
        def forward(self, x: float) -> float:
            return math_function(x)

    model = Model()
    for given in (model, None):
        with capture(given, locals={math_function: "y"}) as captured:
            model(4)
        (entry,) = captured.locals["math_function"]["y"]
        assert (entry.module_path, entry.layer, entry.step) == ("inner", 0, 0)


def test_inference_mode_and_autocast() -> None:
    module, x = SoftmaxAttention(), numbers()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        with capture(module, locals={TARGET: ["q", "attn"]}) as captured:
            module(x)
    (q,) = captured.locals[NAME]["q"]
    assert (q.dtype, q.value.dtype) == ("bfloat16", np.float32)
    q.value[:] = 0


def test_a_recursive_function_hands_over_every_call() -> None:
    with capture(locals={factorial: ["n", "below"]}) as captured:
        factorial(4)
    view = captured.locals["factorial"]
    assert [e.value for e in view["n"]] == [1, 2, 3, 4]
    assert [e.value for e in view["below"]] == [1, 2, 6]
    assert [e.call for e in view["below"]] == [1, 2, 3]


def factorial(n: int) -> int:
    if n == 1:
        return 1
    below = factorial(n - 1)
    return n * below


def test_the_views_say_what_they_are() -> None:
    with capture(locals={TARGET: ["attn"]}) as captured:
        assert repr(captured.locals) == f"<captured.locals: {NAME}>"
        assert repr(captured.locals[NAME]) == f"<captured.locals['{NAME}']: attn>"
    assert NAME in captured.locals
    assert "f" not in captured.locals
