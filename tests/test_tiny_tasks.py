"""The tasks that the tiny reasoners learn, and the trainer that they share."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "training"))
import questions as held_out
import task as tasks

EXAMPLES = Path(__file__).parents[1] / "examples"
REASONERS = ["tiny-reasoner", "tiny-equations"]


@pytest.fixture(params=REASONERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return EXAMPLES / str(request.param)


def test_shipped_questions_are_held_out_and_their_answers_right(folder: Path) -> None:
    held_out.check(tasks.load(folder), folder)


def test_written_anew_the_questions_are_the_same(folder: Path, tmp_path: Path) -> None:
    held_out.write(tasks.load(folder), tmp_path, seed=0)
    for name, _ in held_out.FILES.values():
        assert (tmp_path / name).read_text() == (folder / name).read_text()


def test_a_question_that_is_trained_on_is_refused(folder: Path, tmp_path: Path) -> None:
    task = tasks.load(folder)
    held_out.write(task, tmp_path, seed=0)
    asked, _ = task.rows(random.Random(0))[0]
    problem = task.parse(asked)
    lines = (tmp_path / "questions.jsonl").read_text().splitlines()
    row = {"id": "x", "question": asked, "answer": task.answer(problem)}
    (tmp_path / "questions.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    with pytest.raises(AssertionError, match="x: wrong split"):
        held_out.check(task, tmp_path)


def test_solutions_fit_the_model_and_every_equation_in_them_holds(folder: Path) -> None:
    task = tasks.load(folder)
    rng = random.Random(1)
    for _ in range(30):
        for asked, worked in task.rows(rng):
            assert set(asked + worked) <= set(task.VOCAB)
            assert len(asked + worked) < task.TRAINING.positions
            assert worked.endswith(f"\\boxed{{{task.answer(task.parse(asked))}}}")
            for left, right in re.findall(r"(?<![:\d])([\d*+-]+)=(?=([\d+]+))", worked):
                assert eval(left) == eval(right), f"{left}={right} in {worked}"


def test_a_model_is_trained_and_exported(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    import train

    task = tasks.load(folder)
    shipped = json.loads((folder / "model" / "config.json").read_text())
    train.train(task, tmp_path / "model", 1e-3, seed=0, steps=1, export_every=1)
    written: dict[str, Any] = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written == shipped
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "model" / name).read_text() == (folder / "model" / name).read_text()


def test_targets_are_the_solution_alone_and_end_with_it() -> None:
    pytest.importorskip("torch")
    import train

    ids = {token: i for i, token in enumerate([tasks.EOS, tasks.UNK, *"ab?"])}
    tokens, targets = train.batch_of([("a?", "ab"), ("a?", "b")], ids, longest=9)
    assert tokens.tolist() == [[2, 4, 2, 3, 0], [2, 4, 3, 0, 0]]
    assert targets.tolist() == [[-100, 2, 3, 0, -100], [-100, 3, 0, -100, -100]]
    tokens, targets = train.batch_of([("a?", "ab"), ("a?", "b")], ids, longest=3)
    assert tokens.tolist() == [[2, 4, 2], [2, 4, 3]]
    assert targets.tolist() == [[-100, 2, 3], [-100, 3, 0]]
