"""The benchmarks run, and say everything that they are to say. No figure is judged here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks._report import Row, render_table
from benchmarks._timing import Contender, own_code, time_contenders

ROOT = Path(__file__).parents[1]

ROWS = {
    "bare function",
    "bare function, branch taken",
    "bare function, branch not taken",
    "append by hand",
    "list sink, local always bound",
    "list sink, two names",
    "list sink, local of a branch, bound",
    "list sink, local of a branch, unbound",
    "callback sink, list.append",
    "callback sink, Python function",
    "get_local, small int",
    "wrapper design (result and local in a tuple)",
    "sys.settrace",
    "sys.monitoring",
    "get_local inactive, never active",
    "get_local inactive, was active before",
    "list sink / wrapper design",
    "bare function of a tensor",
    "detach().clone(), nothing else",
    "get_local, 4x4 tensor",
    "wrapper design, 4x4 tensor",
    "bare module",
    "register_forward_hook",
    "get_local / detach().clone(), 4x4 tensor",
    "ViT-S, plain",
    "ViT-S, plain, CPU time",
    "ViT-S, by hand",
    "ViT-S, by hand, CPU time",
    "ViT-S, get_local",
    "ViT-S, get_local, CPU time",
    "ViT-S, get_local / by hand",
    "ViT-S, get_local / by hand, run by run",
    "ViT-S, get_local / by hand, CPU time",
    "ViT-S, get_local / plain",
}
TARGETS = {
    "list sink, local always bound": 10,
    "list sink, local of a branch, bound": 10,
    "list sink / wrapper design": 0.1,
    "get_local / detach().clone(), 4x4 tensor": 2.5,
    "ViT-S, get_local / by hand": 1.03,
}

POINTING = {
    "rollout",
    "relevance, the digit named",
    "relevance, the least likely digit",
    "CLS attention, last layer",
    "control: chance",
    "control: brightest patch",
    "control: untrained, rollout",
    "control: untrained, relevance",
    "control: untrained, CLS attention",
}

ATTENTION = {
    "captured, the block open / plain": 1.05,
    "captured, a block for each forward / plain": 1.05,
    "captured.nbytes / q and k": 1.05,
    "storages / q and k": 1.05,
    "storages / eager's maps": 1 / 40,
    "extra peak, captured / eager": 1 / 15,
    "captured.nbytes / rows": 1.1,
    "storages that capturing left alive / rows": 1.1,
    "one row, all heads": 50,
    "row sums are off by": 1e-5,
    "of all rows / one SDPA forward": 1.3,
    "extra peak": 128,
    "error against float64": 5e-5,
    "captured / eager": 0.7,
    "largest difference": 1e-6,
    "peak, captured / eager": 0.1,
}
STORE = {
    "float32, captured.save / raw": 1.3,
    "bfloat16, captured.save / raw": 1.3,
    "load and one layer, cold / raw": 1.5,
    "peak of the memory / its bytes": 2.0,
    "background=True / not saved": 1.02,
    "out= / in memory": 1.02,
    "data files / 64 MiB begun": 1,
}
PEAKS = {
    "extra peak, captured / eager",
    "peak of the memory / its bytes",
    "extra peak",
    "peak, captured / eager",
}
"""What is measured on Linux only."""
BERT = {
    "captured, the block open / plain": 1.1,
    "captured, a block for each forward / plain": 1.1,
}


def run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # other tests may keep the cores busy
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_overhead_has_every_row(tmp_path: Path) -> None:
    """With and without torch, each row is measured, or left out for a reason."""
    file = tmp_path / "overhead.json"
    table = run("overhead", "--rounds", "2", "--calls", "100", "--json", str(file))
    found = json.loads(file.read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert set(rows) == ROWS
    assert found["rounds"] == 2
    for name, row in rows.items():
        assert name in table
        assert (row["value"] is None) == (row["left_out"] is not None)
        if row["value"] is not None:
            assert row["target"] == TARGETS.get(name)
            assert bool(row["verdict"]) == (name in TARGETS)


def test_attention_has_every_target(tmp_path: Path) -> None:
    """Each figure that has a target is measured with it, or left out for a reason."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    file = tmp_path / "attention.json"
    table = run("attention", "--runs", "1", "--shorter", "64", "--json", str(file))
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"python", "machine", "torch", "transformers", "torchlens"} <= set(found)
    targets: dict[str, dict[str, float]] = {"BERT": {}, "other": {}}
    for row in found["rows"]:
        assert row["name"] in table
        title, _, what = row["name"].rpartition(" tokens, ")
        assert (row["value"] is None) == (row["left_out"] is not None)
        if row["left_out"] is not None:
            assert "torchlens is not installed: pip install" in table or "/proc" in table
        elif row["target"] is not None and "torchlens" not in what:
            targets["BERT" if title.startswith("BERT") else "other"][what] = row["target"]
    assert targets["BERT"] == BERT
    peaks = set() if os.access("/proc/self/clear_refs", os.W_OK) else PEAKS
    assert targets["other"] == {k: v for k, v in ATTENTION.items() if k not in peaks}


def test_parts_of_attention_can_be_chosen() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    table = run("attention", "--only", "row", "--runs", "1", "--shorter", "256")
    assert "one row, all heads" in table
    assert "SDPA" not in table


def test_store_has_every_target(tmp_path: Path) -> None:
    """Each figure that has a target is measured with it, and what it stands beside, too."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    file, folder = tmp_path / "store.json", tmp_path / "disk"
    folder.mkdir()
    options = ("--runs", "1", "--shorter", "128", "--folder", str(folder), "--json", str(file))
    table = run("store", *options)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"python", "machine", "torch", "safetensors", "runs", "shorter"} <= set(found)
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    peaks = set() if os.access("/proc/self/clear_refs", os.W_OK) else PEAKS
    targets = {name: row["target"] for name, row in rows.items() if row["target"] is not None}
    assert sorted(targets.values()) == sorted(v for k, v in STORE.items() if k not in peaks)
    for name, target in targets.items():
        assert target == next(v for k, v in STORE.items() if name.endswith(k))
    for name, row in rows.items():
        assert name in table
        assert (row["value"] is None) == (row["left_out"] is not None)
        assert row["value"] is None or row["value"] > 0
    for writer in ("raw write", "save_file", ".pt per tensor", "npz", "nested JSON"):
        assert any(writer in name for name in rows)
    assert not list(folder.iterdir())


def test_parts_of_store_can_be_chosen(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    table = run("store", "--only", "steps", "--runs", "1", "--shorter", "100")
    assert "5 steps × 12 tensors of 120 KB, data files" in table
    assert "raw cold read" not in table


def test_pointing_has_every_row() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    table = run("pointing", "--scenes", "60")  # more than one batch
    rows = re.findall(r"^│ (.*?) *│ *([\d.]+)% *│ *([\d.]+)% *│$", table, re.MULTILINE)
    shares = {name: (float(points), float(lies)) for name, points, lies in rows}
    assert set(shares) == POINTING
    for name in ("rollout", "relevance, the digit named"):
        points, lies = shares[name]
        assert points >= 80
        assert lies >= 30
    for name, figures in shares.items():
        assert not name.startswith("control") or max(figures) <= 40
    assert re.search(r"names [\d.]+% of the digits, untrained [\d.]+%", table)


def test_help_lists_the_benchmarks() -> None:
    assert {"overhead", "pointing", "attention", "store"} <= set(run("--help").split())


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("a", 10.0, target=10), "met"),
        (Row("a", 10.1, target=10), "missed"),
        (Row("a", 10.1), ""),
        (Row("a", target=10, left_out="no torch"), ""),
    ],
)
def test_verdict(row: Row, verdict: str) -> None:
    assert row.verdict == verdict
    assert verdict in render_table([row])


def test_a_contender_that_keeps_too_little_is_an_error() -> None:
    """A figure of something that does nothing would look like a very good one."""
    contender = Contender("lazy", lambda x: x, 1, empty=lambda: 0, values_per_call=1)
    with pytest.raises(RuntimeError, match=r"'lazy' kept 0 values of 20 calls instead of 20"):
        time_contenders(lambda stack: [contender], rounds=1, calls=20)


def test_own_code_copies_the_code_object() -> None:
    def double(x: int) -> int:
        return x * 2

    copy = own_code(double, "twice")
    assert copy(2) == 4
    assert copy.__code__ is not double.__code__
    assert copy.__qualname__ == "twice"
