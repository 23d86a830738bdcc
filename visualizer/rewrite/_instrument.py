"""Install rewritten code into functions, and take it out again."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from types import CodeType, FunctionType, TracebackType
from typing import Any

from visualizer._compat import facts
from visualizer.errors import (
    CodeReplacedError,
    NotInstrumentableError,
    SinkError,
    UnknownLocalError,
)
from visualizer.rewrite._handover import Delivery, SinkKind
from visualizer.rewrite._locals import Local, find_local
from visualizer.rewrite._rewrite import rewrite_code
from visualizer.rewrite._sink import Holder, Sink
from visualizer.rewrite._target import Target, resolve

__all__ = [
    "Instrumentation",
    "check_locals",
    "instrument",
    "restore",
    "uninstrumented",
]


class Instrumentation:
    """A handle on one instrumentation of one function. Made by `instrument`.

    It is a context manager, too: leaving the block removes it.

    Attributes:
        names: The locals, as they were asked for.
    """

    def __init__(
        self,
        function: FunctionType,
        names: tuple[str, ...],
        holder: Holder,
        kind: SinkKind,
        variables: tuple[Local, ...],
    ) -> None:
        self.names = names
        self._function = weakref.ref(function)
        # Weakly: it leads to the function's globals, and those may be garbage before the handle.
        self._holder = weakref.ref(holder)
        self._kind = kind
        self._variables = variables
        self._free_keys = _free_keys_for(uninstrumented(function), (kind, variables))
        self._key = (
            self._free_keys.pop()
            if self._free_keys
            else f"__visualizer_sink_{next(_key_numbers)}__"
        )
        self._codes_in_use = 0
        self._installation: _Installation | None = None
        self._error: Exception | None = None

    @property
    def function(self) -> FunctionType | None:
        """The instrumented function; None once it is garbage."""
        return self._function()

    @property
    def error(self) -> Exception | None:
        """The first error that the sink raised, if it raised any."""
        holder = self._holder()
        return holder.error if holder is not None else self._error

    @property
    def is_installed(self) -> bool:
        """Whether calls of the function are handed over: not removed, code not replaced."""
        function, installation = self._function(), self._installation
        return (
            function is not None
            and installation is not None
            and function.__code__ is installation.current()
        )

    def remove(self) -> None:
        """Stop handing over, and put back the code from before. Twice is the same as once.

        Frames that are still running (a suspended generator) deliver nothing from now on.

        Raises:
            CodeReplacedError: Somebody else has replaced the function's code since; their code
                stays, and nothing is delivered any more.
            SinkError: The sink raised during a call. The code is restored all the same.
        """
        with _lock:
            installation, self._installation = self._installation, None
            if installation is None:
                return
            self._withdraw()
            function = self._function()
            if function is not None:
                installation.remove(self, function)
        if self.error is not None:
            name = function.__qualname__ if function is not None else "a function"
            raise SinkError(
                f"the sink for {', '.join(self.names)} of {name}() raised "
                f"{type(self.error).__name__}: {self.error}. The function was not disturbed; "
                "values from that call on may be missing."
            ) from self.error

    def _use(self, code: CodeType) -> None:
        """Keep the holder within reach for as long as code that has its key exists.

        That may be longer than the function exists: tools that reload code give one function's
        code object to another.
        """
        holder = self._holder()
        if holder is not None:
            holder.home[self._key] = holder
        self._codes_in_use += 1
        weakref.finalize(code, self._code_is_gone).atexit = False

    def _code_is_gone(self) -> None:
        self._codes_in_use -= 1
        if not self._codes_in_use:
            self._withdraw()
            # Names of code are interned, on some versions for good: so they are used again.
            self._free_keys.append(self._key)

    def _withdraw(self) -> None:
        holder = self._holder()
        if holder is not None:
            self._error = holder.error
            home = holder.home
            if home.get(self._key) is holder:
                del home[self._key]

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.remove()
        except (CodeReplacedError, SinkError) as problem:
            if error is None:
                raise
            error.add_note(f"Besides: {problem}")

    def __repr__(self) -> str:
        function = self._function()
        name = function.__qualname__ if function is not None else "a function that is gone"
        state = "installed" if self.is_installed else "not installed"
        return f"<Instrumentation of {', '.join(self.names)} in {name}, {state}>"


class _Installation:
    """All instrumentations of one function, over the one code object from before."""

    def __init__(self, original: CodeType) -> None:
        self.original = original
        self.current = weakref.ref(original)
        self._handles: list[Instrumentation] = []

    def add(self, handle: Instrumentation, function: FunctionType) -> None:
        self._install([*self._handles, handle], function)
        handle._installation = self

    def remove(self, handle: Instrumentation, function: FunctionType) -> None:
        remaining = [other for other in self._handles if other is not handle]
        if function.__code__ is not self.current():
            self._handles = remaining
            if not remaining and _installations.get(function) is self:
                del _installations[function]
            raise CodeReplacedError(
                f"the code of {function.__qualname__}() was replaced by somebody else after it was "
                f"instrumented (now {function.__code__.co_filename}:"
                f"{function.__code__.co_firstlineno}); it stays as it is, and "
                f"{', '.join(handle.names)} is no longer captured."
            )
        self._install(remaining, function)

    def _install(self, handles: list[Instrumentation], function: FunctionType) -> None:
        code = _code_for(self.original, handles) if handles else self.original
        for handle in handles:
            handle._use(code)
        function.__code__ = code
        self.current, self._handles = weakref.ref(code), handles
        if handles:
            _installations[function] = self
        else:
            _installations.pop(function, None)


class _IdentityCache:
    """A mapping from code objects, by identity and weakly: equal code is not the same code."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[weakref.ref[CodeType], Any]] = {}

    def get(self, code: CodeType) -> Any:
        return self._values.get(id(code), (None, None))[1]

    def set(self, code: CodeType, value: Any) -> None:
        number = id(code)
        values = self._values
        values[number] = weakref.ref(code, lambda _: values.pop(number, None)), value


# The engine's process-wide state, all of it.
_lock = threading.RLock()
_key_numbers = itertools.count()
_free_keys = _IdentityCache()  # code object → {what is delivered: keys that can be used again}
_installations: weakref.WeakKeyDictionary[FunctionType, _Installation] = weakref.WeakKeyDictionary()
_templates = _IdentityCache()  # code object → {what is delivered: rewritten code}
_originals = _IdentityCache()  # rewritten code → the code it was made from


def instrument(target: object, *names: str, sink: Sink) -> Instrumentation:
    """Hand over the final values of named locals at every return of a function.

    The function object keeps its identity, name, signature, closure and every alias; only its
    code object changes, until the handle is removed. What is handed over is what a name is
    bound to at the moment of the return. An exception that leaves the function hands over
    nothing.

    Args:
        target: A function, a method, a staticmethod, classmethod, property or partial, or
            `"package.module:Qual.name"`. Wrappers are looked through to the innermost function.
        *names: Locals: arguments, variables, cell and free variables.
        sink: A list gets the value (with one name; nothing where it is unbound) or a tuple
            (with several; `UNBOUND` inside). A function is called with the values, `UNBOUND`
            among them. An `Exception` that it raises does not disturb the instrumented
            function: the first is kept in the handle's `error`, and raised by `remove`.
    Returns:
        A handle with `remove()`; also a context manager.
    Raises:
        UnknownLocalError: The code never has a local of that name.
        NotInstrumentableError: The target is not a Python function.
        TargetNotFoundError: The string does not resolve.
        RewriteCheckError: The rewritten code failed the engine's check; nothing changed.
        UnsupportedPythonError: The engine does not know this Python.

    Example:
        >>> def scale(x):
        ...     factor = x * 2
        ...     return factor + 1
        >>> factors = []
        >>> with instrument(scale, "factor", sink=factors):
        ...     scale(20)
        41
        >>> factors
        [40]
    """
    _require_names(names)
    has_own_append = isinstance(sink, list) and type(sink).append is not list.append
    if has_own_append or not (isinstance(sink, list) or callable(sink)):
        raise TypeError(
            f"a sink is a list or a function, not {type(sink).__name__}; for another collection "
            "pass its method, such as sink=values.append."
        )
    resolved = resolve(target)  # without the lock: it may import, and importing may instrument
    function = resolved.function
    if type(function.__globals__) is not dict:
        raise NotInstrumentableError(
            f"{function.__qualname__}() looks its globals up in a "
            f"{type(function.__globals__).__qualname__}, where a name that is missing may be found "
            "all the same; only functions whose globals are a plain dict can be instrumented."
        )
    with _lock:
        installation = _installations.get(function)
        if installation is None or installation.current() is not function.__code__:
            installation = _Installation(function.__code__)
        variables = _find_locals(resolved, installation.original, names)
        holder = Holder(sink, function.__globals__)
        kind = SinkKind.APPEND if isinstance(sink, list) else SinkKind.CALL
        handle = Instrumentation(function, names, holder, kind, variables)
        installation.add(handle, function)
    return handle


def check_locals(target: object, *names: str) -> FunctionType:
    """Return the function that `instrument` would change, once it is sure to have these locals.

    Raises:
        UnknownLocalError, NotInstrumentableError, TargetNotFoundError: As for `instrument`.
    """
    _require_names(names)
    resolved = resolve(target)
    _find_locals(resolved, uninstrumented(resolved.function), names)
    return resolved.function


def uninstrumented(function: FunctionType) -> CodeType:
    """Return the code that a function has when nothing is instrumented."""
    code: CodeType = _originals.get(function.__code__) or function.__code__
    return code


def restore(function: FunctionType) -> bool:
    """Put back the original code where a function holds code that was rewritten for another.

    Tools that reload code copy code objects between functions and may have copied a rewritten
    one. Returns whether there was something to do.
    """
    with _lock:
        installation = _installations.get(function)
        if installation is not None and installation.current() is function.__code__:
            return False
        original = uninstrumented(function)
        if original is function.__code__:
            return False
        function.__code__ = original
        return True


def _require_names(names: Sequence[str]) -> None:
    if not names:
        raise TypeError("name at least one local to take, such as 'attn'.")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a local is named by a str, not by {type(name).__name__} {name!r}.")


def _find_locals(target: Target, code: CodeType, names: Sequence[str]) -> tuple[Local, ...]:
    return tuple(_find_in_innermost(target, code, name) for name in names)


def _find_in_innermost(target: Target, code: CodeType, name: str) -> Local:
    try:
        return find_local(code, name, facts())
    except UnknownLocalError as error:
        for wrapper in target.wrappers:
            try:
                find_local(wrapper.__code__, name, facts())
            except UnknownLocalError:
                continue
            raise UnknownLocalError(
                f"{error} The wrapper around it has one ({wrapper.__code__.co_qualname}, "
                f"{wrapper.__code__.co_filename}:{wrapper.__code__.co_firstlineno}), but wrappers "
                "are looked through: take it where the wrapper is made."
            ) from None
        raise


def _free_keys_for(original: CodeType, delivered: object) -> list[str]:
    """Return the keys that no code has any more, of a code object and what is delivered from it.

    Code that somebody derived from ours (`code.replace`) may still have one; with another
    function's holder behind it, values would go astray.
    """
    free: dict[object, list[str]] | None = _free_keys.get(original)
    if free is None:
        free = {}
        _free_keys.set(original, free)
    return free.setdefault(delivered, [])


def _code_for(original: CodeType, handles: Sequence[Instrumentation]) -> CodeType:
    """Return a function's rewritten code, with these handles' keys in it."""
    wanted = tuple((handle._kind, handle._variables) for handle in handles)
    templates: dict[object, CodeType] | None = _templates.get(original)
    if templates is None:
        templates = {}
        _templates.set(original, templates)
    template = templates.get(wanted)
    placeholders = [f"__visualizer_sink_of_{position}__" for position in range(len(handles))]
    if template is None:
        deliveries = [
            Delivery(kind, key, variables)
            for (kind, variables), key in zip(wanted, placeholders, strict=True)
        ]
        template = templates[wanted] = rewrite_code(original, deliveries, facts())
    keys = dict(zip(placeholders, (handle._key for handle in handles), strict=True))
    code = template.replace(co_names=tuple(keys.get(name, name) for name in template.co_names))
    _originals.set(code, original)
    return code
