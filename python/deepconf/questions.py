"""Questions, with the answers that are right where those are known, and files of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepconf.errors import InvalidInput, InvalidType

__all__ = ["Question", "load_questions", "posed", "read_questions"]


@dataclass(frozen=True)
class Question:
    """A question and the answer that is right."""

    id: str
    question: str | list[dict[str, Any]]
    answer: str | None = None
    """None where it is not known: the question is answered, and not marked."""


def load_questions(path: str | Path) -> list[Question]:
    """Reads a file of questions: one JSON object a line, a JSON array of them, or Parquet.

    `{"id": "q1", "question": "1+1=?", "answer": "2"}`: the question is a string or a list of chat
    messages, the answer a string or a number, or not there; without an id the line's number is
    taken, from 1. Parquet, told by its content, has these as columns, and needs pyarrow. `-` is
    stdin.

    Raises:
        InvalidInput: a line is broken; the message names the file, the line and what is wrong.
        MissingExtra: it is Parquet, and pyarrow is not installed.
    """
    return _read(path)[0]


def _read(path: str | Path, asked: bool = True) -> tuple[list[Question], str]:
    """The questions of a file, and its SHA-256; see `read_questions`."""
    name = "-" if str(path) == "-" else str(Path(path).expanduser())
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{name}: cannot be read: {error.strerror or error}") from error
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for at, number, value in _values(content, name):
        question = _question(value, str(number), f"{name}, {at} {number}", asked)
        if question.id in seen:
            raise InvalidInput(
                f"{name}, {at} {number}: id {question.id!r} is taken by {seen[question.id]}"
            )
        seen[question.id] = f"{at} {number}"
        questions.append(question)
    if not questions:
        raise InvalidInput(f"{name}: there are no questions in it")
    return questions, hashlib.sha256(content).hexdigest()


def _values(content: bytes, name: str) -> Iterator[tuple[str, int, Any]]:
    """What is in a file, each with what it is called there and its number, from 1."""
    if name.lower().endswith((".csv", ".tsv")):
        raise InvalidInput(
            f"{name}: questions are JSON lines, a JSON array or Parquet, and no CSV: "
            "pandas.read_csv(...).to_json(path, orient='records', lines=True) makes JSON lines of "
            "one with the columns id, question and answer"
        )
    if content.startswith(b"PAR1"):
        for row, value in enumerate(_rows(content, name), start=1):
            yield "row", row, value
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name}: not UTF-8: {error}") from error
    with contextlib.suppress(ValueError):
        if text.lstrip().startswith("[") and isinstance(whole := json.loads(text), list):
            for place, value in enumerate(whole, start=1):
                yield "entry", place, value
            return
    for line, part in enumerate(text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            value = json.loads(part)
        except ValueError as error:
            raise InvalidInput(
                f"{name}, line {line}: not JSON: {error}: questions are JSON lines, a JSON "
                "array or Parquet"
            ) from error
        yield "line", line, value


def _rows(content: bytes, name: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file, without its nulls."""
    from deepconf.traces._schema import arrow

    pa = arrow()
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(pa.BufferReader(content)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"{name}: cannot be read as Parquet: {error}") from error
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def posed(
    question: str | Sequence[Mapping[str, Any]],
    *,
    system: str | None = None,
    suffix: str | None = None,
) -> str | list[dict[str, Any]]:
    r"""A question as it is asked.

    Args:
        question: a string, or chat messages.
        system: a system message to begin with, which makes a string a chat.
        suffix: appended to the question, the last message of a chat, on a line of its own.

    Raises:
        InvalidInput: there is no question; a chat has a system message already, or ends in what no
            text can be added to.
        InvalidType: `system` or `suffix` is no string.

    >>> posed("1+1=?", suffix="Put your final answer within a box.")
    '1+1=?\nPut your final answer within a box.'
    """
    for name, text in (("system", system), ("suffix", suffix)):
        if text is not None and not isinstance(text, str):
            raise InvalidType(f"{name}={text!r}: must be a string")
    if not question or (isinstance(question, str) and not question.strip()):
        raise InvalidInput(f"question={question!r}: is empty: there is nothing to ask")
    if isinstance(question, str):
        text = f"{question}\n{suffix}" if suffix else question
        if not system:
            return text
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]
    messages = [dict(message) for message in question]
    if system:
        if messages and messages[0].get("role") == "system":
            raise InvalidInput(
                f"system={system!r}: the question begins with a system message of its own"
            )
        messages.insert(0, {"role": "system", "content": system})
    if suffix:
        last = messages[-1] if messages else {}
        if not isinstance(last.get("content"), str):
            raise InvalidInput(
                f"suffix={suffix!r}: cannot be appended to the last message of the question, "
                f"{last!r:.100}: its content must be a string"
            )
        last["content"] += f"\n{suffix}"
    return messages


def read_questions(
    questions: str | Path | Iterable[Question | Mapping[str, Any]], *, asked: bool = True
) -> tuple[list[Question], str]:
    """Questions in any form, and a hash that tells them from others.

    Args:
        questions: a file (see `load_questions`), or `Question`s, or mappings with the same keys,
            numbered from 1 where they have no id.
        asked: whether they are to be asked. If not, an answer needs no question, which is empty.

    Returns:
        The questions, and the SHA-256 of the file, or of what there is instead of one.

    Raises:
        InvalidInput: a question is broken, or an id is there twice.
    """
    if isinstance(questions, str | Path):
        return _read(questions, asked)
    every = [
        item
        if isinstance(item, Question)
        else _question(item, str(at + 1), f"questions[{at}]", asked)
        for at, item in enumerate(questions)
    ]
    if not every:
        raise InvalidInput("questions: there are none")
    seen: set[str] = set()
    for at, question in enumerate(every):
        if question.id in seen:
            raise InvalidInput(f"questions[{at}]: id {question.id!r} is taken by an earlier one")
        seen.add(question.id)
    canonical = json.dumps([[q.id, q.question, q.answer] for q in every], sort_keys=True)
    return every, hashlib.sha256(canonical.encode()).hexdigest()


def _question(value: Any, default: str, place: str, asked: bool) -> Question:
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f'{place}: must be an object, such as {{"question": ..., "answer": ...}}'
        )
    bare = not asked and "question" not in value
    if (needed := "answer" if bare else "question") not in value:
        raise InvalidInput(f"{place}: there is no {needed!r}; the keys are {sorted(value)}")
    name, question, answer = (
        value.get("id", default),
        value.get("question", ""),
        value.get("answer"),
    )
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise InvalidInput(f"{place}: id is {name!r:.100}: must be a string or a whole number")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise InvalidInput(f"{place}: answer is {answer!r:.100}: must be a string or a number")
    if not str(answer).strip():
        raise InvalidInput(f"{place}: answer is empty: leave it out where it is not known")
    if isinstance(question, list) and question:
        for message in question:
            if not (isinstance(message, Mapping) and "role" in message and "content" in message):
                raise InvalidInput(
                    f"{place}: question holds the message {message!r:.100}: must have role "
                    "and content"
                )
    elif not bare and not (isinstance(question, str) and question.strip()):
        raise InvalidInput(
            f"{place}: question is {question!r:.100}: must be a string or chat messages"
        )
    return Question(str(name), question, None if answer is None else str(answer))
