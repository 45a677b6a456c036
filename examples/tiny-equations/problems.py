r"""The task: linear equations, with a trap at the beginning and checks behind it.

A question is ``6*x+967=5059;x=?``. A solution subtracts in one go, and this is the trap: a borrow
must be seen coming before the digit is written. The rest goes digit by digit: a division that
comes out even, the product again, the sum again, and casting out nines::

    5059-967=4092
    40:6=6 6*6=36 40-36=4
    49:6=8 8*6=48 49-48=1
    12:6=2 2*6=12 12-12=0
    x=682
    2*6+0=12
    8*6+1=49
    6*6+4=40
    682*6=4092
    2+7+0=9
    9+6+0=15
    0+9+1=10
    4+0+1=5
    4092+967=5059
    6+8=14 5+2=7 7*6=42
    4+0=4 4+9=13 4+2=6
    \boxed{682}

Every written solution is correct. A borrow gone wrong is mostly off by 100, which none of the
factors divides: then the division does not come out even, and the checks do not fit, which no
training text shows. What runs this: `../training`.
"""

import random
import re
from typing import NamedTuple

from task import EOS, UNK, Split, Training, split_of

VOCAB = [EOS, UNK, *"0123456789*+-=:;x? \n\\boed{}"]
TRAINING = Training(
    steps=1000, schedule=1600, positions=256, begin_steps=400, begin_tokens=40, begin_batches=6
)
ROWS = 28
FACTORS = (3, 6, 7, 9)

_QUESTION = re.compile(r"(\d+)\*x\+(\d+)=(\d+);x=\?")


class Equation(NamedTuple):
    """factor * x + added = total."""

    factor: int
    x: int
    added: int

    @property
    def product(self) -> int:
        """What the subtraction should give."""
        return self.factor * self.x

    @property
    def total(self) -> int:
        """The right-hand side."""
        return self.product + self.added


def canonical(problem: Equation) -> str:
    """One string for an equation."""
    return f"{problem.factor}*{problem.x}+{problem.added}"


def draw(rng: random.Random, split: Split) -> Equation:
    """A random equation from one split."""
    while True:
        problem = Equation(rng.choice(FACTORS), rng.randint(100, 999), rng.randint(100, 999))
        if split_of(canonical(problem)) == split:
            return problem


def rows(rng: random.Random) -> list[tuple[str, str]]:
    """A batch."""
    return [(question(each), solution(each)) for each in (draw(rng, "train") for _ in range(ROWS))]


def held_out(rng: random.Random, split: Split, index: int) -> Equation:
    """As in training."""
    return draw(rng, split)


def question(problem: Equation) -> str:
    """The prompt, exactly as the model sees it."""
    return f"{problem.factor}*x+{problem.added}={problem.total};x=?"


def parse(text: str) -> Equation:
    """The equation of a question string."""
    found = _QUESTION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no question")
    factor, added, total = map(int, found.groups())
    return Equation(factor, (total - added) // factor, added)


def answer(problem: Equation) -> str:
    """What belongs into the box."""
    return str(problem.x)


def solution(problem: Equation) -> str:
    """The worked solution."""
    factor, x, added = problem
    product, total = problem.product, problem.total
    residue, by_x = nines(x)
    _, by_product = nines(product)
    lines = [
        f"{total}-{added}={product}",
        *divided(product, factor),
        f"x={x}",
        *multiplied(x, factor),
        f"{x}*{factor}={product}",
        *summed(product, added),
        f"{product}+{added}={total}",
        f"{by_x} {residue}*{factor}={residue * factor}",
        by_product,
        f"\\boxed{{{x}}}",
    ]
    return "".join(f"\n{line}" for line in lines)


def divided(number: int, by: int) -> list[str]:
    """A long division, a line for each digit of the quotient."""
    lines: list[str] = []
    rest = 0
    for digit in str(number):
        rest = 10 * rest + int(digit)
        times = rest // by
        if times or lines:
            lines.append(f"{rest}:{by}={times} {times}*{by}={times * by} {rest}-{times * by}=")
            rest -= times * by
            lines[-1] += str(rest)
    return lines


def multiplied(number: int, by: int) -> list[str]:
    """A product, a line for each digit, units first."""
    lines, carry = [], 0
    for digit in map(int, reversed(str(number))):
        value = digit * by + carry
        lines.append(f"{digit}*{by}+{carry}={value}")
        carry = value // 10
    return lines


def summed(one: int, other: int) -> list[str]:
    """A sum, a line for each digit, units first."""
    lines, carry = [], 0
    width = max(len(str(one)), len(str(other)))
    for a, b in zip(f"{one:0{width}}"[::-1], f"{other:0{width}}"[::-1], strict=True):
        value = int(a) + int(b) + carry
        lines.append(f"{a}+{b}+{carry}={value}")
        carry = value // 10
    return lines


def nines(number: int) -> tuple[int, str]:
    """The residue of a number modulo nine, nine for zero, and the sums that lead to it."""
    first, *others = map(int, str(number))
    residue, sums = first, []
    for digit in others:
        sums.append(f"{residue}+{digit}={residue + digit}")
        residue += digit
        residue -= 9 * (residue > 9)
    return residue, " ".join(sums)
