"""Let compiled models run as Python while values are being taken from them.

A graph that torch.compile made before a function was instrumented runs on without it: it would
silently capture nothing. So the compiler's stance is `force_eager` as long as something is
tapped. torch is never imported for that: where its compiler is not loaded yet, nothing is
compiled yet, and an import hook waits for it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from visualizer._capture.notices import notify

__all__ = ["EagerStance", "ImportHook", "eager_stance"]

_COMPILER = "torch._dynamo"


class EagerStance:
    """Keeps the stance of torch's compiler at `force_eager` while it is needed.

    Attributes:
        is_unexplained: The stance was taken, and nobody has looked since whether to tell the user.
    """

    def __init__(self) -> None:
        self.is_unexplained = False
        self._waiting: ImportHook | None = None
        self._stance: Any = None
        self._has_notified = False
        self._owners: set[object] = set()

    def keep(self, needed: bool, owner: object = "get_local") -> None:
        """Take the stance for somebody, or give back the one from before once nobody needs it."""
        if needed:
            self._owners.add(owner)
        else:
            self._owners.discard(owner)
        if not self._owners:
            self._give_back()
        elif self._stance is None and self._waiting is None:
            if _COMPILER in sys.modules:
                self._take()
            else:
                self._waiting = ImportHook(_COMPILER, self._on_import)
                self._waiting.install()

    def _on_import(self) -> None:
        self._stop_waiting()
        self._take()

    def _take(self) -> None:
        torch = sys.modules["torch"]
        set_stance = getattr(torch.compiler, "set_stance", None)
        if set_stance is None:
            notify(
                f"torch {torch.__version__} can't run compiled models eagerly for a while "
                "(2.6 and newer can); capture from the model that is not compiled."
            )
            return
        self._stance = set_stance("force_eager")
        self.is_unexplained = True
        self.explain()

    def explain(self) -> None:
        """Say once that compiled models run eagerly, if there are any."""
        if self._has_notified:
            self.is_unexplained = False
        elif _has_compiled(sys.modules[_COMPILER]):
            self.is_unexplained, self._has_notified = False, True
            until = (
                "get_local is active, since a compiled graph captures nothing; "
                "get_local.deactivate() gives back the compiled ones."
                if "get_local" in self._owners
                else "capture() is open, since a compiled graph captures nothing; the end of the "
                "block gives back the compiled ones."
            )
            notify(f"compiled models run eagerly while {until}")

    def _give_back(self) -> None:
        self._stop_waiting()
        stance, self._stance = self._stance, None
        self.is_unexplained = False
        if stance is not None and _is_present(stance):
            stance.__exit__(None, None, None)

    def hold(self) -> None:
        """Take the stance again where somebody else has changed it since, and say so."""
        stance = self._stance
        if stance is not None and not _is_present(stance):
            self._stance = sys.modules["torch"].compiler.set_stance("force_eager")
            notify(
                "the stance of torch.compile was changed while get_local was active: compiled "
                "models that ran since then captured nothing. It is force_eager again."
            )

    def _stop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.remove()


def _is_present(stance: Any) -> bool:
    """Tell whether the compiler's stance is still the one that was taken."""
    present = getattr(sys.modules[_COMPILER].eval_frame, "_stance", stance.stance)
    return present is stance.stance


def _has_compiled(compiler: ModuleType) -> bool:
    """Tell whether torch.compile was used in this process."""
    backends = getattr(compiler.eval_frame, "cached_backends", {})
    return any(backend is not None for backend in backends.values())


class ImportHook(MetaPathFinder):
    """Calls back once a module has been imported."""

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self._name = name
        self._callback = callback
        self._is_searching = False

    def install(self) -> None:
        """Wait for the module."""
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Wait no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderThen(spec.loader, self._callback)
        return spec


class _LoaderThen(Loader):
    """A loader that calls back when its module is loaded, and is not to be seen afterwards."""

    def __init__(self, loader: Loader, callback: Callable[[], None]) -> None:
        self._loader = loader
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._callback()


eager_stance = EagerStance()
