"""Run a corpus: `python -m tests.corpus cpython` or `python -m tests.corpus third_party`."""

from __future__ import annotations

import sys

from tests.corpus import cpython, third_party

_CORPORA = {"cpython": cpython.main, "third_party": third_party.main}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in _CORPORA:
        print(f"name a corpus: {' or '.join(_CORPORA)}", file=sys.stderr)
        return 2
    return _CORPORA[arguments[0]](arguments[1:])


sys.exit(main(sys.argv[1:]))
