"""Which keys the queries of a lazy map see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from visualizer.attention import AttentionCall

__all__ = ["visible_keys"]

_HIDES: Final = -1e4
"""Added to a score, it hides a key; what programs add for that is at least as low."""


def visible_keys(call: AttentionCall, item: int, queries: slice) -> NDArray[np.bool_]:
    """Return which keys the mask of a call leaves visible, whatever weight they get.

    Args:
        call: The call.
        item: Index in the batch.
        queries: Which queries.
    Returns:
        Broadcastable to `(head, query, key)`, the size of the last two axes as there.
    """
    from visualizer.attention import unobserved
    from visualizer.attention.picks import Pick, take

    _, heads, _, keys = call.shape
    pick = Pick(slice(item, item + 1), slice(0, heads), queries, slice(0, keys))
    with unobserved(call.query.device.type):
        seen = call.mask.seen(pick, pick.keys, call.query.device)
        if call.mask.bias is not None:
            added = take(call.mask.bias, pick.items, pick.heads, pick.queries, pick.keys) > _HIDES
            seen = added if seen is None else seen & added
        if seen is None:
            return np.ones((1, len(pick), keys), bool)
        found: NDArray[np.bool_] = seen.cpu().numpy()
    found = found.reshape((1,) * (4 - found.ndim) + found.shape)[0]
    return np.broadcast_to(found, (len(found), len(pick), keys))
