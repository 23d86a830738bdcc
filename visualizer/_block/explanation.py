"""Say why a capture has not what was asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import nn

from visualizer._block.attention_tap import AttentionTap
from visualizer._block.kept_functions import find_kept_functions
from visualizer._block.locals_tap import TappedFunction
from visualizer._block.modules_tap import TappedModule
from visualizer._block.sites import Site

__all__ = ["explain_attention", "explain_function", "explain_modules"]


def explain_function(tapped: TappedFunction) -> list[str]:
    """Say what is missing of a function's locals."""
    called = any(site.calls for site in tapped.sites.values())
    if not called and tapped.foreign:
        return [
            f"{tapped.qualname}() returned {tapped.foreign}×, but not in a call of the model that "
            f"capture() was given"
        ]
    if not called:
        return [
            f"{tapped.qualname}() never returned while the block was open. Did the model run "
            f"inside the block, and does it call this very function?"
        ]
    found = []
    for name, site in tapped.sites.items():
        if site.unbound:
            found.append(
                f"{name!r} of {tapped.qualname}() was never bound in {site.unbound} of "
                f"{site.calls} calls: a branch that does not assign it was taken, in attention "
                f"code that of the fused kernel, which attention=True sees"
            )
        found += _troubles(site)
    return found


def explain_modules(modules: Mapping[str, TappedModule]) -> list[str]:
    """Say what is missing of modules' outputs; layers that only differ by their number together."""
    silent: dict[str, list[str]] = {}
    for path, tapped in modules.items():
        if tapped.output.calls == 0 and not tapped.is_container:
            silent.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    found = [
        f"{_name(paths)} never called while the block was open. {_NOT_SEEN}"
        for paths in silent.values()
    ]
    for tapped in modules.values():
        found += _troubles(tapped.output)
        found += [] if tapped.input is None else _troubles(tapped.input)
    return found


_NOT_SEEN = (
    "Modules inside a fused layer are not, and what is called as module.forward(…) is not seen"
)


def _name(paths: list[str]) -> str:
    if len(paths) == 1:
        return f"the module {paths[0]!r} was"
    more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    return f"the modules {paths[0]!r}, {paths[1]!r}{more} were"


def explain_attention(tap: AttentionTap, model: nn.Module | None) -> list[str]:
    """Say what is missing of attention."""
    found = []
    for (where, reason), times in list(tap.unseen.items()):
        found.append(f"attention of {where!r} was out of sight {times}×, because {reason}")
    for where, reason in [] if model is None else find_kept_functions(model):
        found.append(f"attention of {where!r} was out of sight: {reason}")
    for site in tap.sites:
        if site.refused is not None:
            found.append(f"{site.refused} disagrees with the model's output; the site stopped")
        if site.over_budget is not None:
            found.append(f"attention of {site.name!r} stopped: {site.over_budget}")
    found += _missing_gradients(tap)
    if tap.error is not None:
        found.append(f"recording attention raised {type(tap.error).__name__}: {tap.error}")
    if not tap.maps and not found:
        found.append(_no_attention(tap, model is not None))
    return found


def _missing_gradients(tap: AttentionTap) -> list[str]:
    if not tap.gradients:
        return []
    reasons = Counter(record.gradient.why_none() for record in tap.records)
    return [
        f"{count} of {reasons.total()} attention maps have no gradient: {reason}"
        for reason, count in reasons.items()
        if reason
    ]


def _no_attention(tap: AttentionTap, has_model: bool) -> str:
    if tap.foreign:
        return (
            f"{tap.foreign} attention calls were seen, but none in a call of the model that "
            f"capture() was given"
        )
    who = "the model" if has_model else "a model"
    return (
        f"no attention call was seen. Did {who} run inside the block, as Python? Seen are "
        f"scaled_dot_product_attention, torch.nn's layers, transformers' attention functions and, "
        f"as a fallback, softmax; kernels that are called directly (flash_attn, xformers) are not"
    )


def _troubles(site: Site) -> list[str]:
    found = [f"{site.name} was not recorded {n}×, because {why}" for why, n in site.reasons.items()]
    if site.error is not None:
        kind = type(site.error).__name__
        found.append(f"recording {site.name} raised {kind}: {site.error}")
    if site.over_budget is not None:
        found.append(f"{site.name} stopped: {site.over_budget}")
    return found
