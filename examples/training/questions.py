"""Write the held-out question files of a tiny reasoner, or check those that are there.

    python examples/training/questions.py check examples/tiny-reasoner

Written anew they are the same: drawn with a fixed seed, from problems that are not trained on.
"""

import argparse
import json
import random
from pathlib import Path

from task import Split, Task, load, split_of

FILES: dict[Split, tuple[str, int]] = {
    "calibration": ("calibration.jsonl", 60),
    "test": ("questions.jsonl", 120),
}


def write(task: Task, folder: Path, seed: int) -> None:
    """Write both files; the same seed gives the same questions."""
    for split, (name, count) in FILES.items():
        rng = random.Random(f"{split}-{seed}")
        rows: dict[str, str] = {}
        while len(rows) < count:
            problem = task.held_out(rng, split, len(rows))
            row = {
                "id": f"{split}-{len(rows):03d}",
                "question": task.question(problem),
                "answer": task.answer(problem),
            }
            rows.setdefault(task.canonical(problem), json.dumps(row))
        (folder / name).write_text("\n".join(rows.values()) + "\n")


def check(task: Task, folder: Path) -> None:
    """Verify answers, uniqueness, and that no question is in the training split."""
    seen: set[str] = set()
    for split, (name, count) in FILES.items():
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert len(rows) == count, f"{name}: {len(rows)} rows, expected {count}"
        for row in rows:
            problem = task.parse(row["question"])
            canonical = task.canonical(problem)
            assert task.question(problem) == row["question"], f"{row['id']}: unreadable question"
            assert split_of(canonical) == split, f"{row['id']}: wrong split"
            assert task.answer(problem) == row["answer"], f"{row['id']}: answer"
            assert canonical not in seen, f"{row['id']}: repeated question"
            seen.add(canonical)
        print(f"{name}: {count} questions, all held out of training, answers correct")


def main() -> None:
    """Write the question files, or check those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["write", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    task = load(args.folder)
    if args.command == "write":
        write(task, args.folder, args.seed)
    check(task, args.folder)


if __name__ == "__main__":
    main()
