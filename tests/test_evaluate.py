"""Evaluation without an engine, on recorded traces, and on a real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from deepconf import Policy
from deepconf.errors import DeepConfError, EngineError, InvalidInput, InvalidType, RunFileError
from deepconf.evaluate import Evaluation, IncompleteRun, Progress, evaluate
from deepconf.provenance import fingerprint
from deepconf.report import Report
from deepconf.runs import RunFile
from recorded_engine import RecordedEngine, recorded

# ---- running ------------------------------------------------------------------------------------


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


POLICIES = {
    "low": Policy.low(budget=8, warmup=4, window=4, tail=4, stop="budget"),
    "offline": Policy.offline(budget=8, window=4, tail=4),
}
QUESTIONS = [{"id": f"q{i}", "question": f"{i}?", "answer": str(i)} for i in range(6)]


def traces_of(number: int) -> list[Any]:
    """Right where confident; every third question goes wrong."""
    gold, other = str(number), str(number + 100)
    if number % 3 == 2:
        gold, other = other, gold
    return [
        recorded(9.0 + 0.1 * number + 0.01 * i, f"{gold}.0")
        if i % 2
        else recorded(3.0 + 0.01 * i, other, tokens=40)
        for i in range(8)
    ]


def engine(**settings: Any) -> RecordedEngine:
    return RecordedEngine({f"{i}?": traces_of(i) for i in range(6)}, **settings)


def comparable(report: Report) -> Any:
    rows = [{**row, "seconds": None} for row in report.to_dict()["rows"]]
    return {**report.to_dict(), "rows": rows}


def test_evaluate_on_recorded_traces() -> None:
    with engine() as recording:
        report = evaluate(recording, QUESTIONS, POLICIES, concurrency=3)
    rows = {row.method: row for row in report.rows}
    assert report.complete
    assert rows["pass@1"].accuracy == 0.5
    assert rows["offline"].accuracy == pytest.approx(4 / 6)
    assert rows["offline"].tokens == 6 * 4 * (24 + 40)
    assert rows["low"].accuracy == pytest.approx(4 / 6)
    assert rows["low"].tokens is not None
    assert rows["low"].tokens < rows["offline"].tokens
    # The policy and the vote over its traces are two ways to one number.
    assert rows["bottom group, top 10%"].accuracy == rows["offline"].accuracy
    assert rows["bottom group, top 10%"].fallback == rows["offline"].fallback
    assert set(recording.started.values()) == {2}
    assert recording.most_running <= 3 * 8


def test_results_do_not_depend_on_concurrency() -> None:
    with engine() as recording:
        one = evaluate(recording, QUESTIONS, POLICIES, concurrency=1)
        many = evaluate(recording, QUESTIONS, POLICIES, concurrency=6)
    assert comparable(one) == comparable(many)


def test_evaluate_works_under_a_running_event_loop() -> None:
    async def cell() -> Report:  # as notebooks have it
        return evaluate(recording, QUESTIONS, POLICIES, limit=1)

    with engine() as recording:
        assert asyncio.run(cell()).complete


def test_a_run_carries_on(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run.jsonl"
    with engine() as recording:
        part = evaluate(recording, QUESTIONS, {"low": POLICIES["low"]}, out, limit=2)
        assert part.complete
        first = out.read_bytes()
        whole = evaluate(recording, QUESTIONS, POLICIES, out)
        assert out.read_bytes().startswith(first)
        assert recording.started["0?"] == 2  # low and offline, each once
        assert sum(recording.started.values()) == 12
        again = evaluate(recording, QUESTIONS, POLICIES, out)
        assert sum(recording.started.values()) == 12
        fresh = evaluate(recording, QUESTIONS, POLICIES)
    assert again == whole
    assert comparable(whole) == comparable(fresh)
    header, *lines = map(json.loads, out.read_text().splitlines())
    assert header["deepconf_run"] == 1
    assert header["versions"]["deepconf"]
    assert len({(line["policy"], line["id"]) for line in lines}) == len(lines) == 12
    assert all(len(line["result"]["traces"]) == 8 for line in lines)


def finished_run(tmp_path: Path) -> Path:
    out = tmp_path / "run.jsonl"
    with engine() as recording:
        evaluate(recording, QUESTIONS, POLICIES, out)
    return out


@pytest.mark.parametrize("cut", [1, 2, 300])
def test_a_torn_last_line_is_redone(tmp_path: Path, cut: int) -> None:
    out = finished_run(tmp_path)
    before = out.read_bytes()
    lines = before.splitlines(keepends=True)
    out.write_bytes(before[:-cut])
    with engine() as recording:
        report = evaluate(recording, QUESTIONS, POLICIES, out)
        assert sum(recording.started.values()) == 1
    assert report.complete
    after = out.read_bytes().splitlines(keepends=True)
    assert after[:-1] == lines[:-1]
    assert json.loads(after[-1])["id"] == json.loads(lines[-1])["id"]


def test_a_torn_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    out = finished_run(tmp_path)
    lines = out.read_bytes().splitlines(keepends=True)
    for damage in (lines[3][:50] + b"\n", b"[]\n", b'{"policy": "low", "id": "q1"}\n'):
        torn = b"".join([*lines[:3], damage, *lines[4:]])
        out.write_bytes(torn)
        with pytest.raises(RunFileError, match=r"run\.jsonl, line 4: damaged .*--overwrite"):
            Evaluation(QUESTIONS, POLICIES, model="recorded", out=out)
        assert out.read_bytes() == torn


def test_another_run_is_told_apart(tmp_path: Path) -> None:
    out = finished_run(tmp_path)
    before = out.read_bytes()
    other_low = {"low": POLICIES["low"].replace(keep=0.5)}
    others: list[tuple[dict[str, Any], str]] = [
        ({"model": "another"}, "model is 'recorded' there and 'another' here"),
        ({"questions": QUESTIONS[:5]}, "questions_sha256 is"),
        ({"policies": other_low}, "policy low: keep is 0.1 there and 0.5 here"),
        (
            {"settings": {"sampling": {"temperature": 0.5}}},
            "settings.sampling is unset there and {'temperature': 0.5} here",
        ),
        ({"answer": "regex:x"}, "answer is 'boxed' there and 'regex:x' here"),
    ]
    for change, says in others:
        arguments = {"questions": QUESTIONS, "policies": POLICIES, "model": "recorded", **change}
        with pytest.raises(RunFileError, match="holds another run") as caught:
            Evaluation(out=out, **arguments)
        assert says in str(caught.value)
        assert "--overwrite" in str(caught.value)
        assert out.read_bytes() == before
    anew = Evaluation(QUESTIONS, other_low, model="recorded", out=out, overwrite=True)
    anew.close()
    assert len(anew.missing()) == 6
    assert len(out.read_bytes().splitlines()) == 1


def test_a_policy_added_later_is_held_to_its_settings_too(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    with engine() as recording:
        evaluate(recording, QUESTIONS, {"low": POLICIES["low"]}, out)
        evaluate(recording, QUESTIONS, POLICIES, out)
        other = {"offline": POLICIES["offline"].replace(keep=0.5)}
        with pytest.raises(RunFileError, match=r"policy offline: keep is 0\.1 there and 0\.5 here"):
            evaluate(recording, QUESTIONS, other, out)


def test_a_run_without_results_holds_nobody_up(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    Evaluation(QUESTIONS, POLICIES, model="typo", out=out).close()
    Evaluation(QUESTIONS, POLICIES, model="recorded", out=out).close()
    out.write_bytes(out.read_bytes()[:40])  # killed in the first line
    Evaluation(QUESTIONS, POLICIES, model="recorded", out=out).close()
    assert json.loads(out.read_text())["model"] == "recorded"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_file_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    path = write(tmp_path / "questions.jsonl", *QUESTIONS)
    before = path.read_bytes()
    with pytest.raises(RunFileError, match="not a run file"):
        Evaluation(path, POLICIES, model="recorded", out=path, overwrite=overwrite)
    assert path.read_bytes() == before
    with pytest.raises(RunFileError, match="cannot be opened"):
        Evaluation(QUESTIONS, POLICIES, model="recorded", out=tmp_path)


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    out = finished_run(tmp_path)
    out.write_text(out.read_text().replace('"deepconf_run": 1', '"deepconf_run": 2', 1))
    with pytest.raises(RunFileError, match="format 2"):
        Evaluation(QUESTIONS, POLICIES, model="recorded", out=out)


def test_two_writers_are_kept_apart(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "run.jsonl"
    with RunFile(out, {"model": "m"}) as file:
        with pytest.raises(RunFileError, match="another process is writing"):
            RunFile(out, {"model": "m"})
        file.append({"policy": "low", "id": "q", "result": {}})
        ready, done = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            child = os.fork()
        if child == 0:
            os.write(done, b"!")
            signal.pause()
        os.read(ready, 1)
        os.close(ready)
        os.close(done)
    try:  # A child that lives on does not keep the lock.
        with RunFile(out, {"model": "m"}) as file:
            assert [record["id"] for record in file.records] == ["q"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_same_weights_are_the_same_model_anywhere(tmp_path: Path) -> None:
    for name, weight in [("a", b"1"), ("b", b"1"), ("c", b"2")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weight * 3_000_000)
    models = [str(tmp_path / name) for name in "abc"]
    marks = [fingerprint(model) for model in models]
    assert marks[0] == marks[1] != marks[2]
    assert fingerprint("no/such") is None
    out = tmp_path / "run.jsonl"
    with RunFile(out, {"model": models[0], "model_fingerprint": marks[0]}) as file:
        file.append({"policy": "low", "id": "q", "result": {}})
    RunFile(out, {"model": models[1], "model_fingerprint": marks[1]}).close()
    with pytest.raises(RunFileError, match="model_fingerprint"):
        RunFile(out, {"model": models[2], "model_fingerprint": marks[2]})


# ---- when things go wrong -----------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_seen_before_anything_is_generated() -> None:
    with engine() as recording:
        with pytest.raises(RunFileError, match="/dev/full: cannot be written"):
            evaluate(recording, QUESTIONS, POLICIES, "/dev/full")
        assert not recording.started


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_costs_no_results(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"

    class Fill(Progress):
        finished = 0

        def question(self, record: Any) -> None:
            self.finished += 1
            if self.finished == 2:
                full = os.open("/dev/full", os.O_RDWR)
                assert evaluation.file is not None
                os.dup2(full, evaluation.file._fd)
                os.close(full)

    evaluation = Evaluation(QUESTIONS, POLICIES, model="recorded", out=out)
    with engine(delays=0.002) as recording:
        evaluation.run(recording, concurrency=2, progress=Fill())
        started = sum(recording.started.values())
    evaluation.close()
    assert isinstance(evaluation.failure, RunFileError)
    assert str(evaluation.failure).startswith(f"{out}: cannot be written: No space left")
    # Two are on the disk; what was in flight is in memory; nothing was begun after that.
    assert len(out.read_bytes().splitlines()) == 1 + 2
    assert 3 <= len(evaluation.report().records) == started <= 5


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.jsonl"
    with RunFile(out, {"model": "m"}) as file:
        file.append({"policy": "low", "id": "q", "result": {}})
        before = out.read_bytes()
        write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
            with pytest.raises(RunFileError, match="only 5 of"):
                file.append({"policy": "low", "id": "r", "result": {}})
        assert out.read_bytes() == before
        assert len(file.records) == 1
        file.append({"policy": "low", "id": "r", "result": {}})
    assert len(out.read_bytes().splitlines()) == 3


def test_an_engine_that_fails_costs_one_question(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    traces = {f"{i}?": traces_of(i) for i in range(6)}
    broken = {**traces, "2?": [recorded(5.0, "2", reason="failed")] * 8}
    with RecordedEngine(broken) as recording:
        with pytest.raises(
            IncompleteRun, match="question 'q2', policy low: every trace failed"
        ) as caught:
            evaluate(recording, QUESTIONS, POLICIES, out, concurrency=1)
        assert isinstance(caught.value.__cause__, EngineError)
        assert [record["id"] for record in caught.value.report.records] == ["q0", "q1"]
    # One trace that fails is no reason to stop, but the question is not what it should be.
    broken["2?"] = [recorded(5.0, "2", reason="failed"), *traces["2?"][1:]]
    with RecordedEngine(broken) as recording:
        with pytest.raises(IncompleteRun, match="1 of 8 traces failed") as caught:
            evaluate(recording, QUESTIONS, POLICIES, out)
        assert len(caught.value.report.records) == 10
        assert "low: 5 of 6 questions finished" in caught.value.report.table()
    with RecordedEngine(traces) as recording:
        assert evaluate(recording, QUESTIONS, POLICIES, out).complete
        assert dict(recording.started) == {"2?": 2}


def test_a_question_the_model_cannot_take_is_named() -> None:
    questions = [*QUESTIONS[:2], {"id": "long", "question": "?" * 99, "answer": "1"}]
    with engine() as recording, pytest.raises(IncompleteRun, match="question 'long', policy low: "):
        evaluate(recording, questions, POLICIES)


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    delays = 0.02

    class Interrupt(Progress):
        finished = 0

        def question(self, record: Any) -> None:
            self.finished += 1
            if self.finished == 3:
                threading.Timer(delays, os.kill, (os.getpid(), signal.SIGINT)).start()

    evaluation = Evaluation(QUESTIONS, POLICIES, model="recorded", out=out)
    with engine(delays=delays) as recording:
        with pytest.raises(KeyboardInterrupt):
            evaluation.run(recording, concurrency=1, progress=Interrupt())
        assert recording.running == 0
        assert recording.aborted
    evaluation.close()
    assert evaluation.interrupted
    assert evaluation.failure is None
    assert len(evaluation.report().records) == 3
    with engine() as recording:
        assert evaluate(recording, QUESTIONS, POLICIES, out).complete
        assert sum(recording.started.values()) == 12 - 3


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"policies": []}, "at least one is needed"),
        ({"policies": ["low", "low"]}, "'low' is there twice"),
        ({"policies": ["middling"]}, "middling"),
        ({"limit": 0}, "limit=0"),
    ]
    for change, says in wrong:
        with pytest.raises(InvalidInput, match=says):
            Evaluation(**{"questions": QUESTIONS, "policies": ["low"], "model": "m", **change})
    with pytest.raises(InvalidType, match=r"policies\['x'\]"):
        Evaluation(QUESTIONS, {"x": "low"}, model="m")  # type: ignore[dict-item]
    with engine() as recording:
        with pytest.raises(InvalidInput, match="concurrency=0"):
            evaluate(recording, QUESTIONS, POLICIES, concurrency=0)
        with pytest.raises(InvalidInput, match="top_logprobs=30"):
            evaluate(recording, QUESTIONS, {"low": Policy.low(top_logprobs=30)})
        assert not recording.started
    with pytest.raises(DeepConfError, match="the engine is closed"):
        evaluate(recording, QUESTIONS, POLICIES)


# ---- on a real engine ---------------------------------------------------------------------------


def test_evaluate_on_a_real_engine(tiny_engine: Any, tmp_path: Path) -> None:
    tiny = Path(__file__).parents[1] / "examples" / "tiny-reasoner"
    found = json.loads((tiny / "deepconf.json").read_text())
    common = {name: found[name] for name in ("window", "tail", "top_logprobs")}
    policies = {
        "low": Policy.low(budget=8, warmup=4, **common),
        "high": Policy.high(budget=8, warmup=4, **common),
        "offline": Policy.offline(budget=8, **common),
    }
    out = tmp_path / "run.jsonl"
    report = evaluate(tiny_engine, tiny / "questions.jsonl", policies, out, concurrency=3, limit=3)
    rows = {row.method: row for row in report.rows}
    assert report.complete
    assert len(report.records) == 9
    assert rows["bottom group, top 10%"].accuracy == rows["offline"].accuracy
    assert rows["offline"].tokens is not None
    assert rows["low"].tokens is not None
    assert 0 < rows["low"].tokens <= rows["offline"].tokens * 1.5
    assert rows["low"].seconds is not None
    assert rows["low"].seconds > 0
    for record in report.records:
        for one in record["result"]["traces"]:
            right = one["answer"] is not None and int(one["answer"]) == int(record["gold"])
            assert one["correct"] == right
    assert evaluate(tiny_engine, tiny / "questions.jsonl", policies, out, limit=3) == report
