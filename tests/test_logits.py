"""Token confidence straight from logits."""

from __future__ import annotations

import numpy as np
import pytest
from deepconf import logits_confidence, token_confidence
from deepconf.errors import InvalidInput, InvalidType
from hypothesis import given
from hypothesis import strategies as st


def by_softmax(logits: np.ndarray, k: int) -> np.ndarray:
    wide = logits.astype(np.float64)
    highest = wide.max(axis=1, keepdims=True)
    normal = highest[:, 0] + np.log(np.exp(wide - highest).sum(axis=1))
    return normal - np.sort(wide, axis=1)[:, -k:].mean(axis=1)


@given(
    n=st.integers(0, 5),
    vocabulary=st.integers(2, 3_000),
    part=st.floats(0, 1),
    scale=st.floats(0.01, 50),
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_softmax(
    n: int, vocabulary: int, part: float, scale: float, kind: type, seed: int
) -> None:
    k = 2 + int(part * (vocabulary - 2))
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (n, vocabulary)).astype(kind)
    found = logits_confidence(logits, k)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_softmax(logits, k), rtol=1e-6, atol=1e-6)


def test_twenty_is_the_default() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (3, 500)).astype(np.float32)
    np.testing.assert_array_equal(logits_confidence(logits), logits_confidence(logits, 20))
    wide = logits.astype(np.float64)
    softmax = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    top = np.sort(softmax, axis=1)[:, -20:]
    np.testing.assert_allclose(logits_confidence(logits), token_confidence(top), rtol=1e-6)


def test_the_number_of_threads_changes_nothing() -> None:
    logits = np.random.default_rng(1).normal(0, 4, (50, 4_000)).astype(np.float32)
    one = logits_confidence(logits, threads=1)
    np.testing.assert_array_equal(logits_confidence(logits, threads=3), one)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[3e4, 3e4, -3e4], [-3e4, -3e4, -3.1e4]], np.float32)
    np.testing.assert_allclose(logits_confidence(logits, 2), np.log([2, 2]), rtol=1e-6)


def test_masked_tokens() -> None:
    logits = np.array([[2.0, -np.inf, 1.0, -np.inf]])
    pair = logits_confidence(np.array([[2.0, 1.0]]), 2)
    np.testing.assert_array_equal(logits_confidence(logits, 2), pair)
    with pytest.raises(InvalidInput, match=r"-inf at row 0, column 1: .*set logprob_floor"):
        logits_confidence(logits, 3)
    expected = [(2 * pair[0] + 30.0) / 3]
    np.testing.assert_allclose(logits_confidence(logits, 3, logprob_floor=-30.0), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 63, 64, 129])
def test_a_value_that_cannot_be_is_named(bad: float, column: int) -> None:
    logits = np.zeros((4, 130), np.float32)
    logits[2, column] = bad
    with pytest.raises(
        InvalidInput, match=f"logits holds {bad} at row 2, column {column}".replace("nan", "NaN")
    ):
        logits_confidence(logits, 5)


@pytest.mark.parametrize(
    ("logits", "k", "error", "says"),
    [
        (np.zeros(5), 2, InvalidInput, r"logits has shape \[5\]"),
        (np.zeros((2, 5), np.int32), 2, InvalidType, "logits has dtype int32"),
        (np.zeros((2, 5)), 0, InvalidInput, "k=0: must be at least 2"),
        (np.zeros((2, 5)), 1, InvalidInput, "k=1: must be at least 2: minus the log-probability"),
        (np.zeros((2, 5)), 6, InvalidInput, "k=6: must be between 2 and the 5"),
        (np.zeros((2, 5)), -1, InvalidInput, "k=-1"),
        (np.zeros((2, 5)), 1.5, InvalidType, "k=1.5"),
    ],
)
def test_what_is_wrong_is_named(
    logits: np.ndarray, k: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        logits_confidence(logits, k)
