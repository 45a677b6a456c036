r"""The algebra that tells formulas apart; runs in a helper process (`_helpers`).

`profile` says of a formula what all equal ones share: its shape, and its values at fixed points.
`equal` compares two formulas of one profile exactly. math-verify's parser (latex2sympy) reads the
scalars; what holds them (tuples, sets, intervals, matrices, equations) is read here, and compared
strictly: a decimal is no root, a tuple has an order, and variables keep their case.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from deepconf._notation import FUNCTIONS

__all__ = ["equal", "profile"]

logging.disable(logging.CRITICAL)
_POINTS = 3


class _NotUnderstood(Exception):
    """It is no formula after all."""


@dataclass(frozen=True)
class _Node:
    """A scalar, or something that holds nodes.

    The kinds: "expr" and "=", "!=", "<", "<=" have `value`, which for relations is compared with 0
    and means the same when scaled; "()", "[)" and so on, "set", "union" and "matrix RxC" have
    parts.
    """

    kind: str
    value: Any = None
    parts: tuple[_Node, ...] = ()
    name: str = ""
    """What it is said to be the value of: x in x=5."""


def profile(formula: str) -> list[Any] | None:
    """What equal formulas share: [name, shape, values]; None for what is not understood.

    Formulas that are equal have equal shapes, values that are close, and names that are equal
    unless one has none.
    """
    try:
        node = _read(formula)
        shape, values = _shared(node)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # Whatever a parser may raise.
        return None
    return [node.name, shape, values]


def equal(a: str, b: str) -> bool:
    """Whether two formulas are equal."""
    left, right = _read(a), _read(b)
    return (not left.name or not right.name or left.name == right.name) and _equal(left, right)


# ---- reading ------------------------------------------------------------------------------------

_PARTS = re.compile(r"(?: or | and |,|;|(?<=[\d)}\]])(?:or|and) )")
_RELATIONS = re.compile(r"(\\(?:ne|le|ge|lt|gt)(?![a-zA-Z])|<=|>=|!=|<|>|=)")
_RELATION = {r"\lt": "<", r"\gt": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!="}
_NAME = re.compile(
    r"(?:\\?[A-Za-z]|\\[a-z]+)(?:_(?:\w|\{\w+\}))?(?:\((?:[a-z](?:,[a-z])*)\))?", re.ASCII
)
_MATRIX = re.compile(r"\\begin\{(?:[pb]|small)?matrix\}(.*)\\end\{(?:[pb]|small)?matrix\}")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{\w+\}")


@functools.lru_cache(maxsize=4_096)
def _read(formula: str) -> _Node:
    if r"\pm" in formula:
        return _set([_read_one(formula.replace(r"\pm", sign)) for sign in ("+", "-")])
    parts = _split(formula, _PARTS)
    if len(parts) == 1:
        return _read_one(parts[0])
    return _set([_read_one(part) for part in parts])


def _read_one(text: str) -> _Node:
    text = text.strip()
    sides = _split(text, _RELATIONS, keep=True)
    if len(sides) > 1:
        return _relation(sides)
    member = _split(text, re.compile(r"\\in(?![a-z])"))
    if len(member) == 2 and _NAME.fullmatch(member[0].strip()):
        return _named(member[0].strip(), _read_one(member[1]))
    union = _split(text, re.compile(r"\\cup"))
    if len(union) > 1:
        return _Node("union", parts=tuple(_read_one(part) for part in union))
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix[1])
    opening, closing = text[:1], text[-1:]
    inside = text[1:-1]
    if text.startswith(r"\{") and text.endswith(r"\}"):
        opening, closing, inside = r"\{", r"\}", text[2:-2]
    if opening in ("(", "[", r"\{") and closing in (")", "]", r"\}") and _is_one(text):
        parts = [_read_one(part) for part in _split(inside, re.compile("[,;]"))]
        if opening == r"\{":
            return _set(parts)
        if len(parts) > 1:
            return _Node(opening + closing, parts=tuple(parts))
    return _Node("expr", _scalar(text))


def _split(text: str, at: re.Pattern[str], keep: bool = False) -> list[str]:
    """Splits where nothing is open."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        environment = _ENVIRONMENT.match(text, position)
        if environment:
            depth += 1 if environment[1] == "begin" else -1
            position = environment.end()
            continue
        if depth == 0 and (match := at.match(text, position)):
            parts.append(text[start:position])
            if keep:
                parts.append(match[1])
            start = position = match.end()
            continue
        depth += (text[position] in "([{") - (text[position] in ")]}")
        position += 1
    return [*parts, text[start:]]


def _is_one(text: str) -> bool:
    """Whether the first bracket is closed by the last one."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ")]}":
            return at == len(text) - 1
    return False


def _set(parts: list[_Node]) -> _Node:
    names = {part.name for part in parts}
    name = names.pop() if len(names) == 1 else ""
    if name:
        parts = [_Node(part.kind, part.value, part.parts) for part in parts]
    if len(parts) == 1:
        return _Node(parts[0].kind, parts[0].value, parts[0].parts, name)
    return _Node("set", parts=tuple(parts), name=name)


def _matrix(inside: str) -> _Node:
    rows = [_split(row, re.compile("&")) for row in inside.split(r"\\") if row.strip()]
    if len({len(row) for row in rows}) != 1:
        raise _NotUnderstood
    cells = tuple(_read_one(cell) for row in rows for cell in row)
    return _Node(f"matrix {len(rows)}x{len(rows[0])}", parts=cells)


def _named(name: str, node: _Node) -> _Node:
    return _Node(node.kind, node.value, node.parts, re.sub(r"[\\{}]", "", name))


def _relation(sides: list[str]) -> _Node:
    terms = [side.strip() for side in sides[::2]]
    signs = [_RELATION.get(sign, sign) for sign in sides[1::2]]
    if signs[0] in (">", ">=") and all(sign in (">", ">=") for sign in signs):
        terms, signs = terms[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    if all(sign == "=" for sign in signs):
        return _equation(terms)
    bounds = [_scalar(term) for term in terms]
    lone = [at for at, term in enumerate(terms) if _NAME.fullmatch(term) and bounds[at].is_symbol]
    if all(sign in ("<", "<=") for sign in signs) and len(lone) == 1:
        at = lone[0]
        symbol = bounds[at]
        others = [bound for other, bound in enumerate(bounds) if other != at]
        if len(others) == len(signs) and not any(symbol in o.free_symbols for o in others):
            low, high = -sympy.oo, sympy.oo
            opening, closing = "(", ")"
            if at > 0:
                low, opening = bounds[at - 1], "[" if signs[at - 1] == "<=" else "("
            if at < len(signs):
                high, closing = bounds[at + 1], "]" if signs[at] == "<=" else ")"
            if at <= 1 and at >= len(signs) - 1:
                ends = (_Node("expr", low), _Node("expr", high))
                return _named(terms[at], _Node(opening + closing, parts=ends))
    if len(signs) != 1 or signs[0] in (">", ">="):
        raise _NotUnderstood
    return _Node(signs[0], _bound(bounds[0] - bounds[1]))


def _equation(terms: list[str]) -> _Node:
    if len(terms) == 2 and _NAME.fullmatch(terms[1]) and not _NAME.fullmatch(terms[0]):
        terms = terms[::-1]
    if _NAME.fullmatch(terms[0]):
        node = _read_one(terms[-1])
        if len(terms) > 2 or node.kind != "expr" or "(" in terms[0]:
            return _named(terms[0], node)
        symbols = {symbol.name for symbol in node.value.free_symbols}
        if "y" not in symbols and terms[0] not in symbols:
            return _named(terms[0], node)
    if len(terms) != 2:
        raise _NotUnderstood
    difference = _bound(sympy.expand(_scalar(terms[0]) - _scalar(terms[1])))
    # A line is the same however it is turned: it is what it says of y.
    y = sympy.Symbol("y", real=True)
    slope = sympy.diff(difference, y)
    if slope.is_number and not slope.is_zero:
        return _Node("expr", sympy.expand(y - difference / slope), name="y")
    return _Node("=", difference)


def _bound(difference: Any) -> Any:
    if not difference.free_symbols:
        raise _NotUnderstood  # 1+1=2 says nothing.
    return difference


_BARE = re.compile(rf"(?<![\\A-Za-z])({'|'.join(sorted(FUNCTIONS))}|pi)(?![A-Za-z])")


def _scalar(text: str) -> Any:
    if not text:
        raise _NotUnderstood
    text = text.replace("**", "^")
    text = _BARE.sub(r"\\\1 ", text)
    text = _braced(_braced(text, r"\sqrt"), "^")
    text = re.sub(r"\^(-?\d+)", r"^{\1}", text).replace("*", r"\cdot ")
    text = re.sub(r"\\(?:emptyset)", r"\\emptyset ", text)
    found = latex2sympy(
        text,
        is_real=True,
        convert_degrees=False,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    if isinstance(found, sympy.Set) and found not in (
        sympy.S.EmptySet,
        sympy.S.Reals,
        sympy.S.Integers,
        sympy.S.Naturals,
        sympy.S.Rationals,
        sympy.S.Complexes,
    ):
        raise _NotUnderstood
    if isinstance(found, sympy.Set):
        return found
    if not isinstance(found, sympy.Expr):
        raise _NotUnderstood
    applied = found.atoms(sympy.core.function.AppliedUndef)
    unknown = {call: sympy.Symbol(str(call), real=True) for call in applied}
    found = found.xreplace(unknown)
    found = found.xreplace({f: sympy.Rational(str(f)) for f in found.atoms(sympy.Float)})
    i = sympy.Symbol("i", real=True)
    if i in found.free_symbols:
        found = found.xreplace({i: sympy.I})
    return found


def _braced(text: str, before: str) -> str:
    r"""Braces for the parentheses after `\sqrt` and `^`."""
    at = 0
    while (at := text.find(before, at)) >= 0:
        start = at + len(before)
        while text[start : start + 1] == " ":
            start += 1
        at += len(before)
        if text[start : start + 1] != "(":
            continue
        depth = 0
        for end in range(start, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                text = f"{text[:start]}{{{text[start + 1 : end]}}}{text[end + 1 :]}"
                break
    return text


# ---- what equal ones share ----------------------------------------------------------------------


def _shared(node: _Node) -> tuple[str, list[float]]:
    if node.kind == "expr":
        return _at_points(node.value, ratios=False)
    if node.value is not None:
        shape, values = _at_points(node.value, ratios=True)
        return f"{node.kind}{shape}", values
    parts = [_shared(part) for part in node.parts]
    shapes = [f"{part.name}:{shape}" for part, (shape, _) in zip(node.parts, parts, strict=True)]
    both = list(zip(shapes, [values for _, values in parts], strict=True))
    if node.kind in ("set", "union"):
        both.sort(key=lambda one: (one[0], [float(f"{value:.6e}") for value in one[1]]))
    shape = f"{node.kind}<{'|'.join(shape for shape, _ in both)}>"
    return shape, [value for _, values in both for value in values]


def _at_points(expression: Any, *, ratios: bool) -> tuple[str, list[float]]:
    if not isinstance(expression, sympy.Expr):
        return str(expression), []
    if expression in (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        return str(expression), []
    symbols = sorted(expression.free_symbols, key=str)
    shape = ",".join(str(symbol) for symbol in symbols)
    found = []
    for point in range(_POINTS if symbols else 1):
        there = {symbol: _place(symbol.name, point) for symbol in symbols}
        value = expression.evalf(20, subs=there) if symbols else expression.evalf(20)
        found.append(value)
    if ratios:
        found = [(value / found[0]).evalf(20) for value in found[1:]]
    values: list[float] = []
    for value in found:
        for part in value.as_real_imag():
            if not part.is_number:
                raise _NotUnderstood
            number = float(part)
            if math.isnan(number):
                raise _NotUnderstood
            if math.isinf(number):
                shape += f" {part.evalf(9)}"  # Beyond what floats can tell apart.
            else:
                values.append(number)
    return shape, values


def _place(symbol: str, point: int) -> Any:
    """A positive number that is the same in every process."""
    return sympy.Rational(zlib.crc32(f"{symbol} {point}".encode()) % 999_983 + 300_007, 700_001)


# ---- comparing ----------------------------------------------------------------------------------


def _equal(a: _Node, b: _Node) -> bool:
    if a.kind != b.kind or len(a.parts) != len(b.parts):
        return False
    if a.kind == "expr":
        return _is_zero(a.value, b.value)
    if a.value is not None:
        factor = sympy.simplify(a.value / b.value)
        if not factor.is_number or factor.is_zero:
            return False
        return a.kind in ("=", "!=") or bool(factor.is_positive)
    if a.kind not in ("set", "union"):
        return all(_same_part(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    left = list(b.parts)
    for x in a.parts:
        found = next((y for y in left if _same_part(x, y)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_part(a: _Node, b: _Node) -> bool:
    return a.name == b.name and _equal(a, b)


def _is_zero(a: Any, b: Any) -> bool:
    if a == b:
        return True
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return False
    difference = a - b
    if difference == 0 or sympy.expand(difference) == 0:
        return True
    return bool(sympy.simplify(difference) == 0)
