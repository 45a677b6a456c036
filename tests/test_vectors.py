"""The golden cases of `rust/core/tests/vectors`, which Rust reads too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import pytest
from deepconf import Action, Controller, Outcome, Policy, TraceScorer
from deepconf._core import dict_confidences

VECTORS = Path(__file__).parents[1] / "rust/core/tests/vectors"
Json = dict[str, Any]


def read(name: str) -> Json:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def cases(name: str) -> Any:
    """One parameter a case; a file without any is an error."""
    found = read(name)["cases"]
    assert found, f"{name} has no cases"
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in found])


def alike(expected: float | None, tolerance: float = 1e-12) -> Any:
    value = np.nan if expected is None else expected
    return pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True)


def test_the_files_are_what_the_generator_writes() -> None:
    subprocess.run([sys.executable, VECTORS / "generate.py", "--check"], check=True)


# ---- tokens and scores --------------------------------------------------------------------------


class Logprob:
    """An entry as vLLM has it."""

    def __init__(self, logprob: float, rank: int) -> None:
        self.logprob, self.rank = logprob, rank


@cases("tokens.json")
def test_token_confidence(case: Json) -> None:
    rows, k, floor, expected = case["logprobs"], case["k"], case["floor"], case["expected"]
    got = deepconf.token_confidence(np.float32(rows), logprob_floor=floor)
    assert got.tolist() == expected["returned"]
    best = np.sort(np.float32(rows))[:, ::-1][:, :k]
    got = deepconf.token_confidence(best, logprob_floor=floor)
    assert got.tolist() == expected["topk"]
    got = deepconf.token_entropy(best, logprob_floor=floor)
    assert got == pytest.approx(expected["entropy"], rel=1e-6, abs=1e-7)


@cases("tokens.json")
def test_token_confidence_of_what_vllm_returns(case: Json) -> None:
    rows, k, floor = case["logprobs"], case["k"], case["floor"]
    output = []
    for row in rows:
        ranked = sorted(row, reverse=True)
        entries = [Logprob(logprob, rank) for rank, logprob in enumerate(ranked, 1)]
        if len(row) > k:
            entries[-1].rank = 1000  # Sampled, far down.
            entries = entries[-1:] + entries[:-1]
        output.append(dict(enumerate(entries)))
    for entries in ("topk", "returned"):
        got = dict_confidences(output, k, entries == "returned", floor)
        assert got.tolist() == case["expected"][entries]


@cases("scores.json")
def test_scores(case: Json) -> None:
    expected = case["expected"]
    confidences = np.float32(case["confidences"])
    settings = {name: case[name] for name in ("window", "tail", "bottom")}
    # What was rounded to decimals is no whole number of quanta.
    tolerance = 0.0 if case["decimals"] is None else 1e-12
    scored = [deepconf.score([confidences], decimals=case["decimals"], **settings)[0]]
    if case["decimals"] is None:
        scorer = TraceScorer(**settings)
        scorer.extend(confidences)
        scored.append(scorer.scores())
        scored.append(deepconf.score((confidences, [0, len(confidences)]), **settings)[0])
        scored.append(deepconf.score(confidences.astype(np.float64)[None, :], **settings)[0])
    for got in scored:
        for measure in ("mean", "lowest_group", "bottom_group", "tail"):
            assert getattr(got, measure) == alike(expected[measure], tolerance), measure
        assert (got.num_tokens, got.short) == (expected["num_tokens"], expected["short"])


@cases("scores.json")
def test_the_token_that_stops(case: Json) -> None:
    settings = {name: case[name] for name in ("window", "tail", "threshold")}
    stop = case["expected"]["stop"]
    assert TraceScorer(**settings).extend(np.float32(case["confidences"])) == stop
    scorer = TraceScorer(**settings)
    asked = (token for token, c in enumerate(case["confidences"]) if scorer.push(c))
    assert next(asked, None) == stop
    batch = deepconf.BatchScorer(3, **settings)
    steps = (batch.step([1], np.float32([c]))[0] for c in case["confidences"])
    assert next((token for token, stops in enumerate(steps) if stops), None) == stop


# ---- votes --------------------------------------------------------------------------------------


def played(case: Json) -> tuple[Any, Any]:
    """The vote and its threshold, by a controller, which can rank traces without an answer."""
    policy = Policy.offline(
        budget=len(case["answers"]),
        window=1,
        tail=1,
        keep=case["keep"],
        measure="mean",
        weight="majority",
        min_ballots=case["min_ballots"],
        percentile_over=case["percentile_over"],
    )
    controller = Controller(policy)
    controller.start()
    for trace, (answer, score) in enumerate(zip(case["answers"], case["scores"], strict=True)):
        controller.launched(trace)
        controller.tokens(trace, np.float32([score]))
        controller.finished(trace, "finished", answer)
    assert controller.outcome is not None
    return controller.outcome.vote, controller.outcome.threshold


@cases("votes.json")
def test_votes(case: Json) -> None:
    expected = case["expected"]
    answers, weights, keep = case["answers"], case["weights"], case["keep"]
    if case["percentile_over"] == "all":
        assert weights is None
        vote, threshold = played(case)
    else:
        scores = case["scores"] and np.array(case["scores"], np.float64)
        options = {"keep": keep, "scores": scores, "min_ballots": case["min_ballots"]}
        vote = deepconf.vote(answers, weights, **options)
        threshold = vote.threshold
        many = deepconf.vote_many(["q"] * len(answers), answers, weights, **options)
        if answers:
            assert (many.questions, many.answers) == (["q"], [expected["answer"]])
            assert many.num_voters.tolist() == [expected["num_voters"]]
            assert many.fallback.tolist() == [expected["fallback"]]
            assert many.share.tolist() == [vote.share]
    ballots = [[answer, weight, vote.voters[answer]] for answer, weight in vote.ballots.items()]
    assert ballots == expected["ballots"]
    assert vote.answer == expected["answer"]
    assert vote.share == alike(expected["share"])
    assert (vote.num_voters, vote.fallback) == (expected["num_voters"], expected["fallback"])
    assert (threshold is None) == (expected["threshold"] is None)
    assert threshold is None or threshold == alike(expected["threshold"])


# ---- presets ------------------------------------------------------------------------------------

PRESETS = read("presets.json")
assert PRESETS["runs"], "presets.json has no runs"


def test_every_preset_is_held() -> None:
    assert sorted(PRESETS["presets"]) == sorted(Policy.presets())
    held = {(run["recording"], run["preset"]) for run in PRESETS["runs"]}
    assert held == {(name, preset) for name in PRESETS["recordings"] for preset in Policy.presets()}


@pytest.mark.parametrize("name", PRESETS["presets"])
def test_every_setting_of_a_preset(name: str) -> None:
    assert Policy.preset(name).as_dict() == PRESETS["presets"][name]


class Player:
    """Plays a recording as `presets.json` says."""

    def __init__(self, policy: Policy, recording: Json) -> None:
        self.controller, self.recording = Controller(policy), recording
        self.flying: list[int] = []
        self.given: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.outcome: Outcome | None = None

    def play(self) -> None:
        self.obey(self.controller.start())
        turn = 0
        while self.flying:
            turn %= len(self.flying)
            if self.step(trace := self.flying[turn]):
                self.flying.remove(trace)
                self.end(trace)
            elif self.recording["interleave"]:
                turn += 1

    def step(self, trace: int) -> bool:
        confidences = self.recording["traces"][trace]["confidences"]
        given = self.given[trace]
        action = self.controller.tokens(trace, np.float32(confidences[given : given + 1]))
        self.given[trace] = min(given + 1, len(confidences))
        if action is not None:
            assert action.trace == trace
            self.stops[trace] = action.token
        enough = self.stops.get(trace, np.inf) + 1 + self.recording["lag"]
        return self.given[trace] in (len(confidences), enough)

    def end(self, trace: int) -> None:
        recorded = self.recording["traces"][trace]
        if trace in self.stops:
            self.obey(self.controller.finished(trace, "aborted", recorded["partial"]))
        elif recorded["end"] == "failed":
            self.obey(self.controller.failed(trace))
        else:
            self.obey(self.controller.finished(trace, recorded["end"], recorded["answer"]))

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Action.Launch(traces):
                    for trace in traces:
                        self.controller.launched(trace)
                        self.given[trace] = 0
                    self.flying += traces
                case Action.Answer(outcome):
                    self.outcome = outcome
                case Action.Abort(traces):
                    assert set(traces) <= set(self.flying)
        if self.outcome is not None:
            for trace in self.flying:
                assert self.controller.finished(trace, "aborted") == []
            self.flying = []


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(run, id=f"{run['recording']}-{run['preset']}-{number}")
        for number, run in enumerate(PRESETS["runs"])
    ],
)
def test_every_preset_on_every_recording(case: Json) -> None:
    expected = case["expected"]
    policy = Policy.preset(case["preset"], **case["settings"])
    player = Player(policy, PRESETS["recordings"][case["recording"]])
    player.play()
    outcome = player.outcome
    assert outcome is not None
    assert outcome.answer == expected["answer"]
    assert outcome.voters == expected["voters"]
    assert outcome.reason == expected["reason"]
    assert sorted(player.stops.items()) == [tuple(stop) for stop in expected["stops"]]
    assert (outcome.threshold is None) == (expected["threshold"] is None)
    assert outcome.threshold is None or outcome.threshold == alike(expected["threshold"])
    vote = outcome.vote
    assert (vote.num_voters, vote.fallback) == (expected["num_voters"], expected["fallback"])
    assert vote.share == alike(expected["share"])
    assert list(vote.ballots) == [answer for answer, _, _ in expected["ballots"]]
    for answer, weight, voters in expected["ballots"]:
        assert (vote.ballots[answer], vote.voters[answer]) == (alike(weight), voters)
    statuses = [player.controller.status(trace) for trace in range(len(player.given))]
    assert statuses == expected["statuses"]
    assert player.controller.num_tokens == expected["num_tokens"]
