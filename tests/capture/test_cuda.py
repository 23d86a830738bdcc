"""Copies from a GPU: asynchronous, bounded, and right whatever the program does next."""

from __future__ import annotations

from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local
from visualizer._capture.device_copies import copies
from visualizer._capture.snapshot import snapshot

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
MIB = 2**20


def make_function() -> Any:
    @get_local("attn")
    def attend(x: Any) -> Any:
        attn = x
        return attn

    return attend


def busy_stream() -> None:
    """Queue work of some milliseconds, so that what comes next has to wait for it."""
    torch.cuda._sleep(50_000_000)


def test_the_value_is_that_of_the_return() -> None:
    get_local.activate()
    attend = make_function()
    x = torch.arange(MIB, dtype=torch.float32, device="cuda")
    expected = x.cpu().numpy()
    busy_stream()
    attend(x)
    x.zero_()
    x[5:].fill_(7)
    del x
    torch.full((MIB,), -1.0, device="cuda")
    np.testing.assert_array_equal(get_local.cache["attend"][0], expected)


def test_the_copy_does_not_wait_for_the_stream() -> None:
    x = torch.ones(MIB, device="cuda")
    torch.cuda.synchronize()
    busy_stream()
    end = torch.cuda.Event()
    end.record()
    array = snapshot(x)
    was_running = not end.query()
    copies.wait()
    assert was_running, "the snapshot waited for the stream"
    assert (array == 1).all()


def test_reading_waits() -> None:
    get_local.activate()
    attend = make_function()
    x = torch.zeros(MIB, device="cuda")
    held = get_local.cache["attend"]
    for number in range(4):
        busy_stream()
        x += 1
        attend(x)
    assert copies._on_their_way
    assert [values[-1] for values in held] == [1, 2, 3, 4]
    assert not copies._on_their_way


def test_memory_on_its_way_is_bounded() -> None:
    get_local.activate()
    attend = make_function()
    x = torch.zeros(16 * MIB, device="cuda")  # 64 MiB
    most = 0
    for _ in range(12):
        x += 1
        attend(x)
        most = max(most, copies._bytes)
    assert 64 * MIB < most <= 256 * MIB
    found = get_local.cache["attend"]
    assert [(values[0], values[-1]) for values in found] == [(n, n) for n in range(1, 13)]
    assert copies._bytes == 0


def test_a_tensor_that_is_larger_than_the_bound() -> None:
    x = torch.ones(80 * MIB, device="cuda")  # 320 MiB
    array = snapshot(x)
    assert copies._bytes == 0
    assert (array == 1).all()


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("float16", "float16"), ("bfloat16", "float32"), ("float8_e4m3fn", "float32"),
        ("float64", "float64"), ("int64", "int64"), ("bool", "bool"), ("uint16", "uint16"),
        ("complex64", "complex64"),
    ],
)  # fmt: skip
def test_types(dtype: str, becomes: str) -> None:
    tensor = torch.tensor([0.0, 1.0, 2.0]).to(getattr(torch, dtype))
    array = snapshot(tensor.cuda())
    copies.wait()
    assert array.dtype == np.dtype(becomes)
    np.testing.assert_array_equal(array, np.array([0, 1, 2]).astype(becomes))


LAYOUTS = {
    "transposed": lambda x: x.T,
    "strided": lambda x: x[::2, 1:],
    "expanded": lambda x: x[:1].expand(5, -1),
    "no dimension": lambda x: x.sum(),
    "empty": lambda x: x[:0],
    "sparse": lambda x: x.to_sparse(),
    "parameter": lambda x: torch.nn.Parameter(x),
    "graph": lambda x: x.requires_grad_() * 2,
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "negative": lambda x: torch.complex(x, x).conj().imag,
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(change: Any) -> None:
    cpu = torch.arange(12.0).reshape(4, 3)
    array = snapshot(change(cpu.cuda()))
    copies.wait()
    np.testing.assert_array_equal(array, snapshot(change(cpu)))
    assert array.flags.owndata
    assert array.flags.writeable


def test_streams_of_their_own() -> None:
    get_local.activate()
    attend = make_function()
    streams = [torch.cuda.Stream() for _ in range(4)]
    tensors = [torch.zeros(MIB, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    for step in range(3):
        for number, (stream, x) in enumerate(zip(streams, tensors, strict=True)):
            with torch.cuda.stream(stream):
                busy_stream()
                x += number + 1
                attend(x)
                x.mul_(1)
    found = [(values[0], values[-1]) for values in get_local.cache["attend"]]
    assert found == [((n + 1) * (step + 1),) * 2 for step in range(3) for n in range(4)]
    torch.cuda.synchronize()


def test_structures_on_the_device() -> None:
    get_local.activate()
    attend = make_function()
    x = torch.ones(3, device="cuda")
    attend({"q": x, "layers": [x * 2, (x.bfloat16() * 3, None)]})
    x.zero_()
    (taken,) = get_local.cache["attend"]
    assert taken["q"].tolist() == [1, 1, 1]
    assert taken["layers"][0].tolist() == [2, 2, 2]
    assert taken["layers"][1][0].tolist() == [3, 3, 3]


def test_a_graph_that_is_captured_is_refused(captured_warnings: Recorded) -> None:
    get_local.activate()

    @get_local("attn")
    def attend(x: Any) -> Any:
        attn = x * 2
        return attn + 1

    x = torch.ones(4, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        attend(x)
    torch.cuda.synchronize()
    get_local.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(x)
    x.fill_(5)
    graph.replay()
    assert out.tolist() == [11] * 4
    assert get_local.cache["attend"] == []
    (warning,) = captured_warnings
    assert "because a CUDA graph was being captured" in str(warning.message)


def test_gradients_flow_and_results_stay() -> None:
    def run() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.MultiheadAttention(16, 4, batch_first=True, device="cuda")
        x = torch.randn(2, 9, 16, device="cuda", requires_grad=True)
        out, _ = model(x, x, x)
        out.square().sum().backward()
        return out.detach(), x.grad

    plain = run()
    target = "torch.nn.functional:multi_head_attention_forward"
    with get_local.patch(target, "attn_output_weights"):
        captured = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))
    (weights,) = get_local.cache["multi_head_attention_forward"]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
