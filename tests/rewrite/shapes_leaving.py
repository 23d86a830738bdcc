"""Shapes 1 to 3, 13 to 23 and 25: the ways to leave a function."""

from __future__ import annotations

import contextlib
import types
from typing import Any

from tests.rewrite.shapes import UNBOUND, Case, call, finish, shape


@shape(1, "an early return leaves it unbound", "late")
def early_return() -> Case:
    def f(x):
        if x < 0:
            return "early"
        late = x * 2
        return late + 1

    return Case(f, call(lambda: f(-1), UNBOUND), call(lambda: f(3), 6))


@shape(2, "del on one path", "x")
def deleted() -> Case:
    def f(x, gone):
        if gone:
            del x
        return gone

    return Case(f, call(lambda: f(1, True), UNBOUND), call(lambda: f(1, False), 1))


@shape(2, "del, then read", "x")
def deleted_and_read() -> Case:
    def f(x):
        del x
        return x  # noqa: F821

    return Case(f, call(lambda: f(1)))


@shape(3, "an implicit None", "total")
def implicit_none() -> Case:
    def f(values):
        total = 0
        for value in values:
            total += value

    return Case(f, call(lambda: f([1, 2]), 3), call(lambda: f([]), 0))


@shape(3, "an implicit None after a branch", "y")
def implicit_none_after_branch() -> Case:
    def f(x):
        if x:
            y = x

    return Case(f, call(lambda: f(0), UNBOUND), call(lambda: f(4), 4))


@shape(13, "return in try, with a finally that goes on working", "x")
def return_in_try() -> Case:
    def f(x, log):
        try:
            x += 1
            return x
        finally:
            x *= 10
            log.append(x)

    return Case(f, call(lambda: f(1, []), 20), call(lambda: f("a", [])))


@shape(13, "return in finally of a function that raised", "x")
def return_in_finally() -> Case:
    def f(x):
        try:
            x = 1 // x
        finally:
            return x

    return Case(f, call(lambda: f(0), 0), call(lambda: f(1), 1))


@shape(14, "finally overrides the return", "x")
def overriding_return() -> Case:
    def f(x):
        try:
            return x
        finally:
            x += 1
            return -x

    return Case(f, call(lambda: f(1), 2))


@shape(15, "break in finally swallows a return", "rounds")
def swallowed_return() -> Case:
    def f(limit):
        rounds = 0
        while True:
            rounds += 1
            try:
                return "never"
            finally:
                if rounds <= limit:
                    break
        return rounds

    return Case(f, call(lambda: f(1), 1), call(lambda: f(0), 1))


@shape(16, "return in except", "x")
def return_in_except() -> Case:
    def f(x):
        try:
            x = 10 // x
        except ZeroDivisionError:
            x = "caught"
            return [x]
        return x

    return Case(f, call(lambda: f(0), "caught"), call(lambda: f(5), 2), call(lambda: f(None)))


@shape(16, "return in nested excepts, each with its own handler around it", "x")
def return_in_nested_excepts() -> Case:
    def f(x):
        try:
            raise KeyError(x)
        except KeyError:
            try:
                x = 1 // x
            except ZeroDivisionError:
                return "inner"
            else:
                return "else"
            finally:
                x = (x, "finally")

    return Case(f, call(lambda: f(0), (0, "finally")), call(lambda: f(1), (1, "finally")))


@shape(17, "the name of except … as", "error")
def except_as() -> Case:
    def f(x):
        try:
            x = 1 // x
        except ZeroDivisionError as error:
            x = str(error)
        return x

    return Case(f, call(lambda: f(0), UNBOUND), call(lambda: f(1), UNBOUND))


@shape(17, "return from within except … as, which unbinds the name first", "error")
def return_within_except_as() -> Case:
    def f(error):
        try:
            return 1 // error
        except ZeroDivisionError as error:
            return str(error)

    return Case(f, call(lambda: f(0), UNBOUND), call(lambda: f(1), 1))


@shape(18, "except*", "seen")
def except_star() -> Case:
    def f(*errors):
        seen = []
        try:
            if errors:
                raise ExceptionGroup("several", list(errors))
        except* ValueError as group:
            seen.append(len(group.exceptions))
        except* TypeError:
            seen.append("type")
        return seen

    return Case(
        f,
        call(lambda: f(), []),
        call(lambda: f(ValueError(1), TypeError(2), ValueError(3)), [2, "type"]),
        call(lambda: f(ValueError(1), KeyError(2))),
    )


@shape(19, "raise … from in nested tries of a loop", "out")
def raise_from_in_loop() -> Case:
    """A plain round trip through `bytecode` makes CPython crash here."""

    def f(xs):
        out = []
        for x in xs:
            try:
                try:
                    out.append(10 // x)
                except ZeroDivisionError as e:
                    raise ValueError from e
            except ValueError:
                out.append("V")
        return out

    return Case(f, call(lambda: f([5, 0, 2]), [2, "V", 5]), call(lambda: f([0, None])))


@contextlib.contextmanager
def _noting(log: list[str]) -> Any:
    try:
        yield log
    finally:
        log.append("left")


@shape(20, "return in with", "x")
def return_in_with() -> Case:
    def f(x):
        with _noting([]) as log:
            x = [x, log]
            return x[0]

    return Case(f, call(lambda: f(1), [1, ["left"]]))


@shape(21, "with suppresses the error", "x")
def suppressing_with() -> Case:
    def f(x):
        with contextlib.suppress(ZeroDivisionError), _noting([]):
            x = 1 // x
            return "inside"
        x = (x, "suppressed")

    return Case(
        f, call(lambda: f(0), (0, "suppressed")), call(lambda: f(1), 1), call(lambda: f("s"))
    )


class _Rounds:
    """An asynchronous iterator and context manager."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def __aenter__(self) -> int:
        return self.count

    async def __aexit__(self, kind: object, error: object, traceback: object) -> bool:
        return kind is ZeroDivisionError

    def __aiter__(self) -> _Rounds:
        return self

    async def __anext__(self) -> int:
        if not self.count:
            raise StopAsyncIteration
        self.count -= 1
        return self.count


@shape(22, "async with and async for", "total")
def asynchronous() -> Case:
    async def f(count, stop=-1):
        total = 0
        async with _Rounds(count) as start:
            async for step in _Rounds(start):
                total += 10 // step  # the last step is 0: the context manager suppresses that
                if step == stop:
                    return "stopped"
        return total

    return Case(
        f,
        call(lambda: finish(f(3)), 15),
        call(lambda: finish(f(3, stop=2)), 5),
        call(lambda: finish(f(0)), 0),
    )


@types.coroutine
def _pause() -> Any:
    return (yield "paused")


@shape(22, "a coroutine that waits, is resumed and is cancelled", "steps")
def waiting() -> Case:
    async def f():
        steps = []
        try:
            steps.append(await _pause())
            steps.append(await _pause())
        except KeyError as error:
            return error.args
        return steps

    def resume(*, cancel: bool) -> object:
        coroutine = f()
        log = [coroutine.send(None), coroutine.send("one")]
        try:
            log.append(coroutine.throw(KeyError("stop")) if cancel else coroutine.send("two"))
        except StopIteration as stop:
            log.append(stop.value)
        return log

    return Case(
        f,
        call(lambda: resume(cancel=False), ["one", "two"]),
        call(lambda: resume(cancel=True), ["one"]),
    )


@shape(23, "return in a for loop, and in its else", "value")
def return_in_loop() -> Case:
    def f(values, wanted):
        for value in values:
            if value == wanted:
                return "found"
            for _ in range(2):
                if value is None:
                    return "inner"
        else:
            return "not found"

    return Case(
        f,
        call(lambda: f([1, 2, 3], 2), 2),
        call(lambda: f([1], 2), 1),
        call(lambda: f([], 2), UNBOUND),
        call(lambda: f([None], 2), None),
    )


@shape(25, "recursion", "n")
def recursion() -> Case:
    def f(n):
        below = f(n - 1) if n else 0
        return below + 1

    return Case(f, call(lambda: f(3), 0, 1, 2, 3))


@shape(25, "a RecursionError passes through", "n")
def too_deep() -> Case:
    def f(n):
        return f(n + 1) + 1

    def outcome() -> object:
        try:
            f(0)
        except RecursionError as error:
            return str(error)

    return Case(f, call(outcome))
