"""Shapes 4 to 12, 24 and 34 to 40: where a name is kept, and who else uses it."""

from __future__ import annotations

import types

from tests.rewrite.shapes import UNBOUND, Case, call, compile_function, shape


@shape(4, "an argument", "b")
def argument() -> Case:
    def f(a, /, b, c=3, *, d=4):
        return (a, b, c, d)

    return Case(f, call(lambda: f(1, 2), 2), call(lambda: f(1, b="x", d=0), "x"), call(lambda: f()))


@shape(4, "an argument that is assigned again", "b")
def argument_assigned() -> Case:
    def f(b):
        b = [b]
        return b[0]

    return Case(f, call(lambda: f(1), [1]))


@shape(5, "*args", "args")
def positional_rest() -> Case:
    def f(*args, **kw):
        return len(args) + len(kw)

    return Case(f, call(lambda: f(1, 2, k=3), (1, 2)), call(lambda: f(), ()))


@shape(5, "**kw", "kw")
def keyword_rest() -> Case:
    def f(*args, **kw):
        return len(args) + len(kw)

    return Case(f, call(lambda: f(1, 2, k=3), {"k": 3}), call(lambda: f(), {}))


@shape(6, "an argument that is a cell", "x")
def argument_in_cell() -> Case:
    def f(x, y=2):
        def grow():
            nonlocal x
            x += y

        grow()
        return x * 100

    return Case(f, call(lambda: f(1), 3), call(lambda: f("a")))


@shape(7, "a nonlocal free variable", "count")
def free_variable() -> Case:
    count = 0

    def f(step):
        nonlocal count
        count = step
        return -count

    return Case(f, call(lambda: f(1), 1), call(lambda: f(5), 5))


@shape(7, "a free variable that is only read, and unbound at first", "later")
def unbound_free_variable() -> Case:
    def f(read):
        return later if read else None

    result = Case(f, call(lambda: f(False), UNBOUND), call(lambda: f(True)))
    if not result:
        later = None
    return result


@shape(8, "an inner function deletes the cell", "x")
def cell_deleted() -> Case:
    def f(x, gone):
        def drop():
            nonlocal x
            del x

        if gone:
            drop()
        return gone

    return Case(f, call(lambda: f(1, True), UNBOUND), call(lambda: f(1, False), 1))


@shape(9, "a cell, and a comprehension with a variable of that name", "x")
def cell_and_comprehension() -> Case:
    def f(x):
        def read():
            return x

        squares = [x * x for x in range(3)]
        return squares, read()

    return Case(f, call(lambda: f(7), 7))


@shape(10, "a free variable, and a comprehension with a variable of that name", "x")
def free_and_comprehension() -> Case:
    def outer(x):
        def f(reads):
            squares = [x * x for x in range(3)]
            return squares, x if reads else None

        return f

    f = outer(7)
    return Case(f, call(lambda: f(True), 7), call(lambda: f(False), 7))


@shape(11, "beside a name that is only a comprehension's", "squares")
def comprehension_only() -> Case:
    """That `x` itself can't be asked for is in test_targets.py."""

    def f(n):
        squares = [x * x for x in range(n) if [x for y in range(2)]]
        return sum(squares)

    return Case(f, call(lambda: f(4), [0, 1, 4, 9]))


@shape(12, "a comprehension restores that the name is unbound", "x")
def comprehension_restores_unbound() -> Case:
    def f(n, bind):
        squares = [x * x for x in range(n)]
        if bind:
            x = "bound"
        return squares

    return Case(f, call(lambda: f(3, False), UNBOUND), call(lambda: f(3, True), "bound"))


@shape(12, "a comprehension that raises leaves the name as it was", "x")
def comprehension_raises() -> Case:
    def f(x, bind):
        if not bind:
            del x
        try:
            return [1 // x for x in range(1, -1, -1)]
        except ZeroDivisionError:
            return None

    return Case(f, call(lambda: f("a", False), UNBOUND), call(lambda: f("a", True), "a"))


@shape(24, "names bound by match", "rest")
def match_captures() -> Case:
    def f(subject):
        match subject:
            case {"key": value, **rest}:
                return value
            case [first, *rest] if first:
                return first
            case str() as rest:
                pass

    return Case(
        f,
        call(lambda: f({"key": 1, "other": 2}), {"other": 2}),
        call(lambda: f([1, 2, 3]), [2, 3]),
        call(lambda: f([0, 2]), [2]),
        call(lambda: f("text"), "text"),
        call(lambda: f(5), UNBOUND),
    )


class _Private:
    def method(self, x):
        __y = x + 1
        return __y * 2


@shape(34, "a private name of a class, as the source spells it", "__y")
def mangled() -> Case:
    private = _Private()
    return Case(_Private.method, call(lambda: private.method(1), 2))


@shape(34, "a private name of a class, as the code spells it", "_Private__y")
def mangled_in_full() -> Case:
    private = _Private()
    return Case(_Private.method, call(lambda: private.method(1), 2))


def _wide_source(branch: list[str]) -> str:
    """Write a function with 300 locals and a branch in a loop that is so long."""
    lines = ["def f(x):"]
    lines += [f"    v{i} = x + {i}" for i in range(300)]
    lines += ["    for turn in range(2):", "        if turn == x:"]
    lines += [f"            {statement}" for statement in branch]
    lines += ["            if x.real > 0: return v299", "    last = v299", "    return last"]
    return "\n".join(lines)


@shape(35, "300 locals and long jumps", "v299")
def wide() -> Case:
    f = compile_function(_wide_source([f"v{i} = v{i} + turn" for i in range(300)]), "f")
    return Case(f, call(lambda: f(3), 302), call(lambda: f(1), 301), call(lambda: f("x")))


@shape(35, "jumps that need two EXTENDED_ARG", "last", is_long=True)
def very_wide() -> Case:
    f = compile_function(_wide_source(["x = x" + ".conjugate()" * 10] * 480), "f")
    return Case(f, call(lambda: f(3), 302), call(lambda: f(1), UNBOUND), call(lambda: f(0), 299))


@shape(35, "a jump that is just short enough without EXTENDED_ARG", "y")
def growing() -> Case:
    """What is put in at the inner returns makes the jump over them need a prefix."""
    middle = "\n".join(f"        if x == {i}: return y" for i in range(1, 22))
    f = compile_function(f"def f(x):\n    y = -x\n    if x:\n{middle}\n    return [y]", "f")
    return Case(f, call(lambda: f(0), 0), call(lambda: f(21), -21), call(lambda: f(99), -99))


@shape(36, "locals() and vars()", "x")
def locals_user() -> Case:
    def f(x):
        y = [x]
        before = dict(locals())
        del x
        z = y
        return before, sorted(vars()), {**locals()}["z"]

    return Case(f, call(lambda: f(1), UNBOUND))


@shape(36, "dir(), eval() and exec() in the frame of the function", "x")
def eval_user() -> Case:
    def f(x):
        exec("x = 'not seen'")
        return dir(), eval("x + 1"), x

    return Case(f, call(lambda: f(1), 1))


@shape(37, "two closures that share one code object", "value")
def siblings() -> Case:
    def make(step):
        def f(x):
            value = x + step
            return value

        return f

    one, other = make(1), make(10)
    return Case(one, call(lambda: one(0), 1), call(lambda: other(0)), call(lambda: make(5)(0)))


@shape(38, "a clone with other globals has no sink", "x")
def cloned() -> Case:
    def f(x):
        return base + x  # noqa: F821

    def clone(**namespace):
        return types.FunctionType(f.__code__, namespace)(1)

    return Case(
        f,
        call(lambda: clone(base=10)),
        call(lambda: clone(base=10, __builtins__={})),
        call(lambda: clone(base=10, NameError=ValueError)),
        call(lambda: clone()),
        call(lambda: f(1)),
    )


@shape(39, "a lambda without source, with a walrus", "b")
def lambda_without_source() -> Case:
    f = eval(compile("lambda a: (b := a + 1) * 2", "<nowhere>", "eval"))
    return Case(f, call(lambda: f(1), 2), call(lambda: f("a")))


_GENERIC = """
def f[T: int](x: T, *, shown: bool = False) -> list[T]:
    kind = T.__name__
    return [x, kind] if shown else [x]

class Box[T]:
    def get(self, x: T) -> T:
        kind = T
        return (kind.__name__, x)

    def both[U](self):
        T = [T for T in range(2)]
        return T, U.__name__

def name_twice[T]():
    return [T for T in range(3)], T.__name__
"""


@shape(40, "a generic function (PEP 695)", "kind", (3, 12))
def generic_function() -> Case:
    f = compile_function(_GENERIC, "f")
    return Case(f, call(lambda: f(1), "T"), call(lambda: f(1, shown=True), "T"))


@shape(40, "a type parameter as free variable (PEP 695)", "T", (3, 12))
def type_parameter() -> Case:
    box = compile_function(_GENERIC, "Box")
    return Case(box.get, call(lambda: box().get(1), box.__type_params__[0]))


@shape(40, "a method that is generic in a generic class (PEP 695)", "U", (3, 12))
def generic_method() -> Case:
    box = compile_function(_GENERIC, "Box")
    return Case(box.both, call(lambda: box().both(), box.both.__type_params__[0]))


@shape(40, "a type parameter beside a comprehension's variable (PEP 695)", "T", (3, 12))
def type_parameter_and_comprehension() -> Case:
    f = compile_function(_GENERIC, "name_twice")
    return Case(f, call(lambda: f(), f.__type_params__[0]))
