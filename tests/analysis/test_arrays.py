"""What every function takes: tensors, arrays and lists of any type; and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from visualizer.analysis import (  # noqa: E402
    attention_distance,
    diagonal_mass,
    entropy,
    mass,
    rollout,
    specialization,
)
from visualizer.errors import NotWeightsError, ShapeError  # noqa: E402

Analysis = Callable[[Any], Any]

FUNCTIONS: dict[str, Analysis] = {
    "rollout": rollout,
    "entropy": entropy,
    "normalized entropy": lambda w: entropy(w, normalized=True),
    "distance": attention_distance,
    "distance on a grid": lambda w: attention_distance(w, (1, 2), patch_size=2, prefix_tokens=1),
    "mass": lambda w: mass(w, [0, 2]),
    "diagonal mass": diagonal_mass,
    "specialization, entropy": lambda w: specialization(w).entropy,
    "specialization, distance": lambda w: specialization(w).distance,
    "specialization, prefix": lambda w: specialization(w).prefix_mass,
    "specialization, diagonal": lambda w: specialization(w).diagonal_mass,
}

# Two layers or heads; every type has these numbers.
WEIGHTS = [
    [[0.5, 0.25, 0.25], [0.25, 0.0, 0.75], [0.125, 0.375, 0.5]],
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]],
]
ONE_HOTS = [[[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 1, 0], [0, 1, 0], [1, 0, 0]]]

CAUSAL = [
    [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.125, 0.375, 0.5]],
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]],
]

each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def check_result(function: Analysis, given: Any, dtype: str, weights: Any = WEIGHTS) -> None:
    """Compare with the result of float64: values, shape, type."""
    expected = function(np.array(weights, np.float64))
    got = function(given)
    assert type(got) is np.ndarray
    assert got.dtype == np.dtype(dtype)
    assert got.shape == expected.shape
    assert got.flags.writeable
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@each_function
def test_lists_of_numbers(function: Analysis) -> None:
    check_result(function, WEIGHTS, "float64")
    check_result(function, tuple(tuple(map(tuple, layer)) for layer in WEIGHTS), "float64")


@each_function
@pytest.mark.parametrize(
    ("dtype", "becomes"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")]
)
def test_arrays_and_lists_of_them(function: Analysis, dtype: str, becomes: str) -> None:
    array = np.array(WEIGHTS, dtype)
    check_result(function, array, becomes)
    check_result(function, list(array), becomes)
    check_result(function, tuple(list(layer) for layer in array), becomes)


@each_function
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int64", "uint64"])
def test_whole_numbers(function: Analysis, dtype: str) -> None:
    check_result(function, np.array(ONE_HOTS, dtype), "float32", ONE_HOTS)
    check_result(function, ONE_HOTS, "float32", ONE_HOTS)


@each_function
def test_mixed_types_take_the_widest(function: Analysis) -> None:
    first, second = (np.array(layer) for layer in WEIGHTS)
    check_result(function, [first.astype(np.float32), second], "float64")
    check_result(function, [first.astype(np.float16), second.astype(np.float32)], "float32")


@each_function
@pytest.mark.parametrize(
    "lay_out",
    [
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
        lambda array: array[::-1].copy()[::-1],
    ],
    ids=["Fortran", "strided", "backwards"],
)
def test_layouts_in_memory(function: Analysis, lay_out: Callable[[Any], Any]) -> None:
    check_result(function, lay_out(np.array(WEIGHTS)), "float64")


@each_function
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_arrays_are_neither_changed_nor_shared(function: Analysis, dtype: str) -> None:
    array = np.array(WEIGHTS, dtype)
    before = array.copy()
    array.flags.writeable = False
    got = function(array)
    assert not np.shares_memory(got, array)
    array.flags.writeable = True
    got[...] = -1
    np.testing.assert_array_equal(array, before)


@each_function
def test_lists_are_not_changed(function: Analysis) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = [torch.tensor(layer) for layer in WEIGHTS]
    given = list(tensors)
    function(given)
    assert [a is b for a, b in zip(given, tensors, strict=True)] == [True, True]


@each_function
@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("float64", "float64"),
        ("float32", "float32"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float8_e4m3fn", "float32"),
        ("float8_e5m2", "float32"),
    ],
)
def test_tensors_and_lists_of_them(function: Analysis, dtype: str, becomes: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.tensor(WEIGHTS).to(getattr(torch, dtype))
    weights = tensor.double().tolist()  # float8_e5m2 rounds, to what sums to 1 still
    check_result(function, tensor, becomes, weights)
    check_result(function, list(tensor), becomes, weights)
    check_result(function, [tuple(layer) for layer in tensor], becomes, weights)


@each_function
@pytest.mark.parametrize("dtype", ["bool", "int8", "int64"])
def test_tensors_of_whole_numbers(function: Analysis, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.tensor(ONE_HOTS, dtype=getattr(torch, dtype))
    check_result(function, tensor, "float32", ONE_HOTS)


@each_function
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_with_gradients(function: Analysis, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    leaf = torch.tensor(WEIGHTS, dtype=getattr(torch, dtype), requires_grad=True)
    for tensor in (leaf, leaf * 1, torch.nn.Parameter(leaf.detach().clone())):
        before = tensor.detach().clone()
        check_result(function, tensor, "float32")
        check_result(function, list(tensor), "float32")
        function(tensor)[...] = -1
        assert torch.equal(tensor, before)
        assert tensor.requires_grad


def test_bfloat16_keeps_its_range() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.tensor([[1.0, 2.0**-100]], dtype=torch.bfloat16)
    assert mass(tensor, 1).tolist() == [2.0**-100]


@each_function
def test_tensors_beside_arrays(function: Analysis) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    first = torch.tensor(WEIGHTS[0], dtype=torch.bfloat16)
    check_result(function, [first, np.array(WEIGHTS[1], np.float16)], "float32")
    check_result(function, [first, WEIGHTS[1]], "float64")


def causal_entropy(weights: Any) -> Any:
    return entropy(weights, normalized=True, causal=True)


@pytest.mark.parametrize(
    ("dtype", "becomes"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")]
)
def test_causal_arrays_and_lists_of_them(dtype: str, becomes: str) -> None:
    array = np.array(CAUSAL, dtype)
    for given in (array, list(array), np.asfortranarray(array), array[::-1].copy()[::-1]):
        check_result(causal_entropy, given, becomes, CAUSAL)
    check_result(causal_entropy, CAUSAL, "float64", CAUSAL)
    check_result(causal_entropy, np.array([np.eye(3)] * 2, bool), "float32", [np.eye(3)] * 2)


@pytest.mark.parametrize(
    ("dtype", "becomes"), [("float64", "float64"), ("float16", "float32"), ("bfloat16", "float32")]
)
def test_causal_tensors_and_lists_of_them(dtype: str, becomes: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.tensor(CAUSAL, dtype=getattr(torch, dtype), requires_grad=True)
    check_result(causal_entropy, tensor, becomes, CAUSAL)
    check_result(causal_entropy, list(tensor), becomes, CAUSAL)


@pytest.mark.gpu
@each_function
def test_tensors_on_a_device(function: Analysis) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    tensor = torch.tensor(WEIGHTS, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    check_result(function, tensor, "float32")
    check_result(function, [tensor[0], tensor[1].cpu()], "float32")


def test_types_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    check_result(entropy, np.array(WEIGHTS, ml_dtypes.bfloat16), "float32")


def test_torch_is_not_loaded() -> None:
    code = (
        "import sys; from visualizer.analysis import rollout; rollout([[[1, 0], [0, 1]]]); "
        "print('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.split() == ["False"], finished.stderr


@each_function
@pytest.mark.parametrize(
    "values",
    [[[[1.0], [0.5, 0.5]]], [np.eye(2), np.eye(3)], [np.eye(2), 1.0]],
    ids=["numbers", "arrays", "mixed"],
)
def test_lists_of_unequal_lengths_are_refused(function: Analysis, values: Any) -> None:
    with pytest.raises(
        ShapeError, match="can't be made an array.*lists of equal lengths"
    ) as caught:
        function(values)
    assert ". Expected a tensor, an array, or lists of equal lengths" in str(caught.value)
    assert ".." not in str(caught.value)


@each_function
@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (None, "got NoneType"),
        ("attention", "got str: its type is <U9"),
        ([["a", "b"]], "got list: its type is <U1"),
        ({"attn": 1}, "got dict: its type is object"),
        (np.eye(2) * 1j, "got ndarray: its type is complex128"),
        (np.eye(2).astype("M8[s]"), "its type is datetime64"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(
    function: Analysis, values: Any, seen: str
) -> None:
    with pytest.raises(ShapeError, match="weights must be an array of real numbers") as caught:
        function(values)
    assert seen in str(caught.value)


def test_complex_and_sparse_tensors_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(ShapeError, match="real numbers, got Tensor: its type is complex64"):
        entropy(torch.eye(2, dtype=torch.complex64))
    with pytest.raises(ShapeError, match="to_dense"):
        entropy(torch.eye(2).to_sparse())


def spoil(place: tuple[int, ...], value: float) -> Any:
    array = np.array(WEIGHTS)
    array[place] = value
    return array


@each_function
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(function: Analysis, value: float) -> None:
    array = spoil((1, 2, 0), value)
    with pytest.raises(NotWeightsError, match="1 rows with NaN or infinity") as caught:
        function(array)
    assert "of shape (2, 3, 3)" in str(caught.value)
    assert (
        "the first at [1, 2]. Are these masked scores before softmax? Where a mask hides every "
        "key, softmax gives NaN: drop those queries"
    ) in str(caught.value)


@each_function
def test_rows_that_a_mask_hides_are_counted(function: Analysis) -> None:
    array = spoil((0, 1), float("nan"))
    array[1, 0] = array[1, 2] = float("nan")
    with pytest.raises(NotWeightsError, match=r"3 rows with NaN.*the first at \[0, 1\]"):
        function(array)


@each_function
def test_negative_values_are_refused(function: Analysis) -> None:
    with pytest.raises(NotWeightsError, match="negative values, down to -0.25.*scores") as caught:
        function(spoil((0, 1, 0), -0.25))
    assert "of shape (2, 3, 3)" in str(caught.value)


@each_function
@pytest.mark.parametrize(
    ("weights", "found", "cause"),
    [
        (spoil((1, 1, 0), 0.25), "the one at [1, 1] sums to 0.75", "Were keys cut off, or does"),
        (spoil((1, 1, 0), 0.75), "the one at [1, 1] sums to 1.25", "Are these scores before"),
        (np.swapaxes(WEIGHTS, 1, 2), "the one at [0, 0] sums to 0.875", "Its columns sum to 1"),
        (np.zeros((2, 3, 3)), "the one at [0, 0] sums to 0", "Were keys cut off"),
        (np.array(WEIGHTS) * 12, "the one at [0, 0] sums to 12", "summed heads"),
    ],
    ids=["cut off", "too much", "swapped", "nothing", "summed heads"],
)
def test_rows_that_do_not_sum_to_one_are_refused(
    function: Analysis, weights: Any, found: str, cause: str
) -> None:
    with pytest.raises(NotWeightsError, match="expected 1") as caught:
        function(weights)
    assert "of shape (2, 3, 3)" in str(caught.value)
    assert found in str(caught.value)
    assert cause in str(caught.value)


@each_function
def test_sums_may_be_off_by_rounding_and_no_more(function: Analysis) -> None:
    weights = np.array(WEIGHTS)
    for error in (0.985, 1.015):
        got = function(weights * error)
        np.testing.assert_allclose(got, function(weights), rtol=1e-12, atol=1e-14)
    for error in (0.975, 1.025):
        with pytest.raises(NotWeightsError, match=f"sums to {error}"):
            function(weights * error)


@each_function
def test_errors_are_value_errors(function: Analysis) -> None:
    for values in ([1.0, 0.0], None, np.full((2, 3, 3), 5.0)):
        with pytest.raises(ValueError, match="weights"):
            function(values)
