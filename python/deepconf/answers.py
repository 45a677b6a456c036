r"""Answers: finding them in texts, and telling which are the same.

Two answers are the same when

1. their normalised strings are equal (words of three letters or more in any case); or
2. both are numbers of one value, exactly: 0.5, 1/2, 50%, and a percentage also as it stands; or
3. both show themselves to be mathematics, every token of both, and algebra (extra `math`) finds
   them equal, exactly: a decimal is no root.

Units, dates, times, identifiers, number bases and the case of letters are kept. Where it is in
doubt they differ: a wrong split costs a vote, a wrong merge makes a wrong answer right.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import math as _math
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from deepconf import _helpers
from deepconf._notation import folded, is_formula, normalise, rational
from deepconf.errors import DeepConfError, InvalidInput, InvalidType, MissingExtra

__all__ = ["AnswerBook", "Extractor", "boxed", "extractor", "marks", "named", "normalise", "same"]

Extractor = Callable[[str], "str | None"]

# ---- extraction -------------------------------------------------------------------------------

_BOX = re.compile(
    r"\\{1,2}(?:boxed|fbox)\s*(?P<open>\{)|\\{1,2}(?:boxed|fbox)[ \t]+(?P<bare>[^\s{}$]+)"
    r"|\\.|(?P<brace>[{}])",
    re.DOTALL,
)


def boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, or None.

    Braces may be nested, and `\boxed 5` counts too. A box that is cut off is no answer. Linear in
    the length of the text.

    >>> boxed(r"so \boxed{3}, no: \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    found = None
    opened: list[int | None] = []
    for token in _BOX.finditer(text):
        if token["open"]:
            opened.append(token.end())
        elif token["bare"]:
            found = token["bare"] if _says(token["bare"]) else found
        elif token["brace"] == "{":
            opened.append(None)
        elif token["brace"] == "}" and opened:
            start = opened.pop()
            # A box around a box that is complete already says the same.
            if start is not None and not _BOX_START.search(text, start, token.start()):
                inside = text[start : token.start()]
                found = inside if _says(inside) else found  # An empty box does not beat a real one.
    return (found or "").strip() or None


_EMPTY = re.compile(r"\\(?:text|mathrm|textbf|mathbf)(?![a-zA-Z])|[\s{}$~]")


def _says(inside: str) -> bool:
    """Whether anything is left of a box's content without its wrapping."""
    return bool(_EMPTY.sub("", inside[:1_000]))


_BOX_START = re.compile(r"\\(?:boxed|fbox)\b")


def extractor(spec: Any) -> Extractor:
    """What finds the answer in a trace's text.

    Args:
        spec: "boxed"; a regular expression, compiled or as "regex:...", whose group `answer`, first
            group, or whole match is taken where it matches last; or a callable from text to str or
            None.

    Raises:
        InvalidInput: an unknown name, or a regular expression that does not compile.
        InvalidType: none of these, or a regular expression on bytes; or, when called, a callable
            that returns something else.
    """
    if spec == "boxed":
        return boxed
    if isinstance(spec, str):
        if not spec.startswith("regex:"):
            raise InvalidInput(
                f'answer={spec!r}: must be "boxed", "regex:..." or a callable; write a regular '
                'expression as "regex:..."'
            )
        try:
            spec = re.compile(spec.removeprefix("regex:"))
        except re.error as error:
            raise InvalidInput(f"answer={spec!r} is no regular expression: {error}") from error
    if isinstance(spec, re.Pattern):
        if not isinstance(spec.pattern, str):
            raise InvalidType(f"answer={spec!r}: the regular expression must be one on str")
        return _matcher(spec)
    if not callable(spec):
        raise InvalidType(f'answer={spec!r}: must be "boxed", "regex:..." or a callable')

    def checked(text: str) -> str | None:
        found = spec(text)
        if found is not None and not isinstance(found, str):
            raise InvalidType(f"the answer extractor returned {found!r}: must be a str or None")
        return (found or "").strip() or None

    return checked


_MATCHING = 5.0


def _matcher(pattern: re.Pattern[str]) -> Extractor:
    group: str | int = "answer" if "answer" in pattern.groupindex else min(pattern.groups, 1)

    def last(text: str) -> str | None:
        # One that backtracks holds the interpreter, so it runs where it can be killed; package
        # `regex` has a time limit, but reads some patterns otherwise than `re`.
        call = "deepconf._helpers:last_match"
        flags = pattern.flags & ~re.DEBUG
        try:
            found = _helpers.run(
                call, pattern.pattern, flags, group, text, limit=_MATCHING
            ).result()
        except _helpers.TimedOut:
            raise InvalidInput(
                f"answer={pattern.pattern!r}: the regular expression took more than "
                f"{_MATCHING:g} s on a text of {len(text)} characters; it must not backtrack so"
            ) from None
        except _helpers.Unavailable as error:
            raise DeepConfError(f"answer={pattern.pattern!r} cannot be applied: {error}") from error
        return (found or "").strip() or None

    last.__name__ = f"regex:{pattern.pattern}"  # As warnings call it.
    return last


# ---- equivalence ------------------------------------------------------------------------------


@dataclass
class _Class:
    """Formulas and numbers that are the same."""

    representative: str
    normal: str
    name: str
    values: list[float]


_PROFILES: dict[str, Future[Any]] = {}
_MOST_PROFILES = 20_000


def _profile(normal: str, limit: float) -> Future[Any]:
    """What the algebra knows of a formula; asked once for all books."""
    known = _PROFILES.get(normal)
    if known is None or known.cancelled() or (known.done() and known.exception()):
        if len(_PROFILES) >= _MOST_PROFILES:
            _PROFILES.clear()
        known = _helpers.run("deepconf._equivalence:profile", normal, limit=limit)
        _PROFILES[normal] = known
    return known


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROFILES.clear)  # Some will be answered in the parent only.


@functools.cache
def _has_algebra() -> bool:
    return importlib.util.find_spec("math_verify") is not None


class AnswerBook:
    r"""Gives every answer the first one seen that is the same.

    An answer is looked up as it stands, then normalised, then by its value if it is a number.
    Formulas are read once, by a helper process, and compared by algebra only with those that have
    their shape, and their values at fixed points.

    A percentage is the same as the first plain number seen that it may stand for: 50\% as 50, or as
    0.5, and never makes these two the same.

    Args:
        math: "auto" to use math-verify where it is installed, True to insist, False for strings and
            numbers only.
        timeout: seconds the algebra may take to read an answer, or to compare two; what takes
            longer counts as different.

    Raises:
        MissingExtra: `math=True` and math-verify is not installed.
        InvalidInput: a timeout that is not above 0.

    Safe under threads; the result depends on the order of the calls alone.
    """

    def __init__(self, *, math: Literal["auto"] | bool = "auto", timeout: float = 5.0) -> None:
        if math not in ("auto", True, False):
            raise InvalidInput(f'math={math!r}: must be "auto", True or False')
        installed = _has_algebra()
        if math is True and not installed:
            raise MissingExtra("math", "math-verify")
        if not timeout > 0:
            raise InvalidInput(f"timeout={timeout}: must be above 0 seconds")
        self._math = installed if math == "auto" else bool(math)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._hurried = False
        self._known: dict[str, str] = {}
        self._values: dict[Fraction, str] = {}
        self._percentages: dict[Fraction, str] = {}
        self._texts: dict[str, str] = {}
        self._classes: dict[str, list[_Class]] = {}
        self.comparisons = 0
        """How many pairs the algebra was asked to compare."""
        self.timeouts = 0
        """How often it took too long."""
        self.trouble: str | None = None
        """Why the algebra failed, where it did; the answers concerned count as different."""

    def canonical(self, answer: str | None) -> str | None:
        """The representative of an answer; None for None and blanks.

        May take `timeout` seconds to read it, and as long again for each comparison.
        """
        stripped = (answer or "").strip()
        if not stripped:
            return None
        with self._lock:
            return self._known.get(stripped) or self._place(stripped)

    def hurry(self) -> None:
        """From now on nothing waits for algebra: answers are named by string and value."""
        self._hurried = True

    def _place(self, answer: str) -> str:
        normal = normalise(answer)
        found = self._known.get(normal)
        if found is None:
            found = self._looked_up(answer, normal)
        self._known[normal] = self._known[answer] = found
        return found

    def _looked_up(self, answer: str, normal: str) -> str:
        words = folded(normal)
        if words is not None:
            return self._texts.setdefault(words, answer)
        percentage = rational(normal.removesuffix("%")) if normal.endswith("%") else None
        if percentage is not None:
            return self._percentage(answer, percentage)
        value = rational(normal)
        if value is None:
            return self._formula(answer, normal)
        found = self._values.get(value)
        if found is None:
            meant = (p for p in (value, 100 * value) if p in self._percentages)
            percentage = next(meant, None)
            if percentage is not None:
                found = self._percentages.pop(percentage)
            else:
                found = self._number(answer, value)
            self._values[value] = found
        return found

    def _percentage(self, answer: str, percentage: Fraction) -> str:
        for value in (percentage, percentage / 100):
            if value in self._values:
                return self._values[value]
        found = self._number(answer, percentage / 100)
        return self._percentages.setdefault(percentage, found)

    def _number(self, answer: str, value: Fraction) -> str:
        try:
            values = [float(value), 0.0]
        except OverflowError:
            return answer  # Beyond what floats tell apart: equal to other numbers only.
        fraction = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        return self._compared(_Class(answer, fraction, "", values), "", number=True)

    def _formula(self, answer: str, normal: str) -> str:
        if not self._math or self._hurried or not is_formula(normal):
            return answer
        profile = self._answered(_profile(normal, self._timeout))
        if profile is None:
            return answer
        name, shape, values = profile
        return self._compared(_Class(answer, normal, name, values), shape)

    def _compared(self, new: _Class, shape: str, *, number: bool = False) -> str:
        """The representative of the class that algebra puts it in, or of a new one."""
        bucket = self._classes.setdefault(shape, [])
        for other in bucket if self._math else []:
            if number and other.normal.startswith("\\frac{") and rational(other.normal) is not None:
                continue  # Both are numbers, and their values differ.
            if _near(new, other) and not self._hurried:
                self.comparisons += 1
                call = "deepconf._equivalence:equal"
                pair = _helpers.run(call, other.normal, new.normal, limit=self._timeout)
                if self._answered(pair):
                    return other.representative
        bucket.append(new)
        return new.representative

    def _answered(self, future: Future[Any]) -> Any:
        """What a helper says; None when it says nothing, or there is no more time to wait."""
        while not self._hurried:
            try:
                # In short turns, so that Ctrl-C and `hurry` get through.
                return future.result(timeout=0.1)
            except _helpers.TimedOut:
                self.timeouts += 1
                return None
            except _helpers.Failed:
                return None  # What cannot be understood equals nothing but itself.
            except _helpers.Unavailable as error:
                self.trouble = str(error)
                return None
            except (TimeoutError, concurrent.futures.TimeoutError):
                continue
        future.cancel()
        return None


def _near(a: _Class, b: _Class) -> bool:
    if a.name and b.name and a.name != b.name:
        return False
    return len(a.values) == len(b.values) and all(
        _math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)
        for x, y in zip(a.values, b.values, strict=True)
    )


def named(
    answers: Any, math: Literal["auto"] | bool = "auto", questions: Any = None
) -> list[str | None]:
    """One name for all answers that are the same, the first seen; None for None, NaN and blanks.

    Args:
        answers: strings, as a sequence, an array or a column of a data frame.
        math: as in `AnswerBook`.
        questions: `[answers]` hashable, the question of each; only answers to one question are
            compared. None where they all answer one.

    Raises:
        InvalidInput: there is not one question for each answer.
        InvalidType: an answer is no string.
    """
    texts = _listed(answers)
    ids = [None] * len(texts) if questions is None else _listed(questions)
    if len(ids) != len(texts):
        raise InvalidInput(
            f"answers has {len(texts)} entries and questions {len(ids)}: must be as many"
        )
    books: dict[Any, AnswerBook] = {}
    found = []
    for at, (text, question) in enumerate(zip(texts, ids, strict=True)):
        missing = text is None or type(text).__name__ in ("NAType", "NaTType") or text != text
        if not missing and not isinstance(text, str):
            raise InvalidType(
                f"answers[{at}] is {text!r}, a {type(text).__name__}: must be a string where math "
                "says how answers are compared"
            )
        book = books.get(question) or books.setdefault(question, AnswerBook(math=math))
        found.append(None if missing else book.canonical(text))
    return found


def _listed(column: Any) -> list[Any]:
    """The values of a column of any kind."""
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            values: list[Any] = getattr(column, method)()
            return values
    return list(column)


_MARKS: dict[tuple[str, str, bool], bool] = {}


def marks(
    answers: Iterable[str],
    gold: str,
    *,
    math: Literal["auto"] | bool = "auto",
    timeout: float = 5.0,
) -> dict[str, bool]:
    """Whether each answer is the same as the gold answer.

    Each is compared with the gold answer alone: what the others say does not matter.
    """
    found = {}
    for answer in dict.fromkeys(answers):
        book = AnswerBook(math=math, timeout=timeout)
        key = (gold, answer, book._math)
        if key not in _MARKS:
            first = book.canonical(gold)
            right = first is not None and book.canonical(answer) == first
            if book.trouble or book.timeouts:
                found[answer] = right  # It may be otherwise next time.
                continue
            if len(_MARKS) >= _MOST_PROFILES:
                _MARKS.clear()
            _MARKS[key] = right
        found[answer] = _MARKS[key]
    return found


def same(a: str, b: str, *, math: Literal["auto"] | bool = "auto", timeout: float = 5.0) -> bool:
    r"""Whether two answers are the same; see the module.

    >>> same("0.50", r"$\frac12$"), same("1", "2")
    (True, False)
    """
    book = AnswerBook(math=math, timeout=timeout)
    return book.canonical(a) == book.canonical(b)
