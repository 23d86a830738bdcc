"""These tests need torch; in an environment without it, none of them is collected."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = []
if find_spec("torch") and find_spec("numpy"):
    from tests.block.fixtures import *  # noqa: F403
else:
    collect_ignore_glob = ["test_*.py"]
