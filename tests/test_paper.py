"""The synthetic pools that the paper's tables are held against."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benches"))
import paper


@pytest.mark.parametrize("row", paper.ROWS, ids=lambda row: f"{row.model} {row.benchmark}")
def test_questions_have_the_published_accuracies(row):
    drawn = paper.questions(row)
    assert len(drawn) == paper.QUESTIONS
    assert all(q.right + q.wrong <= 1 and q.right >= 0 for q in drawn)
    assert 100 * np.mean([q.right for q in drawn]) == pytest.approx(row.pass_1, abs=0.5)
    majority = np.mean([q.right > q.wrong for q in drawn])
    assert 100 * majority == pytest.approx(row.majority, abs=100 / paper.QUESTIONS)
    moved = np.sign(row.top_10 - row.majority) * sum(q.surer != 0 for q in drawn)
    turned = 100 * moved / paper.QUESTIONS
    assert turned == pytest.approx(row.top_10 - row.majority, abs=100 / paper.QUESTIONS)


def test_a_pool_has_the_published_length_and_answers_as_asked_for():
    row = paper.ROWS[0]
    pool = paper.traces(row)
    assert pool.num_rows == paper.QUESTIONS * paper.TRACES
    tokens = np.mean(pool["num_tokens"].to_numpy()) * paper.SCALE * paper.QUESTIONS * paper.BUDGET
    assert tokens / 1e8 == pytest.approx(row.tokens, rel=0.02)
    right = np.mean(pool["correct"].to_numpy(zero_copy_only=False))
    assert 100 * right == pytest.approx(row.pass_1, abs=1)
