"""The fast part of the corpus, and that a corpus would notice if something changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.corpus import cpython, third_party
from tests.corpus.instrument_everything import KEY, Rewriter, drop
from tests.corpus.processes import NOT_HERE
from visualizer.rewrite._sink import Holder

needs_cpython_tests = pytest.mark.skipif(
    not cpython.has_test_package(), reason="this Python came without its own tests"
)
needs_packages = pytest.mark.skipif(
    bool(third_party.missing_packages()),
    reason=f"not installed: {', '.join(third_party.missing_packages())}",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the processes of these tests leave rewritten code for each other."""
    return tmp_path_factory.mktemp("rewritten")


@needs_cpython_tests
def test_fast_files_end_as_they_do_plain(cache, capsys):
    status = cpython.main(["--fast", "--jobs", "2", "--cache", str(cache)])
    report = capsys.readouterr().out
    assert status == 0, report
    assert ", 0 differences" in report


@needs_cpython_tests
def test_sink_that_meddles_is_noticed(cache, capsys):
    arguments = ["--against", "sabotaged", "--cache", str(cache), "--file", "test_coroutines"]
    assert cpython.main(arguments) == 1
    assert (
        "≠ test.test_coroutines.CoroutineTest.test_await_3: ok → failed" in capsys.readouterr().out
    )


@pytest.mark.slow
@needs_packages
def test_third_party_results_are_equal_to_the_last_bit(cache, capsys):
    status = third_party.main(["--cache", str(cache)])
    report = capsys.readouterr().out
    assert status == 0, report
    assert ", 0 differences" in report


@pytest.mark.slow
@needs_packages
def test_sink_that_changes_a_tensor_is_noticed(cache):
    plain = third_party.run_script("plain", cache)
    sabotaged = third_party.run_script("sabotaged", cache)
    differences = list(third_party.compare(plain, sabotaged))
    assert any(difference.startswith("bert outputs") for difference in differences), differences
    assert not any(difference.startswith("encoder") for difference in differences)


def test_python_without_its_tests_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cpython, "has_test_package", lambda: False)
    assert cpython.main(["--fast"]) == NOT_HERE
    assert "came without its own tests" in capsys.readouterr().out


def test_missing_package_says_so(monkeypatch, capsys):
    monkeypatch.setattr(third_party, "missing_packages", lambda: ["torch"])
    assert third_party.main([]) == NOT_HERE
    assert "not installed: torch" in capsys.readouterr().out


def test_selection_is_read():
    selection = cpython.read_selection("# head\n\ntest_a fast\ntest_b\n- test_b.T.test_c  # why\n")
    assert selection.files == ("test_a", "test_b")
    assert selection.fast == {"test_a"}
    assert selection.excluded == {"test_b.T.test_c": "why"}


def test_exclusion_without_a_reason_is_refused():
    with pytest.raises(ValueError, match="say why"):
        cpython.read_selection("- test_b.T.test_c\n")


def test_list_is_long_enough_and_excludes_nothing_that_it_runs():
    selection = cpython.read_selection(cpython.LIST.read_text(encoding="utf-8"))
    assert len(selection.files) >= 90
    assert 8 <= len(selection.fast) <= 12
    assert not set(selection.files) & set(selection.excluded)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (cpython.Run("ended", {"a": "failed", "b": "ok"}, {"a": "1 != 2"}), "a: ok → failed"),
        (cpython.Run("ended", {"a": "ok"}), "b: ok → not run"),
        (cpython.Run("ended", {"a": "ok", "b": "ok", "c": "ok"}), "c: not run → ok"),
        (cpython.Run("exit status -11, no result"), "the process: ended → exit status -11"),
        (
            cpython.Run("ended", {"a": "ok", "b": "ok"}, failures=["f() failed the check"]),
            "refused by the engine's check: f() failed the check",
        ),
    ],
)
def test_difference_is_found(other, difference):
    plain = cpython.Run("ended", {"a": "ok", "b": "ok"})
    assert any(found.startswith(difference) for found in cpython.compare(plain, other))


def test_equal_runs_have_no_difference():
    run = cpython.Run("ended", {"a": "ok", "b": "skipped"}, seconds=1.0)
    same = cpython.Run("ended", {"a": "ok", "b": "skipped"}, functions=7, seconds=9.0)
    assert list(cpython.compare(run, same)) == []


SOURCE = """
def outer(a):
    class Inner:
        def method(self, b):
            return [a + c for c in b]
    return Inner().method
"""


def test_every_function_is_rewritten_nested_ones_too(tmp_path):
    code = compile(SOURCE, "sample.py", "exec")
    first, second = Rewriter(tmp_path), Rewriter(tmp_path)
    seen: list[tuple[object, ...]] = []
    for rewriter in (first, second):  # the second finds what the first left in the folder
        namespace = {KEY: Holder(lambda *values: seen.append(values), {})}
        exec(rewriter.rewrite(code), namespace)
        assert namespace["outer"](1)([2, 3]) == [3, 4]
    functions = 2 if sys.version_info >= (3, 12) else 3  # 3.12 inlines the comprehension
    assert len(seen) == 2 * functions
    assert (first.functions, first.locals) == (second.functions, second.locals)
    assert first.functions == functions


def test_usual_sink_keeps_nothing():
    assert drop(object(), [1], "x") == ""
