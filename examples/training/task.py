"""What a tiny reasoner learns: the `problems.py` of its folder, and which questions are held out.

A task is that module. It draws problems, writes each as a question with a worked solution, and
reads a question back. Whether a problem is trained on or held out is fixed by a hash of its
canonical form, so that no other way of writing a held-out question can occur in training.
"""

import hashlib
import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

Split = Literal["train", "calibration", "test"]

EOS = "<eos>"
UNK = "<unk>"


@dataclass(frozen=True)
class Training:
    """How long a model is trained, and on what length of traces."""

    steps: int
    """Steps after which it is exported."""
    schedule: int
    """Steps after which the learning rate would have run out."""
    positions: int
    """The longest question and trace together, in tokens."""
    begin_steps: int = 0
    """So many steps at first see the beginnings of traces only,"""
    begin_tokens: int = 0
    """of this length, the question counted in,"""
    begin_batches: int = 1
    """and so many batches of them at a time."""


class Task(Protocol):
    """The names that a `problems.py` defines; a problem is whatever it likes."""

    VOCAB: list[str]
    TRAINING: Training

    def rows(self, rng: random.Random) -> list[tuple[str, str]]:
        """A batch of training questions with worked solutions."""

    def held_out(self, rng: random.Random, split: Split, index: int) -> Any:
        """A problem for a question file, in which it would stand at this index."""

    def question(self, problem: Any) -> str:
        """The prompt, exactly as the model sees it."""

    def parse(self, text: str) -> Any:
        """The problem of a prompt."""

    def canonical(self, problem: Any) -> str:
        """One string for all ways to write the problem."""

    def answer(self, problem: Any) -> str:
        """What belongs into the box."""


def split_of(canonical: str) -> Split:
    """The split of a problem, a fixed function of its canonical form: 80%, 10%, 10%."""
    bucket = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:4], "big") % 10
    return "test" if bucket == 0 else "calibration" if bucket == 1 else "train"


def load(folder: Path) -> Task:
    """The task of a reasoner's folder."""
    found = importlib.util.spec_from_file_location("problems", folder / "problems.py")
    if found is None or found.loader is None:
        raise FileNotFoundError(f"{folder}: has no problems.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return cast(Task, module)
