"""The instructions that hand values over, put around each RETURN of a function.

A sink is reached through a holder, an object under a private key of the function's globals.
In the comments a stack grows to the right, and what the RETURN is about to give back is left
out: it lies below everything else.

Two things may go wrong, and neither may disturb the function:

- A name is unbound. The read is guarded; what an unbound read raises is swallowed, and nothing
  else is, so that a debugger or tracer that raises here gets through.
- The holder is gone: the frame outlived `remove()` (a suspended generator), or somebody made a
  function of this code with other globals. Then nothing is handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial

from visualizer._compat import VersionFacts
from visualizer.rewrite._layout import Handler, Item
from visualizer.rewrite._locals import Local

__all__ = ["Delivery", "SinkKind", "hand_over"]


class SinkKind(Enum):
    """How a sink takes values."""

    APPEND = "append"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one instrumentation hands over, and how.

    Attributes:
        kind: How its sink takes values.
        key: The name of its holder in the function's globals.
        variables: The locals, in the order in which they were asked for.
    """

    kind: SinkKind
    key: str
    variables: tuple[Local, ...]


@dataclass(slots=True, eq=False)
class _Label:
    """A place in the code that is not written yet."""

    item: Item | None = None


def hand_over(
    leaving: Item,
    depth: int,
    deliveries: Sequence[Delivery],
    is_unbound: Callable[[Local], bool],
    name_index: Callable[[str], int],
    facts: VersionFacts,
    *,
    begins_line: bool,
) -> list[Item]:
    """Return the instructions that take the place of one RETURN.

    Args:
        leaving: The RETURN, which is among the result.
        depth: Values on the stack before it: its own, or none.
        deliveries: What to hand over, in this order.
        is_unbound: Tells whether a local is provably unbound here; then it is not read, so that
            a trace function sees no exception that was not there before.
        name_index: Gives a name's index in `co_names`.
        facts: What holds for the running Python.
        begins_line: A trace function may be told of a line at the RETURN; what it raises there
            must not meet a guard.
    """
    writer = _Writer(leaving, depth, name_index, facts)
    wanted = [
        delivery
        for delivery in deliveries
        if not (_is_plain_append(delivery) and is_unbound(delivery.variables[0]))
    ]
    if wanted and begins_line:
        writer.op("NOP")
    for delivery in wanted[:-1]:
        done = _Label()
        writer.deliver(delivery, is_unbound, partial(writer.jump, "JUMP_FORWARD", done))
        writer.mark(done)
    if wanted:
        writer.deliver(wanted[-1], is_unbound, writer.leave)
    return writer.finish() or [leaving]


def _is_plain_append(delivery: Delivery) -> bool:
    return delivery.kind is SinkKind.APPEND and len(delivery.variables) == 1


class _Writer:
    """Writes the instructions around one RETURN."""

    def __init__(
        self, leaving: Item, depth: int, name_index: Callable[[str], int], facts: VersionFacts
    ) -> None:
        self._leaving = leaving
        self._depth = depth
        self._name_index = name_index
        self._facts = facts
        self._items: list[Item] = []
        self._handler = leaving.handler
        self._marked: list[_Label] = []
        self._jumps: list[tuple[Item, _Label]] = []
        self._handlers: list[tuple[Handler, _Label]] = []

    # -- one instruction after the other ---------------------------------------------------

    def op(self, name: str, arg: int = 0) -> Item:
        item = Item(name, arg, handler=self._handler, origin=self._leaving.origin, inserted=True)
        return self._add(item)

    def jump(self, name: str, to: _Label) -> None:
        self._jumps.append((self.op(name), to))

    def mark(self, label: _Label) -> None:
        self._marked.append(label)

    def leave(self) -> None:
        """Write the RETURN: itself where it is reached first, a copy of it elsewhere."""
        if self._leaving in self._items:
            self.op(self._leaving.name, self._leaving.arg)
        else:
            self._add(self._leaving)

    @contextmanager
    def guarded(self, by: _Label, height: int) -> Iterator[None]:
        """Cover instructions: on an exception go to `by`, with `height` values kept of ours."""
        outer, self._handler = self._handler, Handler(self._depth + height)
        self._handlers.append((self._handler, by))
        yield
        self._handler = outer

    def finish(self) -> list[Item]:
        for item, label in self._jumps:
            item.jump = label.item
        for handler, label in self._handlers:
            handler.target = label.item
        return self._items

    def _add(self, item: Item) -> Item:
        for label in self._marked:
            label.item = item
        self._marked.clear()
        self._items.append(item)
        return item

    # -- pieces ----------------------------------------------------------------------------

    def deliver(
        self, delivery: Delivery, is_unbound: Callable[[Local], bool], leave: Callable[[], None]
    ) -> None:
        absent = _Label()
        if _is_plain_append(delivery):
            self._append_one(delivery, absent, leave)
        elif delivery.kind is SinkKind.APPEND:
            self._append_tuple(delivery, is_unbound, absent, leave)
        else:
            self._call(delivery, is_unbound, absent, leave)
        self._where_absent(delivery, absent, leave)

    def _append_one(self, delivery: Delivery, absent: _Label, leave: Callable[[], None]) -> None:
        with self.guarded(absent, 0):
            self._load_global(delivery.key)  # holder
            self._attribute("LOAD_ATTR", "values")  # list
            self._read(delivery.variables[0])  # list value
        self.op("LIST_APPEND", 1)  # list
        self.op("POP_TOP")
        leave()

    def _append_tuple(
        self,
        delivery: Delivery,
        is_unbound: Callable[[Local], bool],
        absent: _Label,
        leave: Callable[[], None],
    ) -> None:
        with self.guarded(absent, 0):
            self._load_global(delivery.key)  # holder
            self.op("COPY", 1)
            self._attribute("LOAD_ATTR", "values")  # holder list
        for position, variable in enumerate(delivery.variables):
            self._read_or_unbound(variable, is_unbound(variable), above_holder=1 + position)
        self.op("BUILD_TUPLE", len(delivery.variables))  # holder list tuple
        self.op("LIST_APPEND", 1)
        self.op("POP_TOP")
        self.op("POP_TOP")
        leave()

    def _call(
        self,
        delivery: Delivery,
        is_unbound: Callable[[Local], bool],
        absent: _Label,
        leave: Callable[[], None],
    ) -> None:
        raised = _Label()
        with self.guarded(absent, 0):
            self._load_global(delivery.key)  # holder
            if self._facts.null_before_callable:
                self.op("PUSH_NULL")
            self.op("COPY", 2 if self._facts.null_before_callable else 1)
            self._attribute("LOAD_ATTR", "deliver")
            if not self._facts.null_before_callable:
                self.op("PUSH_NULL")
        for position, variable in enumerate(delivery.variables):
            self._read_or_unbound(variable, is_unbound(variable), above_holder=2 + position)
        with self.guarded(raised, 1):
            if self._facts.call_unwinds_from_before:
                self.op("NOP")
            if self._facts.precall:
                self.op("PRECALL", len(delivery.variables))
            self.op("CALL", len(delivery.variables))  # holder result
        self.op("POP_TOP")
        self.op("POP_TOP")
        leave()
        self._where_sink_raised(raised, leave)

    def _read_or_unbound(self, variable: Local, unbound: bool, above_holder: int) -> None:
        """Push a local's value, or UNBOUND."""
        if unbound:
            self.op("COPY", above_holder + 1)
            self._attribute("LOAD_ATTR", "UNBOUND")
            return
        failed, other, done = _Label(), _Label(), _Label()
        with self.guarded(failed, above_holder + 1):
            self._read(variable)
        self.jump("JUMP_FORWARD", done)
        self.mark(failed)  # holder … exception
        self.op("COPY", above_holder + 2)
        self._attribute("LOAD_ATTR", "unbound_error")
        self.op("CHECK_EXC_MATCH")
        self.jump(self._facts.jump_if_false, other)
        self.op("POP_TOP")
        self.op("COPY", above_holder + 1)
        self._attribute("LOAD_ATTR", "UNBOUND")
        self.jump("JUMP_FORWARD", done)
        self.mark(other)
        self.op("RERAISE", 0)
        self.mark(done)

    def _where_absent(self, delivery: Delivery, absent: _Label, leave: Callable[[], None]) -> None:
        """Handle a holder that is gone, and an unbound name that nobody wants to hear about."""
        still_absent, other = _Label(), _Label()
        self.mark(absent)  # exception
        with self.guarded(still_absent, 1):
            self._load_global(delivery.key)
            self._attribute("LOAD_ATTR", "unbound_error")  # exception class
        self.op("CHECK_EXC_MATCH")  # exception bool
        self.jump(self._facts.jump_if_false, other)
        self.op("POP_TOP")
        leave()
        self.mark(other)
        self.op("RERAISE", 0)
        self._where_still_absent(delivery, still_absent, leave)

    def _where_still_absent(
        self, delivery: Delivery, still_absent: _Label, leave: Callable[[], None]
    ) -> None:
        """Find out whether the first exception was a missing holder's.

        Builtins may be shadowed or absent here, so NameError can't be loaded by name. But the
        second exception is one: if the first is of its class, it is no news. If not, one of the
        two is a tracer's, and whether the holder is there tells which.
        """
        differ, gone = _Label(), _Label()
        self.mark(still_absent)  # first second
        self.op("COPY", 2)
        self.op("COPY", 2)
        self._attribute("LOAD_ATTR", "__class__")  # first second first class
        self.op("CHECK_EXC_MATCH")
        self.jump(self._facts.jump_if_false, differ)  # first second first
        for _ in range(3):
            self.op("POP_TOP")
        leave()
        self.mark(differ)
        self.op("POP_TOP")
        with self.guarded(gone, 2):
            self._load_global(delivery.key)
            self._attribute("LOAD_ATTR", "unbound_error")
        self.op("POP_TOP")
        self.op("RERAISE", 0)  # the second
        self.mark(gone)  # first second third
        self.op("POP_TOP")
        self.op("POP_TOP")
        self.op("RERAISE", 0)  # the first

    def _where_sink_raised(self, raised: _Label, leave: Callable[[], None]) -> None:
        """Keep the first error in the holder.

        Without a call: where the sink ran into the recursion limit, another would, too.
        """
        other, later = _Label(), _Label()
        self.mark(raised)  # holder exception
        self.op("COPY", 2)
        self._attribute("LOAD_ATTR", "sink_error")
        self.op("CHECK_EXC_MATCH")  # holder exception bool
        self.jump(self._facts.jump_if_false, other)
        self.op("COPY", 2)
        self._attribute("LOAD_ATTR", "error")
        self.op("COPY", 3)
        self._attribute("LOAD_ATTR", "no_error")  # holder exception error no_error
        self.op("IS_OP", 0)
        self.jump(self._facts.jump_if_false, later)  # holder exception
        self.op("SWAP", 2)  # exception holder
        self._attribute("STORE_ATTR", "error")
        leave()
        self.mark(later)
        self.op("POP_TOP")
        self.op("POP_TOP")
        leave()
        self.mark(other)
        self.op("RERAISE", 0)

    def _read(self, variable: Local) -> None:
        self.op("LOAD_DEREF" if variable.is_cell else self._facts.checked_load, variable.index)

    def _load_global(self, name: str) -> None:
        self.op("LOAD_GLOBAL", self._name_index(name) << 1)

    def _attribute(self, name: str, attribute: str) -> None:
        shift = self._facts.attribute_shift if name == "LOAD_ATTR" else 0
        self.op(name, self._name_index(attribute) << shift)
