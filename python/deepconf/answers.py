r"""Answers: finding them in texts, and telling which are the same.

Two answers are the same when their normalised strings are equal, when both are numbers of one
value, or, with math-verify (extra `math`), when they are mathematically equal. So 0.5, 1/2 and
\frac12 share a ballot.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from deepconf._equivalence import Comparer
from deepconf.errors import InvalidInput, InvalidType, MissingExtra

__all__ = ["AnswerBook", "Extractor", "boxed", "extractor", "normalise", "same"]

Extractor = Callable[[str], "str | None"]

# ---- extraction -------------------------------------------------------------------------------

_BOX = re.compile(
    r"\\(?:boxed|fbox)\s*(?P<open>\{)|\\(?:boxed|fbox)[ \t]+(?P<bare>[^\s{}$]+)"
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
            found = token["bare"]
        elif token["brace"] == "{":
            opened.append(None)
        elif token["brace"] == "}" and opened:
            start = opened.pop()
            # A box around a box that is complete already says the same.
            if start is not None and not _BOX_START.search(text, start, token.start()):
                found = text[start : token.start()]
    return (found or "").strip() or None


_BOX_START = re.compile(r"\\(?:boxed|fbox)\b")


def extractor(spec: Any) -> Extractor:
    """What finds the answer in a trace's text.

    Args:
        spec: "boxed"; a regular expression, compiled or as "regex:...", whose group `answer`, first
            group, or whole match is taken where it matches last; or a callable from text to str or
            None.

    Raises:
        InvalidInput: an unknown name, or a regular expression that does not compile.
        InvalidType: none of these; or, when called, a callable that returns something else.
    """
    if spec == "boxed":
        return boxed
    if isinstance(spec, str):
        if not spec.startswith("regex:"):
            raise InvalidInput(f'answer={spec!r}: must be "boxed", "regex:..." or a callable')
        try:
            spec = re.compile(spec.removeprefix("regex:"))
        except re.error as error:
            raise InvalidInput(f"answer={spec!r} is no regular expression: {error}") from error
    if isinstance(spec, re.Pattern):
        return _matcher(spec)
    if not callable(spec):
        raise InvalidType(f'answer={spec!r}: must be "boxed", "regex:..." or a callable')

    def checked(text: str) -> str | None:
        found = spec(text)
        if found is not None and not isinstance(found, str):
            raise InvalidType(f"the answer extractor returned {found!r}: must be a str or None")
        return (found or "").strip() or None

    return checked


def _matcher(pattern: re.Pattern[str]) -> Extractor:
    group: str | int = "answer" if "answer" in pattern.groupindex else min(pattern.groups, 1)

    def last(text: str) -> str | None:
        found = None
        for match in pattern.finditer(text):
            found = match[group]
        return (found or "").strip() or None

    return last


# ---- normalisation ----------------------------------------------------------------------------

_REPLACED = [
    (re.compile(r"[−–]"), "-"),
    (
        re.compile(
            r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,;:]|\\(?:displaystyle|limits)(?![a-zA-Z])"
        ),
        "",
    ),
    (re.compile(r"\\ |~|\\q?quad(?![a-zA-Z])"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*(\d)(?!\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\(?:cdot|times)\s*"), "*"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\s+"), " "),
    (re.compile(r" (?=\W)|(?<=\W) (?=.)"), ""),
]
_WRAPPED = re.compile(
    r"\$+(?P<dollars>[^$]+)\$+|\\\((?P<inline>.+)\\\)|\\\[(?P<display>.+)\\\]"
    r"|\\(?:text|textbf|mathrm|mathbf|mathit|operatorname)\s*\{(?P<text>[^{}]*)\}"
    r"|\((?P<choice>[A-Za-z])\)",
    re.DOTALL,
)
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d*)(?:\.(?P<part>\d*))?")


def normalise(answer: str) -> str:
    r"""One string for the usual ways to write an answer; never the same for different values.

    Removes delimiters and spacing commands, writes fractions one way, and numbers without a plus
    sign, separators, or zeros that say nothing. Case is kept.

    >>> normalise("$ 1,234.50 $"), normalise(r"\dfrac12"), normalise(r"\text{(B)}")
    ('1234.5', '\\frac{1}{2}', 'B')
    """
    previous = None
    while answer != previous:
        previous = answer
        answer = _normalised_once(answer)
    return answer


def _normalised_once(answer: str) -> str:
    answer = answer.strip()
    if len(answer) > 1:
        answer = answer.removesuffix(".")
    for pattern, replacement in _REPLACED:
        answer = pattern.sub(replacement, answer)
    wrapped = _WRAPPED.fullmatch(answer)
    if wrapped and wrapped.lastgroup:
        answer = wrapped[wrapped.lastgroup]
    if _GROUPED.fullmatch(answer):
        answer = answer.replace(",", "")
    number = _DECIMAL.fullmatch(answer)
    if number and (number["whole"] or number["part"]):
        whole = number["whole"].lstrip("0") or "0"
        part = (number["part"] or "").rstrip("0")
        digits = f"{whole}.{part}" if part else whole
        negative = number["sign"] == "-" and digits != "0"
        answer = f"-{digits}" if negative else digits
    return answer.strip()


_FRACTION = re.compile(
    r"(?P<sign>-?)(?:\\frac\{(?P<a>-?\d+)\}\{(?P<b>-?\d+)\}|(?P<c>-?\d+)/(?P<d>\d+)|(?P<e>-?\d*\.?\d+))"
)


def _rational(answer: str) -> Fraction | None:
    """The value of a normalised whole number, decimal or simple fraction."""
    match = _FRACTION.fullmatch(answer)
    if match is None or len(answer) > 1_000:
        return None
    if match["e"] is not None:
        value = Fraction(match["e"])
    else:
        below = int(match["b"] or match["d"])
        if below == 0:
            return None
        value = Fraction(int(match["a"] or match["c"]), below)
    return -value if match["sign"] else value


# ---- equivalence ------------------------------------------------------------------------------


class AnswerBook:
    """Gives every answer the first one seen that is the same.

    Thousands of answers cost few comparisons: an answer is looked up as it stands, then normalised,
    then by its value if it is a number; only what is left is compared with one representative of
    each class by math-verify.

    Args:
        math: "auto" to use math-verify where it is installed, True to insist, False for strings and
            numbers only.
        timeout: seconds a comparison may take; one that takes longer counts as different.

    Raises:
        MissingExtra: `math=True` and math-verify is not installed.

    Comparisons are made with representatives only, since "mathematically equal" as a program
    decides it is not always transitive. Safe under threads.
    """

    def __init__(self, *, math: Literal["auto"] | bool = "auto", timeout: float = 5.0) -> None:
        installed = importlib.util.find_spec("math_verify") is not None
        if math is True and not installed:
            raise MissingExtra("math", "math-verify")
        if not timeout > 0:
            raise InvalidInput(f"timeout={timeout}: must be above 0 seconds")
        self._math = installed if math == "auto" else bool(math)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        self._values: dict[Fraction, str] = {}
        self._classes: list[tuple[str, Fraction | None]] = []
        self.comparisons = 0
        """How many comparisons math-verify was asked for."""
        self.timeouts = 0
        """How many of them took too long."""

    def canonical(self, answer: str | None) -> str | None:
        """The representative of an answer; None for None and blanks. May take `timeout` seconds."""
        stripped = (answer or "").strip()
        if not stripped:
            return None
        with self._lock:
            return self._known.get(stripped) or self._place(stripped)

    def _place(self, answer: str) -> str:
        normal = normalise(answer)
        value = _rational(normal)
        found = self._known.get(normal)
        if found is None and value is not None:
            found = self._values.get(value)
        if found is None and self._math:
            found = self._compared(answer, value)
        if found is None:
            found = answer
            self._classes.append((answer, value))
        if value is not None:
            self._values.setdefault(value, found)
        self._known[normal] = self._known[answer] = found
        return found

    def _compared(self, answer: str, value: Fraction | None) -> str | None:
        for representative, other in self._classes:
            if value is not None and other is not None:
                continue  # Both are numbers, and their values differ.
            self.comparisons += 1
            verdict = Comparer.shared().same(representative, answer, self._timeout)
            if verdict is None:
                self.timeouts += 1
            elif verdict:
                return representative
        return None


def same(a: str, b: str, *, math: Literal["auto"] | bool = "auto", timeout: float = 5.0) -> bool:
    r"""Whether two answers are the same; see the module.

    >>> same("0.50", r"$\frac12$"), same("1", "2")
    (True, False)
    """
    book = AnswerBook(math=math, timeout=timeout)
    return book.canonical(a) == book.canonical(b)
