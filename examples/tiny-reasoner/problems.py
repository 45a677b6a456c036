r"""The task: sums of three-digit by one-digit products, worked term by term.

A question is ``374*6+581*3+902*7+455*8=?``. A solution takes the terms in any order, splits each
product by place value, and keeps a running total::

    455*8=3200+400+40=3640
    374*6=1800+420+24=2244 3640+2244=5884
    902*7=6300+0+14=6314 5884+6314=12198
    581*3=1500+240+3=1743 12198+1743=13941
    \boxed{13941}

Every written solution is correct. What runs this: `../training`.
"""

import random
from collections.abc import Sequence

from task import EOS, UNK, Split, Training, split_of

Term = tuple[int, int]

VOCAB = [EOS, UNK, *"0123456789*+=? \n\\boxed{}"]
# Stopped before the learning rate runs out: the model would become too good.
TRAINING = Training(steps=5000, schedule=6000, positions=384)
TRAIN_TERMS = (2, 6)
QUESTION_TERMS = (4, 6)
TERMS_A_BATCH = 72


def canonical(terms: Sequence[Term]) -> str:
    """One string for all orderings of the same terms (and of the factors in them)."""
    return "+".join(f"{a}*{b}" for a, b in sorted(terms))


def draw(rng: random.Random, count: int, split: Split) -> list[Term]:
    """A random question with ``count`` different terms, from one split."""
    while True:
        terms = [(rng.randint(100, 999), rng.randint(2, 9)) for _ in range(count)]
        if len(set(terms)) == count and split_of(canonical(terms)) == split:
            return terms


def rows(rng: random.Random) -> list[tuple[str, str]]:
    """A batch, all of its questions with as many terms."""
    count = rng.randint(*TRAIN_TERMS)
    drawn = (draw(rng, count, "train") for _ in range(TERMS_A_BATCH // count))
    return [(question(terms), solution(terms, rng)) for terms in drawn]


def held_out(rng: random.Random, split: Split, index: int) -> list[Term]:
    """Four, five and six terms in turn."""
    low, high = QUESTION_TERMS
    return draw(rng, low + index % (high - low + 1), split)


def question(terms: Sequence[Term]) -> str:
    """The prompt, exactly as the model sees it."""
    return "+".join(f"{a}*{b}" for a, b in terms) + "=?"


def parse(text: str) -> list[Term]:
    """The terms of a question string."""
    pairs = (term.split("*") for term in text.removesuffix("=?").split("+"))
    return [(int(a), int(b)) for a, b in pairs]


def answer(terms: Sequence[Term]) -> str:
    """What belongs into the box."""
    return str(sum(a * b for a, b in terms))


def solution(terms: Sequence[Term], rng: random.Random) -> str:
    """A correct worked solution, its terms in random order."""
    lines = []
    total = 0
    for a, b in rng.sample(terms, len(terms)):
        parts = (a // 100 * 100 * b, a // 10 % 10 * 10 * b, a % 10 * b)
        line = f"\n{a}*{b}={parts[0]}+{parts[1]}+{parts[2]}={a * b}"
        if lines:
            line += f" {total}+{a * b}={total + a * b}"
        total += a * b
        lines.append(line)
    return "".join(lines) + f"\n\\boxed{{{total}}}"
