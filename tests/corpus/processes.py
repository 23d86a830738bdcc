"""Run a corpus's worker in a process of its own, so that what was instrumented goes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["NOT_HERE", "run_worker"]

NOT_HERE = 77
"""Exit status where something that a corpus consists of is missing (automake's "skipped")."""

_REPOSITORY = Path(__file__).parents[2]


def run_worker(name: str, arguments: Sequence[str], output: Path, most_seconds: float) -> str:
    """Run a worker to its end.

    Args:
        name: Its module in this package.
        arguments: Its command line.
        output: File for what it prints.
        most_seconds: After this time it is killed.
    Returns:
        "ended" where it exited with 0, otherwise in words how it ended.
    """
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.corpus.{name}", *arguments],
            cwd=_REPOSITORY,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it leaves running can be ended with it
        )
        ending = _wait_for(process, most_seconds)
    if ending != "ended":
        ending += f": …{output.read_text(encoding='utf-8', errors='replace')[-1000:]}"
    return ending


def _wait_for(process: subprocess.Popen[bytes], most_seconds: float) -> str:
    try:
        status = process.wait(most_seconds)
    except subprocess.TimeoutExpired:
        return f"did not end within {most_seconds:.0f} s"
    finally:
        _end_group(process)
    return "ended" if status == 0 else f"exit status {status}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    """Return the environment without what would make two runs differ."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    fixed = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    return {**kept, **fixed, "TZ": "UTC", "HF_HUB_OFFLINE": "1"}
