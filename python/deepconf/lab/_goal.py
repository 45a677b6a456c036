"""What a policy must reach: `accuracy >= majority - 0.005`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf.errors import InvalidInput, InvalidType

__all__ = ["GRAMMAR", "Condition", "Metric", "parse"]

Floats = NDArray[np.float64]
Metric = Literal["accuracy", "tokens", "steps"]

_CONDITION = re.compile(r"\s*(?P<metric>\w+)\s*(?P<op>>=|<=|==|=|>|<)\s*(?P<bound>.*?)\s*")
_NUMBER = r"\d+(?:_\d+)*(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
_BOUND = re.compile(
    rf"(?:(?P<factor>{_NUMBER})(?P<factor_percent>%?)\s*\*\s*)?(?P<name>majority)"
    rf"(?:\s*(?P<sign>[+-])\s*(?P<shift>{_NUMBER})(?P<shift_percent>%?))?"
    rf"|(?P<number>{_NUMBER})(?P<number_percent>%?)"
)
GRAMMAR = (
    "a goal is METRIC >= BOUND or METRIC <= BOUND, such as 'accuracy >= majority - 0.005', "
    "'accuracy >= 90%' or 'tokens <= 0.5 * majority'; several are joined by 'and'"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One part of a goal: a metric and its bound, `factor * majority + shift`.

    `majority` is the same metric of the plain majority at the full budget.
    """

    metric: Metric
    at_least: bool
    factor: float
    """0 where the bound is a number."""
    shift: float

    def bound(self, majority: float) -> float:
        """The number that must be reached."""
        return (self.factor * majority if self.factor else 0.0) + self.shift

    def missed_by(self, value: float | Floats, majority: float) -> Any:
        """How far a value is beyond the bound; 0 where it is met."""
        beyond = self.bound(majority) - value if self.at_least else value - self.bound(majority)
        # Means of the same counts may differ in their last bit.
        return np.where(beyond > 1e-9 * max(1.0, abs(self.bound(majority))), beyond, 0.0)


def parse(text: str) -> list[Condition]:
    """The conditions of a goal, all of which must be met.

    >>> parse("accuracy >= majority - 0.5% and tokens <= 0.6 * majority")
    [Condition(metric='accuracy', at_least=True, factor=1.0, shift=-0.005), \
Condition(metric='tokens', at_least=False, factor=0.6, shift=0.0)]

    Raises:
        InvalidInput: it means nothing; the message says where and what would.
    """
    if not isinstance(text, str):
        raise InvalidType(f"goal={text!r} is a {type(text).__name__}: must be a string")
    return [_condition(part, text) for part in re.split(r"\band\b", text)]


def _condition(part: str, goal: str) -> Condition:
    place = f"goal={goal!r}"
    found = _CONDITION.fullmatch(part)
    if found is None:
        raise InvalidInput(f"{place}: {part.strip()!r} has no >= or <=: {GRAMMAR}")
    metric, op = found["metric"], found["op"]
    if metric not in ("accuracy", "tokens", "steps"):
        raise InvalidInput(f"{place}: {metric!r} is no metric: it is accuracy, tokens or steps")
    wanted = ">=" if metric == "accuracy" else "<="
    if op != wanted:
        raise InvalidInput(f"{place}: {metric} {op} is no goal: it is {metric} {wanted}")
    bound = _BOUND.fullmatch(found["bound"])
    if bound is None:
        raise InvalidInput(
            f"{place}: {found['bound']!r} is no bound: it is a number, or majority, which may have "
            f"a factor before it (0.5 * majority) or something added (majority - 0.005)"
        )
    if bound["name"] is None:
        factor, shift = 0.0, _number(bound, "number")
    else:
        factor = 1.0 if bound["factor"] is None else _number(bound, "factor")
        shift = 0.0 if bound["shift"] is None else _number(bound, "shift")
        shift = -shift if bound["sign"] == "-" else shift
    if metric != "accuracy" and (bound["number_percent"] or bound["shift_percent"]):
        raise InvalidInput(
            f"{place}: {metric} have no %, but a share of majority's: {metric} <= 50% * majority"
        )
    if not math.isfinite(factor) or not math.isfinite(shift):
        raise InvalidInput(f"{place}: {found['bound']!r} is too large a number")
    if metric == "accuracy" and not abs(shift) <= 1:
        raise InvalidInput(f"{place}: accuracy is a share, in [0, 1]: 90% is 0.9")
    return Condition(metric, metric == "accuracy", factor, shift)  # type: ignore[arg-type]


def _number(found: re.Match[str], name: str) -> float:
    return float(found[name]) / (100 if found[f"{name}_percent"] else 1)
