"""Snapshots of ordinary Python values: kept as they were, whatever happens to the originals."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from typing import Any, NamedTuple

import pytest

from visualizer import Reference, get_local
from visualizer._capture.snapshot import snapshot


class Color(Enum):
    RED = 1


class Mode(Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: Any
    right: Any


OldPair = namedtuple("OldPair", "left right")  # noqa: PYI024 - the other way to make one


@dataclass
class Plain:
    values: list[int]
    label: str = "plain"


@dataclass(frozen=True)
class Frozen:
    values: list[int]


@dataclass(slots=True)
class Slotted:
    values: list[int]


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    values: list[int]
    nested: Plain = field(default_factory=lambda: Plain([0]))


@dataclass
class Counting:
    """Its constructor and comparison have effects; a copy runs neither."""

    values: list[int]
    made = 0

    def __post_init__(self) -> None:
        type(self).made += 1


class Custom:
    def __init__(self) -> None:
        self.values = [1]


class OwnTuple(tuple[int, ...]):
    """A tuple with a constructor of its own."""

    def __new__(cls, first: int, second: int) -> OwnTuple:
        return super().__new__(cls, (first, second))


@pytest.mark.parametrize(
    "value",
    [
        0, True, 1.5, 2j, Decimal("1.5"), Fraction(1, 3), "text", b"bytes", None, ...,
        Color.RED, Mode.READ | Mode.WRITE, int, range(3), Custom, float("inf"), 10**30,
    ],
    ids=repr,
)  # fmt: skip
def test_what_can_not_change_stays(value: Any) -> None:
    assert snapshot(value) is value


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, [2, [3]]],
        lambda: (1, [2], (3, [4])),
        lambda: {"a": [1], "b": {"c": [2]}},
        lambda: OrderedDict(b=[1], a=[2]),
        lambda: Counter("aab"),
        lambda: Pair([1], {"a": [2]}),
        lambda: OldPair([1], [2]),
        lambda: Plain([1]),
        lambda: Frozen([1]),
        lambda: Slotted([1]),
        lambda: FrozenSlotted([1]),
        lambda: [Plain([1]), {"a": (Frozen([2]),)}],
        lambda: bytearray(b"abc"),
        lambda: {(1, 2): [3]},
    ],
)
def test_structure_type_and_contents_stay(make: Callable[[], Any]) -> None:
    value = make()
    taken = snapshot(value)
    assert taken == value
    assert type(taken) is type(value)
    change_everything(value)
    assert taken == make()
    assert value != make()


def change_everything(value: Any) -> None:
    """Change whatever can be changed in a value, at every depth."""
    if isinstance(value, (list, bytearray)):
        for part in list(value):
            change_everything(part)
        value.append(99)
    elif isinstance(value, dict):
        for part in list(value.values()):
            change_everything(part)
        value["new"] = 99
    elif isinstance(value, tuple):
        for part in value:
            change_everything(part)
    elif isinstance(value, (Plain, Frozen, Slotted, FrozenSlotted)):
        for name in type(value).__dataclass_fields__:
            change_everything(getattr(value, name))


def test_a_defaultdict_keeps_its_factory() -> None:
    value = defaultdict(list, a=[1])
    taken = snapshot(value)
    value["a"].append(2)
    value["b"].append(3)
    assert taken == {"a": [1]}
    assert type(taken) is defaultdict
    assert taken["new"] == []
    assert "new" not in value


def test_frozen_stays_frozen() -> None:
    taken = snapshot(FrozenSlotted([1]))
    with pytest.raises(FrozenInstanceError):
        taken.values = []


def test_a_dataclass_is_copied_without_its_constructor() -> None:
    value = Counting([1])
    made = Counting.made
    taken = snapshot(value)
    assert Counting.made == made
    value.values.append(2)
    assert taken.values == [1]


def test_a_dataclass_that_is_not_complete() -> None:
    value = Slotted([1])
    del value.values
    assert not hasattr(snapshot(value), "values")


def test_a_list_subclass_becomes_a_list() -> None:
    class Own(list[int]):
        pass

    taken = snapshot(Own([1, 2]))
    assert type(taken) is list
    assert taken == [1, 2]


def test_a_tuple_with_a_constructor_of_its_own_becomes_a_tuple() -> None:
    taken = snapshot(OwnTuple(1, 2))
    assert type(taken) is tuple
    assert taken == (1, 2)


def test_shared_parts_stay_shared_and_apart_from_the_original() -> None:
    part = [1]
    taken = snapshot({"a": part, "b": [part, Plain(part)]})
    assert taken["a"] is taken["b"][0] is taken["b"][1].values
    assert taken["a"] is not part


def test_circular_values() -> None:
    circular: list[Any] = [1]
    circular.append({"again": circular})
    taken = snapshot(circular)
    assert taken[1]["again"] is taken
    assert taken is not circular
    plain = Plain([])
    plain.values.append(plain)  # type: ignore[arg-type]
    taken = snapshot(plain)
    assert taken.values[0] is taken


def test_circular_values_are_captured_and_disturb_nothing() -> None:
    get_local.activate()

    @get_local("circular")
    def attend() -> int:
        circular: list[Any] = [1]
        circular.append(circular)
        return 1

    assert attend() == 1
    assert attend() == 1
    taken = get_local.cache["attend"]
    assert len(taken) == 2
    assert taken[0][1] is taken[0]
    get_local.deactivate()


@pytest.mark.parametrize(
    "value",
    [Custom(), {1, 2}, frozenset({1}), deque([1]), lambda: None, iter([1]), object(), len],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_marked_as_a_reference(value: Any) -> None:
    taken = snapshot(value)
    assert type(taken) is Reference
    assert taken.value is value
    inside = snapshot([value])
    assert inside == [Reference(value)]


def test_a_reference_shows_what_it_holds() -> None:
    assert repr(Reference("thing")) == "Reference(value='thing')"


def test_deep_values_do_not_disturb_the_function() -> None:
    get_local.activate()

    @get_local("deep")
    def attend() -> int:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        return 1

    assert attend() == 1
    with pytest.warns(UserWarning, match="raised RecursionError"):
        assert get_local.cache["attend"] == []
    get_local.deactivate()


def test_what_the_function_does_afterwards_changes_nothing() -> None:
    get_local.activate()
    scores = [1]

    @get_local("held")
    def attend() -> list[int]:
        held = scores
        return held

    attend().append(2)
    scores.append(3)
    attend()
    scores.clear()
    assert get_local.cache["attend"] == [[1], [1, 2, 3]]


def test_what_is_done_to_an_entry_does_not_reach_the_program() -> None:
    get_local.activate()
    scores = [[1]]

    @get_local("held")
    def attend() -> None:
        held = scores

    attend()
    get_local.cache["attend"][0][0].append(2)
    assert scores == [[1]]
