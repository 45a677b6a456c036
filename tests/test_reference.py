"""The authors' package against ours: where they agree, and each difference that is meant."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import pytest
from deepconf import Action, Controller, InvalidInput, Outcome, Policy, TraceScorer, score, vote
from deepconf.engines.vllm import confidences
from numpy.typing import NDArray

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="the authors' package imports vLLM"
)

HERE = Path(__file__).parent
EOS = 0
Reference = Callable[..., Any]
Recorded = dict[str, Any]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    """Calls a function of the authors' package, in one process for all tests."""
    installer = [sys.executable, HERE.parent / "tools" / "install_reference.py"]
    folder = subprocess.run(installer, check=True, capture_output=True, text=True).stdout.strip()
    log = tmp_path_factory.mktemp("reference") / "stderr"
    worker = [sys.executable, HERE / "reference_worker.py", folder]
    pipe = subprocess.PIPE
    with (
        log.open("w") as errors,
        subprocess.Popen(worker, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        requests, replies = process.stdin, process.stdout
        assert requests is not None
        assert replies is not None

        def call(function: str, *arguments: Any, **settings: Any) -> Any:
            requests.write(json.dumps([function, arguments, settings]) + "\n")
            requests.flush()
            reply = replies.readline()
            assert reply, log.read_text()
            return json.loads(reply)

        yield call
        requests.close()


class Logprob:
    def __init__(self, logprob: float, rank: int) -> None:
        self.logprob, self.rank = logprob, rank


def halfway(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How near the third decimal is to going the other way, in units of it."""
    return np.abs(values * 1000 % 1 - 0.5)


def logprobs(rng: np.random.Generator, n: int, vocabulary: int = 20) -> NDArray[np.float64]:
    """`[n, vocabulary]`, float32 values whose means do not round differently in float32."""
    spread = rng.uniform(0.5, 4.0, size=(8 * n + 8, 1))
    logits = rng.normal(size=(8 * n + 8, vocabulary)) * spread
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = rows.astype(np.float32).astype(np.float64)
    best = np.sort(rows)[:, -20:]
    clear = (halfway(-rows.mean(axis=1)) > 0.05) & (halfway(-best.mean(axis=1)) > 0.05)
    assert clear.sum() >= n
    return rows[clear][:n]


def ours(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return deepconf.token_confidence(rows.astype(np.float32))


def recorded(
    rows: NDArray[np.float64],
    answer: str | None,
    end: str = "finished",
    partial: str | None = None,
    sampled: list[int] | None = None,
) -> Recorded:
    def text(answer: str | None) -> str:
        return "no answer" if answer is None else f"so it is \\boxed{{{answer}}}."

    return {
        "logprobs": rows.tolist(),
        "sampled": sampled or [1] * len(rows),
        "text": text(answer),
        "partial": text(partial),
        "end": end,
        "says": (answer, partial),
    }


def flat(*confidences: float) -> NDArray[np.float64]:
    """Rows of 20 log-probabilities with these confidences, the likeliest token first; a softmax.

    With p for the likeliest token and (1 - p)/19 for the others, -mean(log) runs from log 20 up.
    """
    rows = []
    for wanted in confidences:
        low, high = 0.05, 1.0 - 1e-12
        for _ in range(200):
            p = (low + high) / 2
            got = -(np.log(p) + 19 * np.log((1 - p) / 19)) / 20
            low, high = (p, high) if got < wanted else (low, p)
        rows.append([np.log(p)] + [np.log((1 - p) / 19)] * 19)
    return np.array(rows).reshape(-1, 20)


def test_what_there_is(reference: Reference) -> None:
    assert sorted(reference("signatures")) == [
        "ConfPerReqLogitsProcessor",
        "DeepThinkLLM.deepthink",
        "calculate_bottom_window_confidence",
        "calculate_mean_confidence",
        "calculate_tail_confidence",
        "compute_all_voting_results",
        "compute_confidence",
        "compute_least_grouped",
        "extract_answer",
        "filter_top_confidence",
        "process_batch_results",
        "process_batch_results_offline",
        "process_output",
        "process_output_offline",
        "simple_majority_vote",
        "weighted_majority_vote",
    ]


# ---- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 5, 20, 21])
def test_token_confidence_agrees_to_three_decimals(reference: Reference, width: int) -> None:
    rows = logprobs(np.random.default_rng(width), 200, width)
    rows = rows[halfway(-rows.mean(axis=1)) > 0.01]
    theirs = reference("compute_confidence", rows.tolist())
    assert np.round(ours(rows).astype(np.float64), 3).tolist() == theirs
    assert ours(rows).tolist() != theirs  # Ours are not rounded.


def test_the_sampled_token_counts_where_it_is_outside_the_top_k(reference: Reference) -> None:
    rows = logprobs(np.random.default_rng(1), 50, 32)
    sampled = np.argsort(rows)[:, :1]  # The least likely.
    best = np.sort(rows)[:, -20:]
    returned = np.hstack([np.take_along_axis(rows, sampled, 1), best])
    clear = halfway(-returned.mean(axis=1)) > 0.01
    rows, sampled, best, returned = (x[clear] for x in (rows, sampled, best, returned))
    trace = recorded(rows, "1", sampled=sampled[:, 0].tolist())
    theirs = reference("process_output", trace, 7)
    output = [
        {32: Logprob(row[0], 32)} | {j: Logprob(entry, j) for j, entry in enumerate(row[:0:-1], 1)}
        for row in returned.tolist()
    ]
    official = confidences(output, k=20, entries="returned")
    assert np.round(official.astype(np.float64), 3).tolist() == theirs["confs"]
    paper = confidences(output, k=20)
    assert np.allclose(paper, -best.mean(axis=1), rtol=1e-6)
    assert (official > paper + 0.05).all()


SHAPES = [(1, 7), (6, 7), (7, 7), (8, 7), (60, 7), (200, 31), (64, 1)]


@pytest.mark.parametrize(("n", "window"), SHAPES)
def test_the_scores_of_an_output(reference: Reference, n: int, window: int) -> None:
    rows = logprobs(np.random.default_rng(n), n)
    theirs = reference("process_output", recorded(rows, "12"), window)
    assert (theirs["num_tokens"], theirs["extracted_answer"]) == (n, "12")
    got = score([ours(rows)], window=window, tail=window, decimals=3)[0]
    # Sums of an odd number of thousandths are never halfway: equal to the last bit.
    exact = n >= window
    assert got.lowest_group == (
        theirs["min_conf"] if exact else pytest.approx(theirs["min_conf"], rel=1e-12)
    )
    trace = {"confs": theirs["confs"]}
    near = {"rel": 1e-12, "abs": 1e-12}
    assert got.mean == pytest.approx(reference("calculate_mean_confidence", trace), **near)
    assert got.tail == pytest.approx(reference("calculate_tail_confidence", trace, window), **near)
    for bottom in (0.1, 0.5):
        got = score([ours(rows)], window=window, bottom=bottom, decimals=3)[0]
        theirs_bottom = reference("calculate_bottom_window_confidence", trace, window, bottom)
        assert got.bottom_group == pytest.approx(theirs_bottom, **near)


def test_groups_are_rounded_to_three_decimals(reference: Reference) -> None:
    values = [5.0, 5.0, 5.125, 5.25, 9.0]
    assert reference("compute_least_grouped", values, 4) == [5.094, 6.094]
    assert score([values], window=4, decimals=3).lowest_group.tolist() == [5.094]
    assert score([values], window=4).lowest_group.tolist() == [5.09375]


def test_a_group_exactly_halfway_may_differ_in_the_third_decimal(reference: Reference) -> None:
    # 2.0005: neither 2.001 nor what a token is quantised to is exact.
    assert reference("compute_least_grouped", [2.0, 2.001], 2) == [2.0]
    assert score([[2.0, 2.001]], window=2, decimals=3).lowest_group.tolist() == [2.001]


def test_a_short_trace_is_one_group_that_is_not_rounded(reference: Reference) -> None:
    values = [5.0, 5.125, 5.0]
    theirs = reference("compute_least_grouped", values, 4)
    got = score([values], window=4, decimals=3)
    assert got.short.tolist() == [True]
    assert got.lowest_group.tolist() == theirs == [pytest.approx(15.125 / 3, rel=1e-15)]


def test_an_empty_trace_scores_zero_there_and_nan_here(reference: Reference) -> None:
    theirs = reference("process_output", recorded(flat(), "1"), 4)
    assert (theirs["min_conf"], theirs["group_confs"]) == (0, [0])
    for measure in ("mean", "tail", "bottom_window"):
        assert reference(f"calculate_{measure}_confidence", {"confs": []}) == 0
    assert np.isnan(score([[]], window=4).lowest_group).all()


def test_minus_infinity_goes_through_there_and_is_refused_here(reference: Reference) -> None:
    row = [-0.5, -np.inf]
    assert reference("compute_confidence", [row]) == [np.inf]
    with pytest.raises(InvalidInput, match="row 0, column 1"):
        deepconf.token_confidence(np.float32([row]))


def test_a_token_without_log_probabilities_is_dropped_there_and_refused_here(
    reference: Reference,
) -> None:
    assert reference("compute_confidence", [[-1.0], [], [-2.0]]) == [1.0, 2.0]
    with pytest.raises(InvalidInput, match="position 1"):
        confidences([{0: Logprob(-1.0, 1), 1: Logprob(-2.0, 2)}, {}], k=2)


def test_their_bottom_windows_drift_and_ours_do_not(reference: Reference) -> None:
    values = [1e4, *([0.001] * 2000)]
    theirs = reference("calculate_bottom_window_confidence", {"confs": values}, 4, -1)
    got = score([values], window=4)[0].lowest_group
    assert abs(got - 0.001) < 1e-12
    assert abs(theirs - 0.001) > 1e-13


# ---- votes --------------------------------------------------------------------------------------


def random_traces(seed: int, n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "confs": (rng.integers(8, 80, size=rng.integers(3, 40)) / 8).tolist(),
            "extracted_answer": rng.choice(["1", "2", "3"]).item() if rng.random() < 0.8 else None,
        }
        for _ in range(n)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_vote_of_theirs(reference: Reference, seed: int) -> None:
    traces = random_traces(seed, 1 + 3 * seed)
    theirs = reference("compute_all_voting_results", traces)
    answers = [trace["extracted_answer"] for trace in traces]
    scores = score([np.float32(trace["confs"]) for trace in traces])
    if not any(answers):
        assert set(theirs.values()) == {None}
        return
    majority = theirs["majority"]
    assert (vote(answers).answer, vote(answers).num_voters) == (
        majority["answer"],
        majority["num_votes"],
    )
    named = {
        "mean_confidence_weighted": (scores.mean, 1.0),
        "tail_confidence_weighted": (scores.tail, 1.0),
        "bottom_window_weighted": (scores.bottom_group, 1.0),
        "min_window_weighted": (scores.lowest_group, 1.0),
        "top10_tail_filtered": (scores.tail, 0.1),
        "top10_bottom_window_filtered": (scores.bottom_group, 0.1),
    }
    for name, (weights, keep) in named.items():
        got = vote(answers, weights, keep=keep)
        assert (got.answer, got.num_voters) == (theirs[name]["answer"], theirs[name]["num_votes"])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.9])
@pytest.mark.parametrize(
    ("theirs", "measure"),
    [
        ("mean", "mean"),
        ("tail", "tail"),
        ("bottom_window", "bottom_group"),
        ("min_window", "lowest_group"),
    ],
)
def test_filters_keep_as_many(
    reference: Reference, seed: int, keep: float, theirs: str, measure: str
) -> None:
    traces = [t | {"extracted_answer": str(i)} for i, t in enumerate(random_traces(seed, 23))]
    kept = reference("filter_top_confidence", traces, theirs, keep)
    scores = getattr(score([np.float32(trace["confs"]) for trace in traces]), measure)
    got = vote([t["extracted_answer"] for t in traces], keep=keep, scores=scores)
    assert list(got.ballots) == [trace["extracted_answer"] for trace in kept]


def test_ties_go_to_the_answer_seen_first(reference: Reference) -> None:
    answers, weights = ["8", "7", "7", "8"], [1.0, 2.5, 0.5, 2.0]
    assert reference("simple_majority_vote", answers) == vote(answers).answer == "8"
    theirs = reference("weighted_majority_vote", answers, weights)
    assert theirs == vote(answers, weights).answer == "8"


def test_an_empty_answer_is_none_there_and_an_answer_here(reference: Reference) -> None:
    traces = [{"confs": [1.0], "extracted_answer": answer} for answer in ("", "", "7")]
    assert reference("compute_all_voting_results", traces)["majority"]["answer"] == "7"
    assert vote(["", "", "7"]).answer == ""


def test_equal_numbers_are_different_answers_there(reference: Reference) -> None:
    pytest.importorskip("math_verify")
    answers = ["7", "7", "0.5", "\\frac{1}{2}", "1/2"]
    assert reference("simple_majority_vote", answers) == "7"
    book = deepconf.answers.AnswerBook()
    assert vote([book.canonical(answer) for answer in answers]).answer == "0.5"


# ---- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no box", None),
        (r"\boxed{12}", "12"),
        (r"$\boxed{ 3 }$", "3"),
        (r"$\boxed 7$ done", "7"),
        (r"first \boxed{1}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{{a}b}c", "{a}b"),
    ],
)
def test_boxed_answers(reference: Reference, text: str, answer: str | None) -> None:
    assert reference("extract_answer", text) == deepconf.answers.boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "theirs", "ours"),
    [
        (r"cut off: \boxed{3", "3", None),
        (r"\boxed{1}, then \boxed{", "", "1"),
        (r"\boxed{}", "", None),
        ("the boxed answer is 5", "answer is 5", None),
        (r"\boxed{a\}b}", "a\\", r"a\}b"),
        (r"\fbox{1}", None, "1"),
    ],
)
def test_boxed_answers_that_differ(
    reference: Reference, text: str, theirs: str | None, ours: str | None
) -> None:
    assert reference("extract_answer", text) == theirs
    assert deepconf.answers.boxed(text) == ours


# ---- runs ---------------------------------------------------------------------------------------


def play(policy: Policy, traces: list[Recorded]) -> tuple[Controller, Outcome, dict[int, int]]:
    """One trace after the other, a token at a time; a stopped one ends at once."""
    controller = Controller(policy)
    stops: dict[int, int] = {}
    for action in (waiting := controller.start()):
        if isinstance(action, Action.Answer):
            break
        assert isinstance(action, Action.Launch)
        for number in action.traces:
            trace = traces[number]
            controller.launched(number)
            for c in ours(np.array(trace["logprobs"]).reshape(-1, 20)):
                if (stop := controller.tokens(number, np.float32([c]))) is not None:
                    stops[number] = stop.token
                    break
            end = "aborted" if number in stops else trace["end"]
            waiting += controller.finished(number, end, trace["says"][number in stops])
    assert controller.outcome is not None
    return controller, controller.outcome, stops


def both(
    reference: Reference, traces: list[Recorded], preset: str, warmup: int, window: int
) -> tuple[Any, Any]:
    policy = Policy.preset(
        preset, budget=len(traces), warmup=warmup, window=window, tail=window, top_logprobs=20
    )
    theirs = reference(
        "deepthink",
        traces,
        "online",
        warmup_traces=warmup,
        total_budget=len(traces),
        confidence_percentile=round(100 * policy.keep),
        window_size=window,
    )
    return theirs, play(policy, traces)


def random_run(seed: int, window: int) -> list[Recorded]:
    rng = np.random.default_rng(seed)
    traces = []
    for _ in range(24):
        said = [None if rng.random() < 0.2 else str(rng.integers(3)) for _ in range(2)]
        end = "length" if rng.random() < 0.2 else "finished"
        n = int(rng.integers(1, 8 * window))
        traces.append(recorded(logprobs(rng, n), said[0], end, said[1]))
    # The last one is unsure from its first token on.
    return [*traces, recorded(flat(*[3.0] * 2 * window), "0", partial="1")]


@pytest.mark.parametrize("preset", ["official-low", "official-high"])
@pytest.mark.parametrize("seed", range(12))
def test_official_presets_decide_as_the_authors_code_does(
    reference: Reference, preset: str, seed: int
) -> None:
    window = 7
    traces = random_run(seed, window)
    theirs, (controller, outcome, stops) = both(reference, traces, preset, 8, window)
    assert outcome.threshold == pytest.approx(theirs["threshold"], rel=1e-12)
    lengths = [len(trace["logprobs"]) for trace in traces]
    expected = [stops.get(i, n - 1) + 1 for i, n in enumerate(lengths)]
    assert theirs["num_tokens"] == expected
    assert controller.num_tokens == sum(expected)
    lowest = [controller.scores(trace).lowest_group for trace in range(len(traces))]
    assert lowest == pytest.approx(theirs["lowest"], rel=1e-12)
    assert outcome.voters == theirs["voters"]
    assert outcome.answer == theirs["answer"]
    assert outcome.reason == "budget"
    assert stops[len(traces) - 1] == window - 1


@pytest.mark.parametrize("seed", range(4))
def test_their_weighted_vote_is_ours_with_a_weight(reference: Reference, seed: int) -> None:
    traces = random_run(100 + seed, 7)
    settings = {"warmup": 8, "window": 7, "tail": 7, "budget": 25}
    _, outcome, _ = play(Policy.preset("official-high", weight="lowest_group", **settings), traces)
    theirs = reference(
        "deepthink",
        traces,
        "online",
        warmup_traces=8,
        total_budget=25,
        confidence_percentile=90,
        window_size=7,
        compute_multiple_voting=False,
    )
    assert outcome.answer == theirs["answer"]


def test_the_majority_overwrites_their_weighted_vote(reference: Reference) -> None:
    shaky, sure = flat(4.0004, 4.0004, 4.0004), flat(9.0, 9.0, 9.0)
    traces = [recorded(shaky, "b")] * 3 + [recorded(sure, "a")] * 2
    theirs, (_, outcome, _) = both(reference, traces, "official-high", 2, 3)
    assert theirs["voters"] == outcome.voters == [0, 1, 2, 3, 4]
    assert theirs["answer"] == outcome.answer == "b"
    assert theirs["voting"]["min_window_weighted"]["answer"] == "a"
    _, outcome, _ = play(Policy.high(stop="budget", budget=5, warmup=2, window=3), traces)
    assert outcome.answer == "a"


def test_a_stopped_trace_may_vote_by_its_rounded_score(reference: Reference) -> None:
    # The mean of each is 3.50063, which is 3.501 to three decimals.
    group = flat(3.5004, 3.5007, 3.5008)
    traces = [recorded(group, "1")] * 2
    traces.append(recorded(np.vstack([group, flat(9.0)]), "1", partial="2"))
    theirs, (controller, outcome, stops) = both(reference, traces, "official-high", 2, 3)
    assert theirs["threshold"] == outcome.threshold == 3.501
    assert stops == {2: 2}
    assert theirs["num_tokens"][2] == 3
    assert controller.status(2) == "stopped"
    assert theirs["voters"] == outcome.voters == [0, 1, 2]
    _, outcome, stops = play(
        Policy.high(stop="budget", warmup=2, window=3, tail=3, budget=3), traces
    )
    assert (stops, outcome.voters) == ({}, [0, 1, 2])  # At its own group, not below.


def test_truncated_traces_calibrate_there(reference: Reference) -> None:
    traces = [recorded(flat(c, c, c), "1", end) for c, end in ((9.0, "finished"), (5.0, "length"))]
    theirs, (_, outcome, _) = both(reference, traces, "official-low", 2, 3)
    assert theirs["threshold"] == outcome.threshold == pytest.approx(8.6)
    _, outcome, _ = play(Policy.low(budget=2, warmup=2, window=3), traces)
    assert outcome.threshold == pytest.approx(9.0)


def test_an_empty_warmup_trace_lowers_their_threshold(reference: Reference) -> None:
    traces = [recorded(flat(9.0, 9.0), "1"), recorded(flat(), "1")]
    theirs, (_, outcome, _) = both(reference, traces, "official-low", 2, 2)
    assert theirs["threshold"] == pytest.approx(8.1)
    assert outcome.threshold == pytest.approx(9.0)


def test_nobody_is_left_and_there_is_no_answer(reference: Reference) -> None:
    traces = [recorded(flat(9.0, 9.0), None), *[recorded(flat(5.0, 5.0), "1", partial="1")] * 3]
    theirs, (_, outcome, _) = both(reference, traces, "official-low", 2, 2)
    assert (theirs["answer"], theirs["voters"]) == (outcome.answer, outcome.voters) == (None, [])
    _, outcome, _ = play(Policy.low(budget=4, warmup=2, window=2), traces)
    assert (outcome.answer, outcome.vote.fallback) == ("1", True)


def test_no_consensus_ends_their_run(reference: Reference) -> None:
    traces = [recorded(flat(9.0, 9.0), "1")] * 8
    theirs, (_, outcome, _) = both(reference, traces, "official-high", 4, 2)
    assert len(theirs["num_tokens"]) == 8
    assert (outcome.reason, len(outcome.voters)) == ("budget", len(theirs["voters"]))
    controller, outcome, _ = play(Policy.high(budget=8, warmup=4, window=2), traces)
    assert (outcome.reason, controller.status(4)) == ("consensus", None)


def test_a_short_trace_is_never_stopped(reference: Reference) -> None:
    traces = [recorded(flat(9.0, 9.0, 9.0), "1")] * 2 + [recorded(flat(3.0, 3.0), "2")]
    theirs, (_, outcome, stops) = both(reference, traces, "official-high", 2, 3)
    assert theirs["num_tokens"] == [3, 3, 2]
    assert stops == {}
    assert theirs["voters"] == outcome.voters == [0, 1]


def with_unlikely(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twelve tokens of log-probability -40 before the others: 0 to 11, the end token among them."""
    return np.hstack([np.full((len(rows), 12), -40.0), rows])


def test_their_forced_end_token_counts_and_lifts_the_last_group(reference: Reference) -> None:
    # They end a trace by forcing the end token, whose log-probability then is one of 21 entries
    # of the last token; ours ends at once, and the token is the one that was sampled.
    rows = [with_unlikely(flat(c, c, c, 9.0)) for c in (5.0, 4.5)]
    traces = [recorded(r, "1", partial="2", sampled=[12] * 4) for r in rows]
    theirs = reference(
        "deepthink",
        traces,
        "online",
        warmup_traces=1,
        total_budget=2,
        confidence_percentile=90,
        window_size=3,
    )
    assert theirs["num_tokens"] == [4, 3]
    assert theirs["lowest"] == pytest.approx(
        [5.0, (4.5 + 4.5 + (20 * 4.5 + 40) / 21) / 3], abs=1e-3
    )
    assert theirs["voters"] == [0, 1]
    mine = [recorded(flat(c, c, c, 9.0), "1", partial="2") for c in (5.0, 4.5)]
    official = Policy.preset("official-high", budget=2, warmup=1, window=3)
    _, outcome, stops = play(official, mine)
    assert (stops, outcome.voters) == ({1: 2}, [0])


def test_their_stop_counts_the_top_k_alone(reference: Reference) -> None:
    # All sampled tokens are outside the top 20: only what is recomputed afterwards counts them.
    rows = with_unlikely(flat(4.5, 4.5, 4.5, 4.5))
    warm = recorded(with_unlikely(flat(5.0, 5.0, 5.0)), "1", sampled=[12] * 3)
    theirs = reference(
        "deepthink",
        [warm, recorded(rows, "1", partial="2", sampled=[1] * 4)],
        "online",
        warmup_traces=1,
        total_budget=2,
        confidence_percentile=90,
        window_size=3,
    )
    assert theirs["num_tokens"] == [3, 3]
    returned = np.full(4, (20 * 4.5 + 40) / 21, np.float32)
    assert theirs["lowest"][1] == pytest.approx(returned[0], abs=1e-3)
    scorer = TraceScorer(window=3, threshold=theirs["threshold"])
    assert scorer.extend(returned) is None  # Ours follows what it scores: no stop.
