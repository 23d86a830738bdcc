"""What is installed, and what importing it does."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = ROOT / "visualizer" / "demo" / "files"
HEAVY = {"torch", "numpy", "matplotlib", "IPython", "transformers", "tensorboard", "bytecode"}


def run(code: str, **options: object) -> str:
    """Run code in a fresh interpreter; return what it prints."""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def loaded_by(code: str) -> set[str]:
    report = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    return set(run(code + report, cwd=ROOT).split())


def test_import_is_light() -> None:
    assert not loaded_by("import visualizer") & HEAVY


def test_get_local_loads_the_engine_only() -> None:
    loaded = loaded_by("from visualizer import get_local; get_local.activate()")
    assert loaded & HEAVY == {"bytecode"}


def test_that_the_light_import_test_can_fail() -> None:
    assert "bytecode" in loaded_by("import visualizer; visualizer.get_local") & HEAVY


def test_import_patches_and_writes_nothing(tmp_path: Path) -> None:
    code = """
import builtins, os, sys
before = vars(builtins).copy(), list(sys.meta_path), list(sys.path_hooks), sys.gettrace()
import visualizer
assert (vars(builtins), sys.meta_path, sys.path_hooks, sys.gettrace()) == before
print(os.listdir('.'))
"""
    output = run(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", cwd=tmp_path)
    assert output.strip() == "[]"


def test_unknown_attribute_is_an_attribute_error() -> None:
    import visualizer

    with pytest.raises(AttributeError, match="no attribute 'get_locals'"):
        visualizer.get_locals  # noqa: B018


def test_everything_exported_is_there() -> None:
    import visualizer
    import visualizer.rewrite

    modules = [visualizer.rewrite]
    if importlib.util.find_spec("matplotlib") is not None:
        names = ("visualizer", "visualizer.plot", "visualizer.analysis", "visualizer.demo")
        modules += [importlib.import_module(name) for name in names]
    for module in modules:
        for name in module.__all__:
            assert getattr(module, name) is not None
        assert set(module.__all__) <= set(dir(module))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout: building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "visualizer", source / "visualizer")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "tests", "benchmarks"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"visualizer"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "visualizer").rglob("*.py")}
    packed = {name for name in names if name.startswith("visualizer/")}
    files = {str(path.relative_to(ROOT)) for path in FILES.iterdir()}
    assert len(files) == 15
    assert packed == modules | files | {"visualizer/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Outside the checkout, from the wheel; `bytecode` is this environment's."""
    target = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel],
        check=True,
        capture_output=True,
    )
    code = f"""
import sys
sys.path[:0] = [{str(target)!r}]
sys.path.append({sysconfig.get_path("purelib")!r})
import visualizer
from visualizer import get_local

assert visualizer.__file__.startswith({str(target)!r}), visualizer.__file__

@get_local("y")
def f(x):
    y = x + 1

get_local.activate()
f(1)
print(get_local.cache["f"])
"""
    assert run(code, cwd=tmp_path).strip() == "[2]"


def test_installed_wheel_has_the_model(wheel: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = f"""
import sys
sys.path[:0] = [{str(target)!r}]
from visualizer import demo
assert demo.__file__.startswith({str(target)!r}), demo.__file__
print(type(demo.load_model()).__name__, len(demo.load_scenes().images))
"""
    assert run(code, cwd=tmp_path).strip() == "VisionTransformer 12"
