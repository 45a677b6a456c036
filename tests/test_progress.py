"""`progress=True`: what is shown where there is no terminal, and that callers are still told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepconf
import pytest
from conftest import TINY
from deepconf.errors import MissingExtra
from recorded_engine import RecordedEngine, recorded
from test_importing import choice, likely, response

RECORDING = TINY / "calibration.parquet"
LOW = deepconf.Policy.low(budget=16, warmup=4, window=32, tail=96, top_logprobs=10)


def calls(folder: Path) -> dict[str, Any]:
    responses = folder / "in.jsonl"
    responses.write_text(json.dumps(response(choice(likely(3)))) + "\n")
    out = folder / "out.parquet"
    return {
        "importing bytes": lambda **told: deepconf.import_traces(responses, **told),
        "scoring traces": lambda **told: deepconf.score_traces(RECORDING, out, **told),
        "reading traces": lambda **told: deepconf.diagnose(RECORDING, **told),
        "replaying questions": lambda **told: deepconf.replay(
            RECORDING, {"low": LOW}, repeats=2, **told
        ),
    }


@pytest.mark.parametrize(
    "what", ["importing bytes", "scoring traces", "reading traces", "replaying questions"]
)
def test_true_shows_how_far_it_is(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = calls(tmp_path)[what]
    call(progress=True)
    shown = capsys.readouterr()
    assert what in shown.err
    assert shown.out == ""
    told: list[tuple[int, int]] = []
    call(progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    call(progress=None)
    call(progress=False)
    assert capsys.readouterr().err == ""


def test_tuning_and_votes_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deepconf.tune(RECORDING, {"low": LOW}, repeats=2, progress=True)
    deepconf.vote_traces(RECORDING, tmp_path / "votes.parquet", progress=True)
    shown = capsys.readouterr().err
    assert "reading traces: 3,840 of 3,840" in shown
    assert "replaying questions: 60 of 60" in shown


def test_an_evaluation_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    from deepconf.evaluate import evaluate

    policy = deepconf.Policy.offline(budget=4, window=4, tail=4, top_logprobs=5, min_ballots=1)
    with RecordedEngine([recorded(9.0, "7")] * 4) as engine:
        questions = [{"question": str(at), "answer": "7"} for at in range(3)]
        evaluate(engine, questions, {"offline": policy}, progress=True)
    assert "offline: 3 of 3 questions" in capsys.readouterr().err


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepconf._terminal", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delattr(deepconf, "_terminal", raising=False)
    for name in [name for name in sys.modules if name.startswith("rich.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match="package rich"):
        deepconf.replay(RECORDING, {"low": LOW}, repeats=2, progress=True)
