"""The controller through the bindings: events in, actions out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
from deepconf import Action, Controller, Policy, score, vote
from deepconf.errors import DeepConfError, EventError, InvalidInput, InvalidType
from hypothesis import given, settings
from hypothesis import strategies as st

POLICY = Policy.high(budget=8, warmup=4, window=2, keep=0.5, min_ballots=3)
# Lowest groups 2, 3, 4 and 5: the median is 3.5.
WARMUP = [[2.0, 2.0], [4.0, 3.0, 3.0], [4.0, 4.0], [5.0, 5.0, 9.0]]


def started(policy: Policy = POLICY) -> Controller:
    controller = Controller(policy)
    (action,) = controller.start()
    match action:
        case Action.Launch(traces):
            assert traces == list(range(policy.warmup or policy.budget))
        case _:
            pytest.fail(f"{action}")
    for trace in traces:
        controller.launched(trace)
    return controller


def sampling(answers: str = "abab") -> Controller:
    """A controller whose warmup is over, with four more traces running."""
    controller = started()
    for trace, tokens in enumerate(WARMUP):
        assert controller.tokens(trace, np.array(tokens, np.float32)) is None
    for trace, answer in enumerate(answers):
        assert controller.threshold is None
        actions = controller.finished(trace, "finished", answer)
    assert [repr(action) for action in actions] == ["Action.Launch(traces=[4, 5, 6, 7])"]
    for trace in range(4, 8):
        controller.launched(trace)
    return controller


def test_warmup_sets_the_threshold() -> None:
    controller = sampling()
    assert controller.threshold == 3.5
    assert controller.policy == POLICY
    assert str(controller) == (
        "sampling: 0 to launch, 4 finished, 4 running; 10 tokens; threshold 3.5000; "
        '"b" leads with 57.1% of 4 votes'
    )
    assert repr(controller) == f"<deepconf.Controller {controller}>"


def test_a_group_below_the_threshold_stops_its_trace() -> None:
    controller = sampling()
    assert controller.tokens(4, [9.0]) is None
    stop = controller.tokens(4, [1.0, 1.0, 9.0])
    assert isinstance(stop, Action.Stop)
    assert isinstance(stop, Action)
    assert (stop.trace, stop.token) == (4, 2)
    assert controller.status(4) == "stopping"
    # What comes after is counted and changes no score.
    assert controller.tokens(4, [1.0] * 5) is None
    assert controller.num_tokens == 10 + 9
    found = controller.scores(4)
    assert found is not None
    assert (found.num_tokens, found.lowest_group) == (3, 1.0)
    assert controller.finished(4, "aborted", "a") == []
    assert controller.status(4) == "stopped"


def test_the_budget_runs_out() -> None:
    controller = sampling()
    controller.tokens(4, [1.0, 1.0])
    actions = controller.finished(4, "aborted", "a")
    for trace in (5, 6, 7):
        assert actions == []
        controller.tokens(trace, [8.0, 8.0])
        actions = controller.finished(trace, "finished", "b")
    match actions:
        case [Action.Answer(outcome)]:
            assert (outcome.answer, outcome.reason) == ("b", "budget")
        case _:
            pytest.fail(f"{actions}")
    # Trace 0 and 1 ended below the threshold of 3.5, and 4 was stopped.
    assert outcome.voters == [2, 3, 5, 6, 7]
    assert outcome.vote.ballots == {"b": 5.0 + 3 * 8.0, "a": 4.0}
    assert (outcome.threshold, outcome.unarmed) == (3.5, None)
    assert controller.outcome is not None
    assert controller.outcome.vote.ballots == outcome.vote.ballots
    assert str(controller).startswith("done: 0 to launch, 7 finished, 1 stopped; 18 tokens")


def test_consensus_aborts_what_still_runs() -> None:
    controller = started(POLICY.replace(warmup=3))
    for trace in range(3):
        controller.tokens(trace, [5.0, 5.0])
    controller.finished(0, "finished", "a")
    controller.finished(1, "length", "b")
    (launch,) = controller.finished(2, "finished", "a")
    assert isinstance(launch, Action.Launch)
    assert launch.traces == [3, 4, 5, 6, 7]
    controller.launched(3)
    controller.launched(5)
    controller.tokens(3, [6.0, 6.0])
    abort, answer = controller.finished(3, "finished", "a")
    assert isinstance(abort, Action.Abort)
    assert isinstance(answer, Action.Answer)
    assert abort.traces == [4, 5, 6, 7]
    assert (answer.outcome.answer, answer.outcome.reason) == ("a", "consensus")
    assert answer.outcome.voters == [0, 2, 3]
    assert controller.finished(5, "aborted", "b") == []
    assert controller.status(5) == "aborted"
    assert answer.outcome.vote.share == 1.0


def test_cancelling_votes_with_what_is_finished() -> None:
    controller = sampling()
    abort, answer = controller.cancel()
    assert repr(abort) == "Action.Abort(traces=[4, 5, 6, 7])"
    assert isinstance(answer, Action.Answer)
    assert (answer.outcome.answer, answer.outcome.reason) == ("b", "cancelled")
    assert controller.cancel() == []


def test_offline_is_the_vote_of_recorded_scores() -> None:
    rng = np.random.default_rng(1)
    traces = [rng.uniform(0, 20, n).astype(np.float32) for n in (9, 3, 30, 12)]
    policy = Policy.offline(budget=4, window=4, tail=4, keep=0.5, min_ballots=1)
    controller = started(policy)
    assert controller.threshold is None
    for trace, tokens in enumerate(traces):
        for part in np.array_split(tokens, 3):
            controller.tokens(trace, part)
        controller.finished(trace, "finished", "ab"[trace % 2])
    scores = score(traces, window=4, tail=4)
    for trace in range(4):
        assert oracle.fields(controller.scores(trace)) == oracle.fields(scores[trace])
    expected = vote(["a", "b", "a", "b"], scores.bottom_group, keep=0.5)
    assert controller.outcome is not None
    assert controller.outcome.vote.ballots == expected.ballots
    assert controller.outcome.threshold == expected.threshold


def test_a_failed_trace_is_neither_replaced_nor_counted() -> None:
    controller = started(POLICY.replace(budget=4))
    for trace in range(3):
        controller.tokens(trace, [5.0, 5.0])
        assert controller.finished(trace, "finished", None if trace else "a") == []
    (answer,) = controller.failed(3)
    assert isinstance(answer, Action.Answer)
    assert answer.outcome.voters == [0]
    assert controller.status(3) == "failed"


def test_a_window_no_trace_reached_is_told() -> None:
    policy = POLICY.replace(window=100, stop="budget")
    controller = started(policy)
    controller.tokens(0, [5.0, 5.0])
    for trace in range(policy.warmup):
        controller.finished(trace, "finished", "7")
    for trace in range(policy.warmup, policy.budget):
        controller.launched(trace)
        controller.finished(trace, "finished", "7")
    assert controller.outcome is not None
    assert controller.outcome.unarmed is not None
    assert "the window of 100 tokens (the longest has 2)" in controller.outcome.unarmed


def test_tokens_are_any_floats() -> None:
    controller = started()
    for values in (
        [1.5],
        np.array([1.5]),
        np.array([1.5], np.float16),
        np.array([1.5], np.float32),
    ):
        controller.tokens(0, values)
    found = controller.scores(0)
    assert found is not None
    assert (found.num_tokens, found.mean) == (4, 1.5)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (lambda c: c.start(), "start of trace 0, which is running: a run starts once"),
        (lambda c: c.launched(0), "launch of trace 0, which is running"),
        (lambda c: c.launched(4), "launch of trace 4, which is unknown"),
        (lambda c: c.tokens(9, [1.0]), "tokens of trace 9, which is unknown"),
        (lambda c: c.finished(4, "finished"), "the end of trace 4, which is unknown"),
        (lambda c: c.failed(4), "the failure of trace 4, which is unknown"),
    ],
)
def test_an_event_out_of_place_changes_nothing(
    event: Callable[[Controller], Any], message: str
) -> None:
    controller = started()
    before = str(controller)
    with pytest.raises(EventError, match=message):
        event(controller)
    assert str(controller) == before


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (lambda c: c.tokens(1, [1.0, np.nan]), InvalidInput, "NaN at trace 1, position 3"),
        (lambda c: c.tokens(1, [[1.0]]), InvalidInput, r"confidences has shape \[1, 1\]"),
        (lambda c: c.tokens(1, np.array([1])), InvalidType, "confidences has dtype int64"),
        (lambda c: c.finished(1, "stop"), InvalidInput, 'finish="stop": must be "finished"'),
        (lambda c: c.launched(-1), InvalidInput, "trace=-1: out of range, or negative"),
        (lambda c: c.status("1"), InvalidType, "trace='1' is a text"),
        (lambda c: c.scores(2**32), InvalidInput, "trace=4294967296: out of range"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    event: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    controller = started()
    controller.tokens(1, [1.0, 2.0])
    before = str(controller), oracle.fields(controller.scores(1))
    with pytest.raises(error, match=message):
        event(controller)
    assert (str(controller), oracle.fields(controller.scores(1))) == before


def test_unknown_traces_have_no_status_and_no_scores() -> None:
    controller = started()
    assert (controller.status(4), controller.scores(4), controller.outcome) == (None, None, None)


def test_a_cancelled_run_is_not_called_unarmed() -> None:
    controller = started(POLICY.replace(window=100))
    controller.cancel()
    assert controller.outcome is not None
    assert controller.outcome.unarmed is None


def test_an_unnamed_end_counts_against_the_leader_until_its_answer_is_known() -> None:
    controller = started(POLICY.replace(budget=4, weight="majority", consensus=0.75, keep=1.0))
    for trace in range(4):
        controller.tokens(trace, [5.0, 5.0])
    assert [controller.finished(trace, "finished", "a") for trace in (0, 1)] == [[], []]
    assert [controller.ended(trace, "finished") for trace in (2, 3)] == [[], []]
    assert "4 finished (2 unnamed)" in str(controller)
    (answer,) = controller.answered(2, "a")
    assert isinstance(answer, Action.Answer)
    assert (answer.outcome.reason, answer.outcome.voters) == ("consensus", [0, 1, 2])
    assert controller.answered(3, "b") == []
    assert controller.outcome is not None
    assert controller.outcome.voters == [0, 1, 2]


@pytest.mark.parametrize("reason", ["cancelled", "engine_died"])
def test_a_run_cut_short_counts_answers_that_come_later(reason: str) -> None:
    controller = started(POLICY.replace(budget=4))
    controller.tokens(0, [5.0, 5.0])
    assert controller.ended(0, "finished") == []
    controller.cancel() if reason == "cancelled" else controller.engine_died()
    assert controller.engine_died() == []
    assert controller.answered(0, "7") == []
    assert controller.failed(1) == []
    assert controller.finished(2, "aborted") == []
    assert controller.outcome is not None
    assert (controller.outcome.reason, controller.outcome.answer) == (reason, "7")


def test_only_an_unnamed_trace_gets_an_answer_and_it_cannot_fail() -> None:
    controller = started()
    with pytest.raises(EventError, match="the answer of trace 0, which is running"):
        controller.answered(0, "7")
    controller.ended(0, "finished")
    with pytest.raises(EventError, match="the failure of trace 0, which is finished"):
        controller.failed(0)
    controller.answered(0, None)
    with pytest.raises(EventError, match="the answer of trace 0, which is finished"):
        controller.answered(0, "7")


# ---- a step of many traces -----------------------------------------------------------------------


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_step_is_its_tokens_one_event_at_a_time(data: st.DataObject) -> None:
    whole, single = sampling(), sampling()
    token = st.tuples(st.integers(3, 8), st.sampled_from([9.0, 5.0, 1.0, np.nan, 1e6]))
    for entries in data.draw(st.lists(st.lists(token, max_size=12), max_size=6)):
        entries.sort(key=lambda entry: entry[0])
        stops: list[str] = []
        errors: dict[int, str] = {}
        for trace, group in itertools.groupby(entries, key=lambda entry: entry[0]):
            try:
                stop = single.tokens(trace, [confidence for _, confidence in group])
            except DeepConfError as error:
                errors[trace] = repr(error)
            else:
                stops += [] if stop is None else [repr(stop)]
        told, wrong = whole.step(
            np.array([trace for trace, _ in entries], np.int64),
            np.array([confidence for _, confidence in entries], np.float32),
        )
        assert [repr(stop) for stop in told] == stops
        assert {trace: repr(error) for trace, error in wrong.items()} == errors
        assert str(whole) == str(single)
        for trace in range(8):
            assert oracle.fields(whole.scores(trace)) == oracle.fields(single.scores(trace))


def test_a_step_names_what_is_wrong() -> None:
    controller = sampling()
    stops, errors = controller.step([4, 5, 5, 9], [1.0, 9.0, np.nan, 1.0])
    assert stops == []
    assert re.search("NaN at trace 5, position 1", str(errors[5]))
    assert isinstance(errors[9], EventError)
    assert controller.step([], []) == ([], {})
    for wrong, says in [
        (([4], [1.0, 2.0]), "traces has 1 entries and confidences has 2"),
        (([-1], [1.0]), r"traces\[0\]=-1: must be the number of a trace"),
        (([4], [[1.0]]), r"confidences has shape \[1, 1\]"),
    ]:
        with pytest.raises(InvalidInput, match=says):
            controller.step(*wrong)
    with pytest.raises(InvalidType, match="traces has dtype float64"):
        controller.step([4.0], [1.0])
