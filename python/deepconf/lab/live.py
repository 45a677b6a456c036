"""Live runs beside their replay on the recorded traces of the same questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepconf._core import Policy
from deepconf.lab.replay import Pool

__all__ = ["Beside", "beside"]


@dataclass(frozen=True)
class Beside:
    """One policy, live and replayed on the same questions."""

    label: str
    questions: int
    accuracy: tuple[float, float]
    """Live, and replayed."""
    tokens: tuple[float, float]
    """A question, live and replayed."""
    same_answer: int
    """Questions with the same answer, or both right."""
    after_stop: float
    """Tokens a question that live came after a stop, which a replay counts only with a lag."""
    exact: int
    """Questions with the same answer, threshold and number of stops, as where the engine repeats
    itself."""


def beside(
    traces: Any, policies: Mapping[str, Policy], records: Iterable[Mapping[str, Any]]
) -> list[Beside]:
    """Replays policies that ran live on recorded traces, in launch order, and compares.

    Both launch traces of the same seeds, so an engine that gives the same tokens for a seed,
    however it batches them, gives the same runs but for the moments at which traces end.

    Args:
        traces: the recording: what `deepconf.read_traces` takes. Questions in which a trace failed,
            and which have fewer than a budget therefore, are left out.
        policies: those that ran live, by label.
        records: of the run file.
    """
    if not policies:
        return []
    pool = Pool.read(traces, policies)
    played = pool.replay(repeats=None, short_pools="skip")
    at = {name: place for place, name in enumerate(played.questions)}
    records = list(records)
    found = []
    for row, label in enumerate(policies):
        live = [r for r in records if r["policy"] == label and r["id"] in at]
        if not live:
            continue
        places = [at[record["id"]] for record in live]
        answers = [
            None if code < 0 else played.answers[place][code]
            for place, code in ((p, played.columns["answer"][row, p, 0]) for p in places)
        ]
        right = played.correct[row, places, 0].astype(bool)
        tokens = played.tokens[row, places, 0]
        results = [record["result"] for record in live]
        same = [
            r["result"]["answer"] == answer or (r["correct"] and correct)
            for r, answer, correct in zip(live, answers, right, strict=True)
        ]
        exact = [
            agree
            and _same(result["threshold"], played.columns["threshold"][row, place, 0])
            and _stopped(result) == played.columns["stopped"][row, place, 0]
            for agree, result, place in zip(same, results, places, strict=True)
        ]
        found.append(
            Beside(
                label=label,
                questions=len(live),
                accuracy=(float(np.mean([r["correct"] for r in live])), float(right.mean())),
                tokens=(
                    float(np.mean([r["tokens"]["generated"] for r in results])),
                    float(tokens.mean()),
                ),
                same_answer=sum(same),
                after_stop=float(np.mean([r["tokens"]["after_stop"] for r in results])),
                exact=int(sum(exact)),
            )
        )
    return found


def _same(live: float | None, replayed: float) -> bool:
    """Whether two thresholds are equal, where None and NaN are none."""
    return bool(np.isnan(replayed)) if live is None else bool(live == replayed)


def _stopped(result: Mapping[str, Any]) -> int:
    return sum(trace["status"] == "stopped" for trace in result["traces"])
