r"""Responses that are in hand, as traces that are scored and vote.

>>> from types import SimpleNamespace as Object
>>> def completion(text, *logprobs):  # What vLLM returns has these fields, among others.
...     token = {at: Object(logprob=p, rank=at + 1) for at, p in enumerate(logprobs)}
...     return Object(text=text, token_ids=[0], logprobs=[token], finish_reason="stop")
>>> outputs = [
...     completion(r"so \boxed{1/2}", -0.5, -7.5),
...     completion(r"thus \boxed{0.5}", -0.5, -5.5),
...     completion(r"it is \boxed{2}", -1.0, -2.0),
... ]
>>> traces = from_vllm(Object(request_id="0", outputs=outputs))
>>> traces.answers
['1/2', '1/2', '2']
>>> traces.vote(window=1, tail=1, keep=1)
Vote(answer='1/2', share=0.8235, num_voters=3)

Reading is that of `import_traces`, which writes files of any number of them; here all are held.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy, Scores, Vote, Votes, score, vote, vote_many
from deepconf.answers import named
from deepconf.batch import only
from deepconf.batch._in_force import SCORING, measures
from deepconf.errors import InvalidInput, RunWarning, SignalNeverArmed
from deepconf.importing import COLUMNS, Import, table

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

    from deepconf.questions import Question

__all__ = ["Traces", "from_openai", "from_vllm"]

Answer = str | re.Pattern[str] | Callable[[str], str | None]

_VOTING = ("measure", "weight", "keep", "min_ballots", "max_weight")
_WHOLE = ("finished", "length")


def from_vllm(
    outputs: Any,
    *,
    k: int | None = None,
    entries: Literal["topk", "returned"] = "topk",
    logprob_floor: float | None = None,
    answer: Answer = "boxed",
    math: Literal["auto"] | bool = "auto",
    gold: Mapping[str, Any] | str | Path | Iterable[Question | Mapping[str, Any]] | None = None,
    question_id: str | re.Pattern[str] | Callable[[Any], Any] | None = None,
    missing: Literal["error", "skip"] = "error",
) -> Traces:
    """Traces out of what vLLM returned: `from_vllm(llm.generate(...)).vote_many()`.

    Each request is a question and each of its completions a trace; `SamplingParams` must have asked
    for `logprobs`, and may have for `flat_logprobs`.

    Args:
        outputs: `RequestOutput`s, one or several; the `outputs` of one of them; the same as dicts
            or JSON; or a file with a JSON object a line.
        k: how many of the most likely tokens count. None for as many as every token of every trace
            has; if they differ, it must be given.
        entries: "topk", or "returned" to count the sampled token too where it is not among them.
        logprob_floor: raises smaller log-probabilities to this, nats. Without it -9999, which
            stands for a masked token, and -inf are refused.
        answer: how the answer is found in the text; see `answers.extractor`.
        math: whether algebra helps to tell whether answers are the same; see `answers.AnswerBook`.
        gold: right answers: a mapping from question id, or a questions file.
        question_id: how the question of a request is found. None for its `request_id`; the name of
            a field, such as "prompt"; a pattern or a callable, as in `import_traces`.
        missing: what becomes of a token without log-probabilities: "error", or "skip" to leave it
            out of its trace.

    Raises:
        InvalidInput: an output is damaged or cannot be scored; the message names it and the token.
        InvalidType: an argument of the wrong type.
        MissingExtra: msgspec is not installed.
    """
    job = Import(
        format="vllm",
        k=k,
        entries=entries,
        logprob_floor=logprob_floor,
        answer=answer,
        math=math,
        gold=gold,
        question_id=question_id,
        missing=missing,
    )
    return _traces(job, outputs, "outputs", question_id)


def from_openai(
    responses: Any,
    *,
    k: int | None = None,
    entries: Literal["topk", "returned"] = "topk",
    logprob_floor: float | None = None,
    answer: Answer = "boxed",
    math: Literal["auto"] | bool = "auto",
    gold: Mapping[str, Any] | str | Path | Iterable[Question | Mapping[str, Any]] | None = None,
    question_id: str | re.Pattern[str] | Callable[[Any], Any] | None = None,
    missing: Literal["error", "skip"] = "error",
) -> Traces:
    """Traces out of the responses of an OpenAI-style server: `from_openai(response).vote()`.

    Each response is a question and each of its choices a trace. It must have log-probabilities:
    `logprobs=True, top_logprobs=20` for chat completions, `logprobs=20` for completions.

    Args:
        responses: chat completions or completions, one or several, as the client's objects, dicts
            or JSON; the `choices` of one of them; or a file with a JSON object a line, such as
            OpenAI Batch and `vllm run-batch` write.
        k: as in `from_vllm`, like the other arguments.
        entries: "topk", or "returned".
        logprob_floor: raises smaller log-probabilities to this, nats; some servers report masked
            tokens as -9999.
        answer: how the answer is found in the text.
        math: whether algebra helps to tell whether answers are the same.
        gold: right answers.
        question_id: how the question of a response is found. None for its `question_id` or
            `custom_id`, else its number, from 0 (of lines from 1). Responses of one choice each
            that have neither are one question to `Traces.vote`.
        missing: "error", or "skip".

    Raises:
        InvalidInput: a response is damaged or cannot be scored; the message names it and the token.
        InvalidType: an argument of the wrong type.
        MissingExtra: msgspec is not installed.
    """
    job = Import(
        format=("openai", "batch"),
        k=k,
        entries=entries,
        logprob_floor=logprob_floor,
        answer=answer,
        math=math,
        gold=gold,
        question_id=question_id,
        missing=missing,
    )
    return _traces(job, responses, "choices", question_id)


class Traces:
    """Recorded traces of one question or several, as columns: entry i is trace i."""

    questions: list[str]
    """The question that each answers."""
    answers: list[str | None]
    """One spelling for all that are the same within a question; None where none was found."""
    statuses: list[str]
    """`finished`, `length` (cut short), `aborted` or `failed`."""
    confidences: list[NDArray[np.float32]]
    """Token confidences, float32 `[num_tokens]` each, nats."""
    texts: list[str]
    correct: list[bool | None]
    """Whether the answer is right; None where that is not known."""
    settings: dict[str, Any]
    """How they came to be: `k`, `entries`, `model`, `versions`."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        settings: dict[str, Any],
        *,
        numbered: bool = False,
        math: Literal["auto"] | bool = "auto",
    ) -> None:
        """Of rows by the names of `traces.schema`.

        Args:
            rows: one a trace.
            settings: how they came to be.
            numbered: whether questions are mere numbers of records, none of which names its own.
            math: how answers were compared.
        """
        self._rows = rows
        self.settings = settings
        self._numbered = numbered
        self._math: Literal["auto"] | bool = math
        self.questions, self.answers, self.statuses, self.confidences, self.texts, self.correct = (
            [row[name] for row in rows]
            for name in ("question_id", "answer", "status", "confidence", "text", "correct")
        )

    @classmethod
    def read(cls, source: Any) -> Traces:
        """The traces of a trace file, all of them at once.

        Args:
            source: what `deepconf.read_traces` takes.

        Raises:
            InvalidInput, MissingExtra, TraceFileError: as `read_traces`.
        """
        from deepconf.traces import read_traces

        reader = read_traces(source, columns=COLUMNS)
        rows = []
        for batch in reader:
            lists = batch["confidence"]
            values, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
            rest = batch.drop_columns(["confidence"]).to_pylist()
            for row, start, end in zip(rest, ends[:-1], ends[1:], strict=True):
                rows.append({**row, "confidence": values[start:end]})
        return cls(rows, reader.settings)

    def __len__(self) -> int:
        """How many traces."""
        return len(self._rows)

    @property
    def title(self) -> str:
        """One line about them."""
        questions = len(set(self.questions))
        tokens = sum(map(len, self.confidences))
        each = Counter(self.statuses).most_common()
        ended = ", ".join(f"{count:,} {status}" for status, count in each)
        answered = sum(answer is not None for answer in self.answers)
        return (
            f"{len(self):,} traces of {_plural(questions, 'question')}: {ended}; "
            f"{answered:,} with an answer; {tokens:,} tokens"
        )

    def __repr__(self) -> str:
        """One line."""
        return f"<deepconf.Traces: {self.title}>"

    def _repr_html_(self) -> str:
        from deepconf import _html

        return _html.of_traces(self)

    def question(self, question_id: str) -> Traces:
        """The traces of one question.

        Raises:
            InvalidInput: there are none.
        """
        rows = [row for row in self._rows if row["question_id"] == question_id]
        if not rows:
            raise InvalidInput(f"question_id={question_id!r}: there is none{_such_as(self)}")
        return Traces(rows, self.settings, math=self._math)

    def score(
        self,
        *,
        window: int | None = None,
        tail: int | None = None,
        bottom: float = 0.10,
        decimals: int | None = None,
    ) -> Scores:
        """The scores of all traces, as of `deepconf.score`, with its arguments."""
        return score(self.confidences, window=window, tail=tail, bottom=bottom, decimals=decimals)

    def vote(self, **settings: Any) -> Vote:
        """Filters the traces by their confidence, weighs them, and lets them vote.

        As an offline run does: those that finished or reached the length limit vote, where they
        have an answer. Answers were compared when the traces were made (`math`).

        Args:
            settings: `keep`, `measure`, `weight`, `min_ballots` and `max_weight`, as `Policy` has
                them, and `window`, `tail`, `bottom` and `decimals`, as `score` has; by default as
                in `Policy.offline()`.

        Raises:
            InvalidInput: a setting that cannot be right; several questions, which `vote_many` is
                for.
        """
        questions = len(set(self.questions))
        if questions > 1 and not self._one_each:
            raise InvalidInput(
                f"the traces answer {questions:,} questions{_such_as(self)}: vote_many votes on "
                "each of them, question(id).vote() on one; where they are one question, "
                "question_id says so"
            )
        answers, rules = self._ballots(settings)
        return vote(named(answers, self._math) if questions > 1 else answers, **rules)

    def vote_many(self, **settings: Any) -> Votes:
        """The same vote on each question.

        Args:
            settings: as for `vote`.

        Raises:
            InvalidInput: a setting that cannot be right; traces of which none says what it answers,
                one a record.
        """
        if self._one_each:
            raise InvalidInput(
                f"{len(self):,} traces, and none says which question it answers: vote takes them "
                "for answers to one, and question_id tells them apart"
            )
        answers, rules = self._ballots(settings)
        return vote_many(self.questions, answers, **rules)

    @property
    def _one_each(self) -> bool:
        """Whether each is of a record of its own, and none says which question it answers."""
        return self._numbered and 1 < len(self) == len(set(self.questions))

    def _ballots(self, settings: Mapping[str, Any]) -> tuple[list[str | None], dict[str, Any]]:
        """The answers that count, and the other arguments of `deepconf.vote`."""
        only(settings, (*_VOTING, *SCORING))
        policy = Policy.offline(**settings)
        scores = None
        if measures(policy):
            scores = self.score(**{name: getattr(policy, name) for name in SCORING})
            if len(scores) and scores.short.all():
                warnings.warn(
                    f"no trace reaches the window of {policy.window} tokens (the longest has "
                    f"{scores.num_tokens.max()}): each is one group, its mean; use a smaller "
                    "window",
                    SignalNeverArmed,
                    stacklevel=3,
                )
        answers = [
            answer if status in _WHOLE and len(confidence) else None
            for answer, status, confidence in zip(
                self.answers, self.statuses, self.confidences, strict=True
            )
        ]
        return answers, _rules(policy, scores)

    def plot(
        self, *, window: int = 2048, threshold: float | None = None, ax: Axes | None = None
    ) -> Axes:
        """Group confidence along the traces, in two colours where it is known which are right.

        Args:
            window: tokens in a group.
            threshold: where it is given, a cross marks where each trace would be stopped.
            ax: axes of matplotlib to draw on; None for a new figure.

        Raises:
            InvalidInput: a window or threshold that cannot be right.
            MissingExtra: matplotlib is not installed.
        """
        from deepconf import _plots

        return _plots.of_traces(self, window, threshold, ax)

    def to_arrow(self) -> pa.Table:
        """A table in the columns of `traces.schema`, as `import_traces` gives.

        It can be replayed (`replay`, `Pool.read`), tuned on (`tune`), and written (`TraceWriter`).

        Raises:
            MissingExtra: pyarrow is not installed.
        """
        return table(self._rows, lambda: self.settings)

    def to_pandas(self) -> Any:
        """A data frame of pandas in the same columns; `confidence` holds arrays.

        Raises:
            MissingExtra: pandas is not installed.
        """
        from deepconf._frames import frame

        names = list(self._rows[0]) if self._rows else []
        return frame({name: [row[name] for row in self._rows] for name in names})


def _rules(policy: Policy, scores: Scores | None) -> dict[str, Any]:
    def column(measure: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = getattr(scores, measure)
        return found

    weighs = policy.weight != "majority"
    return {
        "weights": np.clip(column(policy.weight), 0.0, policy.max_weight) if weighs else None,
        "keep": policy.keep,
        "scores": column(policy.measure) if policy.keep < 1.0 else None,
        "min_ballots": policy.min_ballots,
    }


# ---- reading ------------------------------------------------------------------------------------

_WHOLES = ("outputs", "choices", "response", "generated_text", "error")
"""Fields of which a record that stands alone has one."""


def _traces(job: Import, source: Any, parts: str, question_id: Any) -> Traces:
    rows = list(job.rows(_records(source, parts, question_id is not None)))
    job.summary.alone = False  # It is the vote that needs to know what they answer.
    for text in job.summary.notes():
        warnings.warn(text, RunWarning, stacklevel=3)
    return Traces(rows, job.settings(), numbered=job.summary.numbered, math=job.math)


def _records(source: Any, parts: str, named: bool) -> Any:
    """The source in a form that an import takes: JSON as such, and parts in a whole.

    Args:
        source: as the caller gave it.
        parts: what holds the traces of a record, `outputs` or `choices`.
        named: whether the caller says how questions are found.
    """
    if _is_json(source):
        return _values(source)
    if isinstance(source, str | os.PathLike):
        return source
    if _is_part(source):
        return [{parts: [source]}]
    # Objects of the client's are iterable.
    one = isinstance(source, Mapping) or any(_field(source, name) is not None for name in _WHOLES)
    if one or not isinstance(source, Iterable):
        return source if not one else [source]
    items = [item for each in source for item in (_values(each) if _is_json(each) else [each])]
    if not items or not all(map(_is_part, items)):
        return items
    if named:
        return [{parts: [item]} for item in items]
    numbers = [_field(item, "index") for item in items]
    if len(items) > 1 and len(set(numbers) - {None}) not in (0, len(items)):
        raise InvalidInput(
            f"these are {len(items)} {parts} and some have the same index, so they are of several "
            f"requests: pass what they are {parts} of, or question_id"
        )
    return [{parts: items}]


def _is_part(item: Any) -> bool:
    """Whether it is a completion or a choice without what it is one of."""
    return _field(item, "finish_reason") is not None and all(
        _field(item, name) is None for name in _WHOLES
    )


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _is_json(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") and not os.path.exists(value[:4096])
    return isinstance(value, bytes | bytearray)


def _values(text: Any) -> Iterator[Any]:
    """JSON of one value, of a list of them, or of one a line, each still to be read."""
    import msgspec

    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else bytes(text)
    raw = raw.removeprefix("\ufeff".encode())
    listed = raw.lstrip()[:1] == b"["
    try:
        kind: Any = list[msgspec.Raw] if listed else msgspec.Raw
        found = msgspec.json.decode(raw, type=kind)
        yield from found if listed else [found]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield from (msgspec.Raw(line) for line in raw.splitlines() if line.strip())


def _such_as(traces: Traces) -> str:
    names = ", ".join(map(repr, list(dict.fromkeys(traces.questions))[:3]))
    return f", such as {names}" if names else ""


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
