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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deepconf.errors import InvalidInput, InvalidType, RunWarning
from deepconf.held import Traces
from deepconf.importing import Import
from deepconf.result import WHOLE

if TYPE_CHECKING:
    from deepconf.questions import Question

__all__ = ["from_confidences", "from_openai", "from_vllm"]

Answer = str | re.Pattern[str] | Callable[[str], str | None]


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
            `custom_id`, else its number, from 1. Responses of one choice each
            that have neither are one question to `Traces.vote`; that each has one trace is warned
            of (`RunWarning`).
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


def from_confidences(
    confidences: Iterable[Any],
    answers: Iterable[str | int | float | None] | None = None,
    *,
    questions: Iterable[Any] | None = None,
    statuses: Iterable[str] | None = None,
    math: Literal["auto"] | bool = "auto",
    gold: Mapping[str, Any] | str | Path | Iterable[Question | Mapping[str, Any]] | None = None,
) -> Traces:
    """Traces out of token confidences that are there already, and answers.

    >>> traces = from_confidences([[9.0, 8.5], [7.0, 3.0]], ["4", "5"], gold={"1": "4"})
    >>> traces.correct
    [True, False]

    Args:
        confidences: `[traces]` of float `[num_tokens]` each, nats: minus the mean of the k largest
            log-probabilities of a token, as `token_confidence` gives.
        answers: `[traces]`, text or numbers; None, or NaN, where a trace has none. Those that are
            the same within a question share a name.
        questions: `[traces]`, the question that each answers, in any order; None for one, "1".
        statuses: `[traces]`, `finished` or `length` (cut short); None where all are finished.
        math: whether algebra helps to tell whether answers are the same; see `answers.AnswerBook`.
        gold: right answers: a mapping from question, or a questions file.

    Raises:
        InvalidInput: lengths differ, or a confidence is not finite; the message names the trace.
        InvalidType: an argument of the wrong type.
        MissingExtra: msgspec is not installed.
    """
    from deepconf.importing._json import Found

    if answers is None:
        raise InvalidType("answers: there are none: must be one a trace, None where it has none")
    given = {"confidences": confidences, "answers": answers, "questions": questions}
    columns = {
        name: _column(values, name)
        for name, values in (given | {"statuses": statuses}).items()
        if values is not None
    }
    count = len(columns["confidences"])
    for name, values in columns.items():
        if len(values) != count:
            raise InvalidInput(
                f"{name} has {len(values)} entries and confidences {count}: must be one a trace"
            )
    job = Import(math=math, gold=gold)

    def found() -> Iterator[Found]:
        names = columns.get("questions", ["1"] * count)
        ends = columns.get("statuses", ["finished"] * count)
        every = zip(columns["confidences"], columns["answers"], names, ends, strict=True)
        for at, (values, answer, question, status) in enumerate(every):
            if status not in WHOLE:
                raise InvalidInput(f"statuses[{at}] is {status!r}: must be 'finished' or 'length'")
            answer = _answered(answer, at)
            place = f"confidences[{at}]"
            # Whatever is said of them, an answer that is given is not looked for in a text.
            row = Found(place, str(question), status, rows=_confidences(values, place))
            row.answer, row.extract = answer, False
            yield row

    rows = list(job.found(found(), named=questions is not None))
    job.summary.alone = False  # It was said which question each answers.
    _say(job)
    settings = {name: value for name, value in job.settings().items() if name != "entries"}
    return Traces(rows, settings, math=math)


def _answered(answer: Any, at: int) -> str | None:
    """An answer as text; None for what stands for none in a data frame."""
    if isinstance(answer, np.generic):
        answer = answer.item()
    if isinstance(answer, np.ndarray | list | tuple):
        raise InvalidType(
            f"answers[{at}] is {answer!r:.100}, a {type(answer).__name__}: must be a str, a number "
            "or None: where questions have lists of traces, flatten them, and confidences "
            "likewise, and name the question of each in questions"
        )
    if answer is None or type(answer).__name__ in ("NAType", "NaTType") or answer != answer:
        return None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise InvalidType(
            f"answers[{at}] is {answer!r:.100}, a {type(answer).__name__}: must be a str, a number "
            "or None"
        )
    whole = isinstance(answer, float) and answer.is_integer()  # As a column with gaps has them.
    return str(int(answer) if whole else answer)


def _column(values: Any, name: str) -> list[Any]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise InvalidType(f"{name} is a {type(values).__name__}: must be a sequence, one a trace")
    if hasattr(values, "columns"):
        raise InvalidType(f"{name} is a {type(values).__name__}: must be one of its columns")
    return list(values)


def _confidences(values: Any, place: str) -> Any:
    try:
        found = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        nested = isinstance(values, list | tuple) and any(
            isinstance(each, list | tuple | np.ndarray) for each in values
        )
        hint = ": where questions have lists of traces, flatten them" if nested else ""
        raise InvalidType(f"{place} are no numbers: {error!s:.200}{hint}") from error
    if found.ndim != 1:
        raise InvalidInput(
            f"{place} has {found.ndim} dimensions: must be one number a token: where questions "
            "have lists of traces, flatten them, and name the question of each in questions"
        )
    if not np.isfinite(found).all():
        token = int(np.argmin(np.isfinite(found)))
        raise InvalidInput(f"{place}[{token}] is {found[token]}: must be finite")
    if found.sum() < 0:
        raise InvalidInput(
            f"{place} are below 0 on the whole: a confidence is minus the mean of "
            "log-probabilities; "
            "token_confidence makes them"
        )
    return found


# ---- reading ------------------------------------------------------------------------------------

_WHOLES = ("outputs", "choices", "response", "generated_text", "error")
"""Fields of which a record that stands alone has one."""


def _traces(job: Import, source: Any, parts: str, question_id: Any) -> Traces:
    if hasattr(source, "columns"):
        raise InvalidType(
            f"{_called(parts)} is a {type(source).__name__}, a table: pass the column that "
            "holds them, such as table['response']; confidences that are there already: "
            "from_confidences; traces in the columns of a trace file: Traces.read"
        )
    rows = list(job.rows(_records(source, parts, question_id is not None)))
    _say(job)
    return Traces(rows, job.settings(), numbered=job.summary.numbered, math=job.math)


def _called(parts: str) -> str:
    """The argument that holds them."""
    return "outputs" if parts == "outputs" else "responses"


def _say(job: Import) -> None:
    for text in job.summary.notes():
        warnings.warn(text, RunWarning, stacklevel=4)


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
    source = list(source)
    for at, each in enumerate(source):
        if isinstance(each, list | tuple):
            raise InvalidInput(
                f"{_called(parts)}[{at}] is a {type(each).__name__}: where questions have lists of "
                "them, flatten these, and say by question_id which question each answers"
            )
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
