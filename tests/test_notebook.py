"""`demo.ipynb` runs offline from top to bottom, and what it stores is what a run puts out."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

for library in ("torch", "transformers", "timm", "ipykernel"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed", allow_module_level=True)
nbformat: Any = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("nbclient", reason="nbclient is not installed")

sys.path.insert(0, str(ROOT / "tools"))
import run_notebook

sys.path.remove(str(ROOT / "tools"))


def shown(notebook: Any) -> list[list[tuple[str, str]]]:
    """What each cell puts out: texts as they are, of pictures that there is one."""
    return [
        [described(output) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def described(output: Any) -> tuple[str, str]:
    if output.output_type == "stream":
        return output.name, output.text
    data = output.data
    return "picture" if "image/png" in data else "value", data["text/plain"]


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(ROOT / "demo.ipynb", as_version=4)


def test_stored_outputs_are_those_of_a_run(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = [ROOT]
    if importlib.util.find_spec("torchvision") is None:
        path.append(ROOT / "tests" / "stubs")  # timm imports it
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    copy = tmp_path / "demo.ipynb"
    copy.write_bytes((ROOT / "demo.ipynb").read_bytes())
    assert shown(run_notebook.run(copy)) == shown(stored)


def test_there_is_something_to_see(stored: Any) -> None:
    outputs = [output for cell in shown(stored) for output in cell]
    assert [kind for kind, _ in outputs].count("picture") >= 9
    assert not [text for kind, text in outputs if kind == "stderr"]
    assert all(len(cell) <= 1 for cell in shown(stored)), "a picture is shown twice"


def test_it_is_no_larger_than_a_page_should_be() -> None:
    assert (ROOT / "demo.ipynb").stat().st_size < 2 * 2**20


def test_an_error_in_a_cell_is_an_error(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    broken = tmp_path / "broken.ipynb"
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), broken)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_notebook.run(broken)
