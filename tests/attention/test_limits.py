"""How much memory is taken, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.attention.reference import map_of, normal, random_call
from visualizer.attention import AttentionCall, AttentionMap
from visualizer.errors import MapTooLargeError, OutOfRangeError

SIZE = 20000


def large() -> AttentionMap:
    one = normal(1, 1, SIZE, 4)
    return map_of(AttentionCall(one.expand(1, 8, -1, -1), one, 0.1))


def test_a_map_that_is_too_large_names_the_ways_out() -> None:
    m = large()
    with pytest.raises(MapTooLargeError) as caught:
        np.asarray(m)
    message = str(caught.value)
    assert "11.9 GiB" in message
    assert "1 GiB" in message
    for way in ("m.row(17)", "m[0, 3, 17]", "m.weights(head=3)", "m.entropy()", "max_bytes="):
        assert way in message


def test_every_large_part_is_refused() -> None:
    m = large()
    for ask in (m.weights, lambda: m.weights(head=0), lambda: m[0, 2], lambda: list(m)):
        with pytest.raises(MapTooLargeError):
            ask()
    with pytest.raises(MemoryError):
        m.top_keys(SIZE)


def test_rows_of_a_large_map_are_not() -> None:
    m = large()
    assert m[0, 3, 17].shape == (SIZE,)
    assert m[..., -2:, ::7].shape == (1, 8, 2, 2858)
    np.testing.assert_allclose(m.row(5).sum(-1), 1, rtol=0, atol=1e-5)


def test_the_limit_can_be_moved() -> None:
    m = map_of(random_call())
    assert m.weights(max_bytes=m.nbytes).nbytes == m.nbytes == 2 * 4 * 7 * 9 * 4
    with pytest.raises(MapTooLargeError, match="1.97 KiB; the limit is 1.97 KiB"):
        m.weights(max_bytes=m.nbytes - 1)
    assert m.weights(head=0, max_bytes=m.nbytes // 4).shape == (2, 7, 9)


@pytest.mark.parametrize("k", [0, -1, 10, True])
def test_more_keys_than_there_are(k: int) -> None:
    with pytest.raises(OutOfRangeError, match="expected 1 to 9"):
        map_of(random_call()).top_keys(k)


PROGRAM = """
import sys
import torch
from tests.attention.reference import map_of
from visualizer.attention import AttentionCall, Mask

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
query, key = torch.randn(1, 8, 16384, 64), torch.randn(1, 2, 16384, 64)
part = map_of(AttentionCall(query[:, :, :300], key, 0.125, Mask(causal=0)))
whole = map_of(AttentionCall(query[:, :2], key[:, :1], 0.125, Mask(causal=0)))
part.entropy(), part.received()  # what is loaded at the first call does not count
before = peak()
whole.entropy()
softcapped = AttentionCall(query[:, :, :500], key, 0.125, softcap=30.0)
map_of(softcapped).entropy()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_entropy_of_a_long_text_takes_little_memory() -> None:
    """The maps would take 2 GiB and 250 MiB; the parts before them leave at most their buffers."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 128
