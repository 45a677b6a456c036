"""Whether confidence tells right traces from wrong ones, on recorded traces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import score
from deepconf._statistics import Estimate, auroc, estimates, pairs_won, within
from deepconf.errors import InvalidInput
from deepconf.report import MEASURES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Answers", "Bin", "Diagnosis", "Separation", "diagnose"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 10
"""The bins of a reliability curve, of as many traces each."""
_COLUMNS = ("question_id", "trace", "answer", "status", "confidence", "correct")
_WHOLE = ("finished", "length")
# Above this share of pairs, a score is said to tell right from wrong well.
_WELL = 0.65


@dataclass(frozen=True, slots=True)
class Separation:
    """How well a score tells right traces from wrong ones; 0.5 is chance."""

    pooled: float | None
    """AUROC over all traces: easy questions beside hard ones count too. None where all are right,
    or none."""
    within: Estimate | None
    """AUROC over the pairs of traces of one question, which is what a vote can use. None where no
    question has a right and a wrong trace."""


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability curve."""

    low: float
    """The lowest score in it, or the lowest rank within a question, in [0, 1]."""
    high: float
    """The highest."""
    traces: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What the candidates are, means over questions."""

    answered: float
    """The share of traces with an answer."""
    agreement: float
    """The share of the leading answer among those."""
    distinct: float
    """Different answers in a question."""
    entropy: float
    """Of the answers of a question, in nats; 0 where all agree."""
    pass_1: Estimate | None
    """Accuracy of one trace alone; None without known answers, as all that follows."""
    majority: Estimate | None
    """Accuracy of the vote of all, a head each."""
    pass_n: Estimate | None
    """The share of questions with a right answer among the candidates: no vote can do better."""
    majority_wrong: int | None
    """Questions in which the majority is wrong."""
    within_reach: int | None
    """Those of them with a right answer among the candidates."""
    wrong_concentration: float | None
    """The share of the leading wrong answer among the wrong ones, over questions that have any."""


@dataclass(frozen=True)
class Diagnosis:
    """What recorded traces say of confidence."""

    questions: int
    known: int
    """Questions in which it is known which traces are right."""
    traces: int
    left_out: dict[str, int]
    """Traces that did not run to their end, by status."""
    tokens: int
    window: int
    tail: int
    bottom: float
    armed: float
    """The share of traces at least a window long: no other could have been stopped."""
    separation: dict[str, Separation]
    """By score; empty without known answers."""
    reliability: dict[str, list[Bin]]
    """By score, accuracy in tenths of all traces, from the lowest score to the highest."""
    reliability_within: dict[str, list[Bin]]
    """The same by rank within the question, so that hard questions are beside easy ones."""
    answers: Answers
    notes: list[str]
    closing: str
    """Whether confidence can help here, in a sentence."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return asdict(self)

    def to_arrow(self) -> pa.Table:
        """The AUROCs and reliability curves, one row a figure.

        Columns: `score`, `kind` (`auroc`, `auroc_within`, `reliability`, `reliability_within`),
        `bin` int32, `low` and `high` (of the interval, or of the bin), `traces` int64, `value`.

        Raises:
            MissingExtra: pyarrow is not installed.
        """
        from deepconf.traces import schema

        schema()  # Says which extra is missing.
        import pyarrow as pa

        rows = list(self._rows())
        types = {
            "score": pa.string(),
            "kind": pa.string(),
            "bin": pa.int32(),
            "low": pa.float64(),
            "high": pa.float64(),
            "traces": pa.int64(),
            "value": pa.float64(),
        }
        columns = {name: [row.get(name) for row in rows] for name in types}
        return pa.table(columns, schema=pa.schema(list(types.items())))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for name, found in self.separation.items():
            yield {"score": name, "kind": "auroc", "value": found.pooled}
            if (inside := found.within) is not None:
                ends = {"low": inside.low, "high": inside.high}
                yield {"score": name, "kind": "auroc_within", "value": inside.value, **ends}
        curves = {"reliability": self.reliability, "reliability_within": self.reliability_within}
        for kind, of in curves.items():
            for name, bins in of.items():
                for at, each in enumerate(bins):
                    row = asdict(each)
                    yield {
                        "score": name,
                        "kind": kind,
                        "bin": at,
                        "value": row.pop("accuracy"),
                        **row,
                    }


def diagnose(
    traces: Any,
    *,
    window: int | None = None,
    tail: int | None = None,
    bottom: float | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Diagnosis:
    """What recorded traces say of confidence: does it tell right from wrong, and could it help?

    Streams: besides a batch of traces, it holds some numbers of each.

    Args:
        traces: what `deepconf.read_traces` takes, or a reader of it.
        window: tokens in a group; by default the recording's, else 2048.
        tail: tokens of the tail confidence, likewise.
        bottom: the share of groups of the bottom-group confidence; by default the recording's,
            else 0.10.
        threads: by default all cores.
        progress: called with the number of traces read, after each batch.

    Raises:
        InvalidInput: there is no trace that ran to its end, or the file cannot be read as traces.
        MissingExtra: pyarrow is not installed.
    """
    from deepconf.traces import TraceReader, read_traces

    reader = traces if isinstance(traces, TraceReader) else read_traces(traces, columns=_COLUMNS)
    recorded = {**(reader.settings.get("policy") or {}), **_known(reader.settings)}
    measured = {
        "window": int(recorded.get("window", 2048) if window is None else window),
        "tail": int(recorded.get("tail", 2048) if tail is None else tail),
        "bottom": float(recorded.get("bottom", 0.10) if bottom is None else bottom),
    }
    table = _Table()
    for batch in reader:
        table.add(batch, threads=threads, **measured)
        if progress is not None:
            progress(table.read)
    return table.diagnosis(**measured)


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("window",) if settings.get(name) is not None}


class _Table:
    """Some numbers of each trace, column by column, as batches come."""

    def __init__(self) -> None:
        self.read = 0
        self._questions: dict[str, int] = {}
        self._answers: dict[tuple[int, str], int] = {}
        self._left_out: dict[str, int] = {}
        self._parts: dict[str, list[NDArray[Any]]] = {
            name: [] for name in ("question", "order", "answer", "correct", "tokens", "armed")
        }
        self._scores: dict[str, list[Floats]] = {name: [] for name in MEASURES}

    def add(
        self, batch: Any, *, threads: int | None, window: int, tail: int, bottom: float
    ) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.read += batch.num_rows
        whole = pc.is_in(batch["status"], value_set=pa.array(_WHOLE))
        if not pc.all(whole).as_py():
            for status in batch["status"].filter(pc.invert(whole)).to_pylist():
                self._left_out[status] = self._left_out.get(status, 0) + 1
            batch = batch.filter(whole)
        if not batch.num_rows:
            return
        scores = score(
            batch["confidence"], window=window, tail=tail, bottom=bottom, threads=threads
        )
        questions = np.array(
            [
                self._questions.setdefault(name, len(self._questions))
                for name in batch["question_id"].to_pylist()
            ],
            np.int64,
        )
        correct = batch["correct"].to_pylist() if "correct" in batch.schema.names else None
        self._append(
            question=questions,
            order=batch["trace"].to_numpy(zero_copy_only=False).astype(np.int64),
            answer=self._codes(questions, batch["answer"].to_pylist()),
            # -1 is unknown.
            correct=np.array(
                [-1 if mark is None else mark for mark in correct or [None] * len(questions)],
                np.int8,
            ),
            tokens=scores.num_tokens,
            armed=scores.num_tokens >= window,
        )
        for name in MEASURES:
            self._scores[name].append(getattr(scores, name))

    def diagnosis(self, *, window: int, tail: int, bottom: float) -> Diagnosis:
        if not self._parts["question"]:
            every = ", ".join(f"{count} {status}" for status, count in self._left_out.items())
            raise InvalidInput(
                f"traces: none ran to its end ({every or 'there are none'}): only those with "
                f"status finished or length say anything here"
            )
        columns = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        scores = {name: np.concatenate(parts) for name, parts in self._scores.items()}
        count = len(self._questions)
        question, correct = columns["question"], columns["correct"]
        marked = np.bincount(question[correct >= 0], minlength=count) > 0
        # A trace without an answer is wrong wherever right and wrong are known.
        silent = (columns["answer"] < 0) & marked[question]
        correct[silent] = 0
        known = correct >= 0
        right = correct[known] == 1
        notes = _notes(count, marked, int((~known & marked[question]).sum()), self._left_out)
        separation, pooled, ranked = {}, {}, {}
        for name, values in scores.items() if known.any() else ():
            some, inside = values[known], question[known]
            alone = auroc(some, right)
            pairs = within(*pairs_won(some, right, inside, count))
            separation[name] = Separation(
                None if math.isnan(alone) else alone, None if math.isnan(pairs.value) else pairs
            )
            pooled[name] = _bins(some, right)
            ranked[name] = _bins(_ranks(some, inside, count), right)
        candidates = _candidates(
            question, columns["answer"], correct, columns["order"], count, marked
        )
        return Diagnosis(
            questions=count,
            known=int(marked.sum()),
            traces=len(question),
            left_out=self._left_out,
            tokens=int(columns["tokens"].sum()),
            window=window,
            tail=tail,
            bottom=bottom,
            armed=float(columns["armed"].mean()),
            separation=separation,
            reliability=pooled,
            reliability_within=ranked,
            answers=candidates,
            notes=notes,
            closing=_closing(separation, candidates, float(columns["armed"].mean())),
        )

    def _append(self, **columns: NDArray[Any]) -> None:
        for name, values in columns.items():
            self._parts[name].append(values)

    def _codes(self, questions: Ints, answers: list[str | None]) -> Ints:
        """A number for each answer of each question; -1 for none."""
        known = self._answers
        return np.array(
            [
                -1 if answer is None else known.setdefault((question, answer), len(known))
                for question, answer in zip(questions.tolist(), answers, strict=True)
            ],
            np.int64,
        )


def _candidates(
    question: Ints,
    answer: Ints,
    correct: NDArray[np.int8],
    order: Ints,
    count: int,
    marked: NDArray[np.bool_],
) -> Answers:
    """The answers of each question, and which of them leads."""
    spoken = answer >= 0
    sizes = np.bincount(question, minlength=count)
    voices = np.bincount(question[spoken], minlength=count)
    # A row for each answer: its question, heads, how many of them are right, and who was first.
    codes, first, heads = np.unique(answer[spoken], return_index=True, return_counts=True)
    of = question[spoken][first]
    earliest = np.full(len(codes), np.iinfo(np.int64).max)
    place = np.searchsorted(codes, answer[spoken])
    np.minimum.at(earliest, place, order[spoken])
    share = heads / voices[of]
    distinct = np.bincount(of, minlength=count)
    entropy = np.bincount(of, weights=-share * np.log(share), minlength=count)
    # Most heads first, and of as many the one seen first; then the leader is a question's first.
    rank = np.lexsort((earliest, -heads, of))
    leaders = rank[np.unique(of[rank], return_index=True)[1]]
    agreement = np.zeros(count)
    agreement[of[leaders]] = share[leaders]
    asked = voices > 0
    figures = {
        "answered": float((voices / sizes).mean()),
        "agreement": float(agreement[asked].mean()) if asked.any() else 0.0,
        "distinct": float(distinct.mean()),
        "entropy": float(entropy.mean()),
    }
    if not marked.any():
        return Answers(**figures, **dict.fromkeys(_MARKED))  # type: ignore[arg-type]
    hits = np.bincount(place, weights=correct[spoken] == 1, minlength=len(codes))
    good = hits * 2 > heads  # As most of its traces are marked.
    alone = np.bincount(question, weights=correct == 1, minlength=count) / sizes
    reached = np.bincount(of, weights=good, minlength=count) > 0
    winner = np.zeros(count, np.bool_)
    winner[of[leaders]] = good[leaders]
    wrong = np.where(good, 0, heads)
    leading = np.zeros(count, np.int64)
    np.maximum.at(leading, of, wrong)
    all_wrong = np.bincount(of, weights=wrong, minlength=count)
    any_wrong = marked & (all_wrong > 0)
    each = estimates(np.stack([alone, winner, reached])[:, marked].astype(np.float64))
    return Answers(
        **figures,
        pass_1=each[0],
        majority=each[1],
        pass_n=each[2],
        majority_wrong=int((marked & ~winner).sum()),
        within_reach=int((marked & ~winner & reached).sum()),
        wrong_concentration=(
            float((leading[any_wrong] / all_wrong[any_wrong]).mean()) if any_wrong.any() else None
        ),
    )


_MARKED = (
    "pass_1",
    "majority",
    "pass_n",
    "majority_wrong",
    "within_reach",
    "wrong_concentration",
)


def _bins(values: Floats, right: NDArray[np.bool_]) -> list[Bin]:
    """Accuracy in tenths of the traces, from the lowest value to the highest."""
    there = ~np.isnan(values)
    values, right = values[there], right[there]
    order = np.argsort(values, kind="stable")
    parts = np.array_split(order, min(BINS, len(order))) if len(order) else []
    return [
        Bin(
            float(values[part[0]]),
            float(values[part[-1]]),
            len(part),
            float(right[part].mean()),
        )
        for part in parts
    ]


def _ranks(values: Floats, question: Ints, count: int) -> Floats:
    """The rank of each trace among those of its question, in (0, 1); equals share theirs."""
    ranks = np.full(len(values), np.nan)
    there = np.flatnonzero(~np.isnan(values))
    order = there[np.lexsort((values[there], question[there]))]
    group, ordered = question[order], values[order]
    starts = np.searchsorted(group, np.arange(count + 1))
    new = np.ones(len(order), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]) | (group[1:] != group[:-1])
    ties = np.flatnonzero(new)
    middle = (ties + np.append(ties[1:], len(order))) / 2
    sizes = np.diff(starts)
    ranks[order] = (middle[np.cumsum(new) - 1] - starts[group]) / sizes[group]
    return ranks


def _notes(
    count: int, marked: NDArray[np.bool_], unmarked: int, left_out: Mapping[str, int]
) -> list[str]:
    notes = []
    if left_out:
        every = ", ".join(f"{number} {status}" for status, number in left_out.items())
        notes.append(
            f"traces that did not run to their end are left out ({every}): what remains is surer "
            f"than what was generated"
        )
    if marked.any() and not marked.all():
        notes.append(
            f"{count - int(marked.sum())} of {count} questions have no known answer, and count in "
            f"agreement and dispersion only"
        )
    if unmarked:
        notes.append(
            f"{unmarked} traces have an answer and no mark, in questions that have marks: they are "
            f"left out where right and wrong are compared"
        )
    return notes


def _closing(separation: Mapping[str, Separation], answers: Answers, armed: float) -> str:
    """The rule of thumb."""
    if not separation or answers.majority_wrong is None:
        return (
            f"No answers are known, so whether confidence tells right from wrong is not known "
            f"either; the leading answer has {answers.agreement:.0%} of the votes."
        )
    reach = (
        f"{answers.within_reach} of {answers.majority_wrong} questions that the majority misses "
        f"have a right answer among the candidates"
    )
    inside = {name: found.within for name, found in separation.items() if found.within is not None}
    if not inside:
        return "In no question are there right and wrong traces, so there is nothing to tell apart."
    name, best = max(inside.items(), key=lambda item: item[1].value)
    figure = f"{name.replace('_', ' ')}, AUROC {best.value:.2f} within questions"
    if best.low is not None and best.high is not None:
        figure += f" [{best.low:.2f}, {best.high:.2f}]"
    if best.low is None:
        said = f"One question says little about whether confidence helps ({figure}); {reach}."
    elif best.low <= 0.5:
        said = (
            f"Confidence does not tell right traces from wrong ones here ({figure}): majority is "
            f"the better choice."
        )
    elif best.value < _WELL:
        said = (
            f"Confidence tells right traces from wrong ones a little ({figure}): expect it to save "
            f"tokens rather than to change answers; {reach}."
        )
    else:
        said = (
            f"Confidence tells right traces from wrong ones ({figure}): it can save tokens, and "
            f"perhaps gain answers; {reach}."
        )
    if armed < 0.5:
        said += (
            f" Only {armed:.0%} of the traces are a window long, and no other can be stopped: "
            f"choose a smaller window."
        )
    return said
