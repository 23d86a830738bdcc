"""Snapshots of tensors: owned arrays of the right type, without graph, whatever comes after."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local
from visualizer._capture.snapshot import snapshot

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize(
    "dtype",
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64 "
    "complex128".split(),
)
def test_types_that_numpy_has_stay(dtype: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    taken = snapshot(tensor)
    assert type(taken) is np.ndarray
    assert taken.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(taken, np.arange(6).reshape(2, 3).astype(dtype))


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("bfloat16", "float32"),
        ("float8_e4m3fn", "float32"),
        ("float8_e5m2", "float32"),
        ("float8_e4m3fnuz", "float32"),
        ("float8_e5m2fnuz", "float32"),
        ("complex32", "complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_types_that_numpy_lacks(dtype: str, becomes: str) -> None:
    tensor = torch.tensor([0.5, -2.0, 1.75]).to(getattr(torch, dtype))
    taken = snapshot(tensor)
    assert taken.dtype == np.dtype(becomes)
    assert taken.tolist() == [0.5, -2.0, 1.75]


def base() -> Any:
    return torch.arange(24.0).reshape(2, 3, 4)


LAYOUTS: dict[str, Callable[[], Any]] = {
    "contiguous": base,
    "transposed": lambda: base().transpose(1, 2),
    "strided": lambda: base()[:, ::2, 1:],
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
    "flipped": lambda: base().flip(0),
    "no dimension": lambda: torch.tensor(5.0),
    "empty": lambda: torch.empty(0, 3),
    "channels last": lambda: torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "parameter": lambda: torch.nn.Parameter(base()),
    "buffer": lambda: torch.nn.Buffer(base()),
    "requires grad": lambda: base().requires_grad_(),
    "inside a graph": lambda: base().requires_grad_() * 2,
    "conjugate": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "inference": lambda: made_in(torch.inference_mode()),
}


def made_in(mode: Any) -> Any:
    with mode:
        return base() + 1


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_are_owned_and_writable(make: Callable[[], Any]) -> None:
    tensor = make()
    taken = snapshot(tensor)
    expected = tensor.detach().clone().resolve_conj().resolve_neg().numpy()
    np.testing.assert_array_equal(taken, expected)
    assert taken.dtype == expected.dtype
    assert taken.shape == tuple(tensor.shape)
    assert taken.flags.owndata
    assert taken.flags.writeable
    taken[...] = -5
    after = tensor.detach().clone().resolve_conj().resolve_neg().numpy()
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.zero_(),
        lambda tensor: tensor.add_(1),
        lambda tensor: tensor.view(-1)[2:].mul_(-1),
        lambda tensor: tensor[0, 1].fill_(9),
        lambda tensor: tensor.transpose(0, 1).copy_(torch.zeros(3, 2, 4)),
        lambda tensor: tensor.numpy().fill(3),
        lambda tensor: tensor.untyped_storage().fill_(0),
        lambda tensor: torch.relu_(tensor.neg_()),
        lambda tensor: tensor.resize_(1),
    ],
)
def test_changes_in_place_are_not_seen(change: Callable[[Any], Any]) -> None:
    get_local.activate()

    @get_local("attn")
    def attend(x: Any) -> Any:
        attn = x[...]
        return attn

    tensor = base()
    attend(tensor)
    change(tensor)
    np.testing.assert_array_equal(get_local.cache["attend"][0], base().numpy())


def test_a_change_of_the_base_of_a_view_is_not_seen() -> None:
    tensor = base()
    taken = snapshot(tensor[1].T)
    tensor.zero_()
    np.testing.assert_array_equal(taken, base()[1].T.numpy())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_become_dense() -> None:
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    for sparse in (dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc()):
        np.testing.assert_array_equal(snapshot(sparse), dense.numpy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_tensors_become_what_they_stand_for() -> None:
    try:
        tensor = torch.quantize_per_tensor(torch.tensor([0.5, 1.0]), 0.25, 0, torch.qint8)
    except (RuntimeError, AttributeError) as error:
        pytest.skip(f"no quantized tensors here: {error}")
    taken = snapshot(tensor)
    assert taken.dtype == np.float32
    assert taken.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("layout", ["strided", "jagged"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_become_lists_of_arrays(layout: str) -> None:
    parts = [torch.ones(2, 3), torch.zeros(1, 3)]
    nested = torch.nested.nested_tensor(parts, layout=getattr(torch, layout))
    taken = snapshot(nested)
    assert [part.tolist() for part in taken] == [part.tolist() for part in parts]
    assert all(type(part) is np.ndarray for part in taken)


class Tagged(torch.Tensor):  # type: ignore[misc]
    """A subclass that only adds a name."""


class Logging(torch.Tensor):  # type: ignore[misc]
    """A subclass that sees every function that is called on it."""

    seen: list[str] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", repr(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Tagged, Logging])
def test_subclasses_become_plain_arrays(kind: Any) -> None:
    tensor = base().as_subclass(kind)
    taken = snapshot(tensor)
    assert type(taken) is np.ndarray
    tensor.zero_()
    np.testing.assert_array_equal(taken, base().numpy())


def test_no_graph_is_held() -> None:
    get_local.activate()
    saved: list[Any] = []

    @get_local("attn", "found")
    def attend(x: Any) -> Any:
        attn = (x * x).exp()
        found = {"attn": [attn]}
        saved.append(weakref.ref(attn))
        return attn.sum()

    out = attend(torch.ones(3, requires_grad=True))
    del out
    gc.collect()
    assert saved[0]() is None
    assert get_local.cache["attend.attn"][0].shape == (3,)
    assert type(get_local.cache["attend.found"][0]["attn"][0]) is np.ndarray


def test_structures_of_tensors() -> None:
    q = torch.zeros(2)
    value = {"q": q, "layers": [q, (torch.ones(1, dtype=torch.bfloat16), None)], "n": 3}
    taken = snapshot(value)
    q.add_(1)
    value["layers"][1][0].zero_()
    assert taken["q"].tolist() == [0, 0]
    assert taken["layers"][0] is taken["q"]
    assert taken["layers"][1][0].tolist() == [1]
    assert taken["layers"][1][1] is None
    assert taken["n"] == 3


@dataclass
class Output:
    attn: Any
    cache: list[Any]


def test_dataclasses_of_tensors() -> None:
    value = Output(torch.ones(2), [torch.ones(1)])
    taken = snapshot(value)
    value.attn.zero_()
    value.cache[0].zero_()
    assert type(taken) is Output
    assert taken.attn.tolist() == [1, 1]
    assert taken.cache[0].tolist() == [1]


def test_named_tuples_and_structseqs() -> None:
    taken = snapshot(torch.tensor([[1.0, 3.0]]).max(dim=1))
    assert taken.values.tolist() == [3]
    assert taken.indices.tolist() == [1]


def test_torch_objects_that_are_no_tensors() -> None:
    assert snapshot(torch.float32) == snapshot(torch.float32)
    module = torch.nn.Linear(1, 1)
    assert snapshot(module).value is module
    assert tuple(snapshot(torch.Size([1, 2]))) == (1, 2)


def test_without_numpy_an_entry_is_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without numpy says so when an array is asked for."""

    def numpy(self: Any, *, force: bool = False) -> Any:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", numpy)
    tensor = base().requires_grad_()
    taken = snapshot(tensor)
    assert isinstance(taken, torch.Tensor)
    assert not taken.requires_grad
    with torch.no_grad():
        tensor.zero_()
    assert torch.equal(taken, base())


def test_model_outputs(captured_warnings: Recorded) -> None:
    outputs = pytest.importorskip(
        "transformers.modeling_outputs", reason="transformers is not installed"
    )
    hidden = torch.ones(1, 2)
    value = outputs.BaseModelOutput(last_hidden_state=hidden, attentions=(torch.ones(1), None))
    taken = snapshot(value)
    hidden.zero_()
    assert type(taken) is outputs.BaseModelOutput
    assert taken.last_hidden_state.tolist() == [[1, 1]]
    assert taken["attentions"][0].tolist() == [1]
    assert type(taken.last_hidden_state) is np.ndarray
    assert list(taken) == ["last_hidden_state", "attentions"]
    assert torch.equal(value.attentions[0], torch.ones(1))
