"""Where values go, and what stands for a value that is not there."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, Final

__all__ = ["UNBOUND", "Holder", "Sink"]


class _Unbound(Enum):
    UNBOUND = "unbound"

    def __repr__(self) -> str:
        return "UNBOUND"


UNBOUND: Final = _Unbound.UNBOUND
"""What stands for a local that is bound to nothing when its function returns."""

Sink = list[Any] | Callable[..., object]
"""Where values go: a list that they are appended to, or a function that is called with them."""


class Holder:
    """What rewritten code finds under its private key: the sink, and how to treat its errors.

    It pickles and copies as an empty tuple: a function that travels to another process takes
    no captured values along, and delivers nothing there.

    Attributes:
        home: The globals that it is in.
        error: The first error that the sink raised.
    """

    __slots__ = ("__weakref__", "deliver", "error", "home", "values")

    UNBOUND: ClassVar = UNBOUND
    unbound_error: ClassVar = NameError
    sink_error: ClassVar = Exception
    no_error: ClassVar = None

    def __init__(self, sink: Sink, home: dict[str, Any]) -> None:
        self.home = home
        self.error: Exception | None = None
        if isinstance(sink, list):
            self.values = sink
        else:
            self.deliver = sink

    def __reduce__(self) -> tuple[type[tuple[Any, ...]], tuple[()]]:
        return tuple, ()
