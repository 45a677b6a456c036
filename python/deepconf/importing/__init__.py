"""Traces out of what people have: responses, batch files, outputs of vLLM, logs and pickles."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf._bars import bar
from deepconf._progress import Told
from deepconf._words import counted
from deepconf.answers import AnswerBook, extractor, marks
from deepconf.errors import InvalidInput, InvalidType, MissingExtra, RunWarning
from deepconf.provenance import as_texts, versions
from deepconf.questions import Question, read_questions

if TYPE_CHECKING:
    import pyarrow as pa

    from deepconf.importing._formats import Reader
    from deepconf.importing._json import Found

__all__ = [
    "COLUMNS",
    "Import",
    "Summary",
    "import_traces",
    "misnumbered",
    "right_answers",
    "table",
]

# A row group: so many tokens, traces or characters of text, whichever is reached first.
_TOKENS = 4_000_000
_TRACES = 4096
_CHARACTERS = 64_000_000

COLUMNS = (
    "question_id",
    "trace",
    "answer",
    "status",
    "num_tokens",
    "confidence",
    "text",
    "correct",
    "error",
    "gold",
)
"""What an import knows of a trace, by the names of `traces.schema`."""


def import_traces(
    source: Any,
    *,
    format: Literal["auto", "openai", "batch", "vllm", "inspect", "reference"] = "auto",
    k: int | None = None,
    entries: Literal["topk", "returned"] = "topk",
    logprob_floor: float | None = None,
    answer: str | re.Pattern[str] | Callable[[str], str | None] = "boxed",
    math: Literal["auto"] | bool = "auto",
    gold: Mapping[str, Any] | str | Path | Iterable[Question | Mapping[str, Any]] | None = None,
    question_id: str | re.Pattern[str] | Callable[[Any], Any] | None = None,
    missing: Literal["error", "skip"] = "error",
    out: str | os.PathLike[str] | None = None,
    progress: Told | bool | None = None,
) -> pa.Table | Path:
    r"""Turns recorded responses into traces, one row each, in the columns of `traces.schema`.

    | format | what it is |
    |---|---|
    | `openai` | chat completions and completions, with one choice or more |
    | `batch` | what OpenAI Batch and `vllm run-batch` write; a failed request is a failed trace |
    | `vllm` | `RequestOutput`s, flat or with dicts, as objects, pickles or JSON; rows of Ray Data |
    | `inspect` | logs of Inspect, `.eval` or JSON: the last output of each sample and epoch |
    | `reference` | pickled outputs of the authors' package, with the confidences they have |

    Files are JSON lines, one JSON value, `.eval` archives or pickles, and are recognised by what is
    in them. Pickles are read without running anything. JSON lines of any number take the memory of
    twice the longest line and of one row group; a pickle is held whole.

    Traces are numbered within their question, in the order in which they are met. Answers are
    extracted, given one name for all that are equivalent within a question, and marked where the
    right one is known.

    Args:
        source: a path, a glob, or several; or responses, outputs or parsed JSON, one or many.
        format: "auto", or what it must be.
        k: how many of the most likely tokens count. None for as many as each token has; if they
            differ, it must be given.
        entries: "topk", or "returned" to count the sampled token too where it is not among them.
        logprob_floor: raises smaller log-probabilities to this, nats. Some servers report masked
            tokens as -9999, which is refused without it.
        answer: how the answer is found in the text; see `answers.extractor`.
        math: whether algebra helps to tell whether answers are the same; see `answers.AnswerBook`.
        gold: right answers: a mapping from question id, or a questions file, whose questions are
            found by their id, else by their text (`question_id="prompt"`); see
            `questions.load_questions`, of which `id` and `answer` are enough here. It goes before
            what a log says itself.
        question_id: how the question of a record is found. None for its `question_id`, else
            `custom_id`, `request_id` (vLLM), `id` (Inspect) or `qid` (the authors' package, else
            the file's name), else the number of the record (of the line in JSON lines), from 1. The
            name of a field, with dots for fields within; "regex:..." or a compiled pattern, whose
            group `question`, first group, or whole match in that id (where there is none, the field
            `id`) is taken, such as `r"regex:(.+)-\d+"` for `q1-0`, `q1-1`; or a callable, which is
            given the parsed record or the object.
        missing: what becomes of a token without log-probabilities: "error", or "skip" to leave it
            out of the trace.
        out: a file to write, `.parquet`, `.arrow` or `.feather`, which is there only when it is
            whole; None for a table.
        progress: is called with the bytes that are read, and all of them; True for a bar.

    Returns:
        A table, or the path of `out`.

    Raises:
        InvalidInput: a record is damaged, of no known format, or cannot be scored; the message
            names the file, the line, the choice and the token.
        InvalidType: an argument of the wrong type.
        MissingExtra: pyarrow or msgspec is not installed.
    """
    with bar(progress, "importing bytes") as tell:
        job = Import(
            format=format,
            k=k,
            entries=entries,
            logprob_floor=logprob_floor,
            answer=answer,
            math=math,
            gold=gold,
            question_id=question_id,
            missing=missing,
            progress=tell,
        )
        found = job.table(source) if out is None else job.write(source, out)
    for text in job.summary.notes():
        warnings.warn(text, RunWarning, stacklevel=2)
    return found


@dataclass
class Summary:
    """What came in."""

    traces: int = 0
    tokens: int = 0
    questions: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    marked: int = 0
    correct: int = 0
    k: int | None = None
    models: dict[str, None] = field(default_factory=dict)
    dropped: int = 0
    """Tokens without log-probabilities that were left out."""
    unsure: int = 0
    """Tokens of which the k-th likeliest may be missing."""
    alone: bool = False
    """Whether nobody said how questions are found, and each has one trace."""
    open_ends: int = 0
    """Traces that do not say how they ended."""
    unknown: dict[str, None] = field(default_factory=dict)
    """Questions that are not in `gold`."""
    numbered: bool = True
    """Whether no record says which question it answers, so that each is one of its own."""
    ending: str = ""
    """How the first text ends."""

    def notes(self) -> Iterator[str]:
        """What its reader must know."""
        if self.ending and not self.answered:
            yield (
                f"no answer was found in {counted(self.traces, 'trace')}, the first of which "
                f"ends with {self.ending!r}: "
                "answer says how one is found, by default the last \\boxed{...}"
            )
        if self.alone and self.traces > 1:
            yield (
                f"each of the {self.questions:,} questions has one trace: where several answer one "
                "question, question_id says which, such as a field of the record"
            )
        if self.unsure and self.k is not None:
            yield (
                f"at {self.unsure:,} of {self.tokens:,} tokens the sampled token may stand in the "
                f"place of the {self.k}th likeliest, as vLLM's server has it: k={self.k - 1} is "
                f"exact; to have k={self.k}, ask for top_logprobs={self.k + 1}"
            )
        if self.open_ends:
            yield (
                f"of {counted(self.open_ends, 'trace')} nothing says how it ended (finish_reason): "
                "that counts as finished, though it may have been cut short"
            )
        if self.dropped:
            yield f"left out: {counted(self.dropped, 'token')} without log-probabilities"
        if self.unknown:
            many = counted(len(self.unknown), "question")
            yield f"not in gold: {many}, such as {_some([*self.unknown], '')}"
        if len(self.models) > 1:
            yield f"the traces are of several models: {', '.join(self.models)}"


@dataclass(slots=True)
class _Asked:
    """What is known of a question: its answers, and how many traces it has."""

    traces: int = 0
    book: AnswerBook | None = None
    marked: dict[tuple[str, tuple[str, ...]], bool] = field(default_factory=dict)


class Import:
    """One import; the arguments are those of `import_traces`."""

    def __init__(
        self,
        *,
        format: str | tuple[str, ...] = "auto",
        k: int | None = None,
        entries: Literal["topk", "returned"] = "topk",
        logprob_floor: float | None = None,
        answer: Any = "boxed",
        math: Literal["auto"] | bool = "auto",
        gold: Any = None,
        question_id: Any = None,
        missing: Literal["error", "skip"] = "error",
        progress: Told | None = None,
    ) -> None:
        _need("msgspec")
        from deepconf.importing._question import namer
        from deepconf.importing._rows import Scorer

        self._format = format
        self._entries = entries
        self._score = Scorer(k, entries, logprob_floor, missing)
        self._extract = extractor(answer)
        AnswerBook(math=math)  # Says at once what is wrong with it.
        self.math = math
        self._gold = right_answers(gold)
        self._mapped = isinstance(gold, Mapping)
        self._namer = namer(question_id)
        self._named = question_id is not None
        self._several = ""
        self._progress = progress
        self._asked: dict[str, _Asked] = {}
        self._taken: bool | None = None  # Whether confidences are taken as they are.
        self.summary = Summary()

    def table(self, source: Any) -> pa.Table:
        """The traces of a source."""
        return table(self.rows(source), self.settings)

    def write(self, source: Any, out: str | os.PathLike[str]) -> Path:
        """Writes the traces of a source to a file."""
        _need("pyarrow")
        from deepconf.traces import TraceWriter, spare_recordings, target

        spare_recordings(target(out))
        rows = self.rows(source)
        # The first traces tell k and the model; then a file that cannot be written is known early.
        head = []
        for row in rows:
            head.append(row)
            if self._score.k is not None or self._taken or len(head) == _TRACES:
                break
        with TraceWriter(out, schema=_columns(), settings=self.settings()) as writer:
            for batch in _batches(chain(head, rows)):
                writer.write(batch)
        return Path(out).expanduser()

    def rows(self, source: Any) -> Iterator[dict[str, Any]]:
        """The traces of a source, one after the other, by the names of their columns."""
        from deepconf.importing._formats import Reader

        reader = Reader(source, self._format, self._namer, self._entries == "returned")
        for found, number in reader:
            yield self._row(found, self._question(found, number, reader))
            if self._progress is not None:
                self._progress(reader.done, reader.total)
        if self._progress is not None:
            self._progress(reader.done, reader.total)
        self._check()

    def found(self, traces: Iterable[Found], named: bool) -> Iterator[dict[str, Any]]:
        """The same of traces that were found already, each with its question.

        Args:
            traces: they.
            named: whether the caller said which questions these are.
        """
        self.summary.numbered = not named
        self._several = "questions says which question each trace answers"
        for each in traces:
            yield self._row(each, str(each.question))
        self._check()

    def _check(self) -> None:
        """What can be said of a source only behind its end."""
        from deepconf.importing._rows import ASK

        summary = self.summary
        if not summary.traces:
            raise InvalidInput("source: there are no traces in it")
        if summary.dropped and not summary.tokens:
            raise InvalidInput(
                f"source: none of its {counted(summary.dropped, 'token')} has log-probabilities, "
                "so "
                f"without them no trace is left: {ASK}"
            )
        self._check_gold()

    def _check_gold(self) -> None:
        """Of questions that gold does not have, what they may be called there."""
        unknown, asked = self.summary.unknown, [*self._asked]
        alone = self.summary.traces == len(asked) > 1
        several = self._several or (
            f"if several of the {self.summary.traces:,} records answer one question, question_id "
            "says which: a field of the record, such as 'metadata.id' (for vLLM 'prompt'), or a "
            'pattern for its id, such as "regex:(.+)-" for q1-0, q1-1'
        )
        if self._gold and len(unknown) == len(asked):
            if self.summary.numbered and not alone and not self._several:
                # They are grouped already: each record has several traces.
                raise InvalidInput(
                    f"gold: the traces are of {counted(len(asked), 'question')} without ids, "
                    f"numbered {asked[0]} to {asked[-1]}, and those of gold are called "
                    f"{_some([*self._gold])}: leave gold's ids out, if it is in the same order; or "
                    "question_id='id', if these are the ids of the responses; or add a field with "
                    "the id to the records, which question_id names (for vLLM, 'prompt')"
                )
            raise InvalidInput(
                "gold: none of the questions of the traces is in it; they are called "
                f"{_some(asked)}, and those of gold {_some([*self._gold])}: {several}; where "
                "gold goes by the question's text, that of vLLM is question_id='prompt'"
            )
        # Records without ids are matched by number: not where one side counts from another.
        by_number = self.summary.numbered or not self._mapped  # Else both sides have ids.
        if by_number and misnumbered(self._gold, asked):
            numbers = numbers_in(self._gold)
            of_traces = (
                f"records that have no ids, numbered {asked[0]} to {asked[-1]} (the first is 1)"
                if self.summary.numbered
                else f"called {_some(asked)}"
            )
            raise InvalidInput(
                f"gold: its questions are called by their number, {numbers[0]} to {numbers[-1]}; "
                f"those of the traces are {of_traces}, and may be numbered otherwise: give both "
                "ids (question_id says where a record has its own), or number gold as the traces "
                f"are{f'; {several}' * alone}"
            )
        if self.summary.numbered and unknown and alone and not self._named:
            raise InvalidInput(
                f"gold: has {len(asked) - len(unknown):,} of {counted(len(asked), 'question')}, "
                f"which are the numbers of records that have no ids: {several}"
            )

    def settings(self) -> dict[str, Any]:
        """How the traces that were read came to be."""
        settings: dict[str, Any] = {
            "entries": "returned" if self._taken else self._entries,
            "versions": versions(),
        }
        if self._score.k is not None:
            settings["k"] = self._score.k
        if self.summary.models:
            settings["model"] = ", ".join(self.summary.models)
        return settings

    def _question(self, found: Found, number: str, reader: Reader) -> str:
        if found.question is not None:
            self.summary.numbered = False
            return found.question
        if not found.countable:
            raise InvalidInput(
                f"{found.place}: does not say which question it answers: pass RequestOutputs, or "
                "question_id"
            )
        if reader.files is not None and len(reader.files) > 1:
            raise InvalidInput(
                f"{found.place}: does not say which question it answers (there is no question_id "
                "or custom_id), and of several files the number of the line would not: pass "
                "question_id, a field, a pattern or a callable"
            )
        return number

    def _row(self, found: Found, question: str) -> dict[str, Any]:
        asked = self._asked.setdefault(question, _Asked())
        where = f"{found.place} (question {question!r}, trace {asked.traces})"
        confidence = self._confidence(found, where)
        answer, gold, correct = self._answer(found, question, asked, where)
        summary = self.summary
        summary.traces += 1
        summary.questions = len(self._asked)
        summary.alone = not self._named and summary.questions == summary.traces
        summary.tokens += len(confidence)
        summary.statuses[found.status] += 1
        summary.answered += answer is not None
        summary.ending = summary.ending or _unicode(found.text or "")[-60:]
        summary.marked += correct is not None
        summary.correct += correct is True
        summary.open_ends += found.open_end
        summary.k, summary.dropped, summary.unsure = (
            self._score.k,
            self._score.dropped,
            self._score.unsure,
        )
        if found.model:
            summary.models[_unicode(found.model)] = None
        asked.traces += 1
        return {
            "question_id": question,
            "trace": asked.traces - 1,
            "answer": answer and _unicode(answer),
            "status": found.status,
            "num_tokens": len(confidence),
            "confidence": confidence,
            "text": _unicode(found.text),
            "correct": correct,
            "error": found.error and _unicode(found.error),
            "gold": gold and _unicode(gold),
        }

    def _confidence(self, found: Found, where: str) -> NDArray[np.float32]:
        if found.rows is None:
            return np.empty(0, np.float32)
        taken = isinstance(found.rows, np.ndarray)
        if self._taken not in (None, taken):
            raise InvalidInput(
                f"{where}: confidences that the authors' package computed, of all entries, and "
                "those computed here cannot go into one file: import them apart"
            )
        self._taken = taken
        if not isinstance(found.rows, np.ndarray):
            return self._score(found.rows, where)
        lost = 0 if found.tokens is None else found.tokens - len(found.rows)
        if lost and (self._score.missing == "error" or lost < 0):
            raise InvalidInput(
                f"{where}: has {found.tokens} tokens and {len(found.rows)} confidences: "
                + ("missing='skip' takes those there are" if lost > 0 else "which cannot be")
            )
        self._score.dropped += lost
        return found.rows

    def _answer(
        self, found: Found, question: str, asked: _Asked, where: str
    ) -> tuple[str | None, str | None, bool | None]:
        """The answer, the right one, and whether it is that; None for what is not known."""
        try:
            looked = found.extract and found.answer is None
            answer = self._extract(found.text) if looked else found.answer
        except (InvalidInput, InvalidType):
            raise
        except Exception as error:  # The caller's own code.
            reason = f"{type(error).__name__}: {error}"
            raise InvalidInput(f"{where}: the answer extractor raised {reason}") from error
        if answer is not None:
            asked.book = asked.book or AnswerBook(math=self.math)
            answer = asked.book.canonical(answer)
        known = self._gold.get(question)
        right = tuple(found.gold) if known is None else (known,)
        if not right:
            if self._gold:
                self.summary.unknown[question] = None
            return answer, None, None
        if found.status == "failed":  # Neither right nor wrong.
            return answer, right[0], None
        if answer is None:
            return None, right[0], False
        key = (answer, right)
        if key not in asked.marked:
            asked.marked[key] = any(marks([answer], one, math=self.math)[answer] for one in right)
        return answer, right[0], asked.marked[key]


def right_answers(gold: Any) -> dict[str, str]:
    """The right answers by question, those of a questions file by its id and by its text.

    Raises:
        InvalidInput: it holds none, or one is empty.
        InvalidType: neither a mapping nor a questions file.
    """
    if gold is None:
        return {}
    if hasattr(gold, "columns") or hasattr(gold, "iloc") or isinstance(gold, list | tuple):
        bare = [each for each in gold if not isinstance(each, Question | Mapping)]
        if bare or not isinstance(gold, list | tuple):
            of = f" of {bare[0]!r:.50}, ..." if bare else ""
            raise InvalidType(
                f"gold is a {type(gold).__name__}{of}: must be a mapping from question id to "
                "answer, such as dict(zip(ids, answers)) or that of a pandas Series with the ids "
                "as its index, .to_dict(); where questions have no ids, {1: ..., 2: ...}, by their "
                "number; or a questions file"
            )
    if not isinstance(gold, Mapping):
        if not isinstance(gold, str | Path | Iterable):
            raise InvalidType(
                f"gold is a {type(gold).__name__}: must be a mapping from question id to answer, "
                "or a questions file"
            )
        known = [each for each in read_questions(gold, asked=False)[0] if each.answer is not None]
        by_text = {q.question: str(q.answer) for q in known if isinstance(q.question, str)}
        by_text.pop("", None)
        return {each.id: str(each.answer) for each in known} | by_text
    found = {}
    for name, answer in gold.items():
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise InvalidType(f"gold[{name!r}] is {answer!r:.100}: must be a string or a number")
        if not str(answer).strip():
            raise InvalidInput(f"gold[{name!r}] is empty: there must be one to compare with")
        found[str(name)] = str(answer)
    if not found:
        raise InvalidInput("gold: there is nothing in it")
    return found


def misnumbered(gold: Mapping[str, str], asked: Sequence[str]) -> bool:
    """Whether gold and the traces both go by numbers, and these fit each other only in part.

    Args:
        gold: the right answers by question.
        asked: the questions of the traces.
    """
    numbers = numbers_in(gold)
    if not numbers or not all(map(str.isdecimal, asked)):
        return False
    return numbers[0] not in asked or any(name not in gold for name in asked)


def numbers_in(gold: Mapping[str, str]) -> list[str]:
    """The questions, where all are called by their number."""
    names = [name for name in gold if name.isdecimal()]
    starts = ([str(n) for n in range(base, base + len(names))] for base in (0, 1))
    return names if names in starts else []


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtra("import", package)


def table(rows: Iterable[dict[str, Any]], settings: Callable[[], dict[str, Any]]) -> pa.Table:
    """Rows of an import as a table of `traces.schema`; the settings are asked for behind the last.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    _need("pyarrow")
    import pyarrow as pa

    found = pa.Table.from_batches(list(_batches(rows)), _columns())
    return found.replace_schema_metadata(as_texts(settings()))


def _some(names: Sequence[str], more: str = ", ...") -> str:
    """The first of some names."""
    return ", ".join(map(repr, names[:3])) + more * (len(names) > 3)


def _unicode(text: str) -> str:
    """Half a character, as of a token that was cut, becomes the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _columns() -> pa.Schema:
    import pyarrow as pa

    from deepconf.traces import schema

    return pa.schema([item for item in schema() if item.name in COLUMNS])


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    held: list[dict[str, Any]] = []
    tokens = characters = 0
    for row in rows:
        held.append(row)
        tokens += row["num_tokens"]
        characters += len(row["text"] or "")
        if tokens >= _TOKENS or len(held) >= _TRACES or characters >= _CHARACTERS:
            yield _batch(held)
            held, tokens, characters = [], 0, 0
    if held:
        yield _batch(held)


def _batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    import pyarrow as pa

    columns, schema = [], _columns()
    for item in schema:
        values = [row[item.name] for row in rows]
        if item.name == "confidence":
            ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
            columns.append(pa.ListArray.from_arrays(ends, np.concatenate(values)))
        else:
            columns.append(pa.array(values, item.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
