"""Writes the golden cases beside it, or compares them: `python generate.py`, `--check`.

What is expected is worked out here from the definitions, slowly and in exact fractions, and shares
no code with the package. Confidences are multiples of 1/8, so that float32 holds them; a fraction
becomes a float64 once, when it is written.
"""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Json = dict[str, Any]


def exact(number: float) -> Fraction:
    """What is meant by a setting such as 0.1: a tenth."""
    return Fraction(Decimal(str(number)))


def plain(value: Fraction | None) -> float | None:
    return None if value is None else float(value)


# ---- scores -------------------------------------------------------------------------------------


def rounded(value: Fraction, decimals: int | None) -> Fraction:
    """To so many decimals, halves to the even digit."""
    return value if decimals is None else Fraction(round(value * 10**decimals), 10**decimals)


def average(values: list[Fraction]) -> Fraction | None:
    return sum(values, Fraction(0)) / len(values) if values else None


def groups(tokens: list[Fraction], window: int) -> list[Fraction]:
    if not tokens:
        return []
    size = min(window, len(tokens))
    return [sum(tokens[at : at + size]) / size for at in range(len(tokens) - size + 1)]


def score(
    confidences: list[float], window: int, tail: int, bottom: float, decimals: int | None
) -> dict[str, Fraction | None]:
    tokens = [rounded(Fraction(c), decimals) for c in confidences]
    lowest = sorted(groups(tokens, window))
    count = max(1, math.floor(exact(bottom) * len(lowest)))
    # Only complete windows are rounded: the one group of a short trace is not.
    digits = decimals if len(tokens) >= window else None
    return {
        "mean": average(tokens),
        "lowest_group": rounded(lowest[0], digits) if lowest else None,
        "bottom_group": average(lowest[:count]),
        "tail": average(tokens[-tail:]),
    }


def first_stop(confidences: list[float], window: int, threshold: Fraction) -> int | None:
    """The token that completes the first group strictly below the threshold."""
    tokens = [Fraction(c) for c in confidences]
    for end in range(window, len(tokens) + 1):
        if sum(tokens[end - window : end]) / window < threshold:
            return end - 1
    return None


def score_case(
    name: str,
    confidences: list[float],
    window: int,
    tail: int = 4,
    bottom: float = 0.1,
    decimals: int | None = None,
    threshold: float | None = None,
) -> Json:
    scores = score(confidences, window, tail, bottom, decimals)
    stop = None if threshold is None else first_stop(confidences, window, Fraction(threshold))
    return {
        "name": name,
        "confidences": confidences,
        "window": window,
        "tail": tail,
        "bottom": bottom,
        "decimals": decimals,
        "threshold": threshold,
        "expected": {
            **{measure: plain(value) for measure, value in scores.items()},
            "num_tokens": len(confidences),
            "short": 0 < len(confidences) < window,
            "stop": stop,
        },
    }


DIP = [9.0, 8.0, 9.0, 8.5, 2.0, 1.0, 3.0, 2.5, 9.0, 9.5, 8.0, 9.0]
STAIRS = [n / 2 for n in range(24, 0, -1)]
WAVE = [6 + (n * 5 % 16) / 8 for n in range(40)]


def score_cases() -> list[Json]:
    return [
        score_case("no tokens", [], 4),
        score_case("one token is a short trace", [7.25], 4, threshold=8.0),
        score_case("one token fills a window of one", [7.25], 1, threshold=8.0),
        score_case("one token less than the window", [5.0, 6.0, 7.5], 4, threshold=100.0),
        score_case("as many tokens as the window", [5.0, 6.0, 7.5, 1.0], 4, threshold=5.0),
        score_case("one token more than the window", [5.0, 6.0, 7.5, 1.0, 9.0], 4),
        score_case("a window of one is the tokens", DIP, 1, tail=1, threshold=2.0),
        score_case("a dip in the middle", DIP, 4, tail=5, threshold=5.5),
        score_case("the dip is cut off by a strict threshold", DIP, 4, threshold=2.125),
        score_case("a group at the threshold goes on", [4.0, 6.0, 5.0, 5.0], 2, threshold=5.0),
        score_case("an eighth below the threshold stops", [4.0, 5.75, 9.0], 2, threshold=5.0),
        score_case("thirds", [1.0, 2.0, 2.0, 4.0, 8.0, 16.0, 1.0], 3, tail=3, bottom=0.5),
        score_case("the tail is longer than the trace", DIP, 4, tail=100),
        score_case("a tenth of nine groups is one", DIP, 4, bottom=0.1),
        score_case("a third of nine groups is three", DIP, 4, bottom=0.34),
        score_case("a tenth of twenty groups is two", STAIRS, 5, tail=8),
        score_case("a tenth of thirty-three groups is three", WAVE, 8, tail=16),
        score_case("all groups", WAVE, 8, bottom=1.0),
        score_case("negative confidences", [-1.0, 2.0, -3.5, 0.0, 0.125], 2, tail=2, bottom=0.5),
        score_case("large confidences", [30000.0, 32767.875, 29999.5, 1.0], 2, tail=2),
        score_case("two decimals: halves go to the even digit",
                   [0.125, 0.375, 0.625], 2, decimals=2),
        score_case("three decimals keep the tokens and round the group",
                   [5.0, 5.0, 5.125, 5.25, 9.0], 4, decimals=3),
        score_case("three decimals: a group halfway goes to the even digit",
                   [5.0, 5.125, 5.0, 5.125], 4, decimals=3),
        score_case("three decimals do not round a short trace",
                   [5.0, 5.0, 5.125], 4, decimals=3),
    ]  # fmt: skip


# ---- token confidences --------------------------------------------------------------------------


def token_case(
    name: str, rows: list[list[float]], floor: float | None = None, k: int | None = None
) -> Json:
    """`k` entries of a row are the most likely ones; one more is the sampled token's."""
    lowest = -math.inf if floor is None else floor
    clipped = [[max(entry, lowest) for entry in row] for row in rows]

    def confidence(entries: list[float]) -> float | None:
        return plain(average([-Fraction(entry) for entry in entries]))

    def entropy(entries: list[float]) -> float:
        mass = math.fsum(math.exp(entry) for entry in entries)
        shares = [math.exp(entry) / mass for entry in entries]
        return -math.fsum(p * math.log(p) for p in shares)

    best = [sorted(row, reverse=True)[: k or len(row)] for row in clipped]
    return {
        "name": name,
        "logprobs": rows,
        "k": k or len(rows[0]),
        "floor": floor,
        "expected": {
            "topk": [confidence(row) for row in best],
            "returned": [confidence(row) for row in clipped],
            "entropy": [entropy(row) for row in best],
        },
    }


def token_cases() -> list[Json]:
    return [
        token_case("two entries", [[-0.5, -3.0], [0.0, -40.0]]),
        token_case("a peaked row is surer than a flat one",
                   [[-0.125, -6.0, -7.0, -8.0], [-1.25, -1.25, -1.5, -1.625]]),
        token_case("five entries", [[-0.5, -1.5, -3.0, -4.0, -6.0]]),
        token_case("the floor lifts masked tokens", [[-1.0, -9999.0, -2.0, -50.0]], floor=-50.0),
        token_case("the sampled token stands outside the top four",
                   [[-0.5, -1.5, -3.0, -4.0, -11.0], [-0.25, -2.5, -4.0, -5.25, -18.0]], k=4),
    ]  # fmt: skip


# ---- votes --------------------------------------------------------------------------------------


def percentile(values: list[Fraction], share: Fraction) -> Fraction | None:
    """Linearly interpolated; `share` of the way up."""
    if not values:
        return None
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


def count(answers: list[Any], weights: list[Fraction], voters: list[int]) -> Json:
    ballots: list[list[Any]] = []
    for row in voters:
        ballot = next((ballot for ballot in ballots if ballot[0] == answers[row]), None)
        if ballot is None:
            ballots.append(ballot := [answers[row], Fraction(0), 0])
        ballot[1] += weights[row]
        ballot[2] += 1
    ballots.sort(key=lambda ballot: -ballot[1])  # Stable: equal ones stay in the order seen.
    total = sum((ballot[1] for ballot in ballots), Fraction(0))
    return {
        "answer": ballots[0][0] if ballots else None,
        "ballots": [[answer, plain(weight), number] for answer, weight, number in ballots],
        "share": plain(ballots[0][1] / total) if total else 0.0,
        "num_voters": len(voters),
    }


def vote_case(
    name: str,
    answers: list[str | None],
    weights: list[float] | None = None,
    scores: list[float | None] | None = None,
    keep: float = 1.0,
    min_ballots: int = 1,
    percentile_over: str = "answered",
) -> Json:
    """A score of None is that of a trace without tokens."""
    ranking = scores if scores is not None else weights
    weighed = [Fraction(w) for w in weights] if weights else [Fraction(1)] * len(answers)
    voters = [row for row, answer in enumerate(answers) if answer is not None]
    threshold, fallback = None, False
    if keep < 1.0:
        assert ranking is not None
        ranked = [None if s is None else Fraction(s) for s in ranking]
        pool = range(len(answers)) if percentile_over == "all" else voters
        threshold = percentile(
            [s for row in pool if (s := ranked[row]) is not None], 1 - exact(keep)
        )
        scored = [row for row in voters if ranked[row] is not None]
        kept = [row for row in scored if threshold is not None and ranked[row] >= threshold]
        fallback = len(kept) < min_ballots
        voters = scored if fallback else kept
    return {
        "name": name,
        "answers": answers,
        "weights": weights,
        "scores": scores,
        "keep": keep,
        "min_ballots": min_ballots,
        "percentile_over": percentile_over,
        "expected": {
            **count(answers, weighed, voters),
            "threshold": plain(threshold),
            "fallback": fallback,
        },
    }


ELEVEN = [float(n) for n in (3, 1, 11, 5, 9, 2, 10, 4, 8, 6, 7)]


def vote_cases() -> list[Json]:
    return [
        vote_case("nobody", []),
        vote_case("nobody has an answer", [None, None]),
        vote_case("one voter", ["42"]),
        vote_case("a majority", ["7", "8", "8", None]),
        vote_case("a tie goes to the answer seen first", ["8", "7", "7", "8", "9"]),
        vote_case("weights beat heads", ["7", "7", "8"], [1.0, 1.5, 3.0]),
        vote_case("a tie of weights goes to the answer seen first", ["7", "8", "7"],
                  [1.0, 2.5, 1.5]),
        vote_case("first is the first that votes", ["8", "7", "8", "7"], [0.5, 3.0, 2.5, 9.0],
                  scores=[1.0, 5.0, 6.0, 4.0], keep=0.5),
        vote_case("weights of zero", ["7", "8"], [0.0, 0.0]),
        vote_case("a weight without an answer does not count", ["7", None, "8"], [1.0, 9.0, 2.0]),
        vote_case("the empty string is an answer", ["", "", "7"]),
        vote_case("keep filters on the weights", ["7", "7", "7", "8"], [1.0, 1.0, 1.0, 2.0],
                  keep=0.1),
        vote_case("keep filters on the scores", ["7", "7", "8", "9"], [4.0, 4.0, 1.0, 1.0],
                  scores=[1.0, 2.0, 9.0, 8.0], keep=0.5),
        vote_case("scores alone filter a head count", ["7", "7", "8", "8", "8"],
                  scores=[9.0, 8.0, 3.0, 2.0, 1.0], keep=0.25),
        vote_case("a score at the threshold is kept", ["7", "8", "8"], scores=[5.0, 5.0, 5.0],
                  keep=0.1),
        vote_case("the threshold lies between two scores", ["7", "8"], scores=[1.0, 2.0], keep=0.5),
        vote_case("a trace without tokens never votes and never ranks", ["7", "8", "8"],
                  scores=[4.0, None, 2.0], keep=0.5),
        vote_case("without a filter its vote counts", ["7", "8", "8"], scores=[4.0, None, 2.0]),
        vote_case("only answered traces rank", ["7", "8", None, None],
                  scores=[3.0, 2.0, 9.0, 8.0], keep=0.5),
        vote_case("all traces rank", ["7", "8", None, None],
                  scores=[3.0, 2.0, 9.0, 8.0], keep=0.75, percentile_over="all"),
        vote_case("all traces rank and nobody is left: no floor", ["7", "8", None, None],
                  scores=[3.0, 2.0, 9.0, 8.0], keep=0.25, min_ballots=0, percentile_over="all"),
        vote_case("all traces rank and nobody is left: fallback", ["7", "8", None, None],
                  scores=[3.0, 2.0, 9.0, 8.0], keep=0.25, percentile_over="all"),
        vote_case("too few ballots: fallback to the weighted vote", ["7", "8", "8", "8"],
                  [9.0, 2.0, 2.0, 2.0], keep=0.25, min_ballots=2),
        vote_case("just enough ballots", ["7", "8", "8", "8"],
                  [9.0, 8.0, 2.0, 2.0], keep=0.5, min_ballots=2),
        vote_case("no scores at all: fallback to nobody", ["7", "8"], scores=[None, None],
                  keep=0.5),
        vote_case("nine tenths of eleven", list("abcdefghijk"), ELEVEN, keep=0.9),
        vote_case("a tenth of eleven", list("abcdefghijk"), ELEVEN, keep=0.1),
        vote_case("seven tenths of eleven are eight", list("abcdefghijk"), ELEVEN, keep=0.7),
        vote_case("95% of twenty-one are twenty", ["a"] * 21,
                  [float(n) for n in range(21)], keep=0.95),
    ]  # fmt: skip


# ---- presets ------------------------------------------------------------------------------------

LOW: Json = {
    "mode": "online",
    "budget": 256,
    "warmup": 16,
    "concurrency": None,
    "seed": 0,
    "top_logprobs": 20,
    "entries": "topk",
    "logprob_floor": None,
    "decimals": None,
    "window": 2048,
    "tail": 2048,
    "bottom": 0.1,
    "keep": 0.1,
    "measure": "lowest_group",
    "weight": "lowest_group",
    "max_weight": None,
    "stop": "consensus",
    "consensus": 0.95,
    "min_ballots": 3,
    "calibrate_on": "finished",
    "percentile_over": "answered",
    "stopped_vote": False,
}
OFFLINE: Json = {
    "mode": "offline",
    "warmup": 0,
    "measure": "bottom_group",
    "weight": "bottom_group",
    "stop": "budget",
}
PAPER: Json = {"min_ballots": 0, "percentile_over": "all"}
OFFICIAL: Json = {
    "entries": "returned",
    "decimals": 3,
    "weight": "majority",
    "stop": "budget",
    "min_ballots": 0,
    "calibrate_on": "all",
    "stopped_vote": True,
}
PRESETS: dict[str, Json] = {
    "low": LOW,
    "high": LOW | {"keep": 0.9},
    "offline": LOW | OFFLINE,
    "paper-low": LOW | PAPER,
    "paper-high": LOW | PAPER | {"keep": 0.9},
    "official-low": LOW | OFFICIAL,
    "official-high": LOW | OFFICIAL | {"keep": 0.9},
}

# ---- recordings ---------------------------------------------------------------------------------


def trace(
    confidences: list[float], answer: str | None, end: str = "finished", partial: str | None = None
) -> Json:
    """`partial` is what the trace says if it is stopped."""
    return {"confidences": confidences, "end": end, "answer": answer, "partial": partial}


def dip(*values: float, after: int = 4) -> list[float]:
    """Sure, then these, then sure again."""
    return [9.0] * 4 + list(values) + [9.0] * after


RECORDINGS: Json = {
    "mixed": {
        "about": (
            "Sure and shaky traces, one without an answer, one cut at the length limit, one of "
            "two tokens, one that falls under every threshold."
        ),
        "settings": {"budget": 8, "warmup": 4, "window": 4, "tail": 4},
        "interleave": False,
        "lag": 2,
        "traces": [
            trace([9.0, 9.25, 9.5, 9.25, 9.0, 9.25], "12"),
            trace(dip(5.0, 5.0, 5.125, 5.25), "12"),
            trace([10.0, 10.25, 9.75, 10.0, 10.5], None),
            trace(dip(2.0, 2.0, 2.0, 2.0, after=0), "7", "length"),
            trace(dip(7.0, 7.0, 7.5, 7.0), "7", partial="7"),
            trace([8.0, 8.5], "12"),
            trace(dip(1.0, 1.0, 1.5, 1.0), "12", partial="7"),
            trace([9.75, 9.75, 9.75, 9.75, 9.875, 9.75], "7"),
        ],
    },
    "rounding": {
        "about": (
            "Every warmup trace has the lowest group 163/32 = 5.09375, which three decimals make "
            "5.094; so has trace 4, whose live group then lies below a rounded threshold, while "
            "its rounded score reaches it. Trace 6 rounds down."
        ),
        "settings": {"budget": 7, "warmup": 3, "window": 4, "tail": 4},
        "interleave": False,
        "lag": 0,
        "traces": [
            trace(dip(5.0, 5.0, 5.125, 5.25), "3"),
            trace([9.0, *dip(5.25, 5.125, 5.0, 5.0)], "3"),
            trace(dip(5.125, 5.0, 5.25, 5.0), "4"),
            trace([8.0, 8.0, 8.0, 8.0], "5"),
            trace(dip(5.0, 5.25, 5.0, 5.125), "5", partial="4"),
            trace(dip(5.0, 5.0, 5.0, 5.25), "5", partial="4"),
            trace(dip(5.0, 5.125, 5.0, 5.0), "5", partial="3"),
        ],
    },
    "tie": {
        "about": "Two against two heads, and weights that disagree with the order.",
        "settings": {"budget": 4, "warmup": 4, "window": 2, "tail": 2, "keep": 1.0},
        "interleave": False,
        "lag": 0,
        "traces": [
            trace([4.0, 5.0, 6.0], "left"),
            trace([8.0, 7.0, 9.0], "right"),
            trace([6.0, 6.0], "right"),
            trace([7.0, 6.5, 7.5], "left"),
        ],
    },
    "agreed": {
        "about": "All agree: those that know a consensus end early, and abort what is in flight.",
        "settings": {"budget": 9, "warmup": 3, "window": 2, "tail": 2, "keep": 0.9},
        "interleave": True,
        "lag": 1,
        "traces": [
            trace([8.0, 8.0, 8.0, 8.0], "1"),
            trace([7.0, 7.0], "1"),
            trace([6.0, 6.0, 6.0], "1"),
            trace([9.0, 9.0, 9.0, 9.0, 9.0, 9.0], "1"),
            trace([9.0, 9.0, 2.0, 2.0, 9.0, 9.0], "2", partial=None),
            trace([9.0, 8.0, 9.0], "1"),
            trace([9.0, 8.0, 9.0, 7.0, 9.0, 9.0, 9.0], "1"),
            trace([5.0], "1"),
            trace([], "1"),
        ],
    },
    "few ballots": {
        "about": "One clear best trace in the warmup: to the letter that is a consensus of one.",
        "settings": {"budget": 8, "warmup": 4, "window": 2, "tail": 2, "concurrency": 2},
        "interleave": True,
        "lag": 1,
        "traces": [
            trace([5.0, 5.0, 5.0], "b"),
            trace([9.0, 9.0, 9.5], "a"),
            trace([4.0, 4.5], "b"),
            trace([5.5, 5.0], "b"),
            trace([3.0, 3.0, 9.0], "c", partial="c"),
            trace([9.5, 9.5, 9.5, 9.5], "b"),
            trace([8.0, 8.5, 9.0], "b", "failed"),
            trace([9.0, 9.5, 9.25], "b"),
        ],
    },
    "truncated": {
        "about": (
            "A warmup of truncated traces only: no threshold by the definition, one by the "
            "authors' code."
        ),
        "settings": {"budget": 5, "warmup": 2, "window": 2, "tail": 2},
        "interleave": False,
        "lag": 0,
        "traces": [
            trace([6.0, 6.0, 7.0], "x", "length"),
            trace([7.0, 7.0, 7.0], None, "length"),
            trace([9.0, 1.0, 1.0, 9.0], "y", partial=None),
            trace([9.0, 9.0, 5.0], "y", partial="x"),
            trace([8.0, 8.0, 8.0], "z"),
        ],
    },
    "unanswered": {
        "about": "The surest traces have no answer.",
        "settings": {"budget": 6, "warmup": 2, "window": 2, "tail": 2},
        "interleave": False,
        "lag": 0,
        "traces": [
            trace([9.0, 9.0], None),
            trace([8.5, 8.5, 8.5], None),
            trace([7.0, 7.0, 7.0], "p", partial="p"),
            trace([6.0, 6.0], "q", partial="q"),
            trace([6.5, 6.5], "q", partial="q"),
            trace([], "q"),
        ],
    },
}

# What is changed beyond the settings of a recording, for single runs.
EXTRA_RUNS: list[tuple[str, str, Json]] = [
    ("unanswered", "offline", {"keep": 0.5}),
    ("unanswered", "offline", {"keep": 0.5, "percentile_over": "all", "min_ballots": 0}),
    ("unanswered", "offline", {"keep": 0.2, "percentile_over": "all", "min_ballots": 0}),
    ("tie", "offline", {"weight": "majority"}),
    ("mixed", "offline", {"measure": "tail", "weight": "mean", "keep": 0.5}),
    ("mixed", "high", {"weight": "majority"}),
    ("mixed", "high", {"weight": "bottom_group", "max_weight": 8.0}),
    ("agreed", "high", {"stop": "budget"}),
    ("few ballots", "low", {"min_ballots": 2}),
]


class Run:
    """A recording played under a policy, decided from the definitions."""

    def __init__(self, policy: Json, recording: Json) -> None:
        self.policy, self.recording = policy, recording
        self.traces = recording["traces"]
        self.online = policy["mode"] == "online"
        self.status: dict[int, str] = {}
        self.given: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.threshold: Fraction | None = None
        self.calibrated = not self.online
        self.reason: str | None = None

    def heard(self, trace: int) -> list[float]:
        """The tokens that count for a trace's scores."""
        until = self.stops[trace] + 1 if trace in self.stops else self.given[trace]
        return self.traces[trace]["confidences"][:until]

    def score(self, trace: int, measure: str) -> Fraction | None:
        settings = {name: self.policy[name] for name in ("window", "tail", "bottom", "decimals")}
        return score(self.heard(trace), **settings)[measure]

    def calibrate(self) -> None:
        counted = {"finished"} | ({"length"} if self.policy["calibrate_on"] == "all" else set())
        warmup = [t for t in range(self.policy["warmup"]) if self.status[t] in counted]
        lowest = [s for t in warmup if (s := self.score(t, "lowest_group")) is not None]
        self.threshold = percentile(lowest, 1 - exact(self.policy["keep"]))
        self.calibrated = True

    def vote(self) -> Json:
        policy = self.policy
        may_vote = {"finished"}
        if not self.online:
            may_vote |= {"length"}
        elif policy["stopped_vote"]:
            may_vote |= {"length", "stopped"}
        said = {
            t: self.traces[t]["partial" if t in self.stops else "answer"]
            for t, status in sorted(self.status.items())
            if status in may_vote
        }
        measure = "lowest_group" if self.online else policy["measure"]
        over = {"finished", "length", "stopped", "failed", "aborted"}
        ranking = {t: self.score(t, measure) for t, status in self.status.items() if status in over}
        candidates = [t for t, a in said.items() if a is not None and ranking[t] is not None]
        threshold = self.threshold
        if not self.online and policy["keep"] < 1.0:
            pool = ranking if policy["percentile_over"] == "all" else candidates
            ranked = [s for t in pool if (s := ranking[t]) is not None]
            threshold = percentile(ranked, 1 - exact(policy["keep"]))
        filtered = self.threshold is not None if self.online else policy["keep"] < 1.0
        voters, fallback = candidates, False
        if filtered:
            kept = [t for t in candidates if threshold is not None and ranking[t] >= threshold]
            fallback = len(kept) < policy["min_ballots"]
            voters = candidates if fallback else kept
        weights = {t: self.weight(t) for t in voters}
        answers = [said.get(t) for t in range(len(self.traces))]
        weighed = [weights.get(t, Fraction(0)) for t in range(len(self.traces))]
        return {
            **count(answers, weighed, voters),
            "voters": voters,
            "threshold": plain(threshold),
            "fallback": fallback,
        }

    def weight(self, trace: int) -> Fraction:
        if self.policy["weight"] == "majority":
            return Fraction(1)
        weight = max(Fraction(0), self.score(trace, self.policy["weight"]))
        most = self.policy["max_weight"]
        return weight if most is None else min(weight, Fraction(most))

    def consensus(self) -> bool:
        if self.policy["stop"] != "consensus" or not self.calibrated:
            return False
        vote = self.vote()
        enough = vote["num_voters"] >= max(1, self.policy["min_ballots"])
        return enough and not vote["fallback"] and vote["share"] >= self.policy["consensus"]

    def play(self) -> Json:
        limit = self.policy["concurrency"] or self.policy["budget"]
        flying: list[int] = []
        turn = 0
        while self.reason is None:
            most = self.policy["budget"] if self.calibrated else self.policy["warmup"]
            while len(self.status) < most and len(flying) < limit:
                flying.append(len(self.status))
                self.given[len(self.status)] = 0
                self.status[len(self.status)] = "running"
            if not flying:
                self.reason = "budget"
                break
            turn %= len(flying)
            if self.step(trace := flying[turn]):
                flying.remove(trace)
                if not self.calibrated and not flying and len(self.status) == most:
                    self.calibrate()
                if self.consensus():
                    self.reason = "consensus"
            elif self.recording["interleave"]:
                turn += 1
        for trace in flying:
            self.status[trace] = "stopped" if trace in self.stops else "aborted"
        return {
            **self.vote(),
            "reason": self.reason,
            "stops": [[trace, token] for trace, token in sorted(self.stops.items())],
            "statuses": [self.status[trace] for trace in sorted(self.status)],
            "num_tokens": sum(self.given.values()),
        }

    def step(self, trace: int) -> bool:
        """One more token, if there is one; whether the trace has then ended."""
        confidences = self.traces[trace]["confidences"]
        if self.given[trace] < len(confidences):
            self.given[trace] += 1
            live = trace >= self.policy["warmup"] and self.threshold is not None and self.online
            if live and trace not in self.stops:
                heard = confidences[: self.given[trace]]
                token = first_stop(heard, self.policy["window"], self.threshold)
                if token is not None:
                    self.stops[trace] = token
        given = self.given[trace]
        if trace in self.stops:
            ended = given in (self.stops[trace] + 1 + self.recording["lag"], len(confidences))
            self.status[trace] = "stopped" if ended else "running"
            return ended
        if given < len(confidences):
            return False
        self.status[trace] = self.traces[trace]["end"]
        return True


def runs() -> list[Json]:
    wanted = [(name, preset, {}) for name in RECORDINGS for preset in PRESETS] + EXTRA_RUNS
    cases = []
    for name, preset, changed in wanted:
        settings = RECORDINGS[name]["settings"] | changed
        if PRESETS[preset]["mode"] == "offline":
            settings = {key: settings[key] for key in settings if key != "warmup"}
        outcome = Run(PRESETS[preset] | settings, RECORDINGS[name]).play()
        cases.append(
            {"recording": name, "preset": preset, "settings": settings, "expected": outcome}
        )
    return cases


# ---- files --------------------------------------------------------------------------------------


def dump(value: Any, indent: str = "") -> str:
    """JSON, broken into lines where a line would be long."""
    short = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(short) <= 100 or not isinstance(value, (dict, list)) or not value:
        return short
    deeper = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {dump(item, deeper)}" for key, item in value.items()]
    else:
        items = [dump(item, deeper) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}{closing}"


def files() -> dict[str, Json]:
    return {
        "tokens.json": {
            "about": (
                "Log-probabilities of tokens, one row a token, in nats; their confidences over "
                "the k most likely entries (topk) and over all (returned), and the entropy of the "
                "former."
            ),
            "cases": token_cases(),
        },
        "scores.json": {
            "about": (
                "Token confidences of a trace, and its scores; null is NaN. With decimals, scores "
                "are of rounded tokens. stop is the token at which the threshold stops the trace, "
                "which nothing rounds."
            ),
            "cases": score_cases(),
        },
        "votes.json": {
            "about": (
                "One question. A null answer is none, a null score that of a trace without "
                "tokens. Ballots are [answer, weight, voters], the heaviest first."
            ),
            "cases": vote_cases(),
        },
        "presets.json": {
            "about": (
                "Every setting of every preset, and what each does with the same recordings. A "
                "run is its preset with settings changed. All traces asked for are launched at "
                "once; then the first in flight gets one token after the other until it ends, or, "
                "interleaved, each in flight gets one in turn. A trace ends with its last token; "
                "a stopped one lag tokens after the stop, or with its last. After the answer no "
                "more tokens come. Traces are counted from 0; a stop is [trace, token]."
            ),
            "presets": PRESETS,
            "recordings": RECORDINGS,
            "runs": runs(),
        },
    }


def main() -> None:
    stale = []
    for name, content in files().items():
        text = dump(content) + "\n"
        path = HERE / name
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"not what generate.py writes: {', '.join(stale)}")


if __name__ == "__main__":
    main()
