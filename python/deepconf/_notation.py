r"""How answers are written: one spelling for each, its value as a number, and what kind it is.

Everything here looks at characters only. `is_formula` decides what algebra may touch. It wants
every token to be mathematics, for a wrong split costs a vote and a wrong merge makes an answer
right that is wrong: letters in a row are a product only where an operator, a command or a
coefficient shows it, so that `yb` is not `by`, `H2O` not `OH2`, and a date no subtraction.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["FUNCTIONS", "folded", "is_formula", "normalise", "rational"]

_LONGEST = 2_000
"""Characters; what is longer is compared as it stands."""

_SIGNS = {
    **dict.fromkeys("−–‐‑", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2007", " "),
    **dict.fromkeys("×·⋅∗", "*"),
    "÷": "/",
    "⁄": "/",
    "∞": r"\infty ",
    "π": r"\pi ",
    "θ": r"\theta ",
    "∅": r"\emptyset ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "ℝ": r"\mathbb{R}",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "φ": r"\phi ",
    "μ": r"\mu ",
    "ω": r"\omega ",
    "σ": r"\sigma ",
}
_FRACTIONS = dict(
    zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "12 13 23 14 34 15 25 35 45 16 56 18 38 58 78".split(), strict=True)  # noqa: SIM905
)
_SIGNS |= {sign: rf"\frac{{{ab[0]}}}{{{ab[1]}}}" for sign, ab in _FRACTIONS.items()}
_TRANSLATED = str.maketrans(_SIGNS)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_REPLACED = [
    (re.compile(r",\s*\\[,;: ]"), ", "),
    (
        re.compile(
            r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,;:]"
            r"|\\(?:displaystyle|limits|big|Big|bigg|Bigg)(?![a-zA-Z])"
        ),
        "",
    ),
    (re.compile(r"(?<!\\)\\ |(?<!\\)~|\\q?quad(?![a-zA-Z])"), " "),
    # Words in a formula, or a formula in words: what says which is only in the way.
    (
        re.compile(
            r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\s*"
            r"\{((?:[^{}]|\{[^{}]*\})*)\}"
        ),
        r"\1",
    ),
    (re.compile(r"(?<!\\)\\[()]|(?<!\\)\\\[|(?<!\\)\\\]"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*(\d)(?!\d)"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])"), "°"),
    (re.compile(r"\\%|(?<=\d)\s?percent$"), "%"),
    (re.compile(r"\\(?:cdot|times)(?![a-zA-Z])\s*"), "*"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne "),
    (re.compile(r"\\(?:varnothing)(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"([\^_])\s*\{\s*(\w)\s*\}(?!\w)|([\^_])\{(\d)\}(?=[A-Za-z])"), r"\1\2\3\4"),
    (re.compile(r"\s+"), " "),
]
_DEGREES = re.compile(r"([-+]?[\d.,/]*(?:\\frac\{\d+\}\{\d+\})?)(?<=[\d}])\s?(?:°|degrees?)")
_COUNTED = re.compile(r"([\d.,]+)\s?dollars?", re.IGNORECASE)
_SPACE = re.compile(r" (?=\W)|(?<=\W) (?=.)")
_UNIT_SPACE = re.compile(r"(?<=\d) (?=[^\W\d_])(?!(?:and|or)\b)")
_SPACED_COMMA = re.compile(r" ,\s*|, ")
_WRAPPED = re.compile(
    r"(?:[Oo]ption|[Cc]hoice)\s+\(?(?P<option>[A-Za-z])\)?|(?P<lettered>[A-Za-z])\)"
    r"|\(\s*(?P<choice>[A-Za-z])\s*\)|\*\*(?P<bold>[^*]+)\*\*",
    re.DOTALL,
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_MONEY = re.compile(r"([+-]?)\\?\$(?=[\d.,]+$)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SPACED_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d*)(?:\.(?P<part>\d*))?")


def normalise(answer: str) -> str:
    r"""One string for the usual ways to write an answer; never the same for different values.

    Removes delimiters and spacing commands, writes fractions, roots and signs one way, and numbers
    without a plus sign, a dollar sign, separators, or zeros that say nothing. Case and units are
    kept; degrees after a number are not. Linear in the length of the answer.

    >>> normalise("$ 1,234.50 $"), normalise(r"\dfrac12"), normalise(r"\text{(B)}")
    ('1234.5', '\\frac{1}{2}', 'B')
    """
    answer = _stripped(answer)
    if len(answer) > _LONGEST:
        return answer
    previous = None
    while answer != previous:
        previous = answer
        answer = _normalised_once(answer)
    return answer


def _stripped(answer: str) -> str:
    return answer.strip().rstrip(". \t\r\n") or answer.strip()[:1]


def _normalised_once(answer: str) -> str:
    answer = _stripped(answer)
    while (wrapped := _WRAPPED.fullmatch(answer)) and wrapped.lastgroup:
        answer = wrapped[wrapped.lastgroup].strip()
    answer = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", answer)
    answer = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_LOWERED)}}}", answer)
    answer = answer.translate(_TRANSLATED)
    if len(_DOLLAR.findall(answer)) > 1:
        answer = _DOLLAR.sub("", answer) or "$"
    for pattern, replacement in _REPLACED:
        answer = pattern.sub(replacement, answer)
    spaced = answer.strip()
    answer = _MONEY.sub(r"\1", _SPACE.sub("", spaced))
    if degrees := _DEGREES.fullmatch(answer):
        answer = degrees[1]
    if counted := _COUNTED.fullmatch(answer):
        answer = counted[1]
    if _SPACED_GROUPS.fullmatch(answer):
        answer = answer.replace(" ", "")
    answer = _UNIT_SPACE.sub("", answer)
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


# ---- numbers ------------------------------------------------------------------------------------

_RATIONAL = re.compile(
    r"(?P<sign>-?)(?:(?P<decimal>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)"
    r"|(?P<before>\d*\.\d*)(?:\\overline\{(?P<over>\d+)\}|\\bar\{(?P<bar>\d+)\}|\((?P<round>\d+)\))"
    r"|(?:(?P<whole>\d+)(?: (?=\d)|(?=\\)))?"
    r"(?:\\frac\{(?P<a>-?\d+)\}\{(?P<b>-?\d+)\}|(?P<c>\d+)/(?P<d>\d+)))",
    re.ASCII,
)


def rational(answer: str) -> Fraction | None:
    """The value of a normalised whole number, decimal, simple fraction or mixed number."""
    match = _RATIONAL.fullmatch(answer)
    if match is None or len(answer) > 1_000:
        return None
    if match["decimal"]:
        value = Fraction(match["decimal"])
    elif match["before"]:
        whole, part = match["before"].split(".")
        again = match["over"] or match["bar"] or match["round"]
        value = Fraction(int(whole + part or "0"), 10 ** len(part))
        value += Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(part))
    else:
        above, below = int(match["a"] or match["c"]), int(match["b"] or match["d"])
        whole_part = int(match["whole"] or 0)
        if below == 0 or (match["whole"] and (above < 0 or below < 0)):
            return None
        value = whole_part + Fraction(above, below)
    return -value if match["sign"] else value


# ---- words --------------------------------------------------------------------------------------

_WORDS = re.compile(r"(?=.*[^\W\d_]{2})(?:[^\W\d_]|[ ,;'’-]|\.(?=\s))*")
_PLAIN_WORD = re.compile(r"[^\W\d_]{3,}|\b(?:no|ok)\b", re.IGNORECASE)


def folded(answer: str) -> str | None:
    """Words without regard to their case; None for what is not words alone.

    A letter is A or a, and two may be Co or CO: only longer words are folded, and NaCl is not.
    """
    if not _WORDS.fullmatch(answer):
        return None
    return _PLAIN_WORD.sub(_fold, answer)


def _fold(word: re.Match[str]) -> str:
    text = word[0]
    return text.casefold() if text[1:] in (text[1:].lower(), text[1:].upper()) else text


# ---- formulas -----------------------------------------------------------------------------------

FUNCTIONS = frozenset(
    "sin cos tan cot arcsin arccos arctan sinh cosh tanh log ln exp sqrt".split()  # noqa: SIM905
)
_COMMANDS = FUNCTIONS | frozenset(
    re.findall(
        r"\w+",
        "frac binom sec csc infty pi emptyset le ge lt gt ne in cup pm to mod sum prod int lim "
        "lfloor rfloor lceil rceil lvert rvert overline bar vec hat "
        "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma "
        "tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega",
    )
)
_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)|\\(?P<command>[a-zA-Z]+)|(?P<word>[A-Za-z]+)|(?P<space> )"
    r"|(?P<set>\\[{}])|(?P<row>\\\\)|(?P<sign>[-+*/^=<>!|])|(?P<mark>[_()\[\]{},;&])",
    re.ASCII,
)
_MATRIX = re.compile(r"\\(?:begin|end)\{(?:[pb]|small)?matrix\}")
_SPECIAL = re.compile(r"\\mathbb\{[RZQNC]\}")
_NOT_MATHEMATICS = re.compile(
    r"\d+\.\d+\.\d"  # versions, addresses
    r"|(?<![\w^}.])\d+([-/])\d+\1\d"  # dates
    r"|^\d+-\d+$"  # scores, ranges
    r"|\d\}?_"  # bases
    r"|==|[-+*/]=|\+\+|//"  # code
    r"|[A-Za-z]\}?[A-Z][a-z]?_|_\{?\d+\}?\(?[A-Z]"  # molecules
    r"|(?<!log_\d)(?<=\d) \d|\d[eE]\d"
)


def is_formula(answer: str) -> bool:
    """Whether a normalised answer shows itself to be mathematics, all of it."""
    if len(answer) > _LONGEST or _NOT_MATHEMATICS.search(answer):
        return False
    bare = _SPECIAL.sub("1", _MATRIX.sub("(", answer))
    at, tokens = 0, []
    while at < len(bare):
        token = _TOKEN.match(bare, at)
        if token is None or (token["row"] and bare == answer):
            return False
        tokens.append((str(token.lastgroup), token[0]))
        at = token.end()
    shown = {text for kind, text in tokens if kind == "sign"}
    commands = {text[1:] for kind, text in tokens if kind == "command"}
    if not commands <= _COMMANDS:
        return False
    commands |= {text for kind, text in tokens if kind == "word" and text in FUNCTIONS}
    numbers = any(kind == "number" for kind, _ in tokens)
    if not (shown or commands or numbers or bare != answer):
        return False
    product = bool(commands) or bool(shown - set("-/!=<>")) or (bool(shown) and numbers)
    return all(
        _is_product(text, tokens[at + 1 : at + 3], product, at > 0 and tokens[at - 1][0])
        for at, (kind, text) in enumerate(tokens)
        if kind == "word"
    )


def _is_product(
    letters: str, after: list[tuple[str, str]], product: bool, before: str | bool
) -> bool:
    """Whether letters in a row are a function, a separator, or variables and not a word."""
    following = [kind for kind, _ in after]
    if letters in ("or", "and"):
        return True
    if letters in FUNCTIONS:
        return bool(after)
    if "number" in following[:1] or following[:2] == ["space", "number"]:
        return False  # Team 1, abc123
    if letters == "pi" or len(letters) == 1:
        return True
    if "space" in following[:1] and following[1:] == ["word"] and after[1][1] not in ("or", "and"):
        return False
    if not (letters.islower() or letters.isupper() or product) or len(letters) > 3:
        return False
    if product:
        return True
    return before == "number" and (len(letters) == 2 or set(letters) <= set("xyz"))
