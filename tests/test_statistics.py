"""Figures over questions, against slow and obvious ones."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from deepconf import Policy, _tables, _terminal
from deepconf._statistics import (
    Difference,
    at_tokens,
    auroc,
    bootstrap,
    estimates,
    intervals,
    paired,
    pairs_won,
    per_question,
    sign_test,
    within,
)
from deepconf._words import counted
from deepconf.errors import InvalidInput
from deepconf.lab._summary import summary
from deepconf.lab._verdict import closing, difference_in_words, points
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_replay import Recorded, slow_replay, slow_replays, synthetic

BASE: dict[str, Any] = {"budget": 16, "warmup": 4, "window": 6, "tail": 8}


# ---- means, errors and intervals ----------------------------------------------------------------


def test_the_error_is_that_of_the_mean_of_questions() -> None:
    values = np.array([[[1, 0], [1, 1], [0, 0]]])
    (found,) = estimates(per_question(values))
    assert found.value == 0.5
    assert found.error == pytest.approx(np.std([0.5, 1.0, 0.0], ddof=1) / math.sqrt(3))


def test_the_error_with_one_repeat_is_that_of_a_share() -> None:
    right = np.array([1] * 30 + [0] * 10, float)
    (found,) = estimates(right[None])
    assert found.error == pytest.approx(math.sqrt(0.75 * 0.25 / 39))


def test_one_question_has_a_mean_and_no_error() -> None:
    (found,) = estimates(np.array([[0.25]]))
    assert (found.value, found.error, found.low, found.high) == (0.25, None, None, None)
    (difference,) = paired(np.array([[1.0]]), np.array([[0.0]]))
    assert (difference.value, difference.low, difference.clear) == (1.0, None, False)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (1, 2, 3)])
def test_figures_over_nothing_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"means has shape .*: must be \[n, questions\]"):
        estimates(np.zeros(shape))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    low, high = intervals((random.random((400, 60)) < 0.7).astype(float))
    assert 0.89 < np.mean((low <= 0.7) & (high >= 0.7)) < 0.99


def test_the_error_of_repeats_that_agree_is_no_smaller_for_their_number() -> None:
    random = np.random.default_rng(1)
    one = (random.random((1, 50, 1)) < 0.6).astype(float)
    many = np.repeat(one, 64, axis=2)
    assert estimates(per_question(one)) == estimates(per_question(many))


def test_a_bootstrap_draws_the_same_questions_for_every_figure() -> None:
    values = np.random.default_rng(2).random((30, 2))
    both = bootstrap(values)
    assert both.shape == (2000, 2)
    np.testing.assert_allclose(both[:, :1], bootstrap(values[:, :1]), rtol=1e-12)
    assert not np.allclose(both, bootstrap(values, seed=1))
    assert both.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=0.01)


def test_intervals_of_many_rows_are_those_of_each() -> None:
    values = np.random.default_rng(3).random((1100, 5))
    low, high = intervals(values)
    for at in (0, 511, 512, 1099):
        assert intervals(values[at : at + 1]) == (pytest.approx(low[at]), pytest.approx(high[at]))


# ---- paired differences -------------------------------------------------------------------------


def brute_sign_test(won: int, lost: int) -> float:
    """Over every way the questions could have fallen."""
    total, least = won + lost, min(won, lost)
    ways = [sum(way) for way in itertools.product([0, 1], repeat=total)]
    return min(1.0, 2 * sum(count <= least for count in ways) / 2**total)


@pytest.mark.parametrize(("won", "lost"), [*itertools.product(range(6), range(6)), (1, 7)])
def test_the_sign_test_is_the_brute_force_one(won: int, lost: int) -> None:
    assert sign_test(won, lost) == pytest.approx(brute_sign_test(won, lost), abs=1e-15)
    assert sign_test(won, lost) == sign_test(lost, won)


def test_the_sign_test_of_thousands_is_exact_too() -> None:
    assert sign_test(2500, 2500) == 1.0
    assert 0 < sign_test(2400, 2600) < 0.005


def test_seven_lost_and_one_won() -> None:
    first = np.array([[0.0] * 7 + [1.0] * 13])
    second = np.array([[1.0] * 7 + [0.0] + [1.0] * 12])
    (found,) = paired(first, second)
    assert found.value == pytest.approx(-0.3)
    assert (found.won, found.lost, round(found.p, 2)) == (1, 7, 0.07)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_a_difference_in_the_last_bit_makes_no_winner() -> None:
    first = np.full((1, 4), 0.1 + 0.2)
    (found,) = paired(first, np.full((1, 4), 0.3))
    assert (found.value, found.won, found.lost, found.p) == (0.0, 0, 0, 1.0)


def test_a_difference_is_clear_by_one_rule() -> None:
    nothing = np.zeros((1, 40))
    few, enough, shares = np.zeros((3, 1, 40))
    few[0, :5] = enough[0, :6] = 1.0  # p = 0.06, and 0.03; the interval leaves out 0 in both.
    shares[0, :5] = 0.9
    low, *_ = (each.low for each in paired(few, nothing))
    assert low > 0
    assert [paired(each, nothing)[0].clear for each in (few, enough, shares)] == [False, True, True]
    assert [paired(each, nothing)[0].p for each in (few, shares)] == [sign_test(5, 0), None]
    assert "p = 0.062" in difference_in_words(paired(few, nothing)[0])
    assert difference_in_words(paired(shares, nothing)[0]).endswith(
        "; higher on 5 questions, lower on 0"
    )


# ---- majority at the same tokens ----------------------------------------------------------------

BUDGETS = [1, 2, 4]
TOKENS = np.array([[10.0, 30.0], [20.0, 60.0], [40.0, 120.0]])  # Means 20, 40, 80.
CORRECT = np.array([[0.0, 0.5], [0.5, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("wanted", "budgets", "share", "tokens", "correct", "beyond"),
    [
        (20, (1, 2), 1.0, 20, [0.0, 0.5], None),
        (30, (1, 2), 0.5, 30, [0.25, 0.5], None),
        (40, (2, 4), 1.0, 40, [0.5, 0.5], None),
        (70, (2, 4), 0.25, 70, [0.875, 0.125], None),
        (80, (4, 4), 1.0, 80, [1.0, 0.0], None),
        (19, (1, 1), 1.0, 20, [0.0, 0.5], "below"),
        (81, (4, 4), 1.0, 80, [1.0, 0.0], "above"),
    ],
)
def test_majority_at_any_tokens_is_a_mixture_of_neighbours(
    wanted: float, budgets: Any, share: float, tokens: float, correct: Any, beyond: Any
) -> None:
    found = at_tokens(BUDGETS, TOKENS, CORRECT, wanted)
    assert (found.budgets, found.beyond) == (budgets, beyond)
    assert (found.share, found.tokens) == (pytest.approx(share), pytest.approx(tokens))
    assert found.correct.tolist() == pytest.approx(correct)


@settings(deadline=None)
@given(st.data())
def test_a_mixture_costs_what_is_wanted(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    steps = data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    tokens = np.outer(np.cumsum(steps) + 1.0, [1.0, 3.0])
    correct = np.random.default_rng(0).random(tokens.shape)
    wanted = data.draw(st.floats(0.0, 2.5 * tokens.max()))
    found = at_tokens(np.arange(count) + 1, tokens, correct, wanted)
    lower, upper = (tokens.mean(axis=1)[budget - 1] for budget in found.budgets)
    assert 0.0 <= found.share <= 1.0
    assert found.tokens == pytest.approx(found.share * lower + (1 - found.share) * upper)
    if found.beyond is None:
        assert found.tokens == pytest.approx(wanted, abs=1e-6)
    else:
        assert (wanted < found.tokens) == (found.beyond == "below")


def test_of_budgets_that_cost_the_same_the_smallest_is_named() -> None:
    tokens = np.array([[10.0], [20.0], [20.0], [20.0]])
    found = at_tokens([1, 2, 4, 8], tokens, np.array([[0.0], [1.0], [0.5], [0.5]]), 20.0)
    assert (found.budgets, found.correct.tolist(), found.beyond) == ((2, 2), [1.0], None)


@pytest.mark.parametrize(
    ("tokens", "correct", "wanted", "message"),
    [
        (TOKENS, CORRECT[:2], 30.0, r"must be \[b\], \[b, questions\]"),
        (TOKENS[:, :0], CORRECT[:, :0], 30.0, "tokens is empty"),
        (TOKENS, CORRECT, math.nan, "wanted=nan: must be a finite number"),
    ],
)
def test_a_frontier_that_does_not_fit_is_refused(
    tokens: Any, correct: Any, wanted: float, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        at_tokens(BUDGETS, tokens, correct, wanted)


# ---- AUROC --------------------------------------------------------------------------------------


def brute_pairs(scores: Any, right: Any, question: Any, size: int) -> tuple[Any, Any]:
    won, pairs = np.zeros(size), np.zeros(size)
    for a, b in itertools.product(range(len(scores)), repeat=2):
        if right[a] and not right[b] and question[a] == question[b]:
            if np.isnan(scores[a]) or np.isnan(scores[b]):
                continue
            pairs[question[a]] += 1
            won[question[a]] += (scores[a] > scores[b]) + (scores[a] == scores[b]) / 2
    return won, pairs


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from(range(6)))))
def test_pairs_are_those_of_brute_force(rows: list[tuple[int, bool, int]]) -> None:
    question = [row[0] for row in rows]
    right = [row[1] for row in rows]
    scores = [math.nan if row[2] == 5 else row[2] / 4 for row in rows]
    won, pairs = pairs_won(scores, right, question, 5)
    expected = brute_pairs(scores, right, question, 5)
    assert (won.tolist(), pairs.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_within_questions_pairs_weigh_and_not_questions() -> None:
    # One question with 4 pairs, all won; one with one pair, lost; one without pairs.
    found = within(np.array([4.0, 0.0, 0.0]), np.array([4.0, 1.0, 0.0]))
    assert found.value == 0.8
    assert found.low is not None
    assert found.low < 0.8
    assert math.isnan(within(np.zeros(2), np.zeros(2)).value)
    assert within(np.array([1.0]), np.array([2.0])).low is None


def test_hard_questions_count_in_the_pooled_auroc_and_not_within() -> None:
    # Scores tell questions apart and say nothing within one.
    question = np.repeat([0, 1], 4)
    right = np.array([1, 1, 1, 0, 0, 0, 0, 1], bool)
    scores = np.repeat([9.0, 1.0], 4)
    assert auroc(scores, right) == 0.75
    assert within(*pairs_won(scores, right, question, 2)).value == 0.5


def test_a_million_traces_take_seconds() -> None:
    random = np.random.default_rng(0)
    size = 1_000_000
    question = random.integers(2000, size=size)
    start = time.perf_counter()
    found = within(*pairs_won(random.random(size), random.random(size) < 0.5, question, 2000))
    assert time.perf_counter() - start < 60
    assert found.value == pytest.approx(0.5, abs=0.01)


# ---- the slow replay ----------------------------------------------------------------------------


def trace(values: list[float], answer: str | None, status: str = "finished") -> Recorded:
    return Recorded(np.array(values, np.float32), answer, status, answer == "a")


def test_time_is_counted_in_steps() -> None:
    pool = [trace([5.0] * n, "a") for n in (2, 3, 4, 5)]
    vote = Policy.offline(budget=4, window=2, keep=1.0, weight="majority")
    row = slow_replay(pool, vote)
    assert (row.tokens, row.steps, row.finished, row.aborted) == (14, 5, 4, 0)
    # Three agree in step 4; the last has four of its five tokens by then.
    early = slow_replay(pool, vote.replace(stop="consensus"), lag=10)
    assert (early.tokens, early.steps, early.aborted, early.reason) == (23, 4, 1, "consensus")
    # Two at a time: 0 and 1 start, 2 follows in step 3, and 3 in step 4.
    two = slow_replay(pool, vote.replace(concurrency=2))
    assert (two.tokens, two.steps) == (14, 8)
    assert slow_replay(pool, vote, order=[3, 2, 1, 0]).steps == 5


def test_a_stop_takes_effect_at_its_token_and_only_later_traces_are_stopped() -> None:
    pool = [trace([5.0, 5.0], "a")] * 2 + [trace([9.0, 1.0, 1.0, 9.0, 9.0], "b")] * 2
    policy = Policy.low(budget=4, warmup=2, window=2, keep=1.0, stop="budget", min_ballots=1)
    row = slow_replay(pool, policy, lag=3)
    assert row.threshold == 5.0
    # (9 + 1) / 2 is not below 5, (1 + 1) / 2 is: three tokens each.
    assert (row.stopped, row.tokens, row.steps) == (2, 4 + 6 + 6, 5)
    assert (row.answer, row.correct) == ("a", True)


def test_a_trace_that_ends_with_the_consensus_is_not_reported_after_it() -> None:
    pool = [trace([5.0, 5.0], "a") for _ in range(4)]
    policy = Policy.offline(budget=4, window=2, keep=1.0, weight="majority", stop="consensus")
    row = slow_replay(pool, policy)
    assert (row.finished, row.aborted, row.tokens) == (3, 1, 8)


def test_an_empty_trace_ends_in_its_first_step() -> None:
    pool = [trace([], "a"), trace([5.0], "a")]
    row = slow_replay(pool, Policy.offline(budget=2, window=2, min_ballots=0))
    assert (row.tokens, row.steps, row.finished) == (1, 1, 2)


# ---- the summary of a replay --------------------------------------------------------------------

POLICIES = {"low": Policy.low(**BASE), "high": Policy.high(**BASE)}


def test_a_summary_is_what_its_arrays_say() -> None:
    played = slow_replays(synthetic(12), POLICIES)
    found = summary(played)
    low, high = found.rows
    assert [row.label for row in found.rows] == ["low", "high"]
    assert low.accuracy.value == pytest.approx(played.correct[0].mean())
    assert high.tokens.value == pytest.approx(played.tokens[1].mean())
    assert high.share == pytest.approx(played.tokens[1].mean() / played.full[1].mean())
    assert high.stopped.value == pytest.approx(played.columns["stopped"][1].mean())
    assert low.against_first.value == 0.0
    assert high.against_first.value == pytest.approx(high.accuracy.value - low.accuracy.value)
    for row in found.rows:
        for equal in row.same_tokens.values():
            assert equal.tokens == pytest.approx(row.tokens.value)
            expected = row.accuracy.value - equal.accuracy
            assert equal.difference.value == pytest.approx(expected)
    assert [row.budget for row in found.frontier] == [1, 2, 4, 8, 16] * 2
    assert found.frontier[-1].kind == "consensus"
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("informative", [3.0, 0.0])
def test_the_closing_sentence_names_the_better_one_at_equal_tokens(informative: float) -> None:
    found = summary(slow_replays(synthetic(40, informative=informative), POLICIES, repeats=6))
    best = max(found.rows, key=lambda row: row.accuracy.value)
    equal = max(best.same_tokens.values(), key=lambda equal: equal.accuracy)
    if not equal.difference.clear:
        assert f"{best.label} (the most accurate of 2) cannot be told apart" in found.closing
    elif equal.difference.value > 0:
        assert f"{best.label} (the most accurate of 2) is better here than" in found.closing
    else:
        assert f"is better here than {best.label}" in found.closing
    mine, its = f"{best.accuracy.value:.1%}", f"{equal.accuracy:.1%}"
    assert any(
        f"{one} against {other}" in found.closing for one, other in ((mine, its), (its, mine))
    )
    assert (informative > 0) == (equal.difference.value > 0)


@pytest.mark.parametrize("wins", [True, False])
def test_the_closing_sentence_gives_the_figures_of_its_subject_first(wins: bool) -> None:
    mine, its = (0.9, 0.6) if wins else (0.6, 0.9)
    played = slow_replays(synthetic(8), {"low": POLICIES["low"]}, repeats=2)
    for kind in played.frontier.correct:
        played.frontier.correct[kind][:] = its
    row = summary(played).rows[0]
    found = Difference(
        mine - its, mine - its - 0.1, mine - its + 0.1, 6 * wins, 6 * (not wins), 0.03
    )
    equal = {
        name: dataclasses.replace(of, difference=found) for name, of in row.same_tokens.items()
    }
    accuracy = dataclasses.replace(row.accuracy, value=mine)
    said = closing([dataclasses.replace(row, accuracy=accuracy, same_tokens=equal)], True)
    assert "90.0% against 60.0% (+30.0 [+20.0, +40.0] points; 0 lost, 6 won, p = 0.03)" in said
    assert said.startswith("accuracy: low is" if wins else "accuracy: plain majority at the same")


def test_intervals_over_many_questions_take_seconds() -> None:
    start = time.monotonic()
    intervals(np.random.default_rng(0).random((2, 50_000)))
    assert time.monotonic() - start < 15


def test_a_summary_over_one_question_has_no_intervals() -> None:
    found = summary(slow_replays(synthetic(1), POLICIES, repeats=2))
    assert found.rows[0].accuracy.error is None
    assert found.rows[1].against_first.low is None
    assert "[" not in found.closing


@pytest.mark.parametrize("questions", [1, 6])
def test_a_summary_is_shown(questions: int) -> None:
    out = io.StringIO()
    found = summary(slow_replays(synthetic(questions), POLICIES, repeats=2))
    _tables.show_summary(_terminal.console(out), found)
    text = out.getvalue()
    assert f"{counted(questions, 'question')}, 2 draws of each" in text
    assert found.closing in text
    for name in ("low", "high", "majority", "consensus"):
        assert name in text


def test_a_grid_of_a_thousand_policies_is_summed_up_in_seconds() -> None:
    played = slow_replays(synthetic(20), POLICIES, repeats=2)
    many = 500
    played.policies.clear()
    played.policies.update({f"{at}": Policy.low(**BASE) for at in range(2 * many)})
    for name in ("correct", "tokens", "steps", "full"):
        object.__setattr__(played, name, np.repeat(getattr(played, name), many, axis=0))
    for name, values in played.columns.items():
        played.columns[name] = np.repeat(values, many, axis=0)
    start = time.perf_counter()
    assert len(summary(played).rows) == 2 * many
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.006, "+0.6"), (-0.006, "-0.6"), (1e-9, "0.0"), (-1e-9, "0.0"), (None, "–")],
)
def test_points_are_signed(value: float | None, text: str) -> None:
    assert points(value) == text
