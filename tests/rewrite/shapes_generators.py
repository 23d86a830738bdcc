"""Shapes 26 to 30: generators, which hand over when they end."""

from __future__ import annotations

from tests.rewrite.shapes import Case, call, finish, shape


@shape(26, "a generator that is sent to, thrown into and closed", "total")
def generator() -> Case:
    def f(total):
        try:
            while True:
                try:
                    total += yield total
                except ValueError:
                    yield "thrown"
                    return total
        except GeneratorExit:
            total = "closed"
            raise

    def send_and_throw() -> object:
        running = f(1)
        log = [next(running), running.send(10), running.throw(ValueError())]
        try:
            next(running)
        except StopIteration as stop:
            log.append(stop.value)
        return log

    def close() -> object:
        running = f(1)
        return next(running), running.close(), list(running)

    def throw() -> object:
        running = f(1)
        next(running)
        return running.throw(KeyError("out"))

    return Case(f, call(send_and_throw, 11), call(close), call(throw))


@shape(26, "a generator that returns when it is closed", "state")
def closing_generator() -> Case:
    def f():
        state = "open"
        try:
            yield 1
        except GeneratorExit:
            state = "closed"
            return
        yield 2

    def close() -> object:
        running = f()
        return next(running), running.close()

    return Case(f, call(close, "closed"), call(lambda: list(f()), "open"))


@shape(27, "close() of a generator that never started", "x")
def unstarted() -> Case:
    def f(x):
        x += 1
        yield x

    return Case(f, call(lambda: f(1).close()), call(lambda: list(f(1)), 2))


@shape(28, "the value of yield from", "got")
def delegating() -> Case:
    def inner(n):
        yield from range(n)
        return n * 100

    def f(n):
        got = yield from inner(n)
        yield got

    return Case(f, call(lambda: list(f(2)), 200), call(lambda: list(f("a"))))


@shape(28, "a return in a generator's for loop", "x")
def returning_generator() -> Case:
    def f(values):
        for x in values:
            if x is None:
                return "stopped"
            yield x

    return Case(f, call(lambda: list(f([1, None, 2])), None), call(lambda: list(f([1, 2])), 2))


@shape(28, "a generator expression inside", "all_of_them")
def generator_expression() -> Case:
    def f(values):
        all_of_them = tuple(x + 1 for x in values)
        return max(all_of_them)

    return Case(f, call(lambda: f([1, 5]), (2, 6)), call(lambda: f([])))


@shape(29, "an asynchronous generator", "last")
def asynchronous_generator() -> Case:
    async def f(n):
        last = None
        try:
            for last in range(n):
                yield last * 2
                if last == 5:
                    return
        finally:
            last = (last, "end")

    async def collect(n):
        return [item async for item in f(n)]

    async def close():
        running = f(3)
        first = await anext(running)
        await running.aclose()
        return first

    return Case(
        f,
        call(lambda: finish(collect(3)), (2, "end")),
        call(lambda: finish(collect(9)), (5, "end")),
        call(lambda: finish(close())),
    )


@shape(30, "a generator that runs while the function is instrumented keeps its code", "x")
def running_generator() -> Case:
    def f(x):
        yield x
        x = [x]
        yield x

    started = [f(number) for number in range(30)]
    for running in started:
        next(running)

    def resume() -> object:
        running = started.pop()
        running.gi_frame.f_locals  # noqa: B018
        return len(list(running))

    return Case(f, call(resume), call(lambda: list(f(1)), [1]))
