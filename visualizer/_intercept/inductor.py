"""Under inductor: keep the kernels of the program as they are, and hand small calls over together.

Products of matrices take copies of queries and keys, which are fused with what computes these. If
our operator read them before they are copied, or repeated them for itself, they would be computed
and stored once more in the same loops, which a C++ compiler may then turn into other instructions,
with other last bits. So it reads the copies, too.

Each layer's matrices drive all else out of the processor's caches, and Python that runs between two
layers takes ten times as long as it does at the end. So the calls of a graph that are small are
handed over together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from visualizer._intercept import compiled
from visualizer._intercept.telling import tell_errors

__all__ = ["reading_copies"]

_NAME = "visualizer::saw_attention"
_NUMBERS = ("spot", "scale", "softcap", "dropout", "is_causal")
_MOST_TOGETHER = 2**25
"""Bytes of all that is kept until the graph's end, so that its calls are handed over together."""
_PLAIN = frozenset(
    getattr(torch.ops.aten, name).default
    for name in ("_unsafe_view", "clone", "expand", "permute", "reshape", "unsqueeze", "view")
)


def reading_copies() -> AbstractContextManager[Any]:
    """Have graphs made meanwhile read copies, and hand small calls over at their end."""
    from torch._inductor import config
    from torch._inductor.custom_graph_pass import get_custom_graph_passes

    own = get_custom_graph_passes(config.post_grad_custom_post_pass)
    passes: Any = [*own, _make_pass()]
    patched: AbstractContextManager[Any] = config.patch(post_grad_custom_post_pass=passes)
    return patched


@functools.cache
def _make_pass() -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class ReadCopies(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            with tell_errors():
                readers = [node for node in graph.nodes if _is_ours(node)]
                _read_copies(graph, readers)
                _read_together(graph, readers)

        def uuid(self) -> Any:  # what is compiled is kept on disk
            return get_hash_for_files((__file__, compiled.__file__))

    return ReadCopies()


def _read_copies(graph: Graph, readers: list[Node]) -> None:
    order = {node: place for place, node in enumerate(graph.nodes)}
    own = _find_own(graph, set(readers))
    theirs = _find_theirs(graph, own)
    for node in readers:
        tensors: Any = node.kwargs["tensors"]
        found = [_copy_of(theirs.get(each, each), node, order) for each in tensors]
        node.kwargs = {**node.kwargs, "tensors": found}
    for node in reversed(own):
        if not node.users:
            graph.erase_node(node)


def _is_ours(node: Node) -> bool:
    """Tell whether a node is our operator, in the form that it has until the code is written."""
    schemas = [getattr(arg, "_schema", None) for arg in node.args]
    return "tensors" in node.kwargs and any(each and each.name == _NAME for each in schemas)


def _find_own(graph: Graph, readers: set[Node]) -> list[Node]:
    """Return views and copies that nobody but our operator reads, in their order."""
    found: list[Node] = []
    known = set(readers)
    for node in reversed(graph.nodes):
        if node.target in _PLAIN and all(user in known for user in node.users):
            found.append(node)
            known.add(node)
    return found[::-1]


def _find_theirs(graph: Graph, own: list[Node]) -> dict[Any, Node]:
    """Return for our own views and copies those of the program that are the same."""
    known = {_key(node, {}): node for node in graph.nodes if node not in set(own)}
    theirs: dict[Any, Node] = {}
    for node in own:
        same = known.get(_key(node, theirs))
        if same is not None:
            theirs[node] = same
    return theirs


def _key(node: Node, theirs: dict[Any, Node]) -> tuple[Any, str]:
    args = map_arg(node.args, lambda arg: theirs.get(arg, arg))
    return node.target, repr((args, node.kwargs))


def _copy_of(tensor: Any, node: Node, order: dict[Node, int]) -> Any:
    """Return a copy that is made of a tensor before a node is, or the tensor itself."""
    if not isinstance(tensor, Node):
        return tensor
    for copy, axes in _copies(tensor):
        if order.get(copy, len(order)) < order[node]:
            return copy if axes is None else _permuted(copy, axes, node)
    return tensor


def _copies(tensor: Node) -> Iterator[tuple[Node, list[int] | None]]:
    """Yield copies of a tensor, and how its axes were permuted before."""
    aten = torch.ops.aten
    for user in tensor.users:
        if user.target is aten.clone.default:
            yield user, None
        elif user.target is aten.expand.default and _shape(user) == _shape(tensor):
            yield from _copies(user)
        elif user.target is aten.permute.default:
            axes: Any = user.args[1]
            yield from ((copy, list(axes)) for copy, others in _copies(user) if others is None)


def _shape(node: Node) -> Any:
    return getattr(node.meta.get("val"), "shape", None)


def _permuted(copy: Node, axes: list[int], node: Node) -> Node:
    """Return a copy with the axes in the order that they had before."""
    back = [axes.index(axis) for axis in range(len(axes))]
    with node.graph.inserting_before(node):
        made = node.graph.call_function(torch.ops.aten.permute.default, (copy, back))
    made.meta["val"] = copy.meta["val"].permute(back)
    return made


def _read_together(graph: Graph, readers: list[Node]) -> None:
    """Make one of our operators at the end of a graph, if all that they read is little."""
    read = {node for reader in readers for node in _read_by(reader)}
    if len(readers) < 2 or sum(map(_nbytes, read)) > _MOST_TOGETHER:
        return
    last = readers[-1]
    functional: Any = last.target
    with graph.inserting_before(_find_end(graph)):
        args = (torch.ops.visualizer.saw_attentions.default, *last.args[1:])
        made = graph.call_function(functional, args, _join(readers))
    made.meta = dict(last.meta)
    for written in list(last.users):  # ours from the operator before is its argument
        made.append(written)
        written.replace_input_with(last, made)
    for reader in reversed(readers):
        for written in list(reader.users):
            graph.erase_node(written)
        graph.erase_node(reader)


def _join(readers: list[Node]) -> dict[str, Any]:
    """Return keyword arguments of the operator that takes several calls."""
    every: list[dict[str, Any]] = [dict(reader.kwargs) for reader in readers]
    joined: dict[str, Any] = {name: [each[name] for each in every] for name in _NUMBERS}
    for name in ("tensors", "parts"):
        joined[name] = [tensor for each in every for tensor in each[name]]
        joined[f"{name}_of_each"] = [len(each[name]) for each in every]
    return {**every[0], **joined}  # what is written to is that of the first


def _read_by(reader: Node) -> list[Node]:
    lists: Any = (*reader.kwargs["tensors"], *reader.kwargs["parts"])  # type: ignore[misc]
    return [each for each in lists if isinstance(each, Node)]


def _nbytes(node: Node) -> float:
    """Return a tensor's size; where the graph is one for many sizes, that of the first input."""
    value = node.meta["val"]
    count = value.numel()
    if isinstance(count, torch.SymInt):
        count = count.node.hint
    return math.inf if count is None else count * value.element_size()


def _find_end(graph: Graph) -> Node:
    """Return what comes when all is computed: the first write to an input, or the output."""
    inputs = set(graph.find_nodes(op="placeholder"))
    copies = graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
    return next((copy for copy in copies if copy.args[0] in inputs), graph.output_node())
