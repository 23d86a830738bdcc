"""Every error that the package raises on purpose.

Each message says what happened, to what, what was expected and what to do. Each class
also derives from the built-in error a caller would think of first, so that
``except TypeError`` and the like keep working.
"""

from __future__ import annotations

__all__ = [
    "AmbiguousKeyError",
    "CaptureBudgetError",
    "CaptureWarning",
    "CodeReplacedError",
    "DamagedError",
    "ExportTooLargeError",
    "MapRefusedError",
    "MapTooLargeError",
    "MissingDependencyError",
    "ModelError",
    "NoGradientError",
    "NotAStoreError",
    "NotInstrumentableError",
    "NotStepsError",
    "NotWeightsError",
    "OutOfRangeError",
    "OutputFolderError",
    "OverwrittenError",
    "PictureError",
    "RewriteCheckError",
    "ShapeError",
    "SinkError",
    "StoreExistsError",
    "StoreWriteError",
    "TargetNotFoundError",
    "UnknownKeyError",
    "UnknownLocalError",
    "UnknownModuleError",
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


class ShapeError(VisualizerError, ValueError):
    """An array does not have the axes, or not the sizes, that were expected."""


class NotWeightsError(VisualizerError, ValueError):
    """Values are not attention weights: negative, not finite, or rows that don't sum to 1."""


class NotStepsError(VisualizerError, ValueError):
    """Attention maps are not those of the steps of one generation, in order and without gaps."""


class OutOfRangeError(VisualizerError, IndexError, ValueError):
    """An index or an option is outside of what there is."""


class PictureError(VisualizerError, ValueError):
    """A picture can't be read, or is not the one that a map belongs to."""


class ModelError(VisualizerError, RuntimeError):
    """A model can't be loaded, or is not of the kind that was expected."""


class OutputFolderError(VisualizerError, OSError):
    """A folder can't be made or written."""


class CaptureBudgetError(VisualizerError, MemoryError):
    """A capture reached its `max_bytes`; what was taken before stays readable."""


class MapTooLargeError(VisualizerError, MemoryError):
    """A whole attention map takes more memory than allowed; rows and statistics take little."""


class MapRefusedError(VisualizerError, RuntimeError):
    """An attention map can't be rebuilt exactly, or disagrees with the model's own output."""


class NoGradientError(VisualizerError, RuntimeError):
    """The gradient of an attention map was asked for, and there is none."""


class OverwrittenError(VisualizerError, RuntimeError):
    """The program has written into the memory of a tensor that was kept by reference."""


class StoreExistsError(VisualizerError, FileExistsError):
    """There is a store already, or something else, where one was to be written."""


class NotAStoreError(VisualizerError, FileNotFoundError):
    """There is no store at that path, or one of a version that is not known."""


class StoreWriteError(VisualizerError, OSError):
    """A store can't be written, as where the disk is full; what was committed stays."""


class DamagedError(VisualizerError, OSError):
    """A unit of a store is missing, cut off or changed; the others can be read."""


class ExportTooLargeError(VisualizerError, ValueError):
    """An export would be larger than is sensible for its format."""


class UnknownModuleError(VisualizerError, LookupError):
    """No module of the model has that path, or a pattern matches none."""


class MissingDependencyError(VisualizerError, ImportError):
    """Something needs a library that is not installed; the message says how to install it."""


class CaptureWarning(UserWarning):
    """Something that was asked for was not captured, or costs more than one might think."""
