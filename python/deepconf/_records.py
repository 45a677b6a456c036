"""What the records of an evaluation say, one a policy and question; what its reader must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepconf._words import counted
from deepconf.report import Row
from deepconf.result import WHOLE

__all__ = [
    "Record",
    "answered",
    "failed",
    "generated",
    "lost_tokens",
    "notes",
    "traces_of",
]

Record = Mapping[str, Any]


def notes(
    rows: list[Row],
    by_policy: Mapping[str, Mapping[str, Record]],
    asked: int,
    reference: str | None,
) -> list[str]:
    """What the reader must know, a sentence each."""
    found = []
    if reference is None:
        found.append(
            "no offline policy has finished a question: pass@1, votes, AUROC and savings need "
            "traces that all ran to their end, so they are left out"
        )
    found += [
        f"{label}: {len(of)} of {counted(asked, 'question')} finished: its row, and those of "
        "majority below it, are over these, and so is what it is compared with; other rows are not"
        for label, of in by_policy.items()
        if len(of) < asked
    ]
    for label, of in by_policy.items():
        lost = [count for record in of.values() if (count := failed(record))]
        if lost:
            found.append(
                f"{label}: {counted(sum(lost), 'trace')} failed, in "
                f"{len(lost)} of {counted(len(of), 'question')}, whose tokens are compared with "
                "nothing"
            )
    for label, of in by_policy.items():
        without = sum(silent(record) for record in of.values())
        if without:
            found.append(
                f"{label}: in {without} of {counted(len(of), 'question')} no trace had an "
                "answer: does the "
                f"prompt ask for one in the form that is looked for? (suffix=, --suffix)"
                + _first_words(of)
            )
    unmarked = {r["id"] for of in by_policy.values() for r in of.values() if r["correct"] is None}
    if unmarked:
        found.append(
            f"without an answer to compare with: {counted(len(unmarked), 'question')}; accuracy "
            "is over "
            "the others"
        )
    given_up = [
        f"{row.method}: {row.fallback}/{row.questions}"
        for row in rows
        if row.fallback and row.same_as is None
    ]
    if given_up:
        found.append(
            "the filter left fewer traces with an answer than min_ballots, and was given up so "
            "that all voted, in some questions: " + "; ".join(given_up)
        )
    for label, of in by_policy.items():
        unarmed = [why for record in of.values() if (why := record["result"]["unarmed"])]
        if unarmed:
            found.append(
                f"{label}: in {len(unarmed)} of {counted(len(of), 'question')} the signal never "
                f"armed: {unarmed[0]}"
            )
        others = [first for record in of.values() if (first := other_warning(record))]
        if others:
            found.append(
                f"{label}: {len(others)} of {counted(len(of), 'question')} came with a warning, "
                f"the first: {others[0]}"
            )
    return found


def traces_of(record: Record) -> list[dict[str, Any]]:
    """Its traces, in launch order."""
    traces: list[dict[str, Any]] = record["result"]["traces"]
    return traces


def other_warning(record: Record) -> str | None:
    """The first warning that no other note is about."""
    result = record["result"]
    told = {result["unarmed"]}
    for warning in result.get("warnings", ()):
        about_failed = failed(record) and "failed, the first with" in warning
        if warning not in told and not about_failed and not silent(record):
            return str(warning)
    return None


def _first_words(of: Mapping[str, Record]) -> str:
    """What the first question without an answer was warned of: what was looked for, and where."""
    every = (w for r in of.values() if silent(r) for w in r["result"].get("warnings", ()))
    return next((f" The first: {warning}" for warning in every if "an answer" in warning), "")


def silent(record: Record) -> bool:
    """Whether no trace has an answer."""
    return all(trace["answer"] is None for trace in traces_of(record))


def answered(of: Mapping[str, Record]) -> tuple[int, int]:
    """Traces with an answer, of those that ran to their end."""
    whole = [t for record in of.values() for t in traces_of(record) if t["status"] in WHOLE]
    return sum(trace["answer"] is not None for trace in whole), len(whole)


def generated(record: Record) -> int:
    """Tokens of all its traces."""
    tokens: int = record["result"]["tokens"]["generated"]
    return tokens


def failed(record: Record) -> int:
    """How many of its traces failed."""
    return sum(trace["status"] == "failed" for trace in traces_of(record))


def lost_tokens(record: Record) -> int:
    """What those generated that failed."""
    return sum(trace["num_tokens"] for trace in traces_of(record) if trace["status"] == "failed")
