"""Python's own values come out of a store as they went in; what can't be held leaves its type."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import fractions
import json
import math
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import visualizer
from tests.store.stored import put, through
from visualizer.errors import DamagedError
from visualizer.store import Fields, Row, Skipped, Store
from visualizer.store.index import seal


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, of the same types, and NaN where the other is."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (one != one and other != other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, dict):
        return same([*one.items()], [*other.items()])
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


VALUES: dict[str, Any] = {
    "none": None,
    "truth": [True, False],
    "integers": [0, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64],
    "10,000 digits": [7**12000, -(7**12000)],
    "floats": [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 0.1, 1.7976931348623157e308],
    "complex": [1j, complex(-0.0, -0.0), complex(math.nan, -math.inf), complex(0.0, -0.0)],
    "texts": ["", "é\0\n\r\u2028", "😀", "\x7f", "a" * 10**5],
    "lone surrogates": ["\ud800", "\ud83d\ude00", "a\udfffb", {"\udc80": "\udc80"}],
    "bytes": [b"", b"\0\xff", bytes(range(256)), bytearray(b"\0"), b"\0" * 10**5],
    "much": [np.random.default_rng(0).bytes(10**5), bytearray(10**5)],
    "fractions": [fractions.Fraction(-1, 3), fractions.Fraction(10**5000, 7)],
    "decimals": [decimal.Decimal("-0.00"), decimal.Decimal("Infinity"), decimal.Decimal("1E+999")],
    "ranges": [range(0), range(5, -3, -2), range(10**30, 10**30 + 2)],
    "the ellipsis": ...,
    "lists and tuples": [[], (), [()], ([],), [[[1], (2,)], "3"], (1,)],
    "dicts": {"": {}, "kind": "tensor", "items": [], "id": 0, "same": {"as": 3}},
    "odd keys": {
        (1, "a"): 1,
        None: 2,
        True: 3,
        2.5: 4,
        b"b": 5,
        (): 6,
        -1: 7,
        "1": 8,
        10**30: 9,
        frozenset: 10,
    },
    "ordered": collections.OrderedDict([("b", 1), ("a", [2])]),
}
VALUES["odd keys"].pop(frozenset)


@pytest.mark.parametrize("name", VALUES)
def test_plain_values(name: str) -> None:
    value = VALUES[name]
    assert same(through(value), value)


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    # as a tokenizer leaves them, with halves of characters
    | st.text(st.characters(categories=["Cs", "Lu"]))
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_tree(value: Any) -> None:
    assert same(through(value), value)


def test_what_is_shared_stays_shared() -> None:
    part, array, tensor = [1], np.arange(3), torch.arange(3)
    found = through({"a": [part, array, tensor], "b": (part, array, tensor)})
    for one, other in zip(found["a"], found["b"], strict=True):
        assert one is other
    found = through([[1], [1]])
    assert found[0] is not found[1]


def test_what_is_in_itself() -> None:
    line: list[Any] = [1]
    line.append(line)
    found = through(line)
    assert found[1] is found
    box: dict[str, Any] = {}
    box["a"] = ({"box": box}, [box])
    found = through(box)
    assert found["a"][0]["box"] is found["a"][1][0] is found
    node = Node(1, None)
    node.other = [node]
    found = through(node)
    assert found.other[0] is found


def test_a_tuple_in_itself_is_cut() -> None:
    inner: list[Any] = []
    outer = (inner, 7)
    inner.append(outer)
    found = through(outer)
    assert found[1] == 7
    assert isinstance(found[0][0], Skipped)
    found = through(inner)
    assert found[0][0] is found  # the list can be: it is made before its parts
    assert found[0][1] == 7


def test_nested_too_deep_is_cut_and_not_raised() -> None:
    value: Any = "end"
    for depth in range(20_000):
        value = ([value], (value,), {"a": value})[depth % 3]
    found, depth = through(value), 0
    while not isinstance(found, Skipped):
        found, depth = next(iter(found.values() if isinstance(found, dict) else found)), depth + 1
    assert depth == 101
    assert "deeper than 100" in found.text
    value = ["end"]
    for _ in range(99):
        value = [value]
    assert through(value) == value


class Pair(NamedTuple):
    """Two things."""

    first: Any
    second: Any


class Point(collections.namedtuple("Point", "x, y")):
    """With a method of its own."""

    def norm(self) -> float:
        return math.hypot(*self)


class Twisted(tuple[Any, ...]):
    """Says that it has fields, which it has not."""

    _fields = (1, 2)


@dataclasses.dataclass
class Node:
    """One that can be in itself."""

    value: Any
    other: Any
    unset: Any = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """One with slots, and fields that are called like methods of a dict."""

    items: Any
    values: Any


def test_named_tuples_have_their_names() -> None:
    found = through(Pair(torch.ones(2), second=[1]))
    assert isinstance(found, tuple)
    assert found.first.tolist() == [1, 1]
    assert found.second == found[1] == [1]
    assert type(found).__name__ == "Pair"
    assert through(Point(3, 4)) == (3, 4)
    assert through(Point(3, 4)).y == 4
    assert repr(through(Point(3, 4))) == "Point(x=3, y=4)"


def test_what_torch_returns_has_its_names() -> None:
    made = torch.max(torch.arange(6.0).view(2, 3), dim=1)
    found = through(made)
    assert torch.equal(found.values, made.values)
    assert torch.equal(found.indices, made.indices)
    assert found[1] is found.indices
    assert type(found).__name__ == "max"


@pytest.mark.parametrize(
    "value",
    [
        torch.Size([2, 3]),
        Twisted((1, 2)),
        collections.namedtuple("Renamed", "class, a, a", rename=True)(1, 2, 3),
        time.gmtime(0),
    ],
)
def test_other_tuples_are_tuples(value: Any) -> None:
    found = through(value)
    assert isinstance(found, tuple)
    assert tuple(found) == tuple(value)


def test_dataclasses_have_their_fields() -> None:
    found = through(Node(torch.ones(2), {"a": 1}))
    assert isinstance(found, Fields)
    assert found.type_name == f"{__name__}:Node"
    assert found.value.tolist() == found["value"].tolist() == found[0].tolist() == [1, 1]
    assert found.other == {"a": 1}
    with pytest.raises(AttributeError, match=r"Node had no attribute 'unset'"):
        _ = found.unset
    with pytest.raises(KeyError):
        _ = found["unset"]
    with pytest.raises(IndexError):
        _ = found[2]
    found = through(Frozen(1, [2]))
    assert (found["items"], found["values"], found[1]) == (1, [2], [2])


def test_a_models_output() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    made = outputs.BaseModelOutputWithPast(
        last_hidden_state=torch.ones(1, 2), hidden_states=(torch.zeros(3), torch.ones(3))
    )
    found = through(made)
    assert list(found) == list(made.keys())
    assert found.last_hidden_state is found["last_hidden_state"] is found[0]
    assert torch.equal(found[0], made[0])
    assert torch.equal(found.hidden_states[1], torch.ones(3))
    assert found[1:][0] is found.hidden_states
    assert found.attentions is None is made.attentions
    assert "attentions" not in found
    assert through(found).attentions is None
    with pytest.raises(AttributeError):
        _ = found.nothing


def test_dicts_of_a_class_of_their_own() -> None:
    found = through(collections.defaultdict(list, {"a": [1], 5: 2}))
    assert isinstance(found, Fields)
    assert found == {"a": [1], 5: 2}
    assert found.type_name == "collections:defaultdict"
    assert through(collections.Counter("abca")) == {"a": 2, "b": 1, "c": 1}


def test_what_was_read_is_written_as_it_was() -> None:
    for value in (Pair(1, 2), Node(1, 2), collections.Counter("a"), object()):
        once = through([value])[0]
        twice = through([once])[0]
        assert repr(once) == repr(twice)
        assert type(once).__qualname__ == type(twice).__qualname__
        assert (once.type_name if isinstance(once, Fields) else 0) == (
            twice.type_name if isinstance(twice, Fields) else 0
        )


class Rude:
    """Raises whatever it is asked."""

    def __repr__(self) -> str:
        raise ValueError("no")


class Long:
    def __repr__(self) -> str:
        return "é" * 10**6


class Unreadable(dict[str, Any]):
    """A dict that can't be walked through."""

    def items(self) -> Any:
        raise OSError("lost")


@dataclasses.dataclass
class Lazy:
    """One of which a field can't be had."""

    name: str

    def __getattribute__(self, name: str) -> Any:
        if name == "name":
            raise RuntimeError("not yet")
        return super().__getattribute__(name)


class Colour(enum.Enum):
    RED = 1


OBJECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a set": (lambda: {1}, "{1}"),
    "a frozen set": (lambda: frozenset({"a"}), "frozenset({'a'})"),
    "a function": (lambda: through, "<function through at"),
    "a generator": (lambda: (each for each in ()), "<generator object"),
    "a class": (lambda: Node, "<class"),
    "a module": (lambda: math, "<module 'math'"),
    "a model": (lambda: torch.nn.Linear(2, 2), "Linear("),
    "an enum's member": (lambda: Colour.RED, "<Colour.RED: 1>"),
    "a slice": (lambda: slice(1, 2), "slice(1, 2, None)"),
    "a repr that raises": (Rude, "<its repr raised ValueError>"),
    "a long repr": (Long, "é" * 200 + "…"),
    "a dict that raises": (lambda: Unreadable(a=1), "it raised OSError: lost"),
    "a dataclass that raises": (lambda: Lazy("a"), "it raised RuntimeError: not yet"),
    "a mock of a tensor": (lambda: mock.MagicMock(spec=torch.Tensor), "<MagicMock spec='Tensor'"),
    "a mock of an array": (lambda: mock.MagicMock(spec=np.ndarray), ""),
    "a dtype": (lambda: torch.bfloat16, "torch.bfloat16"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_leave_their_type_and_repr(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickle.dumps", None)
    monkeypatch.setattr("pickle.loads", None)
    make, text = OBJECTS[name]
    value = make()
    before, found, after = through([1, value, 2])
    assert (before, after) == (1, 2)
    assert isinstance(found, Skipped)
    assert found.type_name == f"{type(value).__module__}:{type(value).__qualname__}"
    assert found.text.startswith(text)
    assert len(found.text) <= 201


# A store that somebody made by hand, with seals that are right.


def rewrite(store: Store, change: Callable[[list[Any]], None]) -> Store:
    """Change the lines of a store's index, and seal it again."""
    file = store.layout.index_of(0)
    lines = [json.loads(line) for line in file.read_text().splitlines()[:-1]]
    change(lines)
    file.write_bytes(seal([json.dumps(line) for line in lines]))
    return Store(store.layout.root)


def with_tree(path: Path, tree: Any) -> Any:
    """Read a store whose one row is a tree that nobody wrote."""

    def change(lines: list[Any]) -> None:
        real = lines[1]["value"]["stored"]
        lines[1]["value"] = json.loads(json.dumps(tree).replace('"REAL"', json.dumps(real)))

    store = rewrite(put(path, np.arange(6, dtype=np.int64)), change)
    return store.read(store.rows[0])


HUGE = 2**62
ARRAY = {"kind": "array", "dtype": "int64", "shape": [6], "stored": "REAL"}
TENSOR = {"kind": "tensor", "dtype": "int64", "shape": [6], "stored": "REAL"}
FLOATS = {"kind": "tensor", "dtype": "float64", "shape": [6], "stored": "REAL"}
INTS = {"kind": "tensor", "dtype": "int8", "shape": [6, 8], "stored": "REAL"}
HOSTILE: dict[str, Any] = {
    "a wrong shape": {**ARRAY, "shape": [7]},
    "a huge shape": {**ARRAY, "shape": [HUGE, HUGE]},
    "a negative shape": {**ARRAY, "shape": [-6]},
    "a shape that is none": {**ARRAY, "shape": "six"},
    "no shape": {**ARRAY, "shape": None},
    "a huge empty array": {**ARRAY, "shape": [HUGE], "stored": None},
    "objects": {**ARRAY, "dtype": "O"},
    "objects by name": {**ARRAY, "dtype": "object"},
    "objects in fields": {
        **ARRAY,
        "dtype": {"names": ["a"], "formats": ["O"], "offsets": [0], "itemsize": 8},
    },
    "fields outside": {
        **ARRAY,
        "dtype": {"names": ["a"], "formats": ["<i8"], "offsets": [4], "itemsize": 8},
    },
    "a type of huge items": {**ARRAY, "dtype": "V2147483647"},
    "a type of huge parts": {**ARRAY, "dtype": {"base": "<i8", "shape": [HUGE, HUGE]}},
    "a type that is none": {**ARRAY, "dtype": "os.system"},
    "a type that is a list": {**ARRAY, "dtype": [["a", "O"]]},
    "a type with syntax": {**ARRAY, "dtype": "(2,"},
    "an order that is none": {**ARRAY, "order": [0, 0]},
    "an order outside": {**ARRAY, "order": [5]},
    "unknown": {"kind": "callable", "name": "os:system"},
    "no kind": {"as": 1},
    "a kind that is none": {"kind": ["list"]},
    "another's part": {"kind": "same", "as": 12},
    "fields": {"kind": "fields", "type": "os:system", "items": 5},
    "halves of pairs": {"kind": "dict", "items": [[1]]},
    "keys that can't be": {"kind": "dict", "items": [[{"kind": "list", "items": []}, 1]]},
    "a fraction of nothing": {"kind": "fraction", "hex": ["0x1", "0x0"]},
    "no number": {"kind": "int", "hex": "os"},
    "no decimal": {"kind": "decimal", "text": "x"},
    "no bytes": {"kind": "bytes", "hex": "x"},
    "no text": {"kind": "str", "hex": "ff"},
    "objects of a huge shape": {"kind": "objects", "shape": [HUGE, 0], "items": [1]},
    "objects of a negative shape": {"kind": "objects", "shape": [-1, -1], "items": [1]},
    "strings of a huge shape": {"kind": "strings", "shape": [HUGE], "items": [], "missing": 0},
    "a mask that does not fit": {"kind": "masked", "items": [ARRAY, TENSOR]},
    "a tensor's wrong shape": {**TENSOR, "shape": [2, 2]},
    "a tensor's huge shape": {**TENSOR, "shape": [HUGE, HUGE]},
    "a tensor's type that is a function": {**TENSOR, "dtype": "load"},
    "a tensor's type that is a module": {**TENSOR, "dtype": "os"},
    "a tensor's hidden type": {**TENSOR, "dtype": "__loader__"},
    "a tensor's quantised type": {**TENSOR, "dtype": "qint8"},
    "a tensor's order": {**TENSOR, "order": [3]},
    "expanded to what is not there": {**TENSOR, "single": [6], "shape": [5]},
    "a huge meta tensor": {**TENSOR, "as": "meta", "shape": [HUGE, HUGE]},
    "indices outside": {
        "kind": "tensor",
        "as": "sparse_coo",
        "dtype": "float64",
        "shape": [2],
        "indices": {**TENSOR, "shape": [1, 6]},
        "values": FLOATS,
        "is_coalesced": True,
    },
    "columns outside": {
        "kind": "tensor",
        "as": "sparse_csr",
        "dtype": "float64",
        "shape": [5, 1],
        "compressed": TENSOR,
        "plain": {**TENSOR, "shape": [6]},
        "values": FLOATS,
    },
    "a layout that is none": {**TENSOR, "as": "sparse_other", "values": TENSOR},
    "an axis outside": {
        "kind": "tensor",
        "as": "quantized",
        "dtype": "qint8",
        "shape": [6, 8],
        "integers": INTS,
        "scale": FLOATS,
        "zero_point": TENSOR,
        "axis": 7,
    },
    "too few scales": {
        "kind": "tensor",
        "as": "quantized",
        "dtype": "qint8",
        "shape": [6, 8],
        "integers": INTS,
        "scale": FLOATS,
        "zero_point": TENSOR,
        "axis": 1,
    },
    "integers that are none": {
        "kind": "tensor",
        "as": "quantized",
        "dtype": "qint8",
        "shape": [6],
        "integers": FLOATS,
        "scale": 1.0,
        "zero_point": 0,
    },
    "nested of what is none": {
        "kind": "tensor",
        "as": "nested",
        "dtype": "float64",
        "layout": "jagged",
        "items": [FLOATS, TENSOR],
    },
    "a place outside": {**ARRAY, "stored": {"unit": 0, "at": HUGE, "bytes": 48}},
    "a place before": {**ARRAY, "stored": {"unit": 0, "at": -8, "bytes": 48}},
    "no place": {**ARRAY, "stored": {"unit": "../0", "at": 0, "bytes": 48}},
    "another unit": {**ARRAY, "stored": {"unit": 7, "at": 0, "bytes": 48}},
    "no reference": {**ARRAY, "stored": "there"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_tree_that_nobody_wrote_is_damage(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedError):
        with_tree(tmp_path / "run", HOSTILE[name])


HARMLESS: dict[str, tuple[Any, Any]] = {
    "a class": (
        {"kind": "named", "type": "os:system", "names": ["a"], "items": ["exit 1"]},
        ("exit 1",),
    ),
    "names that are none": (
        {"kind": "named", "type": "a:b;c", "names": ["__class__"], "items": [1]},
        (1,),
    ),
    "another number of names": (
        {"kind": "fields", "type": "subprocess:Popen", "items": [["args", "exit 1"]]},
        {"args": "exit 1"},
    ),
    "a skipped object": (
        {"kind": "skipped", "type": "os:system", "text": "exit 1"},
        Skipped("os:system", "exit 1"),
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_names_of_classes_are_only_names(tmp_path: Path, name: str) -> None:
    tree, expected = HARMLESS[name]
    assert with_tree(tmp_path / "run", tree) == expected


def test_no_module_is_imported_for_a_name(tmp_path: Path) -> None:
    tree = [
        {"kind": kind, "type": "wave:open", "names": ["a"], "items": [], "text": ""}
        for kind in ("named", "fields", "skipped")
    ]
    store = rewrite(
        put(tmp_path / "run", 1),
        lambda lines: lines[1].update(value={"kind": "list", "items": tree}),
    )
    command = (
        f"import sys; from visualizer.store import Store; s = Store({str(store.layout.root)!r}); "
        f"sys.modules.pop('wave', None); print(len(s.read(s.rows[0])), 'wave' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert shown.stdout.split() == ["3", "False"], shown.stderr


def test_a_length_that_is_a_lie_takes_no_memory(tmp_path: Path) -> None:
    """The index says that the shard has terabytes; it is asked how many it has."""

    def change(lines: list[Any]) -> None:
        lines[0]["shard_bytes"] = 2**50
        lines[1]["value"]["stored"] |= {"at": 0, "bytes": 2**45}

    store = rewrite(put(tmp_path / "run", np.arange(6)), change)
    with pytest.raises(DamagedError, match="cut off"):
        store.read(store.rows[0])


DEEP = "[" * 10**5 + "]" * 10**5
LINES: dict[str, Callable[[list[str]], list[str]]] = {
    "no lines": lambda lines: [],
    "no JSON": lambda lines: [lines[0], "{"],
    "nested a hundred thousand times": lambda lines: [lines[0], DEEP],
    "a row that is a list": lambda lines: [lines[0], "[]"],
    "a row that is nothing": lambda lines: [lines[0], "null"],
    "a row without a kind": lambda lines: [lines[0], "{}"],
    "a path that is a list": lambda lines: [lines[0], '{"kind": "output", "module_path": []}'],
    "a shape that is a text": lambda lines: [lines[0], '{"kind": "output", "shape": "abc"}'],
    "facts that are a list": lambda lines: [lines[0], '{"kind": "capture", "facts": [1]}'],
    "a size that is a text": lambda lines: [
        lines[0].replace('"shard_bytes":0', '"shard_bytes":"a"')
    ],
    "a size below 0": lambda lines: [lines[0].replace('"shard_bytes":0', '"shard_bytes":-1')],
    "a first line that is a list": lambda lines: ["[]", *lines[1:]],
    "another version": lambda lines: [lines[0].replace('"visualizer":1', '"visualizer":2')],
    "another unit": lambda lines: [lines[0].replace('"unit":0', '"unit":1')],
}


@pytest.mark.parametrize("name", LINES)
def test_an_index_that_nobody_wrote_is_damage(tmp_path: Path, name: str) -> None:
    store = put(tmp_path / "run", 1)
    file = store.layout.index_of(0)
    lines = file.read_text().splitlines()[:-1]
    changed = LINES[name](lines)
    assert changed != lines
    file.write_bytes(seal(changed))
    found = Store(store.layout.root)
    assert (found.rows, found.is_whole) == ([], False)
    assert [damage.unit for damage in found.damages] == [0]
    with pytest.warns(visualizer.errors.CaptureWarning, match="unit u00000000"):
        assert len(visualizer.load(store.layout.root).modules) == 0


@pytest.mark.parametrize(
    "line", ["[]", "null", '{"visualizer_store":1,"units":5}', '{"units":["a"]}', DEEP]
)
def test_a_store_json_that_nobody_wrote_is_damage(tmp_path: Path, line: str) -> None:
    store = put(tmp_path / "run", 1)
    store.layout.about.write_bytes(seal([line]))
    found = Store(store.layout.root)
    assert not found.is_whole
    assert len(found.damages) == 1
    assert found.read(found.rows[0]) == 1


FACTS: dict[str, Any] = {
    "functions that are none": {"functions": [["a"]]},
    "names that are none": {"functions": [["a", "b", [1]]]},
    "outputs that are none": {"outputs": [[]]},
    "paths that are none": {"paths": [5]},
    "explained by a number": {"explained": [5]},
    "a grid that is none": {"grid": ["a", "b"]},
}


@pytest.mark.parametrize("name", FACTS)
def test_a_capture_that_nobody_wrote_is_told(tmp_path: Path, name: str) -> None:
    rows = [Row(kind="capture", value={"tokens": None, "image": None}, facts=FACTS[name])]
    rows.append(Row(kind="output", value=1, module_path="a"))
    with visualizer.store.StoreWriter(tmp_path / "run") as writer:
        for row in rows:
            writer.add(row)
    with pytest.warns(visualizer.errors.CaptureWarning, match="what the capture is"):
        found = visualizer.load(tmp_path / "run")
    assert "what the capture is" in found.explain()
    assert found.modules["a"][0].value == 1


def test_a_map_that_nobody_wrote_is_damage(tmp_path: Path) -> None:
    query = torch.randn(1, 2, 3, 4)
    facts = {"call": {"scale": "0x1p0"}}
    rows = [
        Row(kind="attention", value={}, shape=[1, 2], facts={}),
        Row(kind="attention", value={"query": query}, shape=[1, 2, 3, 3], facts=facts),
        Row(kind="attention", value={"weights": query}, shape=[1, 2, 3, 5], facts={"site": "a"}),
        Row(kind="attention", value={}, shape=[1, 2, 3, 3], facts={"refused": 5}),
    ]
    with visualizer.store.StoreWriter(tmp_path / "run") as writer:
        for row in rows:
            writer.add(row)
    with pytest.warns(visualizer.errors.CaptureWarning, match="shape"):
        found = visualizer.load(tmp_path / "run")
    assert len(found.attention) == 3
    for made in found.attention:
        with pytest.raises(DamagedError):
            _ = made[0, 0, 0]
