"""Build, train and draw with torch, numpy, transformers and matplotlib; print what came out.

Started by `tests.corpus.third_party`, once plain and once with every Python function of those
four instrumented. Everything is seeded, so what is printed must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus.instrument_everything import Rewriter, drop, instrument_everything
from visualizer.rewrite import Sink

if TYPE_CHECKING:
    import numpy as np
    import torch

PACKAGES = frozenset({"torch", "numpy", "transformers", "matplotlib"})
_SEED = 20
_STEPS = 4


def _meddle(*values: object) -> None:
    """A sink that does what no sink may: it changes every tensor that it is handed."""
    for value in values:
        if isinstance(value, sys.modules["torch"].Tensor) and value.is_floating_point():
            value.data.mul_(1.0009765625)  # behind autograd's back


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["plain", "instrumented", "sabotaged"], required=True)
    parser.add_argument("--result", type=Path, required=True, help="where to write the result")
    parser.add_argument("--cache", type=Path, help="for what was rewritten")
    options = parser.parse_args(arguments)
    rewriter = Rewriter(options.cache)
    if options.mode != "plain":
        instrument_everything(
            lambda module: module.partition(".")[0] in PACKAGES,
            rewriter,
            lambda module: drop if options.mode == "instrumented" else _sabotage(module),
        )
    result = {
        "digests": dict(_digests()),
        "functions": rewriter.functions,
        "locals": rewriter.locals,
        "failures": rewriter.failures,
    }
    options.result.write_text(json.dumps(result), encoding="utf-8")


def _sabotage(module: str) -> Sink:
    return _meddle if module.startswith("transformers.models.") else drop


def _digests() -> Iterator[tuple[str, str]]:
    """Yield `(what, digest or number)` for everything that the script computes."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(_SEED)
    np.random.seed(_SEED)
    tokens = torch.randint(0, 50, (4, 12))
    labels = tokens[:, 0] % 2
    for name, model in _models(tokens.shape[1]):
        yield from _train(name, model, tokens, labels)
    yield from _draw(np.random.default_rng(_SEED))


def _models(length: int) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield models with random weights; each maps tokens to two logits."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2ForSequenceClassification,
    )

    bert = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        attn_implementation="eager",
    )
    yield "bert", BertForSequenceClassification(bert)
    gpt2 = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, pad_token_id=0)
    yield "gpt2", GPT2ForSequenceClassification(gpt2)
    yield "encoder", _encoder(length)


def _encoder(length: int) -> torch.nn.Module:
    from torch import nn

    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(50, 32), encoder, nn.Flatten(), nn.Linear(32 * length, 2))


def _train(
    name: str, model: torch.nn.Module, tokens: torch.Tensor, labels: torch.Tensor
) -> Iterator[tuple[str, str]]:
    """Run a model forward, train it for some steps, and digest what it computes and is."""
    import torch

    def logits() -> torch.Tensor:
        output = model(tokens)
        return output if isinstance(output, torch.Tensor) else output.logits

    model.eval()
    with torch.no_grad():
        yield f"{name} outputs before training", _digest(logits())
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(_STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(), labels)
        loss.backward()
        optimizer.step()
        yield f"{name} loss {step}", float(loss.detach()).hex()
    model.eval()
    with torch.no_grad():
        yield f"{name} outputs after training", _digest(logits())
    yield f"{name} parameters", _digest(*model.parameters())


def _digest(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def _draw(generator: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Draw an image, lines, text and a legend, and digest the pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 3), dpi=80, layout="constrained")
    figure.colorbar(left.imshow(generator.random((12, 12)), cmap="viridis"), ax=left)
    left.set_title("attention $\\alpha_{ij}$")
    right.plot(generator.random(30), label="loss")
    right.fill_between(range(30), generator.random(30), alpha=0.3, label="spread")
    right.set_xlabel("step")
    right.legend()
    figure.canvas.draw()
    yield "figure", hashlib.sha256(bytes(figure.canvas.buffer_rgba())).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
