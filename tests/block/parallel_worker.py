"""One process of a parallel training: `python -m tests.block.parallel_worker KIND RANK FILE`.

Prints as JSON what it captured of its share, beside what a model that is not wrapped makes of that.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.block.samples import Attention, Block, Tiny, expected_map, numbers
from visualizer import capture

WORLD = 2
STEPS = 2


def wrap(kind: str, model: Tiny) -> nn.Module:
    """Return what trains a model together with the other processes."""
    if kind == "DDP":
        return DistributedDataParallel(model)
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    if kind == "FSDP":
        policy = ModuleWrapPolicy({Block})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, device_id=torch.device("cpu")
        )
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def facts(kind: str, rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Tiny(2)
    shares = [numbers(batch=4).chunk(WORLD)[rank] for _ in range(STEPS)]
    alone, wrapper = copy.deepcopy(model), wrap(kind, model)
    with capture(wrapper, modules=["", "blocks.*"], locals={Attention.forward: ["q", "k"]}) as got:
        for share in shares:
            wrapper(share).sum().backward()
    found = got.locals["Attention.forward"]
    expected = [
        expected_map(torch.from_numpy(q.value), torch.from_numpy(k.value))
        for q, k in zip(found["q"], found["k"], strict=True)
    ]
    with torch.no_grad():
        outputs = [alone(share).numpy() for share in shares]
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


def main(kind: str, rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    try:
        print(json.dumps(facts(kind, rank)))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
