"""One process of a data-parallel training: `python -m tests.block.parallel_worker RANK FILE`.

Prints what it captured of its share, as JSON, and what a model that is not wrapped says to it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.block.samples import Attention, Tiny, expected_map, numbers
from visualizer import capture

WORLD = 2
STEPS = 2


def facts(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Tiny(2)
    shares = [numbers(batch=4).chunk(WORLD)[rank] for _ in range(STEPS)]
    wrapper = DistributedDataParallel(model)
    with capture(wrapper, modules=["", "blocks.*"], locals={Attention.forward: ["q", "k"]}) as got:
        for share in shares:
            wrapper(share).sum().backward()
    found = got.locals["Attention.forward"]
    expected = [
        expected_map(torch.from_numpy(q.value), torch.from_numpy(k.value))
        for q, k in zip(found["q"], found["k"], strict=True)
    ]
    with torch.no_grad():
        outputs = [model(share).numpy() for share in shares]
    entries = got.modules[""]
    return {
        "attention": [[m.module_path, m.layer, m.call, m.step] for m in got.attention],
        "modules": {path: [[e.call, e.step] for e in got.modules[path]] for path in got.modules},
        "locals": [[e.module_path, e.step] for e in found["q"]],
        "map_error": max(
            float(np.abs(np.asarray(m) - each).max())
            for m, each in zip(got.attention, expected, strict=True)
        ),
        "is_own_share": all(
            np.array_equal(e.value, out) for e, out in zip(entries, outputs, strict=True)
        ),
        "first_number": float(entries[0].value.flat[0]),
        "explanation": got.explain(),
    }


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    try:
        print(json.dumps(facts(rank)))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
