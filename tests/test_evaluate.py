"""Evaluation without an engine, on recorded traces, and on a real one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepconf
import pytest
from deepconf import Policy
from deepconf.errors import (
    DeepConfError,
    EngineDied,
    EngineError,
    InvalidInput,
    InvalidType,
    MissingExtra,
    RunFileError,
    RunWarning,
)
from deepconf.evaluate import Evaluation, IncompleteRun, Progress, ProgressWarning, evaluate
from deepconf.provenance import code_name, fingerprint
from deepconf.questions import posed
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
    assert header["deepconf_run"] == 2
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


def test_overwriting_keeps_what_is_there_until_there_is_an_engine(tmp_path: Path) -> None:
    out = finished_run(tmp_path)
    before = out.read_bytes()
    other = {"low": POLICIES["low"].replace(keep=0.5)}
    anew = Evaluation(QUESTIONS, other, model="recorded", out=out, overwrite=True)
    assert len(anew.missing()) == 6
    anew.close()  # The engine did not start.
    assert out.read_bytes() == before
    with engine() as recording:
        with pytest.raises(InvalidInput, match="top_logprobs=30"):
            evaluate(
                recording, QUESTIONS, {"low": Policy.low(top_logprobs=30)}, out, overwrite=True
            )
        assert out.read_bytes() == before
        assert evaluate(recording, QUESTIONS, other, out, overwrite=True, limit=2).complete
    assert len(out.read_bytes().splitlines()) == 1 + 2


@pytest.mark.parametrize("number", [1, 3])
def test_another_format_is_refused(tmp_path: Path, number: int) -> None:
    out = finished_run(tmp_path)
    before = out.read_text().replace('"deepconf_run": 2', f'"deepconf_run": {number}', 1)
    out.write_text(before)
    with pytest.raises(RunFileError, match=rf"format {number}, .* reads format 2: .*--overwrite"):
        Evaluation(QUESTIONS, POLICIES, model="recorded", out=out)
    assert out.read_text() == before


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


NO_LOCKS = """
import errno, fcntl, sys, time
def flock(fd, how):
    raise OSError(errno.{errno}, "no locks here")
fcntl.flock = flock
from deepconf.errors import RunFileError
from deepconf.runs import RunFile
try:
    file = RunFile(sys.argv[1], {{"model": "m"}})
except RunFileError as error:
    print(error, flush=True)
else:
    print("writing", flush=True)
    sys.stdin.readline()
    file.append({{"policy": "low", "id": sys.argv[2], "result": {{}}}})
    file.close()
"""


@contextlib.contextmanager
def lockless_writer(out: Path, name: str, error: str) -> Iterator[tuple[Any, str]]:
    """A process that writes a run file where `flock` fails, and the first thing it says."""
    pytest.importorskip("fcntl")
    pytest.importorskip("filelock")
    writer = subprocess.Popen(
        [sys.executable, "-c", NO_LOCKS.format(errno=error), str(out), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    with writer:
        try:
            yield writer, writer.stdout.readline()
        finally:
            writer.kill()


@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_two_writers_are_kept_apart_where_there_are_no_locks(tmp_path: Path, error: str) -> None:
    out = tmp_path / "run.jsonl"
    with lockless_writer(out, "a", error) as (first, said):
        assert said == "writing\n"
        with lockless_writer(out, "b", error) as (_, refused):
            assert refused.startswith(f"{out}: another process is writing this run file")
            assert f"delete {out}.lock" in refused
        first.communicate("go\n", timeout=60)
        assert first.returncode == 0
    with lockless_writer(out, "b", error) as (second, said):
        assert said == "writing\n"
        second.kill()  # Its lock is left behind, and holds nobody up.
        second.wait()
    assert Path(f"{out}.lock").exists()
    with lockless_writer(out, "c", error) as (third, said):
        assert said == "writing\n"
        third.communicate("go\n", timeout=60)
    assert not Path(f"{out}.lock").exists()
    names = [json.loads(line)["id"] for line in out.read_text().splitlines()[1:]]
    assert names == ["a", "c"]


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_of_another_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("filelock")
    without_locks(monkeypatch)
    out = tmp_path / "run.jsonl"
    beside = tmp_path / "run.jsonl.lock"
    beside.write_text("4711\nnode-17\n")
    with pytest.raises(RunFileError, match=r"pid 4711 on node-17.* delete .*run\.jsonl\.lock"):
        RunFile(out, {"model": "m"})
    beside.unlink()
    with RunFile(out, {"model": "m"}):
        with pytest.raises(RunFileError, match="another process is writing"):
            RunFile(out, {"model": "m"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            child = os.fork()
        if child == 0:
            os._exit(0)  # Which lets go of nothing.
        os.waitpid(child, 0)
        assert beside.exists()
    assert not beside.exists()


def test_without_any_lock_a_run_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(MissingExtra, match="filelock"):
        RunFile(tmp_path / "run.jsonl", {"model": "m"})
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(RunFileError, match="cannot be locked: Input/output error"):
        RunFile(tmp_path / "run.jsonl", {"model": "m"})


def test_the_header_says_all_that_results_depend_on(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    out = tmp_path / "run.jsonl"

    class Knowing(RecordedEngine):
        def settings(self, sampling: Any = None) -> dict[str, Any]:
            return {"sampling": dict(sampling or {}), "chat": thinking}

    thinking: Any = {"enable_thinking": True}
    with Knowing({f"{i}?\nBox it.": traces_of(i) for i in range(6)}) as recording:
        common: dict[str, Any] = {"suffix": "Box it.", "system": "Think.", "limit": 2}
        common |= {"math": False, "sampling": {"top_p": 0.9}, "out": out}
        evaluate(recording, QUESTIONS, POLICIES, **common)
        header = json.loads(out.read_text().splitlines()[0])
        assert header["suffix"] == "Box it."
        assert header["system"] == "Think."
        assert header["math"] is False
        assert header["settings"] == {"sampling": {"top_p": 0.9}, "chat": {"enable_thinking": True}}
        lines = map(json.loads, out.read_text().splitlines()[1:])
        question = next(line["result"]["question"] for line in lines if line["id"] == "q0")
        assert question == [
            {"role": "system", "content": "Think."},
            {"role": "user", "content": "0?\nBox it."},
        ]
        for change, says in [
            ({"math": "auto"}, "math is False there and True here"),
            ({"sampling": {"top_p": 0.8}}, r"settings.sampling.top_p is 0.9 there and 0.8 here"),
            ({"suffix": None}, "suffix is 'Box it.' there and unset here"),
            ({"system": "Think!"}, "system is 'Think.' there and 'Think!' here"),
        ]:
            with pytest.raises(RunFileError, match=says):
                evaluate(recording, QUESTIONS, POLICIES, **{**common, **change})
        thinking = {"enable_thinking": False}
        with pytest.raises(RunFileError, match=r"settings.chat.enable_thinking is True there"):
            evaluate(recording, QUESTIONS, POLICIES, **common)


def test_an_engine_that_does_not_tell_its_settings_tells_its_sampling(tmp_path: Path) -> None:
    class Silent:
        """Another's engine, after an older protocol."""

        model = "recorded"
        sampling = {"temperature": 0.5, "top_p": 1.0}  # noqa: RUF012

        def __init__(self, inner: RecordedEngine) -> None:
            for name in ("submit", "check", "prepare", "stream", "abort"):
                setattr(self, name, getattr(inner, name))

    out = tmp_path / "run.jsonl"
    with engine() as recording:
        made: Any = Silent(recording)
        evaluate(made, QUESTIONS, POLICIES, out, limit=1, sampling={"top_p": 0.9})
    header = json.loads(out.read_text().splitlines()[0])
    assert header["settings"] == {"sampling": {"temperature": 0.5, "top_p": 0.9}}


def test_settings_that_are_no_json_are_named_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    with engine() as recording:
        with pytest.raises(InvalidInput, match=r"settings\.sampling\.stop\[1\] is <object"):
            evaluate(recording, QUESTIONS, POLICIES, out, sampling={"stop": ["x", object()]})
        assert not recording.started
    assert not out.exists()


def at(place: int) -> Any:
    return lambda text: text.split()[place]


def last(text: str, *, count: int = 1) -> str:
    return text[-count:]


class Extractor:
    def __init__(self, name: str | None = None) -> None:
        if name is not None:
            self.name = name

    def __call__(self, text: str) -> str:
        return text

    def first(self, text: str) -> str:
        return text[:1]


CALLABLES = [
    lambda text: text[-1:],
    lambda text: text[-2:],
    lambda text, words=("a", "b"): text,
    lambda text, words=("a", "c"): text,
    lambda text: "x" if text in {"a", "b", "c", "d"} else None,
    at(0),
    at(1),
    last,
    functools.partial(last, count=1),
    functools.partial(last, count=2),
    Extractor("one"),
    Extractor("two"),
    Extractor("one").first,
    str.strip,
    re.compile("x+").sub,
    re.compile("y+").sub,
    re.compile("y+"),
]


def test_callables_are_told_apart_and_known_again() -> None:
    names = [code_name(function) for function in CALLABLES]
    assert len(set(names)) == len(names)
    assert code_name(at(0)) == code_name(at(0))
    assert code_name(functools.partial(last, count=2)) == names[9]
    code = (
        "import test_evaluate as t\n"
        "print([t.code_name(function) for function in t.CALLABLES] == eval(input()))"
    )
    for seed in "12":  # Another process, in which sets have another order.
        again = subprocess.run(
            [sys.executable, "-c", code],
            input=repr(names),
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        assert again.stdout == "True\n", again.stderr


def test_a_function_in_its_own_closure_has_a_name() -> None:
    def outer() -> Any:
        def inner(text: str) -> Any:
            return inner(text[1:]) if text else None

        return inner

    assert code_name(outer()) == code_name(outer())


def test_a_run_with_a_callable_carries_on_with_that_callable_only(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    first = [functools.partial(last, count=count) for count in (2, 2, 3)]
    with engine() as recording:
        evaluate(recording, QUESTIONS, POLICIES, out, limit=2, answer=first[0])
        asked = sum(recording.started.values())
        evaluate(recording, QUESTIONS, POLICIES, out, limit=2, answer=first[1])
        assert sum(recording.started.values()) == asked
        with pytest.raises(RunFileError, match=r"answer is .partial test_evaluate.last#"):
            evaluate(recording, QUESTIONS, POLICIES, out, answer=first[2])
        with pytest.raises(InvalidInput, match="give it an attribute `name`"):
            evaluate(recording, QUESTIONS, POLICIES, tmp_path / "other.jsonl", answer=Extractor())
        assert evaluate(recording, QUESTIONS, POLICIES, limit=1, answer=Extractor()).complete


def test_a_compiled_expression_is_the_same_as_its_text(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    with engine() as recording:
        evaluate(recording, QUESTIONS, POLICIES, out, limit=1, answer=r"regex:(?i)boxed\{(.*)\}")
        asked = sum(recording.started.values())
        same = re.compile(r"(?i)boxed\{(.*)\}")
        assert evaluate(recording, QUESTIONS, POLICIES, out, limit=1, answer=same).complete
        assert sum(recording.started.values()) == asked
        with pytest.raises(RunFileError, match="answer is"):
            evaluate(recording, QUESTIONS, POLICIES, out, answer=re.compile(same.pattern, re.S))


def test_suffix_and_system_are_put_round_a_question() -> None:
    chat = [{"role": "user", "content": "1+1=?"}]
    assert posed("1+1=?") == "1+1=?"
    assert posed("1+1=?", suffix="Box it.") == "1+1=?\nBox it."
    assert posed(chat, suffix="Box it.", system="Think.") == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "1+1=?\nBox it."},
    ]
    assert chat == [{"role": "user", "content": "1+1=?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+1=?"}]}]
    with pytest.raises(InvalidInput, match=r"suffix='Box it.': cannot be appended"):
        posed(parts, suffix="Box it.")
    own = [{"role": "system", "content": "Be brief."}, *chat]
    asked = [{"id": "own", "question": own, "answer": "2"}]
    with pytest.raises(InvalidInput, match=r"question 'own': system='Think.': .* of its own"):
        Evaluation(asked, POLICIES, model="recorded", system="Think.")


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
def test_a_disk_that_fills_up_ends_the_run_at_once(tmp_path: Path) -> None:
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

    slow = [recorded(5.0, "5", tokens=4000)] * 8
    traces = {f"{i}?": traces_of(i) for i in range(5)} | {"5?": slow}
    asked = [QUESTIONS[5], *QUESTIONS[:5]]
    evaluation = Evaluation(asked, POLICIES, model="recorded", out=out)
    with RecordedEngine(traces, delays=0.002) as recording:
        evaluation.run(recording, concurrency=2, progress=Fill())
        # What was in flight beside the one that could not be saved is not paid for any longer.
        ended = Counter(name.rpartition("-")[0] for name in recording.aborted)
        assert ended.most_common(1)[0][1] == 4, "the warmup traces of the slow question"
        assert recording.running == 0
        assert dict(recording.started) == {"5?": 1, "0?": 1, "1?": 1, "2?": 1}
    evaluation.close()
    assert isinstance(evaluation.failure, RunFileError)
    assert str(evaluation.failure).startswith(f"{out}: cannot be written: No space left")
    assert [record["id"] for record in evaluation.unsaved] == ["q2"]
    stopped = evaluation.incomplete()
    assert stopped is not None
    assert "finished but not saved: 'q2' (low)" in str(stopped)
    assert "2 of 12 questions are finished and in" in str(stopped)
    assert not stopped.report.complete
    assert [record["id"] for record in stopped.report.records] == ["q0", "q1"]
    assert len(out.read_bytes().splitlines()) == 1 + 2
    with RecordedEngine(traces) as recording:  # There is room again.
        assert evaluate(recording, asked, POLICIES, out).complete
        assert sum(recording.started.values()) == 12 - 2


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
        saved = [(record["policy"], record["id"]) for record in caught.value.report.records]
        assert saved == [(of, q["id"]) for of in POLICIES for q in QUESTIONS if q["id"] != "q2"]
        assert "1 more failed; 10 of 12 questions are finished and in" in str(caught.value)
    with RecordedEngine(traces) as recording:
        assert evaluate(recording, QUESTIONS, POLICIES, out).complete
        assert dict(recording.started) == {"2?": 2}


def test_a_trace_that_fails_does_not_cost_its_question(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    traces = {f"{i}?": traces_of(i) for i in range(6)}
    traces["2?"] = [*traces["2?"][:7], recorded(9.9, "2", reason="failed")]
    with RecordedEngine(traces) as recording:
        with pytest.raises(
            IncompleteRun, match=r"'q2', policy low: 1 of 8 traces failed, more than max_failed=0.1"
        ) as caught:
            evaluate(recording, QUESTIONS, POLICIES, out)
        assert "1 more failed" in str(caught.value)  # offline's
        # The others went on.
        assert "low: 5 of 6 questions finished" in caught.value.report.table()
        assert len(caught.value.report.records) == 10
        report = evaluate(recording, QUESTIONS, POLICIES, out, max_failed=0.125)
        assert recording.started["2?"] == 4
        assert sum(recording.started.values()) == 14
        assert evaluate(recording, QUESTIONS, POLICIES, out, max_failed=0.125) == report
        assert sum(recording.started.values()) == 14
    assert report.complete
    for label in POLICIES:
        assert (
            f"{label}: 1 trace failed, in 1 of 6 questions, whose tokens are compared with nothing"
        ) in report.notes
    saved = next(r for r in report.records if (r["policy"], r["id"]) == ("offline", "q2"))
    assert [trace["status"] for trace in saved["result"]["traces"]].count("failed") == 1
    assert "recorded as failed" in saved["result"]["traces"][7]["error"]
    rows = {row.method: row for row in report.rows}
    # A trace that failed is not a wrong one, and its tokens are not saved ones.
    assert rows["pass@1"].accuracy == pytest.approx((5 * 0.5 + 4 / 7) / 6)
    five = [i for i in range(6) if i != 2]
    both = {
        label: sum(
            record["result"]["tokens"]["generated"]
            for record in report.records
            if record["policy"] == label and record["id"] in {f"q{i}" for i in five}
        )
        for label in POLICIES
    }
    assert rows["low"].against_offline == both["low"] / both["offline"] - 1.0


class Mortal(RecordedEngine):
    """Dies when it is asked for one question more."""

    lives = 3

    async def stream(self, prompt: Any, **options: Any) -> Any:
        if sum(self.started.values()) > self.lives:
            raise EngineDied("the engine's process is gone")
        async with contextlib.aclosing(super().stream(prompt, **options)) as chunks:
            async for chunk in chunks:
                yield chunk


def test_an_engine_that_dies_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    with Mortal({f"{i}?": traces_of(i) for i in range(6)}) as dying:
        with pytest.raises(IncompleteRun, match=r"'q3', policy low: .*process is gone") as caught:
            evaluate(dying, QUESTIONS, POLICIES, out, concurrency=1)
        assert sum(dying.started.values()) == 4  # Nothing more was asked.
    assert isinstance(caught.value.__cause__, EngineDied)
    assert f"3 of 12 questions are finished and in {out}" in str(caught.value)
    assert "carries on" in str(caught.value)
    assert not caught.value.report.complete
    assert len(out.read_bytes().splitlines()) == 1 + 3
    with engine() as recording:
        assert evaluate(recording, QUESTIONS, POLICIES, out).complete
        assert sum(recording.started.values()) == 12 - 3


@pytest.mark.parametrize("method", ["policy", "question", "trace"])
@pytest.mark.filterwarnings("default::deepconf.RunWarning")
def test_a_progress_that_raises_does_not_disturb(method: str) -> None:
    def broken(self: Any, *arguments: Any) -> None:
        raise ValueError("the bar broke")

    progress = type("Broken", (Progress,), {method: broken})()
    with engine() as recording:
        with pytest.warns(RunWarning, match=f"progress.{method} failed, the first time") as caught:
            report = evaluate(recording, QUESTIONS, POLICIES, progress=progress)
        assert report.complete
        assert len(caught) == 1
        assert any("the bar broke" in note for note in report.notes)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # As pytest and -W error have it: nothing is lost.
            with pytest.raises(ProgressWarning) as raised:
                evaluate(recording, QUESTIONS, POLICIES, progress=progress)
        assert raised.value.report.complete


def test_progress_is_told_of_traces() -> None:
    class Watch(Progress):
        def __init__(self) -> None:
            self.traces: list[Any] = []

        def trace(self, trace: Any) -> None:
            self.traces.append(trace)

    watch = Watch()
    with engine() as recording:
        evaluate(recording, QUESTIONS, {"offline": POLICIES["offline"]}, limit=1, progress=watch)
    assert {trace.status for trace in watch.traces} == {"finished"}
    assert {trace.num_tokens for trace in watch.traces} == {24, 40}


def test_warnings_of_runs_are_in_the_report_and_no_errors(tmp_path: Path) -> None:
    silent = {f"{i}?": [recorded(5.0, None)] * 8 for i in range(6)}
    with RecordedEngine(silent) as recording, warnings.catch_warnings():
        warnings.simplefilter("error")
        report = evaluate(recording, QUESTIONS, POLICIES, tmp_path / "run.jsonl", limit=2)
    assert "offline: in 2 of 2 questions no trace had an answer" in report.table()
    assert "--suffix" in report.table()


def test_a_question_the_model_cannot_take_is_named() -> None:
    questions = [{"id": "long", "question": "?" * 99, "answer": "1"}, *QUESTIONS[:2]]
    for kind in (InvalidInput, KeyError):

        class Picky(RecordedEngine):
            def prepare(self, question: Any, error: Any = kind) -> Any:
                if len(question) > 9:
                    raise error("too long")
                return super().prepare(question)

        with (
            Picky({f"{i}?": traces_of(i) for i in range(6)}) as recording,
            pytest.raises(
                IncompleteRun, match=r"question 'long', policy low: .*too long"
            ) as caught,
        ):
            evaluate(recording, questions, POLICIES, concurrency=1)
        assert len(caught.value.report.records) == 4  # The others are asked all the same.


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
        ({"max_failed": 1.0}, r"max_failed=1.0: must be in \[0, 1\)"),
        ({"max_failed": -0.1}, "max_failed=-0.1"),
        ({"math": "yes"}, "math='yes'"),
        ({"answer": "last"}, "answer='last'"),
    ]
    for change, says in wrong:
        with pytest.raises(InvalidInput, match=says):
            Evaluation(**{"questions": QUESTIONS, "policies": ["low"], "model": "m", **change})
    with pytest.raises(InvalidType, match=r"policies\['x'\]"):
        Evaluation(QUESTIONS, {"x": "low"}, model="m")  # type: ignore[dict-item]
    with pytest.raises(InvalidType, match="suffix=3: must be a string"):
        Evaluation(QUESTIONS, ["low"], model="m", suffix=3)  # type: ignore[arg-type]
    with engine() as recording:
        with pytest.raises(InvalidType, match=r"sampling=\[1\]: must be a mapping"):
            evaluate(recording, QUESTIONS, POLICIES, sampling=[1])  # type: ignore[arg-type]
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


def test_a_real_engine_is_recorded(tiny_engine: Any, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    tiny = Path(__file__).parents[1] / "examples" / "tiny-reasoner"
    found = json.loads((tiny / "deepconf.json").read_text())
    common = {name: found[name] for name in ("window", "tail", "top_logprobs")}
    policies = {
        "low": Policy.low(budget=8, warmup=4, **common),
        "offline": Policy.offline(budget=8, **common),
    }
    out, record = tmp_path / "run.jsonl", tmp_path / "t.parquet"
    for limit in (2, 3):
        report = evaluate(
            tiny_engine, tiny / "questions.jsonl", policies, out, limit=limit, record=record
        )
    rows = pq.read_table(record)
    assert rows.num_rows == 3 * 8
    scores = deepconf.score(
        rows["confidence"].combine_chunks(), window=common["window"], tail=common["tail"]
    )
    lines = [line for line in report.records if line["policy"] == "offline"]
    assert list(dict.fromkeys(rows["question_id"].to_pylist())) == [line["id"] for line in lines]
    traces = [trace for line in lines for trace in line["result"]["traces"]]
    for name in ("answer", "status", "num_tokens", "correct", "seed", "voted"):
        assert rows[name].to_pylist() == [trace[name] for trace in traces], name
    for name in ("mean", "lowest_group", "bottom_group", "tail"):
        assert getattr(scores, name).tolist() == [trace[name] for trace in traces], name
    assert all(rows["text"].to_pylist())
    settings = json.loads(rows.schema.metadata[b"sampling"])
    assert settings == tiny_engine.settings()["sampling"]
