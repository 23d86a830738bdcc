"""Instrument every function of chosen modules, as they are imported and where they already are.

The engine must not change what any function does. So take a great deal of code that comes with
its own idea of right and wrong, hand over up to forty locals of each of its functions at every
return, and see whether anything changes. Values go to a sink that drops them: one that keeps
them would keep objects alive and change lifetimes, which is not the engine's doing. The sink is
neither a Python function nor a builtin one, so that trace and profile functions see no call.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.abc
import marshal
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import bytecode

import visualizer
from visualizer._compat import facts
from visualizer.errors import RewriteCheckError
from visualizer.rewrite._handover import Delivery, SinkKind
from visualizer.rewrite._locals import find_local, local_names
from visualizer.rewrite._rewrite import rewrite_code
from visualizer.rewrite._sink import Holder, Sink

__all__ = ["KEY", "Rewriter", "drop", "instrument_everything"]

KEY = "__visualizer_sink_of_everything__"
"""Under this name the rewritten code of every module finds its sink."""

_MOST_LOCALS = 40
_IS_FUNCTION = 0x1  # CO_OPTIMIZED: a function's code, not that of a module or class body
_FACTS = facts()

Chooser = Callable[[str], bool]
"""Tells by a module's name whether its functions are to be instrumented."""

drop: Callable[..., object] = partial("".format)
"""A sink that takes any number of values and keeps none."""


@dataclass(slots=True)
class Rewriter:
    """Rewrites code objects and counts what it did.

    Attributes:
        cache: A folder for what was rewritten, so that the next process need not do it again.
        functions: How many functions were rewritten.
        locals: How many of their locals are handed over.
        failures: What the engine's own check refused; a good run has none.
    """

    cache: Path | None = None
    functions: int = 0
    locals: int = 0
    failures: list[str] = field(default_factory=list)

    def rewrite(self, code: CodeType) -> CodeType:
        """Return a code object in which every function, itself included, is rewritten."""
        if self.cache is None:
            return self._rewrite(code)
        # Version 2 writes equal code equally; later ones mark objects by their reference counts.
        file = self.cache / hashlib.sha256(_engine() + marshal.dumps(code, 2)).hexdigest()
        rewritten: CodeType
        try:
            rewritten, functions, locals_ = marshal.loads(file.read_bytes())
        except FileNotFoundError:
            return self._rewrite_into(file, code)
        self.functions += functions
        self.locals += locals_
        return rewritten

    def _rewrite_into(self, file: Path, code: CodeType) -> CodeType:
        before = self.functions, self.locals, len(self.failures)
        rewritten = self._rewrite(code)
        if len(self.failures) == before[2]:
            counts = self.functions - before[0], self.locals - before[1]
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(marshal.dumps((rewritten, *counts)))
            unfinished.replace(file)
        return rewritten

    def _rewrite(self, code: CodeType) -> CodeType:
        constants = tuple(
            self._rewrite(constant) if isinstance(constant, CodeType) else constant
            for constant in code.co_consts
        )
        if any(new is not old for new, old in zip(constants, code.co_consts, strict=True)):
            code = code.replace(co_consts=constants)
        return self._rewrite_function(code) if code.co_flags & _IS_FUNCTION else code

    def _rewrite_function(self, code: CodeType) -> CodeType:
        names = local_names(code, _FACTS)[:_MOST_LOCALS]
        if not names:
            return code
        variables = tuple(find_local(code, name, _FACTS) for name in names)
        try:
            rewritten = rewrite_code(code, [Delivery(SinkKind.CALL, KEY, variables)], _FACTS)
        except RewriteCheckError as error:
            self.failures.append(str(error))
            return code
        self.functions += 1
        self.locals += len(names)
        return rewritten


_engine_digest: list[bytes] = []


def _engine() -> bytes:
    """Return what tells this engine, `bytecode` and Python from others."""
    if not _engine_digest:
        digest = hashlib.sha256(f"{sys.version} {bytecode.__version__}".encode())
        for file in sorted(Path(visualizer.__file__).parent.glob("rewrite/*.py")):
            digest.update(file.read_bytes())
        _engine_digest.append(digest.digest())
    return _engine_digest[0]


class _Loader(SourceFileLoader):
    """Compiles a module from its source, never from a .pyc, and rewrites its functions."""

    def __init__(self, name: str, path: str, rewriter: Rewriter, sink: Sink) -> None:
        super().__init__(name, path)
        self._rewriter = rewriter
        self._sink = sink

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # Here, not in exec_module: that would show in the traceback of every failing import.
        module = ModuleType(spec.name)
        module.__dict__[KEY] = Holder(self._sink, module.__dict__)
        return module

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self._rewriter.rewrite(self.source_to_code(self.get_data(path), path))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the chosen modules that are Python source, and leaves the others to Python."""

    def __init__(self, chosen: Chooser, rewriter: Rewriter, sink_of: Callable[[str], Sink]) -> None:
        self._chosen = chosen
        self._rewriter = rewriter
        self._sink_of = sink_of

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self._chosen(fullname):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return None
        spec.loader = _Loader(
            spec.loader.name, spec.loader.path, self._rewriter, self._sink_of(fullname)
        )
        return spec


def instrument_everything(
    chosen: Chooser, rewriter: Rewriter, sink_of: Callable[[str], Sink] = lambda name: drop
) -> None:
    """Instrument the chosen modules: those that are loaded already, then all that follow.

    Args:
        chosen: Tells which modules, by name.
        rewriter: Does it and keeps the counts.
        sink_of: Gives a module's sink.
    """
    _instrument_loaded(chosen, rewriter, sink_of)
    sys.meta_path.insert(0, _Finder(chosen, rewriter, sink_of))


def _instrument_loaded(chosen: Chooser, rewriter: Rewriter, sink_of: Callable[[str], Sink]) -> None:
    """Give every function object of the loaded modules rewritten code, wherever it is kept."""
    rewritten: dict[int, CodeType] = {}  # by identity: equal code is not the same code
    originals: list[CodeType] = []  # alive, so that their identities stay theirs
    for function in [found for found in gc.get_objects() if type(found) is FunctionType]:
        name = function.__globals__.get("__name__")
        if not isinstance(name, str) or not chosen(name):
            continue
        if getattr(sys.modules.get(name), "__dict__", None) is not function.__globals__:
            continue
        function.__globals__.setdefault(KEY, Holder(sink_of(name), function.__globals__))
        code = function.__code__
        if id(code) not in rewritten:
            originals.append(code)
            rewritten[id(code)] = rewriter.rewrite(code)
        function.__code__ = rewritten[id(code)]
