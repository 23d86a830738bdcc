"""Tensors of every type, layout and kind come out of a store as they went in."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.store.stored import bytes_of, put, through
from visualizer.errors import OverwrittenError
from visualizer.store import Row, Skipped, Store, StoreWriter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

QUANTISED = ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
TYPES = sorted(
    {
        str(found).removeprefix("torch.")
        for found in vars(torch).values()
        if isinstance(found, torch.dtype)
    }
    - set(QUANTISED)
)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda tensor: tensor,
    "0-d": lambda tensor: tensor[1, 2, 3],
    "empty": lambda tensor: tensor[:, :0],
    "sliced": lambda tensor: tensor[:, 1:],
    "permuted": lambda tensor: tensor.permute(2, 0, 1),
    "expanded": lambda tensor: tensor[:, :1].expand(2, 3, 4),
}


def bits(tensor: Tensor) -> list[bytes]:
    """Return the bytes of each value, read from where its strides say that it is."""
    memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()
    size, found = tensor.itemsize, []
    for place in itertools.product(*map(range, tensor.shape)):
        steps = (index * step for index, step in zip(place, tensor.stride(), strict=True))
        start = (tensor.storage_offset() + sum(steps)) * size
        found.append(memory[start : start + size])
    return found


def check_same(found: Any, expected: Tensor) -> None:
    assert type(found) is Tensor
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found.layout, found.device.type) == (expected.layout, "cpu")
    assert not (found.requires_grad or found.is_inference() or found.is_conj() or found.is_neg())
    assert bits(found) == bits(expected.detach())


def random_tensor(dtype: torch.dtype) -> Tensor:
    """Return a tensor of random bits."""
    generator = torch.Generator().manual_seed(0)
    highest = 2 if dtype is torch.bool else 256
    raw = torch.randint(0, highest, (24 * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(2, 3, 4)


def test_there_are_types_to_test() -> None:
    assert {"bfloat16", "complex32", "float8_e8m0fnu", "uint64", "float4_e2m1fn_x2"} <= {*TYPES}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TYPES)
def test_every_type_in_every_layout(name: str, layout: str) -> None:
    dtype = getattr(torch, name)
    tensor = LAYOUTS[layout](random_tensor(dtype))
    found = through(tensor)
    if isinstance(found, Skipped):
        with pytest.raises(NotImplementedError):  # torch itself can't copy it
            tensor.contiguous()
    else:
        check_same(found, tensor)


COMPLEX = torch.complex(torch.randn(3, 4), torch.randn(3, 4))
VIEWS: dict[str, Callable[[], Tensor]] = {
    "conjugate": lambda: COMPLEX.conj(),
    "conjugate of complex128": lambda: COMPLEX.to(torch.complex128).conj().T,
    "conjugate of complex32": lambda: COMPLEX.to(torch.complex32).conj(),
    "negative": lambda: COMPLEX.conj().imag,
    "overlapping": lambda: torch.arange(10.0).unfold(0, 4, 2),
    "diagonal": lambda: torch.arange(16.0).view(4, 4).diagonal(),
    "expanded twice": lambda: torch.randn(1, 3, 1).expand(4, 3, 5),
    "expanded and turned": lambda: torch.randn(3, 1).expand(3, 5).T,
    "of one": lambda: torch.randn(1, 1).expand(1, 1),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "rank 70": lambda: torch.randn([1] * 68 + [2, 3]).transpose(-1, 0),
    "of zeros": lambda: torch._efficientzerotensor(3, 2),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    view = VIEWS[name]()
    found = through(view)
    plain = view.resolve_conj().resolve_neg().clone()
    assert (found.dtype, found.shape) == (view.dtype, view.shape)
    assert (
        torch.equal(torch.view_as_real(found), torch.view_as_real(plain))
        if (view.is_complex())
        else torch.equal(found, plain)
    )


def test_what_is_expanded_is_stored_once(tmp_path: Path) -> None:
    store = put(tmp_path / "run", torch.randn(3, 1).expand(3, 10**9))
    assert bytes_of(store) == 12
    assert store.read(store.rows[0]).shape == (3, 10**9)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.bfloat16, 2), (torch.float8_e4m3fn, 1), (torch.complex32, 4)]
)
def test_each_type_takes_its_own_bytes(tmp_path: Path, dtype: torch.dtype, size: int) -> None:
    store = put(tmp_path / "run", torch.zeros(1000).to(dtype))
    assert bytes_of(store) == 1000 * size


@pytest.mark.parametrize("step", [1, 1000])
def test_a_slice_takes_its_own_bytes_only(tmp_path: Path, step: int) -> None:
    tensor = torch.arange(10**6)[1000 : 1000 + 10 * step : step]
    store = put(tmp_path / "run", tensor)
    assert bytes_of(store) == 80
    check_same(store.read(store.rows[0]), tensor)


def test_a_slice_keeps_nothing_else_alive(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    storage = weakref.ref(whole.untyped_storage())
    with StoreWriter(tmp_path / "run") as writer:
        writer.add(Row(kind="output", value=whole[10:20]))
        del whole
        gc.collect()
        assert storage() is None
    store = Store(tmp_path / "run")
    check_same(store.read(store.rows[0]), torch.arange(10.0, 20.0))


class Keeping(torch.autograd.Function):
    """Leaves something in the graph that can be told to be alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Any) -> Tensor:
        ctx.token = token
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * 2, None


class Token:
    """Something that a weak reference may lead to."""


def test_no_graph_stays_alive(tmp_path: Path) -> None:
    token = Token()
    alive = weakref.ref(token)
    made = Keeping.apply(torch.randn(4, requires_grad=True), token)
    expected = made.detach().clone()
    with StoreWriter(tmp_path / "run") as writer:
        writer.add(Row(kind="output", value=[made, made[1:], made.view(2, 2).T]))
        del made, token
        gc.collect()
        assert alive() is None
    store = Store(tmp_path / "run")
    found = store.read(store.rows[0])
    check_same(found[0], expected)
    check_same(found[1], expected[1:])
    check_same(found[2], expected.view(2, 2).T)


@pytest.mark.parametrize("in_background", [False, True])
def test_the_value_is_that_of_the_moment_it_was_added(tmp_path: Path, in_background: bool) -> None:
    tensor = torch.zeros(1000)
    parameter = torch.nn.Parameter(torch.zeros(3))
    with StoreWriter(tmp_path / "run", is_in_background=in_background) as writer:
        for _ in range(3):
            tensor += 1
            parameter.data += 1
            writer.add(Row(kind="output", value=(tensor, tensor[::2], parameter)))
        tensor.fill_(-1)
    store = Store(tmp_path / "run")
    for row, added in zip(store.rows, [1, 2, 3], strict=True):
        for found in store.read(row):
            assert (found == added).all()


def test_what_is_guarded_is_not_copied_but_watched(tmp_path: Path) -> None:
    changed, kept = torch.zeros(100), torch.ones(100)
    writer = StoreWriter(tmp_path / "run", memory="watched")
    writer.add(Row(kind="output", value=changed, module_path="a"))
    writer.add(Row(kind="output", value=kept, module_path="b"))
    changed[0] = 1
    with pytest.raises(OverwrittenError, match="the output of a, call 0"):
        writer.close()
    store = Store(tmp_path / "run")
    (row,) = store.rows
    assert row.module_path == "b"
    check_same(store.read(row), kept)


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda dense: dense.to_sparse(),
    "uncoalesced": lambda dense: torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 1], [1, 1, 0]]), torch.arange(3).to(dense.dtype), (2, 2)
    ),
    "hybrid": lambda dense: dense.view(2, 2, 6).to_sparse(2),
    "no values": lambda dense: torch.zeros_like(dense).to_sparse(),
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((2, 3)),
    "bsc": lambda dense: dense.to_sparse_bsc((2, 3)),
    "batched csr": lambda dense: torch.stack([dense, dense]).to_sparse_csr(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128, torch.int64])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse(name: str, dtype: torch.dtype) -> None:
    dense = torch.arange(24.0).view(4, 6)
    tensor = SPARSE[name](torch.where(dense % 5 < 2, dense, 0).to(dtype))
    found = through(tensor)
    assert (found.layout, found.shape, found.dtype) == (tensor.layout, tensor.shape, dtype)
    assert torch.equal(found.to_dense(), tensor.to_dense())
    if tensor.layout is torch.sparse_coo:
        assert found.is_coalesced() == tensor.is_coalesced()
        assert torch.equal(found._indices(), tensor._indices())
        assert torch.equal(found._values(), tensor._values())
    else:
        assert torch.equal(found.values(), tensor.values())


def test_quantised_as_a_whole() -> None:
    for dtype in (torch.qint8, torch.quint8, torch.qint32):
        tensor = torch.quantize_per_tensor(torch.randn(3, 4).T, 0.1, 3, dtype)
        found = through(tensor)
        assert (found.dtype, found.shape, found.q_scale()) == (dtype, (4, 3), tensor.q_scale())
        assert found.q_zero_point() == 3
        assert torch.equal(found.int_repr(), tensor.int_repr())
        assert torch.equal(found.dequantize(), tensor.dequantize())


@pytest.mark.parametrize("points", [torch.zeros(4, dtype=torch.int64), torch.rand(4)])
def test_quantised_by_channel(points: Tensor) -> None:
    scales = torch.rand(4, dtype=torch.float64) + 0.1
    tensor = torch.quantize_per_channel(torch.randn(3, 4), scales, points, 1, torch.quint8)
    found = through(tensor)
    assert (found.dtype, found.qscheme()) == (tensor.dtype, tensor.qscheme())
    assert found.q_per_channel_axis() == 1
    assert torch.equal(found.q_per_channel_scales(), tensor.q_per_channel_scales())
    assert torch.equal(found.q_per_channel_zero_points(), tensor.q_per_channel_zero_points())
    assert torch.equal(found.int_repr(), tensor.int_repr())


def test_what_torch_reads_no_integers_out_of_is_skipped() -> None:
    tensor = torch.quantize_per_channel(
        torch.randn(4, 6), torch.ones(4), torch.zeros(4), 0, torch.quint4x2
    )
    assert isinstance(through(tensor), Skipped)
    assert isinstance(through(torch.zeros(4, dtype=torch.uint8).view(torch.qint8)), Skipped)


NESTED: dict[str, Callable[[], Tensor]] = {
    "strided": lambda: torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]),
    "strided and ragged twice": lambda: torch.nested.nested_tensor(
        [torch.randn(2, 3), torch.randn(4, 5)], dtype=torch.float64
    ),
    "strided and turned": lambda: torch.nested.nested_tensor(
        [torch.randn(2, 3), torch.randn(4, 3)]
    ).transpose(1, 2),
    "nothing": lambda: torch.nested.nested_tensor([], dtype=torch.float64),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged
    ),
    "jagged and turned": lambda: torch.nested.nested_tensor(
        [torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged
    ).transpose(1, 2),
    "jagged with holes": lambda: torch.nested.narrow(
        torch.randn(3, 5, 2),
        1,
        torch.tensor([0, 1, 2]),
        torch.tensor([2, 1, 3]),
        layout=torch.jagged,
    ),
    "jagged bfloat16": lambda: torch.nested.nested_tensor(
        [torch.randn(2, 3).bfloat16(), torch.randn(4, 3).bfloat16()], layout=torch.jagged
    ),
    "jagged with a graph": lambda: (
        torch.nested.nested_tensor(
            [torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged, requires_grad=True
        )
        * 2
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested(name: str) -> None:
    tensor = NESTED[name]()
    found = through(tensor)
    assert found.is_nested
    assert (found.layout, found.dtype) == (tensor.layout, tensor.dtype)
    assert not found.requires_grad
    items = list(zip(found.unbind(), tensor.unbind(), strict=True))
    assert len(items) == len(tensor.unbind())
    for one, other in items:
        assert torch.equal(one, other)


def test_what_has_no_values_leaves_its_shape() -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.randn(3, 4)).bfloat16()
    for tensor in (torch.empty(3, 4, device="meta", dtype=torch.bfloat16), fake):
        found = through(tensor)
        assert found.is_meta
        assert (found.dtype, found.shape) == (torch.bfloat16, (3, 4))


class Named(Tensor):
    """A tensor of a class of its own, that interferes with everything."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs)
        return found * 2 if isinstance(found, Tensor) and found.is_floating_point() else found


def test_parameters_and_subclasses_are_their_values() -> None:
    tensor = torch.randn(3, 4)
    check_same(through(torch.nn.Parameter(tensor)), tensor)
    check_same(through(torch.nn.Buffer(tensor)), tensor)
    check_same(through(tensor.clone().as_subclass(Named)), tensor)


class Wrapping(Tensor):
    """A tensor that is made of another."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("not to be touched")


def test_tensors_that_stand_for_others_are_skipped() -> None:
    inside: list[Any] = []

    def seen(x: Tensor) -> Tensor:
        inside.append(through(x))
        return x

    torch.func.vmap(seen)(torch.randn(2, 3))
    for found in (
        through(Wrapping(torch.randn(3))),
        through(torch.nn.UninitializedParameter()),
        inside[0],
    ):
        assert isinstance(found, Skipped)
        assert len(found.text) <= 201


def test_memory_that_was_taken_from_a_tensor_is_not_read() -> None:
    """As sharded training does between two forwards."""
    tensor = torch.randn(1000)
    view = tensor[5:].view(5, 199).T
    tensor.untyped_storage().resize_(0)
    for found in through([tensor, view]):
        assert isinstance(found, Skipped)
        assert "lost its memory" in found.text


def test_other_layouts_come_back_dense() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without MKL-DNN")
    tensor = torch.randn(3, 4)
    check_same(through(tensor.to_mkldnn()), tensor)


class Counting(TorchDispatchMode):
    """Counts what passes, and spoils it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        found = func(*args, **(kwargs or {}))
        return found + 1 if isinstance(found, Tensor) and found.is_floating_point() else found


def surroundings() -> Iterator[Any]:
    yield from (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"))
    yield from (FakeTensorMode(), Counting(), torch.device("meta"))


@pytest.mark.parametrize("number", range(6))
def test_whatever_is_switched_on_around_it(number: int) -> None:
    tensors = [torch.randn(3, 4), torch.randn(4, 3).T, torch.randn(3, 1).expand(3, 4)]
    coo = torch.eye(3).to_sparse()
    mode = list(surroundings())[number]
    with mode:
        found, sparse = through(tensors), through(coo)
    for one, expected in zip(found, tensors, strict=True):
        check_same(one, expected)
    assert torch.equal(sparse.to_dense(), torch.eye(3))
    assert getattr(mode, "count", 0) == 0


def test_inference_tensors() -> None:
    with torch.inference_mode():
        tensor = torch.randn(3, 4)
        views = [tensor[1:], tensor.T]
    assert tensor.is_inference()
    check_same(through(tensor), tensor)
    for found, view in zip(through(views), views, strict=True):
        assert not found.is_inference()
        assert torch.equal(found, view)


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_tensors_are_skipped_and_not_gathered() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    found = through(distribute_tensor(torch.randn(4, 3), mesh, [Shard(0)]))
    assert isinstance(found, Skipped)
    assert "DTensor" in found.type_name
