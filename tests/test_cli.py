"""The command line, as a user runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import visualizer

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("typer", reason="typer is not installed")
Image: Any = pytest.importorskip("PIL.Image")

STUBS = Path(__file__).parent / "stubs"
FIGURES = {
    "cls.png",
    "distance.png",
    "entropy.png",
    "grids.png",
    "head.png",
    "heads.png",
    "layers.png",
    "mosaic.png",
    "rollout.png",
    "specialization.png",
}


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from visualizer.cli import main; sys.argv[0] = 'visualizer'; main()"
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **variables}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def drawn_in(folder: Path) -> set[str]:
    """The figures, each opened to make sure that it is one."""
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 100
    return {path.name for path in folder.iterdir()}


def check_one_line(finished: subprocess.CompletedProcess[str], *words: str) -> None:
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("visualizer:")]
    for word in words:
        assert word in line


def test_demo_draws_and_tells(tmp_path: Path) -> None:
    out = tmp_path / "new" / "figures"
    finished = run("demo", "--out", out)
    assert finished.returncode == 0, finished.stderr
    assert drawn_in(out) == FIGURES
    printed = finished.stdout
    assert "attn of Attention.forward: 6 calls, each (12, 6, 145, 145) float32" in printed
    right, inside = re.findall(r"(\d+) of 12", printed)
    assert int(right) >= 11
    assert int(inside) >= 11
    assert str(out) in printed
    assert finished.stderr == ""


def test_demo_takes_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "mine.jpg"
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (90, 160, 3), dtype=np.uint8)).save(picture)
    finished = run("demo", "--image", picture, "--out", tmp_path / "figures")
    assert finished.returncode == 0, finished.stderr
    assert drawn_in(tmp_path / "figures") == FIGURES
    assert re.search(r"The model says: \d", finished.stdout)


def test_demo_takes_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    labels = {0: "cat", 1: "$dog_{", 2: "[red]bird"}
    config = transformers.ViTConfig(
        num_hidden_layers=2,
        hidden_size=48,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        id2label=labels,
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "vit")
    finished = run("demo", "--model", f"hf:{tmp_path / 'vit'}", "--out", tmp_path / "figures")
    assert finished.returncode == 0, finished.stderr
    assert drawn_in(tmp_path / "figures") == FIGURES
    assert "eager_attention_forward: 2 calls, each (1, 4, 17, 17)" in finished.stdout
    assert any(f"The model says: {label}" in finished.stdout for label in labels.values())


MAKE_TIMM = """
import sys, timm, torch
from timm.models import save_for_hf
torch.manual_seed(0)
model = timm.create_model({name!r}, img_size=64, num_classes=3, **{options!r})
save_for_hf(model, sys.argv[1], model_config={{"num_classes": 3}},
            model_args=dict(img_size=64, **{options!r}))
"""


def skip_without_timm() -> None:
    if importlib.util.find_spec("timm") is None:  # importing it takes torchvision, or the stub
        pytest.skip("timm is not installed")


def make_timm_model(folder: Path, name: str, **options: object) -> None:
    skip_without_timm()
    subprocess.run(
        [sys.executable, "-c", MAKE_TIMM.format(name=name, options=options), str(folder)],
        env={**os.environ, "PYTHONPATH": str(STUBS)},
        check=True,
    )


def test_demo_takes_a_model_of_timm(tmp_path: Path) -> None:
    make_timm_model(tmp_path / "vit", "vit_tiny_patch16_224", depth=2, reg_tokens=3)
    model = f"timm:local-dir:{tmp_path / 'vit'}"
    finished = run("demo", "--model", model, "--out", tmp_path / "figures", PYTHONPATH=str(STUBS))
    assert finished.returncode == 0, finished.stderr
    assert drawn_in(tmp_path / "figures") == FIGURES
    assert "attn of Attention.forward: 2 calls, each (1, 3, 20, 20)" in finished.stdout


def test_a_model_without_a_grid_is_refused(tmp_path: Path) -> None:
    make_timm_model(tmp_path / "swin", "swin_tiny_patch4_window7_224", depths=(1, 1), window_size=4)
    model = f"timm:local-dir:{tmp_path / 'swin'}"
    finished = run("demo", "--model", model, "--out", tmp_path / "figures", PYTHONPATH=str(STUBS))
    check_one_line(finished, "no vision transformer with CLS", "shapes")


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    skip_without_timm()
    for name in ("resnet", "timm:", ":vit", "tensorflow:vit"):
        finished = run("demo", "--model", name, "--out", tmp_path)
        check_one_line(finished, "unknown model", "timm:NAME or hf:NAME")
    finished = run(
        "demo", "--model", "timm:vit_smal_patch16_224", "--out", tmp_path, PYTHONPATH=str(STUBS)
    )
    check_one_line(finished, "Did you mean vit_small_patch16_224")


def test_no_hub_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    finished = run(
        "demo",
        "--model",
        "hf:nobody/nothing",
        "--out",
        tmp_path,
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hub"),
    )
    check_one_line(finished, "can't load hf:nobody/nothing", "HF_HOME", "a folder")


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_one_line(run("demo", "--out", tmp_path / "file"), "can't write into", "--out")
    check_one_line(run("demo", "--out", tmp_path / "file" / "x"), "can't write into", "--out")


def test_a_broken_picture(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((200, 200), 80).save(whole)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:3000])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for path, words in (
        (broken, "can't read the picture"),
        (text, "not a picture"),
        (tmp_path / "none.png", "No such file"),
    ):
        finished = run("demo", "--image", path, "--out", tmp_path / "figures")
        check_one_line(finished, words, path.name)


def test_help_and_version() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "demo" in shown.stdout
    assert "Draw the attention of a vision transformer." in shown.stdout
    options = run("demo", "-h").stdout
    assert all(option in options for option in ("--out", "--image", "--model"))
    assert run("--version").stdout == f"visualizer {visualizer.__version__}\n"
    assert run("demo", "--nonsense").returncode == 2
