"""The README's examples run, in order, and print what the README says they print."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "tests" / "stubs"
README = ROOT / "README.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:```text\n(?P<printed>.*?)```)?", re.DOTALL)


def blocks() -> list[tuple[str, str | None]]:
    return [(m["code"], m["printed"]) for m in BLOCK.finditer(README.read_text())]


def test_there_are_examples() -> None:
    assert len(blocks()) >= 5
    assert sum(printed is not None for _, printed in blocks()) >= 4


@pytest.mark.parametrize(
    ("code", "printed"), blocks(), ids=[code.strip().splitlines()[0] for code, _ in blocks()]
)
def test_example(code: str, printed: str | None, tmp_path: Path) -> None:
    assert printed is not None, "an example prints something, so that its test can fail"
    for library in ("torch", "transformers", "timm", "diffusers", "matplotlib"):
        used = library in code or (library == "matplotlib" and "visualize_" in code)
        if used and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    stand_in = [STUBS] if "timm" in code else []  # timm imports torchvision
    ran = subprocess.run(  # a process of its own, as a reader has
        [sys.executable, "-c", code],
        cwd=tmp_path,  # some save a figure
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*stand_in, ROOT]))},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (0, printed), ran.stderr


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link
