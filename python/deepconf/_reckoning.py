"""What came of an evaluation: accuracy and tokens of every way to vote, as rows.

Rows are reckoned from records, one a policy and question (see `deepconf.evaluate`). All that an
offline policy generated is there, so each vote over it is exact: the same traces, weighed and
filtered anew. So is each majority of fewer traces, and by those at the tokens that a policy took
it is told whether confidence helped.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy, vote_many
from deepconf._records import (
    Record,
    answered,
    failed,
    generated,
    lost_tokens,
    notes,
    traces_of,
)
from deepconf._statistics import (
    Difference,
    Estimate,
    auroc,
    estimates,
    pair_agreement,
    paired,
    pairs_won,
    within,
)
from deepconf._words import counted
from deepconf.errors import MissingExtra
from deepconf.report import Report, Row, in_words
from deepconf.result import MEASURES, WHOLE

if TYPE_CHECKING:
    from deepconf.lab._summary import Equal
    from deepconf.lab.majority import Majorities

__all__ = ["KEEPS", "summarise"]

Floats = NDArray[np.float64]

KEEPS = (1.0, 0.9, 0.1)
"""The fractions of traces that a vote keeps."""
_EARLY = "early consensus"


def summarise(
    model: str,
    questions: Sequence[str],
    policies: Mapping[str, Policy],
    records: Iterable[Record],
) -> Report:
    """The report of these records.

    Args:
        model: its name, for the title.
        questions: the ids of all questions; records of others are left out.
        policies: by label; records of others are left out.
        records: one a policy and question.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {label: {} for label in policies}
    for record in records:
        if record["policy"] in found:
            found[record["policy"]].setdefault(record["id"], dict(record))
    by_policy = {
        label: {name: of[name] for name in questions if name in of} for label, of in found.items()
    }
    # All traces of the budget, each to its end: what votes are taken over, and compared with.
    whole = (k for k, p in policies.items() if p.mode == "offline" and p.stop == "budget")
    reference = next((label for label in whole if by_policy[label]), None)
    offline = by_policy[reference] if reference is not None else {}
    known = {name: record for name, record in offline.items() if record["correct"] is not None}
    beside, missing = _Beside.of(known, policies, reference)
    ways: list[_Found] = []
    measured: dict[str, float] = {}
    inside: dict[str, Estimate] = {}
    thumb = ""
    if reference is not None and known:
        traces = _Traces(known, policies[reference])
        ways += traces.rows(beside)
        measured, inside = traces.auroc()
        thumb = traces.thumb(inside)
    for label in policies:
        ways += _policy_rows(label, by_policy[label], offline, beside)
    rows = _told_apart(ways, reference)
    complete = all(len(of) == len(questions) for of in by_policy.values())
    return Report(
        model=model,
        questions=len(questions),
        rows=rows,
        auroc=measured,
        notes=missing + notes(rows, by_policy, len(questions), reference),
        complete=complete,
        records=[record for of in by_policy.values() for record in of.values()],
        auroc_within=inside,
        answered={label: answered(of) for label, of in by_policy.items() if of},
        closing=beside.closing() if beside is not None else "",
        thumb=thumb,
    )


_Found = tuple[Row, Floats | None]
"""A row, and in which questions it is right: `[questions]`, 1 or 0."""


class _Traces:
    """The traces of an offline run, as columns."""

    def __init__(self, of: Mapping[str, Record], policy: Policy) -> None:
        self.policy = policy
        self.names = list(of)
        self.records = list(of.values())
        # One that failed is no trace of the model's: it counts neither as wrong nor as short.
        traces = [
            (at, trace)
            for at, record in enumerate(self.records)
            for trace in traces_of(record)
            if trace["status"] != "failed"
        ]
        self.question = np.array([at for at, _ in traces], np.int64)
        self.right = np.array([bool(trace["correct"]) for _, trace in traces], np.bool_)
        self.scores: dict[str, Floats] = {
            name: np.array([_score(trace, name) for _, trace in traces], np.float64)
            for name in MEASURES
        }
        # As the controller has it: one that was cut at the length limit may vote, offline.
        self.answers = [
            trace["answer"] if trace["num_tokens"] and trace["status"] in WHOLE else None
            for _, trace in traces
        ]
        self.truth = [
            {t["answer"] for t in traces_of(record) if t["correct"]} for record in self.records
        ]
        self.tokens = float(sum(map(generated, self.records)))

    def rows(self, beside: _Beside | None) -> Iterator[_Found]:
        sizes = np.bincount(self.question, minlength=len(self.records))
        hits = np.bincount(self.question, weights=self.right, minlength=len(self.records))
        alone = sum(
            (generated(record) - lost_tokens(record)) / size
            for record, size in zip(self.records, sizes, strict=True)
        )
        yield self._row("pass@1", "trace", hits / sizes, float(alone)), None
        plain, _ = self._vote(None, 1.0)
        yield self._row("majority", "vote", plain, self.tokens), plain
        if beside is not None:
            yield from beside.early(self.names, self.tokens)
        for name in MEASURES:
            weights = np.clip(self.scores[name], 0.0, self.policy.max_weight)
            for keep in KEEPS:
                right, given_up = self._vote(weights, keep, self.scores[name])
                kept = "all" if keep == 1.0 else f"top {keep:.0%}"
                row = self._row(f"{in_words(name)}, {kept}", "vote", right, self.tokens)
                against = paired(right[None], plain[None])[0]
                yield dataclasses.replace(row, fallback=given_up, against_majority=against), right

    def auroc(self) -> tuple[dict[str, float], dict[str, Estimate]]:
        """By measure, over all traces and within questions; without those that say nothing."""
        pooled = {name: auroc(self.scores[name], self.right) for name in MEASURES}
        known = [name for name, value in pooled.items() if not math.isnan(value)]
        inside = {
            name: within(
                *pairs_won(self.scores[name], self.right, self.question, len(self.records))
            )
            for name in known
        }
        return (
            {name: pooled[name] for name in known},
            {name: found for name, found in inside.items() if not math.isnan(found.value)},
        )

    def thumb(self, inside: Mapping[str, Estimate]) -> str:
        """The rule of thumb."""
        from deepconf.lab._thumb import rule_of_thumb

        plain, _ = self._vote(None, 1.0)
        each = zip(self.question.tolist(), self.answers, self.right, strict=True)
        wrong = Counter((at, name) for at, name, right in each if name is not None and not right)
        return rule_of_thumb(
            1.0 - float(plain.mean()),
            pair_agreement([*wrong.values()], [at for at, _ in wrong]),
            max((found.value for found in inside.values()), default=None),
        )

    def _vote(
        self, weights: Floats | None, keep: float, scores: Floats | None = None
    ) -> tuple[Floats, int]:
        """Whether each question is right, and in how many the filter was given up."""
        votes = vote_many(
            self.question.tolist(),
            self.answers,
            weights,
            keep,
            scores if keep < 1.0 else None,
            min_ballots=self.policy.min_ballots,
        )
        winners = dict(zip(votes.questions, votes.answers, strict=True))
        right = [winners.get(at) in self.truth[at] for at in range(len(self.records))]
        return np.array(right, np.float64), int(votes.fallback.sum()) if keep < 1.0 else 0

    def _row(self, method: str, kind: str, right: Floats, tokens: float) -> Row:
        against = tokens / self.tokens - 1.0 if self.tokens else None
        return _row(method, kind, right, tokens, against)


class _Beside:
    """Plain majority beside the policies, and what has been compared with it."""

    def __init__(self, majorities: Majorities) -> None:
        self._majorities = majorities
        self._places = {name: at for at, name in enumerate(majorities.questions)}
        # By policy: places of its questions, whether each is right, and its tokens.
        self._found: dict[str, tuple[list[int], Floats, Floats]] = {}

    @classmethod
    def of(
        cls, known: Mapping[str, Record], policies: Mapping[str, Policy], reference: str | None
    ) -> tuple[_Beside | None, list[str]]:
        """From the offline run, where it has all traces of a question; else notes on why not."""
        if reference is None or not known:
            return None, []
        from deepconf.lab.majority import majorities

        try:
            found = majorities(known, policies[reference])
        except MissingExtra as error:
            return None, [f"no policy is compared with majority at the same tokens: {error}"]
        return (None if found is None else cls(found)), []

    def early(self, names: Sequence[str], tokens: float) -> Iterator[_Found]:
        """Majority of all traces with early consensus, where it is over all of these questions."""
        if any(name not in self._places for name in names):
            return
        places = [self._places[name] for name in names]
        right, spent = self._majorities.whole("consensus", places)
        against = spent / tokens - 1.0 if tokens else None
        row = _row(_EARLY, "vote", right, spent, against)
        equal = self._majorities.at(places, right, spent)["majority"]
        yield dataclasses.replace(row, against_majority=equal.difference), None

    def policy(
        self, label: str, of: Mapping[str, Record]
    ) -> tuple[Difference | None, list[_Found]]:
        """A policy's difference from majority at its tokens, and the rows of the majorities."""
        mine = {
            name: record
            for name, record in of.items()
            if name in self._places and not failed(record)
        }
        if not mine:
            return None, []
        places = [self._places[name] for name in mine]
        right = np.array([bool(record["correct"]) for record in mine.values()], np.float64)
        tokens = np.array([generated(record) for record in mine.values()], np.float64)
        equal = self._majorities.at(places, right, float(tokens.sum()))
        self._found[label] = places, right, tokens
        _, full = self._majorities.whole("majority", places)
        names = {"majority": "majority of", "consensus": f"{_EARLY} of"}
        rows: list[_Found] = []
        for variant, each in equal.items():
            budget = each.budgets[0]
            if budget == len(self._majorities.correct[variant]):
                continue  # Of all traces, which has its row.
            its = self._majorities.correct[variant][budget - 1, places]
            cost = each.tokens * len(places)
            row = _row(f"{names[variant]} {budget}", "majority", its, cost, cost / full - 1.0)
            if variant != "majority":
                same = self._majorities.at(places, its, cost)["majority"]
                row = dataclasses.replace(row, against_majority=same.difference)
            rows.append((row, None))
        return equal["majority"].difference, rows

    def closing(self) -> str:
        """Whether confidence helped, over the questions that all policies have."""
        from deepconf.lab._verdict import closing

        each = [set(places) for places, *_ in self._found.values()]
        both = set.intersection(*each) if each else set()
        if not both:
            return ""
        compared = []
        for label, (places, right, tokens) in self._found.items():
            some = np.array([place in both for place in places])
            right, tokens = right[some], tokens[some]
            mine = [place for place in places if place in both]
            equal = self._majorities.at(mine, right, float(tokens.sum()))
            accuracy, spent = estimates(np.stack([right, tokens]))
            compared.append(_Compared(label, accuracy, spent, equal))
        said = closing(compared, gold=True)
        if all(places == both for places in each):
            return said
        return f"{said} That is over the {counted(len(both), 'question')} that all policies have."


@dataclass(frozen=True)
class _Compared:
    label: str
    accuracy: Estimate
    tokens: Estimate
    same_tokens: dict[str, Equal]


def _row(method: str, kind: str, right: Floats, tokens: float, against: float | None) -> Row:
    found = estimates(right[None])[0]
    return Row(method, kind, len(right), found.value, tokens, against, None, 0, found.error)


def _told_apart(found: Iterable[_Found], reference: str | None) -> list[Row]:
    """The rows; each vote that is right where another is says so: majority, the run, a vote."""
    found = list(found)
    first: dict[bytes, str] = {}
    for kind, method in (("vote", "majority"), ("policy", reference)):
        for row, right in found:
            if (row.kind, row.method) == (kind, method) and right is not None:
                first.setdefault(right.tobytes(), row.method)
    rows = []
    for row, right in found:
        same = row.method
        if right is not None and row.kind == "vote":
            same = first.setdefault(right.tobytes(), row.method)
        rows.append(row if same == row.method else dataclasses.replace(row, same_as=same))
    return rows


def _policy_rows(
    label: str,
    of: Mapping[str, Record],
    offline: Mapping[str, Record],
    beside: _Beside | None,
) -> list[_Found]:
    """The row of a policy, and below it those of majority at its tokens."""
    if not of:
        return [(Row(label, "policy", 0, None, None, None, None, 0), None)]
    # Where traces failed, tokens are missing that nobody saved.
    both = [
        name
        for name in of
        if name in offline and not failed(of[name]) and not failed(offline[name])
    ]
    base = sum(generated(offline[name]) for name in both)
    tokens = sum(generated(of[name]) for name in both)
    known = [record["correct"] for record in of.values() if record["correct"] is not None]
    right = np.array(known, np.float64)
    accuracy = estimates(right[None])[0] if known else Estimate(math.nan, None, None, None)
    against, majorities = (None, []) if beside is None else beside.policy(label, of)
    row = Row(
        method=label,
        kind="policy",
        questions=len(of),
        accuracy=accuracy.value if known else None,
        tokens=float(sum(map(generated, of.values()))),
        against_offline=tokens / base - 1.0 if base else None,
        seconds=_busy([(record["started"], record["ended"]) for record in of.values()]),
        fallback=sum(bool(record["result"]["fallback"]) for record in of.values()),
        error=accuracy.error,
        against_majority=against,
    )
    return [(row, right), *majorities]


def _busy(intervals: list[tuple[float, float]]) -> float:
    """How long at least one interval was running: what overlaps counts once, pauses not at all."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _score(trace: Mapping[str, Any], measure: str) -> float:
    value = trace[measure]
    return float("nan") if value is None else float(value)
