"""What may be asked of a capture, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from visualizer.errors import OutOfRangeError

__all__ = ["Keep"]

_CALLS = ("all", "last")
_FORMS = ("auto", "qk", "rows", "weights")


@dataclass(frozen=True, slots=True)
class Keep:
    """Which calls are kept, and in which form attention is.

    Attributes:
        every: Every n-th call of a site.
        last: Of each site, the last call only.
        form: "auto", "qk", "rows" or "weights".
    """

    every: int = 1
    last: bool = False
    form: str = "auto"

    @classmethod
    def of(cls, asked: Any) -> Keep:
        """Read the option `keep`: one of the words, a number, or one of each kind in a tuple.

        Raises:
            OutOfRangeError: Anything else.
        """
        parts = [asked] if isinstance(asked, str | int) else _as_list(asked)
        every, last, form = 1, False, "auto"
        for part in parts:
            if isinstance(part, int) and not isinstance(part, bool) and part > 0:
                every = part
            elif part in _CALLS:
                last = part == "last"
            elif part in _FORMS:
                form = part
            else:
                raise OutOfRangeError(
                    f"keep is {asked!r}; expected 'all', 'last' or a number n for every n-th call, "
                    f"and for attention one of {', '.join(map(repr, _FORMS))}; for both, a tuple "
                    f"such as keep=('last', 'rows')"
                )
        return cls(every, last, form)

    def wants(self, call: int) -> bool:
        """Tell whether a site's call is kept."""
        return call % self.every == 0


def _as_list(asked: Any) -> list[Any]:
    return list(asked) if isinstance(asked, Iterable) else [asked]
