"""What comes back in the place of what is of somebody's own class."""

from __future__ import annotations

import dataclasses
from typing import Any

from visualizer._printable import printable

__all__ = ["Fields", "Skipped"]


class Fields(dict[Any, Any]):
    """What was a dataclass, or a dict of a class of its own, as a `ModelOutput`.

    Its items are attributes, too, and can be asked for by their place.

    Attributes:
        type_name: The class, as "module:qualname".
        absent: Attributes that were None and no items, as what a model did not return.
    """

    type_name: str = "builtins:dict"
    absent: tuple[str, ...] = ()

    def __init__(self, type_name: str, items: Any, absent: tuple[str, ...] = ()) -> None:
        super().__init__(items)
        object.__setattr__(self, "type_name", type_name)
        object.__setattr__(self, "absent", absent)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            if name in self.absent:
                return None
            raise AttributeError(f"{self.type_name} had no attribute {name!r}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):  # no key of a dict, before Python 3.12
            return tuple(dict.values(self))[key]
        return super().__getitem__(key)

    def __missing__(self, key: object) -> Any:
        if isinstance(key, int):
            return tuple(dict.values(self))[key]
        raise KeyError(key)

    def __repr__(self) -> str:
        return printable(f"<{self.type_name}: {super().__repr__()}>")


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """What stands in a store for an object that it can't hold.

    Attributes:
        type_name: The object's class, as "module:qualname".
        text: Its `repr`, cut off.
    """

    type_name: str
    text: str
