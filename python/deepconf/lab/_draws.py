"""Which recorded traces a replayed run launches, and in which order."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["draws"]


def draws(
    traces: int, most: int, repeats: int | None, seed: int, question_id: str
) -> NDArray[np.uint32]:
    """Traces of a pool, `[repeats, most]`: each row without replacement, as far as they go.

    A row depends on seed, question and its number only, so it is the same for every policy, and a
    shorter one is the beginning of a longer one. Where `most` is above `traces`, further traces are
    drawn with replacement.

    Args:
        traces: how many the question has, at least 1.
        most: how many a run may launch.
        repeats: how many runs; None for one in launch order.
        seed: from 0.
        question_id: the question's name.
    """
    if repeats is None:
        return np.arange(most, dtype=np.uint32)[None] % np.uint32(traces)
    digest = hashlib.blake2b(question_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    drawn = np.empty((repeats, most), np.uint32)
    whole = min(traces, most)
    for repeat in range(repeats):
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key, repeat])))
        drawn[repeat, :whole] = random.permutation(traces)[:whole]
        drawn[repeat, whole:] = random.integers(0, traces, most - whole)
    return drawn
