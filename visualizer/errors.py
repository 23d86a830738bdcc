"""Every error that the package raises on purpose.

Each message says what happened, to what, what was expected and what to do. Each class
also derives from the built-in error a caller would think of first, so that
``except TypeError`` and the like keep working.
"""

from __future__ import annotations

__all__ = [
    "AmbiguousKeyError",
    "CaptureWarning",
    "CodeReplacedError",
    "NotInstrumentableError",
    "RewriteCheckError",
    "SinkError",
    "TargetNotFoundError",
    "UnknownKeyError",
    "UnknownLocalError",
    "UnsupportedPythonError",
    "VisualizerError",
]


class VisualizerError(Exception):
    """Base of every error that `visualizer` raises on purpose."""


class UnsupportedPythonError(VisualizerError, RuntimeError):
    """This interpreter's bytecode is not one that the engine knows."""


class TargetNotFoundError(VisualizerError, LookupError):
    """A ``"package.module:Qual.name"`` target does not resolve."""


class NotInstrumentableError(VisualizerError, TypeError):
    """The target has no Python code that could be instrumented."""


class UnknownLocalError(VisualizerError, NameError):
    """The function has no local of that name."""


class CodeReplacedError(VisualizerError, RuntimeError):
    """Somebody else replaced a function's code after it was instrumented."""


class RewriteCheckError(VisualizerError, RuntimeError):
    """A rewritten code object failed the engine's own check and was not installed."""


class SinkError(VisualizerError, RuntimeError):
    """A sink raised; the function was not disturbed, and the first error is the cause."""


class _KeyError(VisualizerError, KeyError):
    def __str__(self) -> str:  # KeyError shows the repr of its argument; a sentence wants itself
        return str(self.args[0]) if self.args else ""


class UnknownKeyError(_KeyError):
    """No captured value has that key."""


class AmbiguousKeyError(_KeyError):
    """A key fits the captured values of more than one function or variable."""


class CaptureWarning(UserWarning):
    """Something that was asked for was not captured, or costs more than one might think."""
