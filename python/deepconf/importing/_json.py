"""What is read of a record, be it a line of JSON, parsed JSON or objects: its traces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepconf.errors import InvalidInput
from deepconf.importing._question import Namer, Whole
from deepconf.importing._rows import ASK, Rows

__all__ = [
    "FORMATS",
    "AnyLogprobs",
    "Found",
    "How",
    "Int",
    "Record",
    "Sample",
    "decoded",
    "found_in",
    "parsed",
    "rows_of",
    "said",
    "shape",
]

FORMATS = {
    "openai": "chat completions and completions of OpenAI-style servers ('choices')",
    "batch": "output of OpenAI Batch or `vllm run-batch` ('custom_id' and 'response')",
    "vllm": "vLLM's RequestOutput ('outputs'), CompletionOutput ('token_ids' and 'logprobs'), or "
    "rows of Ray Data ('generated_text' and 'logprobs')",
    "inspect": "logs of Inspect (.eval, or JSON with 'eval' and 'samples')",
    "reference": "pickled outputs of the authors' package ('all_traces')",
}

_STATUS: dict[str, Literal["finished", "length", "stopped", "aborted", "failed"]] = {
    "stop": "finished",
    "eos": "finished",
    "eos_token": "finished",
    "stop_sequence": "finished",
    "tool_calls": "finished",
    "function_call": "finished",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "repetition": "length",
    "gconf_threshold": "stopped",
    "abort": "aborted",
    "cancelled": "aborted",
    "content_filter": "aborted",
    "error": "failed",
}


@dataclass(frozen=True, slots=True)
class How:
    """What a caller wants of the records."""

    name: Namer
    """Finds the question of a record."""
    returned: bool
    """Whether sampled tokens that are not among the likeliest count."""


@dataclass(slots=True)
class Found:
    """A trace in a source."""

    place: str
    """Where it is, for messages."""
    question: str | None
    """Its question; None where the record does not say."""
    status: str
    text: str = ""
    rows: Rows | NDArray[np.float32] | None = None
    """Log-probabilities, or token confidences; None for a failed trace without any."""
    tokens: int | None = None
    """How many there should be of the latter."""
    answer: str | None = None
    """What the source took for its answer, where there is no text."""
    extract: bool = True
    """Whether an answer is looked for in the text, where the source has none."""
    gold: Sequence[str] = ()
    """The answers that are right, where the source has them."""
    error: str | None = None
    model: str | None = None
    countable: bool = True
    """Whether the record's number may stand for the question."""
    open_end: bool = False
    """Whether the source says nothing about how it ended."""


Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What NumPy's int64 holds."""


class Entry(msgspec.Struct, gc=False):
    """One of a token's likeliest alternatives."""

    logprob: float


class _Ranked(msgspec.Struct, gc=False):
    logprob: float
    rank: Int | None = None


class Token(msgspec.Struct, gc=False):
    """A token of a chat completion."""

    top_logprobs: list[Entry] | None = None
    logprob: float | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[Token] | None = None  # Of chat completions.
    top_logprobs: list[dict[str, float] | None] | None = None  # Of completions.
    logprobs: list[float] | None = None  # Of vLLM's flat form, as the next two.
    end_indices: list[Int] | None = None
    ranks: list[Int | None] | None = None


AnyLogprobs = _Logprobs | list[dict[str | int, _Ranked] | None] | None


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    reasoning: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Part] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    def whole(self) -> str:
        """What was generated, reasoning first."""
        parts = [self.reasoning or self.reasoning_content]
        if isinstance(self.content, list):
            parts += [part.reasoning or part.text for part in self.content]
        else:
            parts.append(self.content)
        return "\n".join(part for part in parts if part)


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    message: _Message | None = None
    logprobs: AnyLogprobs = None
    finish_reason: str | msgspec.UnsetType | None = None
    stop_reason: str | int | None = None


# Raw in JSON and anything in Python: each choice and sample is read when it is its turn, so that no
# more than one is there in pieces.
T = TypeVar("T")


class _Body(msgspec.Struct, Generic[T], gc=False):
    choices: list[T] | None = None
    model: str | None = None
    error: Any = None
    message: Any = None


class _Response(_Body[T], Generic[T], gc=False):
    status_code: int | None = None
    body: _Body[T] | None = None


class _Output(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    model: str | None = None
    error: Any = None


class Sample(msgspec.Struct, gc=False):
    """A sample of Inspect's, of one epoch."""

    id: str | int
    epoch: int
    output: _Output
    target: str | list[str] = ""
    error: Any = None


class _Eval(msgspec.Struct, gc=False):
    model: str | None = None


class Record(msgspec.Struct, Generic[T], gc=False):
    """Everything that is read of a record of any form, and nothing else."""

    question_id: str | int | None = None
    custom_id: str | int | None = None
    model: str | None = None
    error: Any = None
    choices: list[T] | None = None
    response: _Response[T] | msgspec.UnsetType | None = msgspec.UNSET
    request_id: str | int | None = None
    outputs: list[T] | None = None
    generated_text: str | None = None
    token_ids: Any = None
    text: str | None = None
    logprobs: AnyLogprobs = None
    finish_reason: str | msgspec.UnsetType | None = msgspec.UNSET
    eval: _Eval | None = None
    samples: list[T] | None = None


_DECODER = msgspec.json.Decoder(Record[msgspec.Raw])


def parsed(raw: Any, place: str, kind: Any = Record) -> Any:
    """A record, or a part of one, out of JSON.

    Raises:
        InvalidInput: it is no JSON, or a value is of another type than it must be.
    """
    try:
        if kind is Record:
            return _DECODER.decode(raw)
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{place}: {said(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = bytes(raw)
        if b"NaN" not in text and b"Infinity" not in text:
            raise InvalidInput(f"{place}: {said(error)}") from error
    try:  # Python writes what JSON does not have.
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{place}: not JSON: {error}") from error
    return decoded(value, place, kind)


def decoded(value: Any, place: str, kind: Any = Record) -> Any:
    """The same out of parsed JSON, or of objects that have its fields as attributes.

    Raises:
        InvalidInput: a value is of another type than it must be.
    """
    if isinstance(value, msgspec.Raw):
        return parsed(value, place, kind)
    try:
        return msgspec.convert(value, kind, from_attributes=True)
    except (msgspec.ValidationError, RecursionError, UnicodeError) as error:
        raise InvalidInput(f"{place}: {said(error)}") from error


def said(error: Exception) -> str:
    """What msgspec says, with places as a person writes them."""
    text = str(error).replace("`$.", "`")
    if isinstance(error, msgspec.ValidationError):
        return text
    if "truncated" in text:
        return "not JSON: it ends in the middle"
    if isinstance(error, UnicodeError):
        return f"not UTF-8: {text}"
    return text.replace("JSON is malformed", "not JSON")


def shape(record: Record[Any]) -> str | None:
    """Which of `FORMATS` a record is in; None if in none."""
    if record.samples is not None and record.eval is not None:
        return "inspect"
    if record.outputs is not None:
        return "vllm"
    if record.response is not msgspec.UNSET:
        return "batch"
    if record.choices is not None:
        return "openai"
    if record.generated_text is not None or (
        record.token_ids is not None and record.finish_reason is not msgspec.UNSET
    ):
        return "vllm"
    return "openai" if record.error is not None else None


def found_in(
    record: Record[Any], place: str, how: How, *, raw: Any = None, value: Any = None
) -> Iterator[Found]:
    """The traces of a record that has a `shape`.

    Args:
        record: what was read of it.
        place: where it is.
        how: what is wanted of it.
        raw: its JSON; or
        value: the object that it is.

    Raises:
        InvalidInput: a trace has no log-probabilities or no end; the message names its place.
    """
    if record.samples is not None:
        model = record.eval.model if record.eval else None
        for at, item in enumerate(record.samples):
            yield from of_sample(item, f"{place}, samples[{at}]", model, how)
        return
    given = record.custom_id if record.question_id is None else record.question_id
    error = None
    if record.outputs is not None:
        given = record.request_id if given is None else given
        choices, model = record.outputs, record.model
        places = [f"{place}, outputs[{at}]" for at in range(len(choices))]
    elif record.choices is None and record.response is msgspec.UNSET and record.error is None:
        choices, model, places = [_alone(record)], record.model, [place]
    else:
        choices, model, error = _body(record)
        places = [f"{place}, choice {at}" for at in range(len(choices))]
    question = how.name(Whole(place, given, raw, value))
    if error is not None:
        yield Found(place, question, "failed", error=error, model=model)
    elif not choices:
        raise InvalidInput(f"{place}: holds no choices: there is no trace in it")
    for where, part in zip(places, choices, strict=True):
        choice = decoded(part, where, _Choice)
        found = _of_choice(choice, where, choice.finish_reason, "finish_reason", how)
        found.question, found.model = question, model
        # A list of completions is one question or many, and nothing says which.
        found.countable = record.token_ids is None
        yield found


def _alone(record: Record[Any]) -> _Choice:
    """An output of vLLM's without its request, or a row of Ray Data."""
    text = record.text if record.generated_text is None else record.generated_text
    return _Choice(text, None, record.logprobs, record.finish_reason)


def of_sample(item: Any, place: str, model: str | None, how: How) -> Iterator[Found]:
    """The traces of a sample of Inspect's, which are those of its last output.

    Args:
        item: its JSON, or the object.
        place: where it is.
        model: of the log.
        how: what is wanted of it.

    Raises:
        InvalidInput: as `found_in`.
    """
    sample = decoded(item, place, Sample)
    written = isinstance(item, msgspec.Raw)
    whole = Whole(place, sample.id, item if written else None, None if written else item)
    question = how.name(whole)
    gold = [sample.target] if isinstance(sample.target, str) else sample.target
    gold = [answer for answer in gold if answer.strip()]
    error = sample.error or sample.output.error
    if error is not None or not sample.output.choices:
        text = "no output" if error is None else _message(error)
        yield Found(place, question, "failed", gold=gold, error=text, model=model)
        return
    for at, choice in enumerate(sample.output.choices):
        where = f"{place}, choice {at}"
        found = _of_choice(choice, where, choice.stop_reason, "stop_reason", how)
        found.question, found.model, found.gold = question, model, gold
        yield found


def _body(record: Record[Any]) -> tuple[list[Any], str | None, str | None]:
    """The choices of a response, the model, and what went wrong instead."""
    response = record.response
    if response is msgspec.UNSET and record.choices is not None:
        return record.choices, record.model, None
    if response is None or response is msgspec.UNSET:
        return [], record.model, _message(record.error or "there is no response")
    body = response if response.choices is not None else response.body
    code = response.status_code
    if body is not None and body.choices is not None and code in (None, 200):
        return body.choices, body.model or record.model, None
    error = record.error or (body and (body.error or body.message)) or "there is no response"
    prefix = "" if code is None else f"status {code}: "
    return [], record.model, prefix + _message(error)


def _message(error: Any) -> str:
    found = error.get("message", error) if isinstance(error, Mapping) else error
    text = found if isinstance(found, str) else json.dumps(found, default=str, ensure_ascii=False)
    return text[:2000]


def _of_choice(choice: _Choice, place: str, reason: Any, named: str, how: How) -> Found:
    open_end = reason is msgspec.UNSET
    status = "finished" if open_end else status_of(reason, f"{place}, {named}")
    if choice.text is not None:
        text = choice.text
    elif choice.message is not None:
        text = choice.message.whole()
    else:
        raise InvalidInput(
            f"{place}: has neither message nor text; of a streamed response, all chunks must be "
            "put together first"
        )
    rows = rows_of(choice.logprobs, place, how.returned)
    if not len(rows.widths) and text:
        raise InvalidInput(f"{place}: has a text and no log-probabilities of its tokens; {ASK}")
    return Found(place, None, status, text, rows, open_end=open_end)


def status_of(reason: Any, place: str) -> str:
    """The status of a trace that ended so.

    Raises:
        InvalidInput: a reason that is not known, or none.
    """
    if reason is None:
        raise InvalidInput(
            f"{place} is null: the trace has not ended, or is one chunk of a streamed response"
        )
    if not isinstance(reason, str) or reason not in _STATUS:
        raise InvalidInput(
            f"{place} is {reason!r}: what it means for the trace is not known; those known are "
            f"{', '.join(_STATUS)}"
        )
    return _STATUS[reason]


def rows_of(logprobs: Any, place: str, returned: bool) -> Rows:
    """The rows of log-probabilities, in any of their forms.

    Raises:
        InvalidInput: there are none.
    """
    if isinstance(logprobs, list):
        return Rows.of_dicts(logprobs)
    if isinstance(logprobs, _Logprobs):
        if logprobs.content is not None:
            tokens = logprobs.content
            tops = [token.top_logprobs or () for token in tokens]
            return Rows.of_chat(tops, [token.logprob for token in tokens], returned)
        if logprobs.top_logprobs is not None:
            return Rows.of_completion(logprobs.top_logprobs)
        flat = (logprobs.logprobs, logprobs.end_indices, logprobs.ranks)
        if flat[0] is not None and flat[1] is not None and flat[2] is not None:
            try:
                return Rows.of_flat(flat[0], flat[1], flat[2])
            except InvalidInput as error:
                raise InvalidInput(f"{place}: {error}") from error
    raise InvalidInput(
        f"{place}: has no log-probabilities; {ASK}; missing='skip' leaves out tokens: leave out a "
        "response that has none before it comes here"
    )
