"""Whether confidence tells right traces from wrong ones, on recorded traces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf import _layers
from deepconf._bars import bar
from deepconf._core import Policy
from deepconf._progress import Told
from deepconf._statistics import Estimate, auroc, estimates, pair_agreement, pairs_won, within
from deepconf._windows import fitting
from deepconf._words import counted, in_lines
from deepconf.lab._fit import alone
from deepconf.lab._reading import sized
from deepconf.lab._scored import Scored, read
from deepconf.lab._thumb import rule_of_thumb
from deepconf.lab._verdict import GIVE_GOLD, gainable, is_blind, separated

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Answers", "Bin", "Diagnosis", "Separation", "diagnose"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 10
"""The bins of a reliability curve."""
# With fewer traces of a window's length, the window is too long.
_ARMED = 0.5


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
    pass_1: Estimate | None = None
    """Accuracy of one trace alone; None without known answers, as all that follows."""
    majority: Estimate | None = None
    """Accuracy of the vote of all, a head each; a tie counts with the share of right answers in it,
    as over a replay's draws."""
    pass_n: Estimate | None = None
    """The share of questions with a right answer among the candidates: no vote can do better."""
    majority_wrong: int | None = None
    """Questions in which the majority is wrong, or ties with a wrong answer."""
    within_reach: int | None = None
    """Those of them with a right answer among the candidates."""
    tied: int | None = None
    """Those of them in which a right answer ties with a wrong one."""
    wrong_concentration: float | None = None
    """The share of the leading wrong answer among the wrong ones, over questions that have any."""
    wrong_agreement: float | None = None
    """How often two wrong traces of a question give the same answer, over all such pairs."""


@dataclass(frozen=True, repr=False)
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
    """By score, accuracy in tenths of the rank within the question, so that hard questions and easy
    ones are in every bin."""
    answers: Answers
    notes: list[str]
    closing: str
    """Whether confidence can help here, in a sentence."""
    thumb: str = ""
    """The rule of thumb: is majority enough, or may confidence gain answers? Empty without known
    answers."""

    def __repr__(self) -> str:
        """How well each score tells right from wrong, what that comes to, and the rule of thumb."""
        of = f"{counted(self.traces, 'trace')} of {counted(self.questions, 'question')}"
        inside = [
            f"{name.replace('_', ' ')} {each.within.value:.2f}"
            for name, each in self.separation.items()
            if each.within is not None
        ]
        auroc = [f"AUROC within questions: {', '.join(inside)}"] if inside else []
        title = f"deepconf.Diagnosis: {of}, window {self.window}"
        thumb = [self.thumb] if self.thumb else []
        return in_lines(title, [*auroc, *self.notes, self.closing, *thumb])

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
    progress: Told | bool | None = None,
) -> Diagnosis:
    """What recorded traces say of confidence: does it tell right from wrong, and could it help?

    Streams: besides a batch of traces, it holds some numbers of each.

    Args:
        traces: what `deepconf.read_traces` takes, such as files, data frames and `Traces`; or a
            reader of it.
        window: tokens in a group; by default the recording's, else an eighth of the median length,
            rounded to a power of two, and 2048 at the most (of traces that can be read only once:
            2048).
        tail: tokens of the tail confidence, likewise.
        bottom: the share of groups of the bottom-group confidence; by default the recording's,
            else 0.10.
        threads: by default all cores.
        progress: called with traces read and, where known, in all (else 0); True for a bar.

    Raises:
        InvalidInput: no trace ran to its end, one is there twice, a confidence is not finite, or an
            answer is marked both right and wrong.
        TraceFileError: a file cannot be read as traces.
        MissingExtra: pyarrow is not installed.
    """
    from deepconf.traces import TraceReader, read_traces

    reader = traces if isinstance(traces, TraceReader) else read_traces(traces)
    asked = {"window": window, "tail": tail, "bottom": bottom}
    given = {name: value for name, value in asked.items() if value is not None}
    # How long traces are need not be known where the window is.
    known_of = reader.settings if "window" in given else sized(reader)
    layers = (*_layers.of_traces(known_of), _layers.Layer("given", given))
    settings, origins = _layers.merged(*layers)
    # A policy knows how scores are taken by default, and checks what is asked for.
    measured = Policy.low(**{name: settings[name] for name in asked if name in settings})
    with bar(progress, "reading traces") as tell:
        scored = read(reader, measured, threads=threads, progress=tell)
    known = scored.correct >= 0
    separation, pooled, ranked = {}, {}, {}
    for name, values in scored.scores.items() if known.any() else ():
        separation[name], pooled[name], ranked[name] = _separated(
            values[known], scored.correct[known] == 1, scored.question[known]
        )
    armed = float((scored.tokens >= measured.window).mean())
    answers = _answers(scored)
    return Diagnosis(
        questions=len(scored.questions),
        known=int(scored.known.sum()),
        traces=len(scored.question),
        left_out=scored.left_out,
        tokens=int(scored.tokens.sum()),
        window=measured.window,
        tail=measured.tail,
        bottom=measured.bottom,
        armed=armed,
        separation=separation,
        reliability=pooled,
        reliability_within=ranked,
        answers=answers,
        notes=[*_fitted(origins, measured), *_notes(scored), *_ties(answers)],
        closing=_closing(
            separation, answers, int(scored.known.sum()), armed, fitting(scored.tokens)
        ),
        thumb=_thumb(separation, answers),
    )


def _separated(
    values: Floats, right: NDArray[np.bool_], question: Ints
) -> tuple[Separation, list[Bin], list[Bin]]:
    """How well a score tells right from wrong, and its two reliability curves."""
    count = int(question.max()) + 1
    alone = auroc(values, right)
    inside = within(*pairs_won(values, right, question, count))
    found = Separation(
        None if math.isnan(alone) else alone, None if math.isnan(inside.value) else inside
    )
    return found, _tenths(values, right), _by_rank(_ranks(values, question, count), right)


def _answers(scored: Scored) -> Answers:
    """The answers of each question, and which of them leads."""
    question, answer, count = scored.question, scored.answer, len(scored.questions)
    spoken = answer >= 0
    sizes = np.bincount(question, minlength=count)
    voices = np.bincount(question[spoken], minlength=count)
    # A row for each answer: its question, heads, how many of them are right, and who was first.
    codes, first, heads = np.unique(answer[spoken], return_index=True, return_counts=True)
    of = question[spoken][first]
    earliest = np.full(len(codes), np.iinfo(np.int64).max)
    place = np.searchsorted(codes, answer[spoken])
    np.minimum.at(earliest, place, scored.order[spoken])
    share = heads / voices[of]
    distinct = np.bincount(of, minlength=count)
    entropy = np.bincount(of, weights=-share * np.log(share), minlength=count)
    # Most heads first, and of as many the one seen first; then the leader is a question's first.
    rank = np.lexsort((earliest, -heads, of))
    leaders = rank[np.unique(of[rank], return_index=True)[1]]
    agreement = np.zeros(count)
    agreement[of[leaders]] = share[leaders]
    asked = voices > 0
    found = Answers(
        answered=float((voices / sizes).mean()),
        agreement=float(agreement[asked].mean()) if asked.any() else 0.0,
        distinct=float(distinct.mean()),
        entropy=float(entropy.mean()),
    )
    known = scored.known
    if not known.any():
        return found
    good = scored.correct[spoken][first] == 1
    alone = np.bincount(question, weights=scored.correct == 1, minlength=count) / sizes
    reached = np.bincount(of, weights=good, minlength=count) > 0
    # A tie is broken at random, as it is over a replay's draws.
    most = np.zeros(count, np.int64)
    np.maximum.at(most, of, heads)
    leads = heads == most[of]
    tied = np.bincount(of, weights=leads, minlength=count)
    winner = np.bincount(of, weights=leads & good, minlength=count) / np.maximum(tied, 1.0)
    missed = known & (winner < 1.0)
    wrong = np.where(good, 0, heads)
    leading = np.zeros(count, np.int64)
    np.maximum.at(leading, of, wrong)
    all_wrong = np.bincount(of, weights=wrong, minlength=count)
    any_wrong = known & (all_wrong > 0)
    each = estimates(np.stack([alone, winner, reached])[:, known].astype(np.float64))
    return replace(
        found,
        pass_1=each[0],
        majority=each[1],
        pass_n=each[2],
        majority_wrong=int(missed.sum()),
        within_reach=int((missed & reached).sum()),
        tied=int((missed & (winner > 0.0)).sum()),
        wrong_concentration=(
            float((leading[any_wrong] / all_wrong[any_wrong]).mean()) if any_wrong.any() else None
        ),
        wrong_agreement=pair_agreement(wrong[known[of]], of[known[of]]),
    )


def _tenths(values: Floats, right: NDArray[np.bool_]) -> list[Bin]:
    """Accuracy in tenths of the traces, from the lowest value to the highest."""
    there = ~np.isnan(values)
    values, right = values[there], right[there]
    order = np.argsort(values, kind="stable")
    return _bins(values, right, np.array_split(order, BINS))


def _by_rank(ranks: Floats, right: NDArray[np.bool_]) -> list[Bin]:
    """Accuracy in tenths of the rank within a question."""
    there = ~np.isnan(ranks)
    ranks, right = ranks[there], right[there]
    tenth = np.minimum((ranks * BINS).astype(np.int64), BINS - 1)
    order = np.argsort(ranks, kind="stable")
    ends = np.searchsorted(tenth[order], np.arange(1, BINS))
    return _bins(ranks, right, np.split(order, ends))


def _bins(values: Floats, right: NDArray[np.bool_], parts: list[Ints]) -> list[Bin]:
    return [
        Bin(float(values[part[0]]), float(values[part[-1]]), len(part), float(right[part].mean()))
        for part in parts
        if len(part)
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


def _fitted(origins: Mapping[str, str], measured: Policy) -> list[str]:
    if "length" not in origins.get("window", ""):
        return []
    return [
        f"window={measured.window} is {origins['window']}, since nothing says another: the paper's "
        f"{Policy.low().window:,} tokens are for traces of tens of thousands"
    ]


def _notes(scored: Scored) -> list[str]:
    count, known = len(scored.questions), int(scored.known.sum())
    notes = alone(np.bincount(scored.question, minlength=count))
    if scored.left_out:
        every = ", ".join(f"{number} {status}" for status, number in scored.left_out.items())
        notes.append(
            f"traces that did not run to their end are left out ({every}): those that remain may "
            f"be surer than what was generated"
        )
    if 0 < known < count:
        notes.append(
            f"{count - known} of {counted(count, 'question')} have no known answer, and count in "
            "agreement "
            f"and dispersion only"
        )
    unmarked = int((scored.known[scored.question] & (scored.correct < 0)).sum())
    if unmarked:
        notes.append(
            f"{unmarked} {'trace has' if unmarked == 1 else 'traces have'} an answer that nothing "
            f"marks, in questions that have marks: left out where right and wrong are compared, "
            f"and no right candidate"
        )
    return notes


def _thumb(separation: Mapping[str, Separation], answers: Answers) -> str:
    if answers.majority is None:
        return ""
    inside = [found.within.value for found in separation.values() if found.within is not None]
    missed = 1.0 - answers.majority.value
    return rule_of_thumb(missed, answers.wrong_agreement, max(inside, default=None))


def _ties(answers: Answers) -> list[str]:
    if not answers.tied:
        return []
    return [
        f"in {counted(answers.tied, 'question')} right and wrong answers tie for the majority: "
        "that counts as its chance to be right, and among the questions that it misses"
    ]


def _closing(
    separation: Mapping[str, Separation], answers: Answers, known: int, armed: float, fit: int
) -> str:
    """Whether confidence tells right from wrong, and how much there is to gain."""
    if not separation or answers.majority_wrong is None or answers.within_reach is None:
        return (
            f"No answers are known, so whether confidence tells right from wrong is not known "
            f"either; the leading answer has {answers.agreement:.0%} of the votes. "
            f"To know, {GIVE_GOLD}."
        )
    inside = {name: found.within for name, found in separation.items() if found.within is not None}
    if not inside:
        return "No question has right traces beside wrong ones, so there is nothing to tell apart."
    name, best = max(inside.items(), key=lambda item: item[1].value)
    said = [separated(name, best), gainable(known, answers.majority_wrong, answers.within_reach)]
    if not is_blind(best):
        said.append("What a policy saves, or gains at fewer tokens, replay and tune tell.")
    if armed < _ARMED:
        said.append(
            f"Only {armed:.0%} of the traces are a window long, and no other can be stopped: "
            f"choose a smaller window, such as {fit}."
        )
    return " ".join(said)
