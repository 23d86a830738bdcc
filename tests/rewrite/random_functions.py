"""Source text of random functions: odd ones, which end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

__all__ = ["NAMES", "Source", "sources"]

ARGUMENTS = ("a", "b")
NAMES = (*ARGUMENTS, "c", "d", "e")
MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Source:
    """A function called `f` that takes `a` and `b`, inside of one that has its variable `e`."""

    text: str
    is_generator: bool


@dataclass(slots=True)
class _Writer:
    """Draws one statement after the other.

    `more`, `quiet`, `plain` and `several` are given to the function: something that is true only
    so often, two context managers, and a generator.
    """

    draw: Any
    is_generator: bool
    lines: list[str] = field(default_factory=list)
    functions: int = 0

    def line(self, indent: int, text: str) -> None:
        self.lines.append("    " * indent + text)

    def pick(self, *choices: str) -> str:
        chosen: str = self.draw(st.sampled_from(choices))
        return chosen

    def chance(self, one_in: int) -> bool:
        drawn: int = self.draw(st.integers(0, one_in - 1))
        return drawn == 0

    def name(self) -> str:
        return self.pick(*NAMES)

    def expression(self) -> str:
        form = self.pick(
            "{x}", "{n}", "{x} + {n}", "[{x}, {n}]", "({x} or {y})", "{n} // {x}", "({z} := {n})",
            "[{z} for {z} in range({n})]", "{{{z}: {x} for {z} in range({n}) if {z}}}",
            "sum({z} * 2 for {z} in range({n}))", "[[{z} for {y} in range(2)] for {z} in [{x}]]",
            "[(lambda: {z})() for {z} in range({n})]", "len(str({x}))",
        )  # fmt: skip
        # Mostly arguments are read: the others may be unbound, which ends most functions early.
        x = self.name() if self.chance(4) else self.pick(*ARGUMENTS)
        # A lambda in a comprehension over the name of a free variable is what CPython 3.12 and 3.13
        # compile wrongly: afterwards the name is a cell.
        z = self.pick(*NAMES[:-1]) if "lambda" in form else self.name()
        return form.format(x=x, y=self.pick(*ARGUMENTS), z=z, n=self.pick("0", "1", "3"))

    def block(self, indent: int, depth: int, in_loop: bool) -> None:
        for _ in range(self.draw(st.integers(1, 2))):
            self.statement(indent, depth, in_loop)

    def statement(self, indent: int, depth: int, in_loop: bool) -> None:
        simple = [self.assign, self.assign, self.assign, self.augment, self.inner_function]
        leaving = [self.leave, self.leave, self.delete]
        nested = [self.branch, self.loop, self.while_loop, self.try_, self.try_, self.with_]
        nested += [self.match, self.try_star]
        choices = simple + leaving + (nested * 2 if depth < MAX_DEPTH else [])
        if self.is_generator:
            choices += [self.yield_] * 4
        if in_loop:
            choices.append(self.leave_loop)
        self.draw(st.sampled_from(choices))(indent, depth, in_loop)

    # -- statements ------------------------------------------------------------------------

    def assign(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, f"{self.name()} = {self.expression()}")

    def augment(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, f"{self.pick(*ARGUMENTS)} += {self.pick('1', '[2]')}")

    def delete(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, f"del {self.name()}")

    def leave(self, indent: int, depth: int, in_loop: bool) -> None:
        if self.chance(4):
            self.line(indent, f"raise ValueError({self.expression()})")
        else:
            self.line(indent, f"return {self.expression()}" if not self.chance(4) else "return")

    def leave_loop(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, self.pick("break", "continue"))

    def yield_(self, indent: int, depth: int, in_loop: bool) -> None:
        what = self.pick("yield", "yield from several()")
        value = f"{what} {self.expression()}" if what == "yield" else what
        self.line(indent, f"{self.name()} = {value}")

    def inner_function(self, indent: int, depth: int, in_loop: bool) -> None:
        self.functions += 1
        name = f"inner{self.functions}"
        # `c` can be nonlocal only where the function binds it, which the first line provides for.
        shared = self.pick(*ARGUMENTS, "c", "e")
        self.line(indent, f"def {name}():")
        self.line(indent + 1, f"nonlocal {shared}")
        self.line(indent + 1, f"del {shared}" if self.chance(4) else f"{shared} = [7]")
        self.line(indent, f"{name}()")

    def branch(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, f"if {self.expression()}:")
        self.block(indent + 1, depth + 1, in_loop)
        if self.chance(2):
            self.line(indent, "else:")
            self.block(indent + 1, depth + 1, in_loop)

    def loop(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, f"for {self.name()} in range({self.pick('0', '1', '3')}):")
        self.block(indent + 1, depth + 1, in_loop=True)
        self._else(indent, depth, in_loop)

    def while_loop(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, "while more():")
        self.block(indent + 1, depth + 1, in_loop=True)
        self._else(indent, depth, in_loop)

    def _else(self, indent: int, depth: int, in_loop: bool) -> None:
        if self.chance(3):
            self.line(indent, "else:")
            self.block(indent + 1, depth + 1, in_loop)

    def with_(self, indent: int, depth: int, in_loop: bool) -> None:
        managers = self.pick("quiet()", "plain() as {0}", "quiet() as {0}, plain()", "plain()")
        self.line(indent, f"with {managers.format(self.name())}:")
        self.block(indent + 1, depth + 1, in_loop)

    def try_(self, indent: int, depth: int, in_loop: bool) -> None:
        self.line(indent, "try:")
        self.block(indent + 1, depth + 1, in_loop)
        has_handler = not self.chance(3)
        if has_handler:
            self._handler(indent, depth, in_loop)
            self._else(indent, depth, in_loop)
        if not has_handler or self.chance(3):
            self.line(indent, "finally:")
            self.block(indent + 1, depth + 1, in_loop)

    def _handler(self, indent: int, depth: int, in_loop: bool) -> None:
        error = self.pick("Exception", "ValueError", "(NameError, ValueError)", "BaseException")
        name = f" as {self.name()}" if self.chance(2) else ""
        self.line(indent, f"except {error}{name}:")
        self.block(indent + 1, depth + 1, in_loop)
        if self.chance(5):
            self.line(indent + 1, self.pick("raise", "raise KeyError from None"))

    def try_star(self, indent: int, depth: int, in_loop: bool) -> None:
        """Neither return nor break may stand in the handler; there may be a loop, however."""
        self.line(indent, "try:")
        self.block(indent + 1, depth + 1, in_loop)
        self.line(indent, f"except* ({self.pick('ValueError', 'Exception')}) as {self.name()}:")
        self.assign(indent + 1, depth + 1, in_loop)

    def match(self, indent: int, depth: int, in_loop: bool) -> None:
        name, other = self.draw(st.permutations(NAMES))[:2]
        self.line(indent, f"match {self.expression()}:")
        patterns = ["0 | None", f"[{name}, *{other}]", f"int() as {name}", f"{{1: {name}}}"]
        for pattern in patterns[: self.draw(st.integers(1, 4))]:
            guard = f" if {self.expression()}" if self.chance(4) else ""
            self.line(indent + 1, f"case {pattern}{guard}:")
            self.block(indent + 2, depth + 1, in_loop)


@st.composite
def sources(draw: Any) -> Source:
    """Draw a function. Its first line binds `c` on no path, so that it is a local at any rate."""
    is_generator = draw(st.integers(0, 3)) == 0
    writer = _Writer(draw, is_generator)
    writer.line(0, "def outer(e):")
    writer.line(1, "def f(a, b):")
    writer.line(2, "if more is None: c = None")
    if is_generator:
        writer.line(2, "if more is None: yield")
    writer.line(2, "nonlocal e")
    for _ in range(draw(st.integers(2, 4))):
        writer.statement(2, depth=0, in_loop=False)
    writer.line(1, "return f")
    return Source("\n".join(writer.lines) + "\n", is_generator)
