"""Training: the command, cut short, from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from visualizer.demo import VisionTransformer, train


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps with two sizes of the window, the last one the whole scene."""
    monkeypatch.setattr(train, "STAGES", ((5, 3), (12, 1)))
    monkeypatch.setattr(train, "TOKENS", 200)


def test_the_seed_decides(short: None) -> None:
    first, again, other = (train.train(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """On windows where the digit is nearly all there is, a minute's part is enough to see it."""
    monkeypatch.setattr(train, "STAGES", ((3, 150),))
    monkeypatch.setattr(train, "TOKENS", 400)
    monkeypatch.setattr(train, "WARMUP", 20)
    scenes = next(train.batches(train.load_digits()[0], train.np.random.default_rng(9)))
    losses = []
    torch.manual_seed(0)
    for model in (VisionTransformer(), train.train(0)):
        logits = train.classify_window(model, scenes)
        labels = torch.from_numpy(scenes.scenes.labels)
        losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
    assert losses[1] < 0.75 * losses[0]


def test_the_window_of_a_whole_scene_is_the_models_forward() -> None:
    model = VisionTransformer().eval()
    scenes = train.held_out_scenes(3, seed=0)
    whole = train.classify_window(model, train.Batch(scenes, (0, 0)))
    torch.testing.assert_close(whole, model(train.to_input(scenes.images)))


def test_command_writes_everything(
    short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(train, "accuracy", lambda model, scenes: 0.125)
    try:
        train.main(["--out", str(tmp_path / "model"), "--seed", "3", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    scenes = {f"scene_{number:02}.png" for number in range(12)}
    assert names == {"digits_vit.safetensors", "MODEL_CARD.md", "scenes.json"} | scenes
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "**12.5%**" in card
    assert "--seed 3 --threads 1" in card
    assert "12.5%" in capsys.readouterr().out
