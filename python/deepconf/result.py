"""What came of one question: the answer, its vote, every trace, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy, TraceScores, Vote
from deepconf.errors import InvalidInput

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

__all__ = ["MEASURES", "WHOLE", "Result", "Timing", "Tokens", "Trace"]

MEASURES = ("mean", "lowest_group", "bottom_group", "tail")
"""The scores of a trace that a vote can weigh."""

WHOLE = ("finished", "length")
"""How traces end that ran to their end."""

# Texts that become Arrow's at a time.
_PIECE = 16

Question = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace of a result.

    Attributes:
        trace: its number, in launch order.
        seed: the seed it was sampled with; None where the engine drew for itself.
        status: how it ended: `finished` by itself, `length` at the limit of tokens, `stopped` where
            its confidence fell below the threshold, `aborted` since the answer was known or the run
            was cut short, `failed`.
        answer: what it answers; one string for all that are equivalent.
        text: what was generated, as far as it got.
        num_tokens: tokens generated, those after a stop included.
        confidence: token confidences, float32 `[num_tokens]`, nats; empty where they are not kept.
        scores: scores, up to the token that asked for a stop.
        stop_token: the token whose group fell below the threshold, counted from 0.
        voted: whether its answer counted.
        error: what went wrong with it, if anything did.
        finish_order: how many traces of the run had ended before it.
        tries: how often it was begun: more than once where it broke off.
        lost_tokens: those of tries that broke off, which are in no other count.
    """

    trace: int
    seed: int | None
    status: str
    answer: str | None
    text: str
    num_tokens: int
    confidence: NDArray[np.float32]
    scores: TraceScores
    stop_token: int | None
    voted: bool
    error: str | None
    finish_order: int | None = None
    tries: int = 1
    lost_tokens: int = 0

    def __repr__(self) -> str:
        """One line, without the text and the confidences."""
        return (
            f"<deepconf.Trace {self.trace}: {self.status}, {self.answer!r}, {self.num_tokens} "
            f"tokens, lowest group {self.scores.lowest_group:.4g}"
            f"{', voted' if self.voted else ''}>"
        )


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a run generated, and an estimate of what it saved.

    Attributes:
        generated: every token of every trace, those after stops and in aborted traces included.
        warmup: those of the warmup traces.
        after_stop: those that came after the decision to stop their trace.
        baseline: estimated tokens without stops; None when nothing tells how long a whole trace is,
            and where a trace failed or the run was cut short: what was not generated then is no
            saving.
        compared_with: what the baseline is, in words.
        lost: those of tries that broke off and began anew: generated too, and in no other count.
    """

    generated: int
    warmup: int
    after_stop: int
    baseline: float | None
    compared_with: str
    lost: int = 0

    @property
    def saved(self) -> float | None:
        """Estimated tokens not generated: `baseline - generated`."""
        return None if self.baseline is None else self.baseline - self.generated


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a run went, in seconds.

    Attributes:
        warmup: until the threshold was known; 0 offline.
        sampling: from then until the answer was known.
        drain: until the last aborted trace had ended.
    """

    warmup: float
    sampling: float
    drain: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.warmup + self.sampling + self.drain


@dataclass(frozen=True)
class Result:
    """What came of one question.

    Attributes:
        question: as it was asked.
        answer: the answer that won; None when no trace voted.
        vote: the vote: ballots, share, number of voters, whether the filter was given up.
        threshold: the threshold in force, nats; None when there was none.
        reason: why it ended: `consensus`, `certain`, `budget`, `cancelled` or `engine_died`.
        unarmed: why the signal could not have stopped anything; None if it could, or was not given
            time.
        traces: every trace, in launch order.
        tokens: what was generated and saved.
        timing: where the time went.
        policy: the settings.
        model: its name or folder.
        capabilities: what a server was found to give, see `engines.openai.Capabilities`; empty for
            an engine that says nothing of itself.
        warnings: what was not as it should be; each is warned of as well.
        metadata: how the traces came to be, as the schema of a trace file says it.
    """

    question: Question
    answer: str | None
    vote: Vote
    threshold: float | None
    reason: str
    unarmed: str | None
    traces: list[Trace]
    tokens: Tokens
    timing: Timing
    policy: Policy
    model: str
    warnings: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    capabilities: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<deepconf.Result {self.answer!r}: {self.vote.num_voters} of {len(self.traces)} "
            f"traces voted, share {self.vote.share:.2f}, {self.tokens.generated} tokens, "
            f"{self.reason}>"
        )

    def _repr_html_(self) -> str:
        from deepconf import _html

        return _html.of_result(self)

    def plot(self, axes: Sequence[Axes] | None = None) -> NDArray[Any]:
        """Group confidence along the traces, with threshold and stops; and the ballots.

        Args:
            axes: two axes of matplotlib to draw on; None for a new figure.

        Returns:
            The two axes, as `matplotlib.pyplot.subplots` gives them.

        Raises:
            InvalidInput: there are more axes than two, or fewer.
            MissingExtra: matplotlib is not installed.
        """
        from deepconf import _plots

        return _plots.of_result(self, axes)

    def summary(self) -> dict[str, Any]:
        """Everything but texts and token confidences, as plain JSON values."""
        return {
            "question": (
                self.question if isinstance(self.question, str) else [*map(dict, self.question)]
            ),
            "answer": self.answer,
            "share": self.vote.share,
            "num_voters": self.vote.num_voters,
            "fallback": self.vote.fallback,
            "ballots": dict(self.vote.ballots),
            "threshold": self.threshold,
            "reason": self.reason,
            "unarmed": self.unarmed,
            "warnings": list(self.warnings),
            "tokens": {
                "generated": self.tokens.generated,
                "warmup": self.tokens.warmup,
                "after_stop": self.tokens.after_stop,
                "baseline": self.tokens.baseline,
                "saved": self.tokens.saved,
                "compared_with": self.tokens.compared_with,
                "lost": self.tokens.lost,
            },
            "seconds": {
                "warmup": self.timing.warmup,
                "sampling": self.timing.sampling,
                "drain": self.timing.drain,
                "total": self.timing.total,
            },
            "traces": [_trace_summary(trace) for trace in self.traces],
            "policy": self.policy.as_dict(),
            "model": self.model,
            "capabilities": dict(self.capabilities),
        }

    def to_arrow(
        self,
        question_id: str = "",
        correct: Sequence[bool | None] | None = None,
        *,
        gold: str | None = None,
    ) -> pa.Table:
        """The traces as an Arrow table in the columns of `deepconf.traces.schema`, one row a trace.

        The schema's metadata has the settings. Copies 4 bytes a token, and the texts.

        Args:
            question_id: goes into every row.
            correct: `[traces]`, whether each is right, if known.
            gold: the right answer, if known; goes into every row.

        Raises:
            InvalidInput: `correct` has another length, there are 2^31 tokens or more, or the token
                confidences were not kept.
            MissingExtra: pyarrow is not installed.
        """
        from deepconf.traces import schema

        columns = schema()
        import pyarrow as pa

        traces = self.traces
        if correct is not None and len(correct) != len(traces):
            raise InvalidInput(
                f"correct has {len(correct)} entries and there are {len(traces)} traces"
            )
        if any(len(trace.confidence) < trace.scores.num_tokens for trace in traces):
            raise InvalidInput(
                "the token confidences were not kept: set DeepThink(keep_confidence=True)"
            )
        table: dict[str, Any] = {
            "question_id": _strings([question_id] * len(traces)),
            "trace": [trace.trace for trace in traces],
            "answer": _strings([trace.answer for trace in traces]),
            "status": [trace.status for trace in traces],
            "num_tokens": [trace.num_tokens for trace in traces],
            "confidence": _lists([trace.confidence for trace in traces]),
            "text": _strings([trace.text for trace in traces]),
            "correct": [None] * len(traces) if correct is None else list(correct),
            "seed": [trace.seed for trace in traces],
            "stop_token": [trace.stop_token for trace in traces],
            "voted": [trace.voted for trace in traces],
            "error": _strings([trace.error for trace in traces]),
            "gold": _strings([gold] * len(traces)),
            "finish_order": [trace.finish_order for trace in traces],
        }
        return pa.table(table, schema=columns.with_metadata(self.metadata))


def _lists(arrays: Sequence[NDArray[np.float32]]) -> pa.ListArray:
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    if ends[-1] > np.iinfo(np.int32).max:
        raise InvalidInput(f"the traces have {ends[-1]} tokens: must be below 2^31 in one table")
    values = np.concatenate([np.empty(0, np.float32), *arrays])
    return pa.ListArray.from_arrays(ends.astype(np.int32), values)


def _strings(values: Sequence[str | None]) -> pa.Array | pa.ChunkedArray:
    """Half of a surrogate pair, which is no text, becomes a question mark: no trace is lost.

    Piece by piece, since each of them holds the interpreter up.
    """
    import pyarrow as pa

    pieces = [pa.array([], pa.string())]
    for start in range(0, len(values), _PIECE):
        some = values[start : start + _PIECE]
        try:
            pieces.append(pa.array(some, pa.string()))
        except UnicodeEncodeError:
            plain = [None if v is None else v.encode(errors="replace").decode() for v in some]
            pieces.append(pa.array(plain, pa.string()))
    if sum(piece.nbytes for piece in pieces) > np.iinfo(np.int32).max:
        return pa.chunked_array(pieces, pa.string())
    return pa.concat_arrays(pieces)


def _trace_summary(trace: Trace) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return None if np.isnan(value) else value

    scores = trace.scores
    return {
        "trace": trace.trace,
        "seed": trace.seed,
        "status": trace.status,
        "answer": trace.answer,
        "num_tokens": trace.num_tokens,
        "stop_token": trace.stop_token,
        "voted": trace.voted,
        "error": trace.error,
        "tries": trace.tries,
        "mean": number(scores.mean),
        "lowest_group": number(scores.lowest_group),
        "bottom_group": number(scores.bottom_group),
        "tail": number(scores.tail),
        "short": scores.short,
    }
