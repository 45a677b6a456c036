"""Recordings of evaluations: complete, exact, and readable whatever happens."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from deepconf import Policy
from deepconf.errors import DeepConfWarning, InvalidInput, InvalidType, RunFileError
from deepconf.evaluate import Evaluation, IncompleteRun, Progress, evaluate
from deepconf.recording import Recording
from deepconf.result import Result
from deepconf.runs import RunFile
from deepconf.traces import TraceWriter, read_traces, schema
from recorded_engine import RecordedEngine, recorded
from test_evaluate import POLICIES, QUESTIONS, engine, traces_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

OFFLINE = {"offline": POLICIES["offline"]}
IDS = [question["id"] for question in QUESTIONS]
ORDERED = [("question_id", "ascending"), ("trace", "ascending")]


def table_of(path: Path) -> Any:
    """A recording, in the order of questions, without what depends on the moment."""
    return pa.Table.from_batches(list(read_traces(path))).sort_by(ORDERED).drop(["finish_order"])


def questions_in(path: Path) -> list[str]:
    """The questions of a recording in its order; each must be there once, and whole."""
    rows = pa.Table.from_batches(list(read_traces(path, columns=["question_id", "trace"])))
    pairs = list(zip(rows["question_id"].to_pylist(), rows["trace"].to_pylist(), strict=True))
    assert set(Counter(pairs).values()) == {1}
    names = list(dict.fromkeys(name for name, _ in pairs))
    assert pairs == [(name, trace) for name in names for trace in range(8)]
    return names


def whole(folder: Path) -> Any:
    """What a run without a fault records."""
    with engine() as recording:
        evaluate(
            recording, QUESTIONS, OFFLINE, folder / "whole.jsonl", record=folder / "whole.parquet"
        )
    return table_of(folder / "whole.parquet")


class Until(Progress):
    """Interrupts an evaluation when so many questions are finished."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.evaluation: Evaluation

    def question(self, record: Any) -> None:
        self.count -= 1
        if self.count == 0:
            self.evaluation.interrupt()


def half(folder: Path, count: int = 3, name: str = "t.parquet") -> tuple[Path, Path, Path]:
    """A run that ended early: its run file, its trace file to be, and its journal."""
    out, record = folder / "run.jsonl", folder / name
    until = Until(count)
    until.evaluation = Evaluation(QUESTIONS, OFFLINE, model="recorded", out=out, record=record)
    with engine() as recording:
        until.evaluation.run(recording, concurrency=1, progress=until)
    if count < len(QUESTIONS):
        until.evaluation.seal()  # Which is too early.
    until.evaluation.close()
    part = folder / f"{name}.part"
    assert not record.exists()
    assert questions_in(part) == IDS[:count]
    return out, record, part


def carry_on(out: Path, record: Path, **options: Any) -> Counter[str]:
    """Goes to the end, and says which questions were asked."""
    with engine() as recording:
        options = {"record": record, "concurrency": 1, **options}
        assert evaluate(recording, QUESTIONS, OFFLINE, out, **options).complete
        return Counter({f"q{name[:-1]}": n for name, n in recording.started.items()})


def batches_of(part: Path) -> list[bytes]:
    """The schema of a journal, and its record batches, as they stand there."""
    content = part.read_bytes()
    source = pa.BufferReader(content)
    pa.ipc.read_schema(source)
    places = [0, source.tell()]
    while source.tell() < len(content):
        assert pa.ipc.read_message(source).type == "record batch"
        places.append(source.tell())
    return [content[a:b] for a, b in itertools.pairwise(places)]


# ---- what is recorded ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_a_recording_has_every_trace_of_every_question(tmp_path: Path, suffix: str) -> None:
    out, record = tmp_path / "run.jsonl", tmp_path / "new" / f"t.{suffix}"
    with engine() as recording:
        report = evaluate(recording, QUESTIONS, POLICIES, out, record=record)
    assert [path.name for path in record.parent.iterdir()] == [record.name]
    found = table_of(record)
    assert found.num_rows == 6 * 8
    of = {line["id"]: line for line in report.records if line["policy"] == "offline"}
    for row in found.to_pylist():
        line = of[row["question_id"]]
        trace = line["result"]["traces"][row["trace"]]
        for name in ("answer", "status", "num_tokens", "correct", "seed", "voted", "error"):
            assert row[name] == trace[name], name
        values, text, _ = traces_of(int(row["question_id"][1:]))[row["trace"]]
        assert row["confidence"] == values.tolist()
        assert row["text"] == text
        assert row["gold"] == line["gold"]
        assert row["stop_token"] is None
    assert {row["correct"] for row in found.to_pylist()} == {True, False}
    orders = pa.Table.from_batches(list(read_traces(record, columns=["finish_order"])))
    for start in range(0, 48, 8):
        assert sorted(orders["finish_order"].to_pylist()[start : start + 8]) == list(range(8))


def test_each_question_is_a_row_group(tmp_path: Path) -> None:
    whole(tmp_path)
    with pq.ParquetFile(tmp_path / "whole.parquet") as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
        codecs = {file.metadata.row_group(0).column(i).compression for i in range(6)}
    assert [len(set(group["question_id"].to_pylist())) for group in groups] == [1] * 6
    assert [group["trace"].to_pylist() for group in groups] == [list(range(8))] * 6
    assert codecs == {"ZSTD"}


def test_the_settings_are_those_of_a_result(tmp_path: Path) -> None:
    from deepconf import DeepThink

    sampling = {"temperature": 0.6}
    record = tmp_path / "t.parquet"
    with engine() as recording:
        evaluate(
            recording, QUESTIONS, OFFLINE, tmp_path / "r.jsonl", record=record, sampling=sampling
        )
        result = DeepThink(recording, OFFLINE["offline"], sampling=sampling).run("0?")
    metadata = pq.read_schema(record).metadata
    told = {key.encode(): value.encode() for key, value in result.metadata.items()}
    assert {key: metadata[key] for key in told} == told
    assert metadata[b"format"] == b"deepconf-traces/1"
    settings = read_traces(record).settings
    assert settings["model"] == "recorded"
    assert (settings["k"], settings["entries"], settings["window"]) == (20, "topk", 4)
    assert (settings["seed"], settings["sampling"]) == (0, sampling)
    assert Policy(**settings["policy"]) == OFFLINE["offline"]
    assert settings["versions"]["deepconf"]


def test_a_question_is_recorded_before_the_run_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFile.append
    seen = []

    def look(self: RunFile, line: Any) -> None:
        seen.append(line["id"])
        assert questions_in(tmp_path / "t.parquet.part") == seen
        append(self, line)

    monkeypatch.setattr(RunFile, "append", look)
    with engine() as recording:
        evaluate(
            recording,
            QUESTIONS,
            OFFLINE,
            tmp_path / "run.jsonl",
            record=tmp_path / "t.parquet",
            concurrency=6,
        )
    assert sorted(seen) == IDS
    assert questions_in(tmp_path / "t.parquet") == seen


def test_one_online_policy_is_recorded_as_it_stopped(tmp_path: Path) -> None:
    record = tmp_path / "t.parquet"
    with engine() as recording:
        evaluate(
            recording, QUESTIONS, {"low": POLICIES["low"]}, tmp_path / "run.jsonl", record=record
        )
    rows = pq.read_table(record).to_pylist()
    stopped = [row for row in rows if row["status"] == "stopped"]
    assert stopped
    for row in rows:
        assert (row["stop_token"] is not None) == (row["status"] == "stopped")
    assert all(row["stop_token"] < len(row["confidence"]) <= row["num_tokens"] for row in stopped)


def test_a_failed_trace_is_a_row(tmp_path: Path) -> None:
    traces = [*traces_of(0)[:7], recorded(5.0, "0", reason="failed")]
    record = tmp_path / "t.parquet"
    with RecordedEngine({"0?": traces}) as recording:
        evaluate(
            recording,
            QUESTIONS[:1],
            OFFLINE,
            tmp_path / "run.jsonl",
            record=record,
            max_failed=0.2,
        )
    row = pq.read_table(record).to_pylist()[7]
    assert row["status"] == "failed"
    assert "was recorded as failed" in row["error"]
    assert row["correct"] is False


def test_a_text_that_is_no_unicode_costs_no_trace(tmp_path: Path) -> None:
    values = np.full(24, 9.0, np.float32)
    traces = [(values, "half of a pair \ud83d \\boxed{0}", "finished")] * 8
    record = tmp_path / "t.parquet"
    with RecordedEngine({"0?": traces}) as recording:
        evaluate(recording, QUESTIONS[:1], OFFLINE, tmp_path / "run.jsonl", record=record)
    assert table_of(record)["text"].to_pylist() == ["half of a pair ? \\boxed{0}"] * 8


def test_what_is_written_is_not_kept(tmp_path: Path) -> None:
    def results() -> set[int]:
        gc.collect()
        return {id(found) for found in gc.get_objects() if type(found) is Result}

    class Live(Progress):
        kept: ClassVar[set[int]] = set()

        def question(self, record: Any) -> None:
            # The thread that wrote it lets go of it a moment later.
            end = time.monotonic() + 5
            while (kept := results() - of_others) and time.monotonic() < end:
                time.sleep(0.01)
            self.kept |= kept

    live = Live()
    of_others = results()
    before = pa.total_allocated_bytes()
    with engine() as recording:
        evaluate(
            recording,
            QUESTIONS,
            OFFLINE,
            tmp_path / "run.jsonl",
            record=tmp_path / "t.parquet",
            concurrency=1,
            progress=live,
        )
    assert not live.kept
    gc.collect()  # The report has been reckoned from tables of its own.
    assert pa.total_allocated_bytes() <= before  # Other tests may have left some to be freed.


# ---- carrying on --------------------------------------------------------------------------------


def test_a_run_carries_on_and_records_the_rest(tmp_path: Path) -> None:
    out, record, part = half(tmp_path)
    assert carry_on(out, record) == Counter(IDS[3:])
    assert not part.exists()
    assert questions_in(record) == IDS
    assert table_of(record).equals(whole(tmp_path))


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from deepconf.evaluate import Progress, evaluate
from test_evaluate import POLICIES, QUESTIONS, engine

class Say(Progress):
    def question(self, record):
        print(record["id"], flush=True)

folder = Path(sys.argv[1])
with engine(delays=0.002) as recording:
    evaluate(recording, QUESTIONS, {"offline": POLICIES["offline"]}, folder / "run.jsonl",
             record=folder / "t.parquet", concurrency=2, progress=Say())
"""


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_run_that_is_killed_carries_on(tmp_path: Path, after: int) -> None:
    out, record, part = (tmp_path / n for n in ("run.jsonl", "t.parquet", "t.parquet.part"))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = [running.stdout.readline().strip() for _ in range(after)]
        os.kill(running.pid, signal.SIGKILL)
    finished = [json.loads(line)["id"] for line in out.read_text().splitlines()[1:]]
    assert finished[:after] == said
    assert not record.exists()
    assert questions_in(part)[: len(finished)] == finished
    asked = carry_on(out, record)
    assert asked == Counter(set(IDS) - set(finished))
    assert sorted(questions_in(record)) == IDS
    assert not part.exists()
    assert table_of(record).equals(whole(tmp_path))


@pytest.mark.parametrize("torn", [1, 4, 7, 100, -1])
def test_a_torn_end_is_cut_off(tmp_path: Path, torn: int) -> None:
    out, record, part = half(tmp_path)
    before = part.read_bytes()
    part.write_bytes(before + batches_of(part)[-1][:torn])
    assert questions_in(part) == IDS[:3]
    evaluation = Evaluation(QUESTIONS, OFFLINE, model="recorded", out=out, record=record)
    evaluation.close()
    assert part.read_bytes() == before
    part.write_bytes(before + batches_of(part)[-1][:torn])
    assert carry_on(out, record) == Counter(IDS[3:])
    assert questions_in(record) == IDS


def test_zeros_at_the_end_are_cut_off(tmp_path: Path) -> None:
    out, record, part = half(tmp_path)
    with part.open("ab") as file:
        file.write(bytes(5000))
    assert carry_on(out, record) == Counter(IDS[3:])
    assert questions_in(record) == IDS


def test_a_question_the_run_file_does_not_have_is_asked_again(tmp_path: Path) -> None:
    out, record, part = half(tmp_path)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-1]))  # Killed between the two.
    evaluation = Evaluation(QUESTIONS, OFFLINE, model="recorded", out=out, record=record)
    evaluation.close()
    assert questions_in(part) == IDS[:2]
    assert carry_on(out, record) == Counter(IDS[2:])
    assert questions_in(record) == IDS


def test_a_run_killed_in_its_first_question_holds_nobody_up(tmp_path: Path) -> None:
    out, record, part = half(tmp_path, 1)
    schema, first = batches_of(part)
    header = out.read_bytes().splitlines(keepends=True)[0]
    for content in (b"", b"\xff\xff", schema[:50], schema, schema + first[:99], schema + first):
        out.write_bytes(header)
        part.write_bytes(content)
        assert carry_on(out, record) == Counter(IDS)
        assert questions_in(record) == IDS
        record.unlink()


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_more_questions_go_to_a_journal_again(tmp_path: Path, suffix: str) -> None:
    out, record, part = (tmp_path / n for n in ("r.jsonl", f"t.{suffix}", f"t.{suffix}.part"))
    assert carry_on(out, record, limit=2) == Counter(IDS[:2])
    assert questions_in(record) == IDS[:2]
    until = Until(2)
    until.evaluation = Evaluation(QUESTIONS, OFFLINE, model="recorded", out=out, record=record)
    with engine() as recording:
        until.evaluation.run(recording, concurrency=1, progress=until)
    until.evaluation.close()
    with pytest.warns(DeepConfWarning, match=r"is read without t\.\w+\.part beside it"):
        assert questions_in(record) == IDS[:2]
    assert questions_in(part) == IDS[2:4]
    assert carry_on(out, record) == Counter(IDS[4:])
    assert questions_in(record) == IDS
    assert table_of(record).equals(whole(tmp_path))
    before = record.read_bytes()
    assert not carry_on(out, record, limit=1)
    assert record.read_bytes() == before
    assert not part.exists()


def test_a_kill_before_the_journal_is_deleted_doubles_nothing(tmp_path: Path) -> None:
    out, record, part = half(tmp_path, 5)
    carry_on(out, record)
    sealed = table_of(record)
    evaluation = Evaluation(
        QUESTIONS, OFFLINE, model="recorded", out=tmp_path / "o", record=tmp_path / "o.parquet"
    )
    with engine() as recording:
        evaluation.run(recording)
    evaluation.close()
    os.rename(tmp_path / "o.parquet.part", part)
    assert not carry_on(out, record)
    assert not part.exists()
    assert sorted(questions_in(record)) == IDS
    assert table_of(record).equals(sealed)


def test_a_run_killed_before_its_trace_file_was_made_makes_it(tmp_path: Path) -> None:
    out, record, part = half(tmp_path, 6)
    assert not carry_on(out, record)
    assert questions_in(record) == IDS
    assert not part.exists()


def test_what_is_left_of_a_trace_file_half_made_is_deleted(tmp_path: Path) -> None:
    out, record, part = half(tmp_path)
    with TraceWriter(record, schema=schema()):
        [left] = set(tmp_path.iterdir()) - {out, part}
    record.unlink()
    left.write_bytes(b"killed")
    carry_on(out, record)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, record.name]


def test_overwriting_keeps_a_recording_until_there_is_an_engine(tmp_path: Path) -> None:
    out, record, part = half(tmp_path)
    before = part.read_bytes()
    other = {"offline": OFFLINE["offline"].replace(keep=0.5)}
    for policies in (OFFLINE, other):
        anew = Evaluation(
            QUESTIONS, policies, model="recorded", out=out, record=record, overwrite=True
        )
        assert len(anew.missing()) == 6
        anew.close()  # The engine did not start.
        assert part.read_bytes() == before
    assert carry_on(out, record, overwrite=True, limit=4) == Counter(IDS[:4])
    assert questions_in(record) == IDS[:4]
    until = Until(1)
    until.evaluation = Evaluation(
        QUESTIONS, OFFLINE, model="recorded", out=out, record=record, overwrite=True
    )
    with engine() as recording:
        until.evaluation.run(recording, concurrency=1, progress=until)
    until.evaluation.close()
    assert not record.exists()
    assert questions_in(part) == IDS[:1]


# ---- what is refused ----------------------------------------------------------------------------


def refused(says: str, *files: Path, **arguments: Any) -> None:
    """It is refused, says so, and leaves the files as they were."""
    before = [path.read_bytes() for path in files]
    given = {"questions": QUESTIONS, "policies": OFFLINE, "model": "recorded", **arguments}
    for _ in range(2):  # No lock is left behind either.
        with pytest.raises((RunFileError, InvalidInput, InvalidType), match=says):
            Evaluation(**given)
        assert [path.read_bytes() for path in files] == before


def test_questions_finished_before_recording_was_on_are_named(tmp_path: Path) -> None:
    out, record = tmp_path / "run.jsonl", tmp_path / "t.parquet"
    with engine() as recording:
        evaluate(recording, QUESTIONS, OFFLINE, out, limit=5)
    says = (
        r"t\.parquet: questions 'q0', 'q1', 'q2' and 2 more are finished in the run file and not "
        r"recorded: .* another --out and --record, or --overwrite"
    )
    refused(says, out, out=out, record=record)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    carry_on(out, record, overwrite=True)
    evaluate_without = tmp_path / "more.jsonl"
    assert carry_on(evaluate_without, tmp_path / "more.parquet", limit=2) == Counter(IDS[:2])
    with engine() as recording:
        evaluate(recording, QUESTIONS, OFFLINE, evaluate_without, limit=3)
    refused(
        "question 'q2' is finished",
        evaluate_without,
        out=evaluate_without,
        record=tmp_path / "more.parquet",
    )


def test_a_recording_without_its_run_file_is_not_thrown_away(tmp_path: Path) -> None:
    out, record, part = half(tmp_path)
    other = tmp_path / "other.jsonl"
    says = "questions 'q0', 'q1' are recorded and not finished in the run file: give the --out"
    refused(says, part, out=other, record=record)
    carry_on(out, record)
    refused("'q0', 'q1', 'q2' and 2 more are recorded", record, out=other, record=record)
    assert not part.exists()


@pytest.mark.parametrize("sealed", [False, True])
def test_another_run_is_told_apart(tmp_path: Path, sealed: bool) -> None:
    out, record, part = half(tmp_path)
    if sealed:
        carry_on(out, record)
    files = [record] if sealed else [part]
    low = {"low": POLICIES["low"]}
    others: list[tuple[dict[str, Any], str]] = [
        ({"model": "another"}, "model is 'recorded' there and 'another' here"),
        ({"questions": QUESTIONS[:5]}, "questions_sha256 is"),
        (
            {"policies": {"offline": OFFLINE["offline"].replace(keep=0.5)}},
            r"policy: keep is 0\.1 there and 0\.5 here",
        ),
        ({"policies": low}, "recorded_policy is 'offline' there and 'low' here"),
        ({"suffix": "x"}, "suffix is unset there and 'x' here"),
        ({"settings": {"sampling": {"top_p": 0.5}}}, "settings.sampling is unset there"),
    ]
    for number, (change, says) in enumerate(others):
        other = tmp_path / f"{number}.jsonl"
        refused(f"records another run .*{says}", *files, out=other, record=record, **change)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_recording_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    record, part = tmp_path / "t.parquet", tmp_path / "t.parquet.part"
    table = pa.table({"question_id": ["a"], "trace": [1]})
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    arguments = {"out": tmp_path / "run.jsonl", "record": record, "overwrite": overwrite}
    for content in (b"a diary", b"{}", stream.getvalue().to_pybytes()):
        part.write_bytes(content)
        refused(r"t\.parquet\.part: not a recording, and left as it is", part, **arguments)
    part.unlink()
    # Others say "run" in their metadata as well.
    for said in ({}, {"run": "7"}, {"run": "{"}, {"run": "{}"}, {"run": "{}", "policy": "3"}):
        pq.write_table(table.replace_schema_metadata(said), record)
        refused(r"t\.parquet: not a recording, and left as it is", record, **arguments)
    for content in (b"", b"a diary", b"\xff\xff\xff\xff"):
        record.write_bytes(content)
        refused(r"t\.parquet: not a recording, and left as it is", record, **arguments)
    record.write_bytes(b"PAR1 and nothing more")
    refused(r"t\.parquet: cannot be read", record, **arguments)
    assert not part.exists()


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    out, record, part = half(tmp_path)
    schema, first, second, third = batches_of(part)
    hurt = second[:8] + bytes(200) + second[208:]
    part.write_bytes(schema + first + hurt + third)
    refused(
        "'q1', 'q2' are finished in the run file and not recorded", part, out=out, record=record
    )
    part.write_bytes(schema + first + second + third[:-1])
    refused("'q2' is finished in the run file and not recorded", part, out=out, record=record)


def test_which_policy_is_recorded_must_be_clear(tmp_path: Path) -> None:
    record, out = tmp_path / "t.parquet", tmp_path / "run.jsonl"
    low, offline = Policy.low(), Policy.offline()
    two: list[dict[str, Policy]] = [
        {"low": low, "high": Policy.high()},
        {"a": offline, "b": offline.replace(keep=0.5), "low": low},
    ]
    for policies, count in zip(two, (0, 2), strict=True):
        says = f"the offline one is recorded.* {count} of {', '.join(policies)} are offline"
        refused(says, policies=policies, out=out, record=record)
    assert not list(tmp_path.iterdir())


def test_bad_targets_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    for name in ("t.csv", "t", "t.parquet.part"):
        refused(r"must end in \.parquet, \.arrow, \.feather", out=out, record=tmp_path / name)
    for same in ("t.parquet", "t.parquet.part"):
        refused("must be two files", out=tmp_path / same, record=tmp_path / "t.parquet")
    for odd_path, says in ((3, "record=3: must be a path"), ("a\0.parquet", "is no path")):
        refused(says, out=out, record=odd_path)
    refused("needs out, a run file", record=tmp_path / "t.parquet")
    odd = [{"id": "\ud83d", "question": "?", "answer": "1"}]
    refused("cannot be recorded", questions=odd, out=out, record=tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())
    (tmp_path / "d.parquet").mkdir()
    refused("it is a folder", out=out, record=tmp_path / "d.parquet")


def test_two_writers_are_kept_apart(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out, record, part = half(tmp_path)
    evaluation = Evaluation(QUESTIONS, OFFLINE, model="recorded", out=out, record=record)
    says = r"t\.parquet\.part: another process is writing this recording.* another --record"
    refused(says, part, out=tmp_path / "other.jsonl", record=record)
    evaluation.close()
    assert carry_on(out, record) == Counter(IDS[3:])


def test_a_file_that_its_writer_deletes_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepconf._locked import LockedFile

    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "t.part"
    path.touch()
    flock, calls = fcntl.flock, []

    def deleted(fd: int, how: int) -> None:
        if not calls:
            path.unlink()
        calls.append(fd)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", deleted)
    file = LockedFile(path, "recording", "--record")
    file.write(b"kept")
    file.close()
    assert path.read_bytes() == b"kept"
    assert len(calls) == 2


# ---- disks --------------------------------------------------------------------------------------


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process may become larger."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_run_and_loses_nothing_finished(tmp_path: Path) -> None:
    out, record, part = half(tmp_path, 2)
    before, lines = part.read_bytes(), out.read_bytes()
    with room_for(len(before) + 700), engine() as recording:
        with pytest.raises(IncompleteRun, match=r"part: cannot be written: File too") as caught:
            evaluate(recording, QUESTIONS, OFFLINE, out, record=record, concurrency=1)
        assert recording.started == Counter(["2?"])
    assert "finished but not saved: 'q2' (offline)" in str(caught.value)
    assert part.read_bytes() == before
    assert out.read_bytes() == lines
    assert carry_on(out, record) == Counter(IDS[2:])
    assert table_of(record).equals(whole(tmp_path))


def test_a_question_that_the_run_file_cannot_take_up_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record, part = half(tmp_path, 2)
    before = part.read_bytes()

    def full(self: RunFile, line: Any) -> None:
        assert questions_in(part) == IDS[:3]
        raise RunFileError("no space left")

    with monkeypatch.context() as patch, engine() as recording:
        patch.setattr(RunFile, "append", full)
        with pytest.raises(IncompleteRun, match="no space left"):
            evaluate(recording, QUESTIONS, OFFLINE, out, record=record, concurrency=1)
    assert part.read_bytes() == before
    assert carry_on(out, record) == Counter(IDS[2:])


def test_a_disk_that_is_full_at_last_keeps_the_journal(tmp_path: Path) -> None:
    out, record, part = half(tmp_path, 6)
    before = part.read_bytes()
    says = r"t\.parquet: cannot be written.* 6 of 6 questions"
    with room_for(2000), engine() as recording, pytest.raises(IncompleteRun, match=says):
        evaluate(recording, QUESTIONS, OFFLINE, out, record=record)
    assert part.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, part.name]
    assert not carry_on(out, record)
    assert questions_in(record) == IDS


def test_a_disk_that_is_full_from_the_start_is_seen_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    with room_for(300), engine() as recording:
        with pytest.raises(RunFileError, match="cannot be written"):
            evaluate(recording, QUESTIONS, OFFLINE, tmp_path / "r", record=tmp_path / "t.parquet")
        assert not recording.started


def test_traces_are_written_aside_and_one_question_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Recording.append
    threads: set[str] = set()
    writing: list[int] = [0]

    def watched(self: Recording, *arguments: Any, **options: Any) -> None:
        threads.add(threading.current_thread().name)
        writing.append(writing[-1] + 1)
        time.sleep(0.05)
        append(self, *arguments, **options)
        writing.append(writing[-1] - 1)

    monkeypatch.setattr(Recording, "append", watched)
    with engine() as recording:
        evaluate(
            recording,
            QUESTIONS,
            OFFLINE,
            tmp_path / "run.jsonl",
            record=tmp_path / "t.parquet",
            concurrency=6,
        )
    assert max(writing) == 1
    assert not threads & {"MainThread", "deepconf-evaluate", "recorded-engine"}
