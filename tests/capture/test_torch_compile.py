"""Compiled models: run as Python while captured, and compiled again afterwards."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local
from visualizer.errors import SinkError

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")

NOTICE = (
    "compiled models run eagerly while get_local is active, since a compiled graph captures "
    "nothing; get_local.deactivate() gives back the compiled ones."
)
X = torch.linspace(0, 1, 4)
BACKENDS = ["eager", "aot_eager"]


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.eval_frame.cached_backends.clear()
    yield
    torch._dynamo.reset()


def make_function() -> Any:
    @get_local("attn")
    def attend(x: Any) -> Any:
        attn = x * 2
        return attn + 1

    return attend


class CountingBackend:
    """A backend that counts the graphs it is given and the runs of them."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_from_before_activation_is_captured(
    backend: str, captured_warnings: Recorded
) -> None:
    compiled = torch.compile(make_function(), backend=backend)
    assert torch.equal(compiled(X), X * 2 + 1)
    get_local.activate()
    assert torch.equal(compiled(X), X * 2 + 1)
    assert torch.equal(compiled(X + 1), X * 2 + 3)
    taken = get_local.cache["attend"]
    assert [value.tolist() for value in taken] == [(X * 2).tolist(), (X * 2 + 2).tolist()]
    assert [str(warning.message) for warning in captured_warnings] == [NOTICE]


def test_a_compiled_module(captured_warnings: Recorded) -> None:
    class Model(torch.nn.Module):  # type: ignore[misc]
        @get_local("attn")
        def forward(self, x: Any) -> Any:
            attn = x.softmax(-1)
            return attn

    model = Model()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    with torch.no_grad():
        get_local.activate()
        compiled(X)
        model(X)
    assert len(get_local.cache["Model.forward"]) == 2


def test_a_model_compiled_in_place(captured_warnings: Recorded) -> None:
    with get_local.patch(torch.nn.Linear.forward, "input"):
        model = torch.nn.Linear(4, 2)
        model.compile(backend="eager")
        model(X)
    assert len(get_local.cache["Linear.forward"]) == 1


def test_the_graph_is_used_before_and_after_and_not_while_active() -> None:
    backend = CountingBackend()
    compiled = torch.compile(make_function(), backend=backend)
    compiled(X)
    assert (backend.graphs, backend.runs) == (1, 1)
    with pytest.warns(UserWarning, match="compiled models run eagerly"):
        get_local.activate()
    compiled(X)
    assert (backend.graphs, backend.runs) == (1, 1)
    get_local.deactivate()
    assert torch.equal(compiled(X), X * 2 + 1)
    assert (backend.graphs, backend.runs) == (1, 2)
    assert len(get_local.cache["attend"]) == 1


def test_compiled_while_active_and_used_afterwards(captured_warnings: Recorded) -> None:
    backend = CountingBackend()
    get_local.activate()
    compiled = torch.compile(make_function(), backend=backend)
    assert torch.equal(compiled(X), X * 2 + 1)
    assert len(get_local.cache["attend"]) == 1
    get_local.deactivate()
    compiled(X)
    assert (backend.graphs, backend.runs) == (1, 1)
    assert len(get_local.cache["attend"]) == 1


def test_one_notice_in_a_process(captured_warnings: Recorded) -> None:
    torch.compile(make_function(), backend="eager")(X)
    for _ in range(3):
        get_local.activate()
        get_local.deactivate()
    assert len(captured_warnings) == 1


def test_the_notice_points_to_who_activates(captured_warnings: Recorded) -> None:
    torch.compile(make_function(), backend="eager")(X)
    get_local.activate()
    assert [warning.filename for warning in captured_warnings] == [__file__]


def test_compiled_while_active_is_told_at_the_first_call(captured_warnings: Recorded) -> None:
    attend = make_function()
    get_local.activate()
    compiled = torch.compile(attend, backend="eager")
    for _ in range(2):
        compiled(X)
    assert [str(warning.message) for warning in captured_warnings] == [NOTICE]


def test_a_notice_that_is_made_an_error_disturbs_nothing() -> None:
    attend = make_function()
    get_local.activate()
    compiled = torch.compile(attend, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(compiled(X), X * 2 + 1)
    assert len(get_local.cache["attend"]) == 1
    with suppress(SinkError):
        get_local.deactivate()


def test_no_notice_where_nothing_is_compiled(captured_warnings: Recorded) -> None:
    get_local.activate()
    make_function()(X)
    assert captured_warnings == []


def stance() -> str:
    return str(torch._dynamo.eval_frame._stance.stance)


def test_the_stance_is_taken_and_given_back() -> None:
    get_local.activate()
    assert stance() == "force_eager"
    get_local.deactivate()
    assert stance() == "default"
    first = get_local.patch(make_function(), "attn")
    second = get_local.patch(make_function(), "attn")
    first.remove()
    second.remove()
    assert stance() == "default"


def test_a_patch_holds_the_stance_alone() -> None:
    attend = make_function()
    with get_local.patch(attend, "attn"):
        assert stance() == "force_eager"
        get_local.activate()
        get_local.deactivate()
        assert stance() == "force_eager"
    assert stance() == "default"


def test_a_stance_of_the_user_comes_back() -> None:
    with torch.compiler.set_stance("eager_on_recompile"):
        get_local.activate()
        assert stance() == "force_eager"
        get_local.deactivate()
        assert stance() == "eager_on_recompile"


def test_an_exception_in_a_block_gives_the_stance_back() -> None:
    with pytest.raises(ValueError, match="inside"), get_local.patch(make_function(), "attn"):
        raise ValueError("inside")
    assert stance() == "default"


IMPORT_AFTERWARDS = """
import sys
from visualizer import get_local

@get_local("attn")
def attend(x):
    attn = x * 2
    return attn + 1

get_local.activate()
hooks = len(sys.meta_path)
assert "torch" not in sys.modules
import torch
compiled = torch.compile(attend, backend="eager")
compiled(torch.ones(2))
assert len(sys.meta_path) == hooks - 1, sys.meta_path
assert not any("visualizer" in type(hook).__module__ for hook in sys.meta_path)
assert "visualizer" not in type(torch._dynamo.__spec__.loader).__module__
assert "visualizer" not in type(torch._dynamo.__loader__).__module__
assert torch._dynamo.eval_frame._stance.stance == "force_eager"
assert [v.tolist() for v in get_local.cache["attend"]] == [[2, 2]], get_local.cache
get_local.deactivate()
assert torch._dynamo.eval_frame._stance.stance == "default"
compiled(torch.ones(2))
assert len(get_local.cache["attend"]) == 1
"""

DEACTIVATE_BEFORE = """
import sys
from visualizer import get_local
before = list(sys.meta_path)
get_local.activate()
assert len(sys.meta_path) == len(before) + 1
get_local.deactivate()
assert sys.meta_path == before
import torch, torch._dynamo
assert torch._dynamo.eval_frame._stance.stance == "default"
"""


@pytest.mark.parametrize("code", [IMPORT_AFTERWARDS, DEACTIVATE_BEFORE])
def test_torch_imported_after_activation(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
