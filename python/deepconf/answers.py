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
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from deepconf._equivalence import Comparer
from deepconf.errors import InvalidInput, InvalidType, MissingExtra

__all__ = ["AnswerBook", "Extractor", "boxed", "extractor", "normalise", "same"]

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
        InvalidType: none of these, or a regular expression on bytes; or, when called, a callable
            that returns something else.
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
    (re.compile(r",\s*\\[,;: ]"), ", "),
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
]
_SPACE = re.compile(r" (?=\W)|(?<=\W) (?=.)")
_SPACED_COMMA = re.compile(r" ,\s*|, ")
_WRAPPED = re.compile(
    r"\$+(?P<dollars>(?:\\\$|[^$])+)\$+"
    r"|\\\((?P<inline>(?:(?!\\[()]).)+)\\\)|\\\[(?P<display>(?:(?!\\[\[\]]).)+)\\\]"
    r"|\\(?:text|textbf|mathrm|mathbf|mathit|operatorname)\s*\{(?P<text>[^{}]*)\}"
    r"|\(\s*(?P<choice>[A-Za-z])\s*\)|\*\*(?P<bold>[^*]+)\*\*",
    re.DOTALL,
)
_MONEY = re.compile(r"([+-]?)\\?\$(?=[\d.,]+$)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d*)(?:\.(?P<part>\d*))?")


def normalise(answer: str) -> str:
    r"""One string for the usual ways to write an answer; never the same for different values.

    Removes delimiters and spacing commands, writes fractions one way, and numbers without a plus
    sign, a dollar sign, separators, or zeros that say nothing. Case is kept.

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
    while (wrapped := _WRAPPED.fullmatch(answer)) and wrapped.lastgroup:
        answer = wrapped[wrapped.lastgroup].strip()
    for pattern, replacement in _REPLACED:
        answer = pattern.sub(replacement, answer)
    spaced = answer.strip()
    answer = _MONEY.sub(r"\1", _SPACE.sub("", spaced))
    if _GROUPED.fullmatch(answer):
        if _SPACED_COMMA.search(spaced):
            return _SPACED_COMMA.sub(", ", spaced)  # 1, 234 are two numbers, and 1,234 is one.
        answer = answer.replace(",", "")
    number = _DECIMAL.fullmatch(answer)
    if number and (number["whole"] or number["part"]):
        whole = number["whole"].lstrip("0") or "0"
        part = (number["part"] or "").rstrip("0")
        digits = f"{whole}.{part}" if part else whole
        negative = number["sign"] == "-" and digits != "0"
        answer = f"-{digits}" if negative else digits
    return answer.strip()


_RATIONAL = re.compile(
    r"(?P<sign>-?)(?:(?P<decimal>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)"
    r"|(?:(?P<whole>\d+)(?: (?=\d)|(?=\\)))?"
    r"(?:\\frac\{(?P<a>-?\d+)\}\{(?P<b>-?\d+)\}|(?P<c>\d+)/(?P<d>\d+)))"
)


def _rational(answer: str) -> Fraction | None:
    """The value of a normalised whole number, decimal, simple fraction or mixed number."""
    match = _RATIONAL.fullmatch(answer)
    if match is None or len(answer) > 1_000:
        return None
    if match["decimal"]:
        value = Fraction(match["decimal"])
    else:
        above, below = int(match["a"] or match["c"]), int(match["b"] or match["d"])
        whole = int(match["whole"] or 0)
        if below == 0 or (match["whole"] and (above < 0 or below < 0)):
            return None
        value = whole + Fraction(above, below)
    return -value if match["sign"] else value


_TEXT = re.compile(r"[^\d\\$=^_+*/<>|{}\[\]]*")
_WORD = re.compile(r"[^\W\d_]{3,}")
_SYMBOL = re.compile(
    "and|arc(sin|cos|tan)|(sin|cos|tan)h?|cot|csc|sec|exp|log|sqrt|gcd|lcm|max|min|mod|inf(inity)?",
    re.IGNORECASE,
)


def _is_text(answer: str) -> bool:
    """Whether a normalised answer is words rather than a formula.

    To algebra, words are products of letters: BAC would be CAB.
    """
    words = _WORD.findall(answer) if _TEXT.fullmatch(answer) else []
    return any(_SYMBOL.fullmatch(word) is None for word in words)


# ---- equivalence ------------------------------------------------------------------------------


@dataclass
class _Class:
    """Answers that are the same."""

    representative: str
    value: Fraction | None
    formula: bool
    hangs: bool | None = None


class AnswerBook:
    r"""Gives every answer the first one seen that is the same.

    Thousands of answers cost few comparisons: an answer is looked up as it stands, then normalised,
    then by its value if it is a number, or without regard to case if it is words; only formulas are
    compared by math-verify, with one representative of each class.

    A percentage is the same as the first plain number seen that it may stand for: 50\% as 50, or as
    0.5, and never makes these two the same.

    Args:
        math: "auto" to use math-verify where it is installed, True to insist, False for strings and
            numbers only.
        timeout: seconds a comparison may take; one that takes longer counts as different. An answer
            on which comparisons hang is soon left out of them.

    Raises:
        MissingExtra: `math=True` and math-verify is not installed.
        InvalidInput: a timeout that is not above 0.

    Comparisons are made with representatives only, since "mathematically equal" as a program
    decides it is not always transitive. Safe under threads.
    """

    def __init__(self, *, math: Literal["auto"] | bool = "auto", timeout: float = 5.0) -> None:
        if math not in ("auto", True, False):
            raise InvalidInput(f'math={math!r}: must be "auto", True or False')
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
        self._percentages: dict[Fraction, str] = {}
        self._texts: dict[str, str] = {}
        self._classes: list[_Class] = []
        self.comparisons = 0
        """How many comparisons math-verify was asked for."""
        self.timeouts = 0
        """How many of them took too long."""

    def canonical(self, answer: str | None) -> str | None:
        """The representative of an answer; None for None and blanks.

        May take `timeout` seconds, and a few times as long when it meets the first answer that
        hangs.
        """
        stripped = (answer or "").strip()
        if not stripped:
            return None
        with self._lock:
            return self._known.get(stripped) or self._place(stripped)

    def _place(self, answer: str) -> str:
        normal = normalise(answer)
        found = self._known.get(normal)
        if found is None:
            found = self._looked_up(answer, normal)
        self._known[normal] = self._known[answer] = found
        return found

    def _looked_up(self, answer: str, normal: str) -> str:
        if _is_text(normal):
            return self._texts.setdefault(normal.casefold(), answer)
        percentage = _rational(normal.removesuffix("%")) if normal.endswith("%") else None
        if percentage is not None:
            return self._percentage(answer, percentage)
        value = _rational(normal)
        if value is None:
            return self._compared(_Class(answer, None, True))
        found = self._values.get(value)
        if found is None:
            meant = (p for p in (value, 100 * value) if p in self._percentages)
            percentage = next(meant, None)
            if percentage is not None:
                found = self._percentages.pop(percentage)
            else:
                found = self._compared(_Class(answer, value, False))
            self._values[value] = found
        return found

    def _percentage(self, answer: str, percentage: Fraction) -> str:
        for value in (percentage, percentage / 100):
            if value in self._values:
                return self._values[value]
        found = self._compared(_Class(answer, percentage / 100, False))
        return self._percentages.setdefault(percentage, found)

    def _compared(self, new: _Class) -> str:
        """The representative of the class that math-verify puts it in, or of a new one."""
        hung = 0
        for other in list(self._classes) if self._math else []:
            if not (new.formula or other.formula):
                continue  # Both are numbers, and their values differ.
            verdict = self._verdict(other.representative, new.representative)
            if verdict:
                return other.representative
            if verdict is None and self._hangs(other):
                self._classes.remove(other)
            elif verdict is None:
                hung += 1
                if hung == 2 or self._hangs(new):
                    return new.representative  # In no class: nothing is compared with it again.
        self._classes.append(new)
        return new.representative

    def _verdict(self, a: str, b: str) -> bool | None:
        self.comparisons += 1
        verdict = Comparer.shared().same(a, b, self._timeout)
        self.timeouts += verdict is None
        return verdict

    def _hangs(self, one: _Class) -> bool:
        """Whether it is to blame for a comparison that took too long: beside a number it hangs."""
        if one.hangs is None:
            one.hangs = one.formula and self._verdict(one.representative, "0.123456789") is None
        return one.hangs


def same(a: str, b: str, *, math: Literal["auto"] | bool = "auto", timeout: float = 5.0) -> bool:
    r"""Whether two answers are the same; see the module.

    >>> same("0.50", r"$\frac12$"), same("1", "2")
    (True, False)
    """
    book = AnswerBook(math=math, timeout=timeout)
    return book.canonical(a) == book.canonical(b)
