"""The command line, as a user runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import visualizer

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("typer", reason="typer is not installed")
Image: Any = pytest.importorskip("PIL.Image")

from visualizer.store.index import seal

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


def make_model(names: Sequence[str]) -> Any:
    """A model that calls a module under each of some names."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                self.add_module(name, torch.nn.Linear(4, 4))

        def forward(self, x: Any) -> Any:
            for layer in self.children():
                x = layer(x)
            return x

    return Model()


def saved(folder: Path, names: Sequence[str] = ("0", "1", "2"), **told: Any) -> Path:
    """A saved capture of what the modules of a model return."""
    model = make_model(names)
    with (
        torch.no_grad(),
        visualizer.capture(model, modules="*", attention=False) as captured,
    ):
        model(torch.rand(2, 4))
    captured.annotate(**told).save(folder)
    return folder


KILLED = """
import os, signal, sys, torch, visualizer
from visualizer.store import writer
writer.UNIT_BYTES = 1
commit, units = writer.commit, []
def commit_two(*args):
    if len(units) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    units.append(args)
    return commit(*args)
writer.commit = commit_two
model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
with visualizer.capture(model, modules="*", attention=False) as captured:
    model(torch.rand(2, 4))
captured.save(sys.argv[1])
"""


def cut_off(folder: Path) -> Path:
    """What a process that was killed left of its capture: two units."""
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], capture_output=True, check=False
    )
    assert finished.returncode < 0, finished.stderr
    return folder


def spoil(folder: Path, unit: str = "u00000000") -> None:
    """Change the last byte of a unit's tensors."""
    path = folder / "shards" / f"{unit}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def check_shown(printed: str, width: int) -> None:
    """Nothing but characters that can be seen, on lines that fit."""
    for line in printed.splitlines():
        assert line.isprintable()
        assert len(line) <= width


def facts_in(printed: str) -> dict[str, str]:
    """The lines above the table, by their names."""
    above = re.split("^  what +from", printed, flags=re.MULTILINE)[0]
    found = re.findall(r"^  (\S+(?: \S+)*)  +(\S.*)$", above, re.MULTILINE)
    return {name: fact.strip() for name, fact in found}


def test_inspect_says_what_there_is(tmp_path: Path) -> None:
    tokens = [f"token{number}" for number in range(9)]
    image = np.zeros((6, 8, 3), np.uint8)
    path = saved(tmp_path / "run", tokens=tokens, image=image, grid=3, prefix_tokens=1)
    finished = run("inspect", path, COLUMNS="150")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    facts = facts_in(finished.stdout)
    assert facts["store"] == str(path)
    assert facts["state"] == "whole"
    assert facts["model"] == "make_model.<locals>.Model of tests.test_cli"
    assert f"torch {torch.__version__}" in facts["written with"]
    assert f"visualizer {visualizer.__version__}" in facts["written with"]
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert facts["on the disk"] == f"{size / 1024:.1f} KiB in 1 unit"
    assert "9 tokens: token0 token1" in facts["annotations"]
    assert "token8" not in facts["annotations"]
    for told in ("picture of shape (6, 8, 3)", "grid of 3 × 3 patches", "1 token before the"):
        assert told in facts["annotations"]
    rows = [line.split() for line in finished.stdout.splitlines()]
    assert ["output", "*", "×", "3", "3", "float32", "(2,", "4)", "96", "B"] in rows
    assert "•" not in finished.stdout


def test_inspect_reads_the_index_only(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", image=np.zeros((300, 300), np.uint8))
    whole = run("inspect", path).stdout
    spoil(path)
    assert run("inspect", path).stdout == whole
    (path / "shards" / "u00000000.safetensors").unlink()
    finished = run("inspect", path)
    assert finished.returncode == 0, finished.stderr
    assert facts_in(finished.stdout)["state"].startswith("damaged: u00000000")
    assert re.search("• unit u00000000:.*is missing", " ".join(finished.stdout.split()))


def test_inspect_of_what_was_cut_off(tmp_path: Path) -> None:
    finished = run("inspect", cut_off(tmp_path / "run"))
    assert finished.returncode == 0, finished.stderr
    facts = facts_in(finished.stdout)
    assert facts["state"].startswith("cut off")
    assert facts["on the disk"].endswith("in 2 units")
    assert facts["annotations"].startswith("lost")
    assert "• " in finished.stdout


@pytest.mark.parametrize("width", [80, 100, 200])
def test_names_are_shown_and_not_obeyed(tmp_path: Path, width: int) -> None:
    names = [
        "\x1b[31mred",
        "bell\x07\x9b2J",
        "new\nline\r\x1b]0;title\x07",
        "turned\u202eround",
        "\ud800",
        "[bold]markup[/nothing]",
        "long" * 5000,
    ]
    path = saved(tmp_path / "run", names, tokens=["\x1b[2J", "[red]"], image="/none/\x1b[5m.png")
    finished = run("inspect", path, COLUMNS=str(width))
    assert finished.returncode == 0, finished.stderr
    check_shown(finished.stdout, width)
    assert len(finished.stdout.splitlines()) < 60
    for shown in (
        r"\x1b[31mred",
        r"bell\x07\x9b2J",
        r"turned\u202eround",
        "[bold]markup[/nothing]",
    ):
        assert shown in finished.stdout
    assert r"\x1b[2J [red]; the picture \x1b[5m.png" in finished.stdout
    spoil(path)
    finished = run("verify", path)
    assert finished.returncode == 1
    assert finished.stderr == ""
    check_shown(finished.stdout, 2000)
    assert "can't be read: output of long" in finished.stdout


def test_verify_of_what_is_in_order(tmp_path: Path) -> None:
    path = saved(tmp_path / "run")
    finished = run("verify", path)
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    assert line.startswith(f"{path}: 1 unit, 3 tensors, ")
    assert line.endswith(": all as they were written")
    assert run("verify", path, "--quarantine").stdout == finished.stdout
    assert not (path / "quarantine").exists()


def test_verify_of_what_was_cut_off(tmp_path: Path) -> None:
    finished = run("verify", cut_off(tmp_path / "run"))
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    assert "2 units" in line
    assert "cut off" in line


def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    path = cut_off(tmp_path / "run")
    spoil(path, "u00000001")
    finished = run("verify", path)
    assert finished.returncode == 1
    assert finished.stderr == ""
    first, unit, lost = finished.stdout.splitlines()
    assert first.endswith(": 1 damaged")
    assert unit.startswith("  unit u00000001: bytes ")
    assert lost == "  can't be read: output of 1, call 0"


def test_verify_puts_damaged_units_aside(tmp_path: Path) -> None:
    path = cut_off(tmp_path / "run")
    spoil(path, "u00000001")
    finished = run("verify", path, "--quarantine")
    assert finished.returncode == 1
    assert str(path / "quarantine") in finished.stdout
    aside = {file.name for file in (path / "quarantine").iterdir()}
    assert aside == {"u00000001.jsonl", "u00000001.safetensors"}
    assert run("verify", path).returncode == 0
    assert facts_in(run("inspect", path).stdout)["on the disk"].endswith(
        "1 unit, and 1 in quarantine"
    )


def test_what_is_no_store_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "run")
    about = path / "store.json"
    first = (
        about.read_text()
        .splitlines()[0]
        .replace('"visualizer_store": 1', '"visualizer_store": "\\u001b[2J9"')
    )
    about.write_bytes(seal([first]))
    for command in ("inspect", "verify"):
        check_one_line(run(command, tmp_path / "none"), "there is no", "captured.save")
        check_one_line(run(command, tmp_path), "holds no store")
        check_one_line(run(command, path), r"version '\x1b[2J9'", "reads version 1")
    assert "there is no" in run("inspect", "\x1b[2J").stderr
    assert "\x1b" not in run("inspect", "\x1b[2J").stderr


def test_looking_at_a_store_loads_no_figures(tmp_path: Path) -> None:
    code = (
        "import sys; from visualizer.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    )
    path = saved(tmp_path / "run")
    for command in ("inspect", "verify"):
        printed = subprocess.run(
            [sys.executable, "-c", code, command, str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.splitlines()[-1] == "False True"


def test_help_and_version() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "demo" in shown.stdout
    assert "Draw the attention of a vision transformer." in shown.stdout
    assert all(command in shown.stdout for command in ("inspect", "verify"))
    assert "--quarantine" in run("verify", "-h").stdout
    options = run("demo", "-h").stdout
    assert all(option in options for option in ("--out", "--image", "--model"))
    assert run("--version").stdout == f"visualizer {visualizer.__version__}\n"
    assert run("demo", "--nonsense").returncode == 2
