"""Which question a record answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from deepconf.errors import InvalidInput, InvalidType

__all__ = ["Namer", "Whole", "namer"]


class Whole:
    """All of a record, for a caller who looks for its question.

    Args:
        place: where it is.
        given: the id that it has at its usual place, if any.
        raw: its JSON; or
        value: the object it is.
    """

    def __init__(
        self, place: str, given: str | int | None, raw: Any = None, value: Any = None
    ) -> None:
        self.place = place
        self.given = None if given is None else str(given)
        self._raw = raw
        self._value = value

    def value(self) -> Any:
        """Parsed JSON, or the object."""
        return self._value if self._raw is None else json.loads(bytes(self._raw))

    def keys(self) -> list[str]:
        """The names of its fields, where it has names."""
        value = self.value()
        return list(value) if isinstance(value, Mapping) else []

    def field(self, path: Sequence[str]) -> Any:
        """What stands at a path; None where there is none. Parses the first part of it only."""
        if self._raw is None:
            return _looked_up(self._value, path)
        try:
            parts = msgspec.json.decode(self._raw, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError):  # It has NaN, which JSON has not.
            return _looked_up(self.value(), path)
        part = parts.get(path[0])
        return None if part is None else _looked_up(json.loads(bytes(part)), path[1:])


_IDS = ("question_id", "custom_id", "request_id", "id")
"""Where a record may have its id."""

Namer = Callable[[Whole], "str | None"]


def namer(question_id: Any) -> Namer:
    """What finds the question of a record; see `import_traces`. It gives None for none.

    Raises:
        InvalidInput: a pattern that does not compile; or, when called, nothing is found.
        InvalidType: neither a field, nor a pattern, nor a callable.
    """
    if question_id is None:
        return lambda whole: None if whole.given is None else _checked(whole.given, whole)
    if isinstance(question_id, str) and question_id.startswith("regex:"):
        try:
            question_id = re.compile(question_id.removeprefix("regex:"))
        except re.error as error:
            raise InvalidInput(
                f"question_id={question_id!r} is no regular expression: {error}"
            ) from error
    if isinstance(question_id, re.Pattern):
        return lambda whole: _checked(_matched(question_id, whole), whole)
    if isinstance(question_id, str) and question_id:
        path = question_id.split(".")
        return lambda whole: _checked(_called(lambda of: of.field(path), whole, whole), whole)
    if callable(question_id):
        return lambda whole: _checked(_called(question_id, whole.value(), whole), whole)
    raise InvalidType(
        f'question_id={question_id!r:.100}: must be the name of a field, "regex:..." or a callable'
    )


def _looked_up(found: Any, path: Sequence[str]) -> Any:
    for name in path:
        inside = isinstance(found, Mapping)
        found = found.get(name) if inside else getattr(found, name, None)
    return found


def _matched(pattern: re.Pattern[str], whole: Whole) -> str:
    given = whole.given
    if given is None:
        found_id = whole.field(["id"])
        given = str(found_id) if isinstance(found_id, str | int) else None
    match = None if given is None else pattern.search(given)
    if match is None:
        field = next((name for name in _IDS if str(whole.field([name])) == given), "id")
        raise InvalidInput(
            f"{whole.place}: question_id={pattern.pattern!r} is not in its {field}, {given!r}: "
            "searched is the first that a record has of question_id, custom_id, request_id (of "
            "vLLM's outputs) and id"
            f"{_with_keys(whole) if given is None else ''}"
        )
    found: str = match["question" if "question" in pattern.groupindex else min(pattern.groups, 1)]
    return found


def _called(function: Callable[[Any], Any], argument: Any, whole: Whole) -> Any:
    try:
        return function(argument)
    except Exception as error:  # The caller's own code; or what stands there is no JSON.
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"{whole.place}: question_id raised {reason}") from error


def _with_keys(whole: Whole) -> str:
    keys = whole.keys()
    return f"; the record has the keys {', '.join(keys)}"[:500] if keys else ""


def _checked(value: Any, whole: Whole) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidInput(
            f"{whole.place}: question_id finds {value!r:.100}: must be a string or a whole number"
            f"{_with_keys(whole) if value is None else ''}"
        )
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{whole.place}: its question is {value!r}: no Unicode") from error
    return str(value)
