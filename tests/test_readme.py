"""The README's examples run, in order, and print what the README says they print."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:```text\n(?P<printed>.*?)```)?", re.DOTALL)


def blocks() -> list[tuple[str, str | None]]:
    return [(m["code"], m["printed"]) for m in BLOCK.finditer(README.read_text())]


def test_there_are_examples() -> None:
    assert len(blocks()) >= 5
    assert sum(printed is not None for _, printed in blocks()) >= 4


@pytest.mark.parametrize(
    ("code", "printed"), blocks(), ids=[code.strip().splitlines()[0] for code, _ in blocks()]
)
def test_example(code: str, printed: str | None) -> None:
    if printed is None:
        compile(code, "README.md", "exec")
        return
    if "torch" in code and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert output.getvalue() == printed
