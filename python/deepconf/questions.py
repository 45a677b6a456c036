"""Questions with the answers that are right, and files of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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
    answer: str


def load_questions(path: str | Path) -> list[Question]:
    """Reads a file of questions, one JSON object a line.

    `{"id": "q1", "question": "1+1=?", "answer": "2"}`: the question is a string or a list of chat
    messages, the answer a string or a number; without an id the line's number is taken.

    Raises:
        InvalidInput: a line is broken; the message names the file, the line and what is wrong.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8: {error}") from error
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{place}: not JSON: {error}") from error
        question = _question(value, str(number), place)
        if question.id in seen:
            raise InvalidInput(f"{place}: id {question.id!r} is taken by line {seen[question.id]}")
        seen[question.id] = number
        questions.append(question)
    if not questions:
        raise InvalidInput(f"{path}: there are no questions in it")
    return questions


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
        InvalidInput: a chat has a system message already, or ends in what no text can be added to.
        InvalidType: `system` or `suffix` is no string.

    >>> posed("1+1=?", suffix="Put your final answer within a box.")
    '1+1=?\nPut your final answer within a box.'
    """
    for name, text in (("system", system), ("suffix", suffix)):
        if text is not None and not isinstance(text, str):
            raise InvalidType(f"{name}={text!r}: must be a string")
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
                f"{last!r}: its content must be a string"
            )
        last["content"] += f"\n{suffix}"
    return messages


def read_questions(
    questions: str | Path | Iterable[Question | Mapping[str, Any]],
) -> tuple[list[Question], str]:
    """Questions in any form, and a hash that tells them from others.

    Args:
        questions: a file (see `load_questions`), or `Question`s, or mappings with the same keys.

    Returns:
        The questions, and the SHA-256 of the file, or of what there is instead of one.

    Raises:
        InvalidInput: a question is broken, or an id is there twice.
    """
    if isinstance(questions, str | Path):
        every = load_questions(questions)
        return every, hashlib.sha256(Path(questions).expanduser().read_bytes()).hexdigest()
    every = [
        item if isinstance(item, Question) else _question(item, str(at), f"questions[{at}]")
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


def _question(value: Any, default: str, place: str) -> Question:
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f'{place}: must be an object, such as {{"question": ..., "answer": ...}}'
        )
    for key in ("question", "answer"):
        if key not in value:
            raise InvalidInput(f"{place}: there is no {key!r}; the keys are {sorted(value)}")
    name, question, answer = value.get("id", default), value["question"], value["answer"]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise InvalidInput(f"{place}: id is {name!r}: must be a string or a whole number")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise InvalidInput(f"{place}: answer is {answer!r}: must be a string or a number")
    if not str(answer).strip():
        raise InvalidInput(f"{place}: answer is empty: there must be one to compare with")
    if isinstance(question, list) and question:
        for message in question:
            if not (isinstance(message, Mapping) and "role" in message and "content" in message):
                raise InvalidInput(
                    f"{place}: question holds the message {message!r}: must have role and content"
                )
    elif not isinstance(question, str) or not question.strip():
        raise InvalidInput(f"{place}: question is {question!r}: must be a string or chat messages")
    return Question(str(name), question, str(answer))
