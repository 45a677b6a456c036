r"""The task: sums of three-digit by one-digit products, worked term by term.

A question is ``374*6+581*3+902*7+455*8=?``. A solution takes the terms in any order, splits each
product by place value, and keeps a running total::

    455*8=3200+400+40=3640
    374*6=1800+420+24=2244 3640+2244=5884
    902*7=6300+0+14=6314 5884+6314=12198
    581*3=1500+240+3=1743 12198+1743=13941
    \boxed{13941}

Every written solution is correct. Questions are split by a hash of their sorted terms, so no
ordering of a held-out question can occur in training.
"""

import argparse
import hashlib
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Split = Literal["train", "calibration", "test"]
Term = tuple[int, int]

FOLDER = Path(__file__).resolve().parent
FILES: dict[Split, tuple[str, int]] = {
    "calibration": ("calibration.jsonl", 60),
    "test": ("questions.jsonl", 120),
}
TRAIN_TERMS = (2, 6)
QUESTION_TERMS = (4, 6)
EOS = "<eos>"
UNK = "<unk>"
VOCAB = [EOS, UNK, *"0123456789*+=? \n\\boxed{}"]

_BOXED = re.compile(r"\\boxed\{(\d+)\}")


def canonical(terms: Sequence[Term]) -> str:
    """One string for all orderings of the same terms (and of the factors in them)."""
    return "+".join(f"{a}*{b}" for a, b in sorted(terms))


def split_of(terms: Sequence[Term]) -> Split:
    """The split a question belongs to, a fixed function of its terms."""
    bucket = int.from_bytes(hashlib.sha256(canonical(terms).encode()).digest()[:4], "big") % 10
    return "test" if bucket == 0 else "calibration" if bucket == 1 else "train"


def draw(rng: random.Random, count: int, split: Split) -> list[Term]:
    """A random question with ``count`` different terms, from one split."""
    while True:
        terms = [(rng.randint(100, 999), rng.randint(2, 9)) for _ in range(count)]
        if len(set(terms)) == count and split_of(terms) == split:
            return terms


def question(terms: Sequence[Term]) -> str:
    """The prompt, exactly as the model sees it."""
    return "+".join(f"{a}*{b}" for a, b in terms) + "=?"


def parse(text: str) -> list[Term]:
    """The terms of a question string."""
    pairs = (term.split("*") for term in text.removesuffix("=?").split("+"))
    return [(int(a), int(b)) for a, b in pairs]


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


def answer_of(trace: str) -> str | None:
    """The boxed answer of a trace, or None when it has none."""
    found = _BOXED.findall(trace)
    return found[-1] if found else None


def write_questions(seed: int) -> None:
    """Write the two held-out question files."""
    for split, (name, count) in FILES.items():
        rng = random.Random(f"{split}-{seed}")
        rows: dict[str, str] = {}
        low, high = QUESTION_TERMS
        while len(rows) < count:
            terms = draw(rng, low + len(rows) % (high - low + 1), split)
            row = {
                "id": f"{split}-{len(rows):03d}",
                "question": question(terms),
                "answer": str(sum(a * b for a, b in terms)),
            }
            rows.setdefault(canonical(terms), json.dumps(row))
        (FOLDER / name).write_text("\n".join(rows.values()) + "\n")


def load(split: Split) -> list[dict[str, str]]:
    """The rows of one held-out question file."""
    lines = (FOLDER / FILES[split][0]).read_text().splitlines()
    return [json.loads(line) for line in lines]


def check() -> None:
    """Verify answers, uniqueness, and that no shipped question is in the training split."""
    seen: set[str] = set()
    for split, (name, count) in FILES.items():
        rows = load(split)
        assert len(rows) == count, f"{name}: {len(rows)} rows, expected {count}"
        for row in rows:
            terms = parse(row["question"])
            assert question(terms) == row["question"], f"{row['id']}: unreadable question"
            assert split_of(terms) == split, f"{row['id']}: wrong split"
            assert str(sum(a * b for a, b in terms)) == row["answer"], f"{row['id']}: answer"
            assert canonical(terms) not in seen, f"{row['id']}: repeated question"
            seen.add(canonical(terms))
        print(f"{name}: {count} questions, all held out of training, answers correct")


def main() -> None:
    """Write the question files, or check those that are there."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("command", choices=["write", "check"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "write":
        write_questions(args.seed)
    check()


if __name__ == "__main__":
    main()
