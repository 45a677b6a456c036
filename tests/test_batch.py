"""Scores and votes of recorded traces: as in memory, from any file, in bounded memory."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deepconf import Policy, score_traces, vote_traces
from deepconf.commands import app
from deepconf.errors import InvalidInput, InvalidType, TraceFileError
from deepconf.traces import TraceWriter, read_traces, schema
from deepconf.traces._parallel import in_order
from typer.testing import CliRunner, Result

MEASURES = ("mean", "lowest_group", "bottom_group", "tail")
STATUSES = ["finished", "finished", "length", "stopped", "aborted", "failed"]
SMALL = {"window": 4, "tail": 6, "bottom": 0.25}


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def pool(questions: int = 3, traces: int = 40, *, seed: int = 0, prefix: str = "q") -> pa.Table:
    """Traces of many lengths and ends; answers, marks and stops where there can be some."""
    random = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {name: [] for name in schema().names}
    for question in range(questions):
        for trace in range(traces):
            status = STATUSES[random.integers(len(STATUSES))]
            length = int(random.integers(0, 30))
            answer = str(random.integers(3)) if random.random() < 0.8 else None
            stopped = status == "stopped" and length > 0
            row = {
                "question_id": f"{prefix}{question}",
                "trace": trace,
                "answer": answer,
                "status": status,
                "num_tokens": length,
                "confidence": random.normal(12, 3, length).clip(0.5).astype(np.float32),
                "text": f"text {trace}",
                "correct": None if answer is None else answer == "1",
                "stop_token": int(random.integers(length)) if stopped else None,
                "gold": "1",
            }
            for name in columns:
                columns[name].append(row.get(name))
    arrays = [pa.array(columns[field.name], field.type) for field in schema()]
    return pa.table(arrays, schema=schema())


def write(path: Path, *tables: pa.Table, **settings: Any) -> Path:
    """Each table as a row group."""
    with TraceWriter(path, schema=tables[0].schema, settings=settings) as writer:
        for table in tables:
            writer.write(table)
    return path


def by_question(table: pa.Table) -> list[pa.Table]:
    names = list(dict.fromkeys(table["question_id"].to_pylist()))
    return [table.filter(pa.compute.equal(table["question_id"], name)) for name in names]


def counted(table: pa.Table) -> list[np.ndarray]:
    """The confidences that count: of a stopped trace those up to its stop."""
    rows = zip(table["confidence"].to_pylist(), table["stop_token"].to_pylist(), strict=True)
    return [
        np.array(values if stop is None else values[: stop + 1], np.float32)
        for values, stop in rows
    ]


def replaced(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_scores_are_those_of_score(tmp_path: Path, suffix: str, threads: int) -> None:
    table = pool(5)
    path = write(tmp_path / f"t{suffix}", *by_question(table), k=20, model="tiny")
    told: list[tuple[int, int | None]] = []
    out = tmp_path / "s.parquet"
    done = score_traces(
        path, out, threads=threads, progress=lambda *at: told.append(at), decimals=3, **SMALL
    )
    found = pq.read_table(out)
    expected = deepconf.score(counted(table), decimals=3, **SMALL)
    for name in (*MEASURES, "short"):
        np.testing.assert_array_equal(found[name].to_numpy(), getattr(expected, name))
    kept = [name for name in table.schema.names if name != "confidence"]
    assert found.schema.names == [*kept, *MEASURES, "short"]
    assert found.select(kept).equals(table.select(kept))
    assert (done.num_traces, done.num_tokens) == (200, sum(table["num_tokens"].to_pylist()))
    assert told[-1] == (200, 200)
    assert [at for at, _ in told] == sorted(at for at, _ in told)
    metadata = found.schema.metadata
    assert json.loads(metadata[b"scores"]) == {**SMALL, "decimals": 3}
    assert (metadata[b"k"], metadata[b"window"], metadata[b"model"]) == (b"20", b"4", b"tiny")
    assert metadata[b"format"] == b"deepconf-scores/1"


def test_tables_and_unknown_columns_are_scored_too(tmp_path: Path) -> None:
    table = pool(1).append_column("level", pa.array([{"a": at} for at in range(40)]))
    score_traces(table.to_reader(), tmp_path / "s.arrow", **SMALL)
    found = pa.ipc.open_file(tmp_path / "s.arrow").read_all()
    assert found["level"].to_pylist() == table["level"].to_pylist()
    expected = deepconf.score(counted(table), **SMALL).lowest_group
    np.testing.assert_array_equal(found["lowest_group"].to_numpy(), expected)


@pytest.mark.filterwarnings("ignore::deepconf.SignalNeverArmed")
def test_settings_are_those_given_then_those_recorded_then_the_defaults(tmp_path: Path) -> None:
    table = pool(1)
    plain = write(tmp_path / "a.parquet", table)
    policy = Policy.low(tail=7, bottom=0.5, decimals=2, window=9)
    recorded = write(tmp_path / "b.parquet", table, window=5, policy=policy.as_dict())
    out = tmp_path / "s.parquet"
    done = score_traces(plain, out)
    assert done.in_force.settings == {
        "window": 2048, "tail": 2048, "bottom": 0.1, "decimals": None
    }  # fmt: skip
    done = score_traces(recorded, out, bottom=0.25, decimals=None)
    assert str(done.in_force) == (
        "window=5 (recorded), tail=7 (recorded), bottom=0.25 (given), decimals=None (given)"
    )
    expected = deepconf.score(counted(table), window=5, tail=7, bottom=0.25)
    np.testing.assert_array_equal(pq.read_table(out)["tail"].to_numpy(), expected.tail)
    other = write(tmp_path / "c.parquet", pool(1, prefix="r"), window=6)
    with pytest.raises(InvalidInput, match="recorded with window=5 and 6: say which, with window="):
        score_traces([recorded, other], out)
    assert score_traces([recorded, other], out, window=3).in_force.settings["tail"] == 7


def test_an_empty_trace_has_no_scores(tmp_path: Path) -> None:
    table = pool(1, 400)
    score_traces(table, tmp_path / "s.parquet", **SMALL)
    found = pq.read_table(tmp_path / "s.parquet")
    empty = found["num_tokens"].to_numpy() == 0
    assert empty.any()
    np.testing.assert_array_equal(np.isnan(found["mean"].to_numpy()), empty)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_a_confidence_that_cannot_be_is_found_by_question_and_trace(
    tmp_path: Path, bad: float
) -> None:
    table = pool(3)
    lists = table["confidence"].to_pylist()
    at = next(i for i in range(85, 120) if len(lists[i]) > 5 and not table["stop_token"][i].as_py())
    lists[at][3] = bad
    wrong = replaced(table, "confidence", pa.array(lists, pa.list_(pa.float32())))
    path = write(tmp_path / "t.parquet", *by_question(wrong))
    with pytest.raises(InvalidInput, match=rf"question 'q2', trace {at - 80}: .* position 3"):
        score_traces(path, tmp_path / "s.parquet", **SMALL)
    with pytest.raises(InvalidInput, match=rf"question 'q2', trace {at - 80}: .* position 3"):
        vote_traces(path, tmp_path / "s.parquet", **SMALL)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"window": 0}, InvalidInput, "window=0"),
        ({"bottom": 2.0}, InvalidInput, "bottom"),
        ({"tail": "x"}, InvalidType, "tail"),
        ({"decimals": -1}, InvalidInput, "decimals"),
        ({"threads": 0}, InvalidInput, "threads=0"),
        ({"threads": 1.5}, InvalidInput, "threads=1.5"),
        ({"keep": 0.5}, InvalidInput, "unknown setting 'keep'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score_traces(pool(1), tmp_path / "s.parquet", **settings)
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pool(1))
    link = tmp_path / "l.parquet"
    link.symlink_to(path)
    for out in (path, link):
        for work in (score_traces, vote_traces):
            with pytest.raises(InvalidInput, match="is what is read, and would be replaced"):
                work(path, out)
    assert read_traces(path).num_rows == 40


def test_a_score_that_is_a_column_already_is_refused(tmp_path: Path) -> None:
    table = pool(1).append_column("tail", pa.array([1.0] * 40))
    with pytest.raises(InvalidInput, match="a column tail already"):
        score_traces(table, tmp_path / "s.parquet")
    path = write(tmp_path / "t.parquet", pool(1))
    score_traces(path, tmp_path / "s.parquet", **SMALL)
    with pytest.raises(TraceFileError, match="has no column confidence"):
        score_traces(tmp_path / "s.parquet", tmp_path / "ss.parquet")


# ---- votes ---------------------------------------------------------------------------------------


def expected_votes(table: pa.Table, **settings: Any) -> dict[str, deepconf.Vote]:
    """Each question's vote, as a controller takes it of an offline run."""
    votes = {}
    for part in by_question(table):
        rows = part.to_pylist()
        policy = Policy.offline(**{"budget": len(rows), **SMALL, **settings})
        controller = deepconf.Controller(policy)
        controller.start()
        for row in rows:
            at = row["trace"]
            controller.launched(at)
            if row["status"] in ("finished", "length"):
                controller.tokens(at, np.array(row["confidence"], np.float32))
                controller.finished(at, row["status"], row["answer"])
            else:
                controller.failed(at)
        outcome = controller.outcome
        assert outcome is not None
        votes[rows[0]["question_id"]] = outcome.vote
    return votes


VOTES: list[dict[str, Any]] = [
    {},
    {"keep": 0.9, "measure": "lowest_group", "weight": "tail"},
    {"keep": 1.0},
    {"keep": 1.0, "weight": "majority"},
    {"keep": 0.5, "weight": "majority", "measure": "mean", "min_ballots": 0},
    {"keep": 0.3, "percentile_over": "all", "min_ballots": 0},
    {"keep": 0.1, "percentile_over": "all", "min_ballots": 5},
    {"keep": 0.1, "min_ballots": 100},
    {"max_weight": 5.0, "keep": 1.0, "weight": "mean"},
    {"decimals": 3, "keep": 0.4},
]


@pytest.mark.parametrize("settings", VOTES)
@pytest.mark.parametrize("given", ["traces", "scores"])
def test_votes_are_those_of_an_offline_run(
    tmp_path: Path, settings: dict[str, Any], given: str
) -> None:
    table = pool(12, 30, seed=4)
    path = write(tmp_path / "t.parquet", *by_question(table))
    out = tmp_path / "v.parquet"
    if given == "scores":
        scoring = {key: value for key, value in settings.items() if key == "decimals"}
        score_traces(path, tmp_path / "s.parquet", **SMALL, **scoring)
        path = tmp_path / "s.parquet"
    done = vote_traces(path, out, **SMALL, **settings)
    rows = pq.read_table(out).to_pylist()
    expected = expected_votes(table, **settings)
    assert [row["question_id"] for row in rows] == list(expected)
    for row in rows:
        vote = expected[row["question_id"]]
        assert row["answer"] == vote.answer
        assert row["share"] == vote.share
        assert row["num_voters"] == vote.num_voters
        assert row["fallback"] == vote.fallback
        assert row["threshold"] == vote.threshold
        assert row["weight"] == vote.ballots[vote.answer]
        assert row["num_traces"] == 30
        assert row["correct"] == (vote.answer == "1")
    assert done.num_fallback == sum(vote.fallback for vote in expected.values())
    assert (done.num_known, done.num_correct) == (12, sum(row["correct"] for row in rows))
    assert (done.num_traces, done.num_questions, done.num_answered) == (360, 12, 12)
    metadata = pq.read_schema(out).metadata
    assert json.loads(metadata[b"vote"])["keep"] == settings.get("keep", 0.1)
    assert metadata[b"format"] == b"deepconf-votes/1"


def test_traces_vote_in_launch_order_wherever_they_stand(tmp_path: Path) -> None:
    table = pool(3, 30, seed=2)
    mixed = table.take(np.random.default_rng(1).permutation(len(table)))
    majority = {"keep": 1.0, "weight": "majority"}
    for name, one in (("a", table), ("b", mixed)):
        path = write(tmp_path / f"{name}.parquet", one[:17], one[17:])
        vote_traces(path, tmp_path / f"v{name}.parquet", **majority)
    rows = [
        sorted(pq.read_table(tmp_path / f"v{name}.parquet").to_pylist(), key=str) for name in "ab"
    ]
    assert rows[0] == rows[1]
    tie = pool(1, 2)
    for name, column in {
        "answer": ["x", "y"],
        "status": ["finished"] * 2,
        "trace": [1, 0],
        "num_tokens": [1, 1],
        "confidence": [[1.0], [1.0]],
        "correct": [None] * 2,
        "stop_token": [None] * 2,
    }.items():
        tie = replaced(tie, name, pa.array(column, schema().field(name).type))
    vote_traces(tie, tmp_path / "t.parquet", **majority)
    assert pq.read_table(tmp_path / "t.parquet")["answer"].to_pylist() == ["y"]


def test_the_recorded_policy_votes(tmp_path: Path) -> None:
    policy = Policy.high(window=4, tail=6, max_weight=9.0)
    path = write(tmp_path / "t.parquet", pool(2), window=4, policy=policy.as_dict())
    done = vote_traces(path, tmp_path / "v.parquet")
    assert done.in_force.settings == {
        "measure": "lowest_group",  # Online, whatever its policy says of offline filters.
        "weight": "lowest_group",
        "keep": 0.9,
        "min_ballots": 3,
        "max_weight": 9.0,
        "percentile_over": "answered",
        "window": 4,
        "tail": 6,
        "bottom": 0.1,
        "decimals": None,
    }
    other = Policy.offline(window=4, tail=6)
    second = write(tmp_path / "u.parquet", pool(2, prefix="r"), policy=other.as_dict())
    with pytest.raises(InvalidInput, match="recorded with measure='lowest_group' and 'bottom_gr"):
        vote_traces([path, second], tmp_path / "v.parquet")
    head_count = {"measure": "mean", "weight": "majority", "keep": 1.0, "max_weight": None}
    done = vote_traces([path, second], tmp_path / "v.parquet", **head_count)
    assert done.num_questions == 4
    assert "window" not in done.in_force.settings


def test_a_head_count_reads_no_confidences(tmp_path: Path) -> None:
    table = pool(2).drop_columns(["confidence", "correct", "gold"])
    vote_traces(table, tmp_path / "v.parquet", keep=1.0, weight="majority")
    assert pq.read_table(tmp_path / "v.parquet")["correct"].to_pylist() == [None, None]
    with pytest.raises(InvalidInput, match="neither a column confidence to reckon it from"):
        vote_traces(table, tmp_path / "v.parquet", keep=1.0, weight="tail")


def test_whether_it_is_right_is_known_by_marks_then_by_gold(tmp_path: Path) -> None:
    def right(**columns: Any) -> list[bool | None]:
        table = pool(1, 3)
        count = {
            "status": ["finished"] * 3, "num_tokens": [1] * 3, "confidence": [[1.0]] * 3,
            "stop_token": [None] * 3,
        }  # fmt: skip
        for name, column in {**count, **columns}.items():
            table = replaced(table, name, pa.array(column, schema().field(name).type))
        vote_traces(table, tmp_path / "v.parquet", keep=1.0, weight="majority")
        found: list[bool | None] = pq.read_table(tmp_path / "v.parquet")["correct"].to_pylist()
        return found

    a = {"answer": ["0.5", "0.5", "2"]}
    assert right(**a, correct=[None, True, None], gold=["7"] * 3) == [True]
    assert right(**a, correct=[None] * 3, gold=[None, "1/2", "1/2"]) == [True]
    assert right(**a, correct=[None] * 3, gold=["2"] * 3) == [False]
    assert right(**a, correct=[None, None, True], gold=[None] * 3) == [None]
    assert right(answer=[None] * 3, correct=[None] * 3, gold=["2"] * 3) == [False]
    assert right(answer=[None] * 3, correct=[None] * 3, gold=[None] * 3) == [None]
    with pytest.raises(InvalidInput, match=r"'q0': the answer '0\.5' is marked right and wrong"):
        right(**a, correct=[True, False, None], gold=[None] * 3)
    with pytest.raises(InvalidInput, match="question 'q0' has the gold answers '1' and '2'"):
        right(**a, correct=[None] * 3, gold=["1", "2", None])


def test_a_question_in_which_nothing_votes_has_no_answer(tmp_path: Path) -> None:
    table = replaced(pool(2), "status", pa.array(["failed"] * 80))
    done = vote_traces(table, tmp_path / "v.parquet", **SMALL)
    rows = pq.read_table(tmp_path / "v.parquet").to_pylist()
    assert [(r["answer"], r["num_voters"], r["weight"]) for r in rows] == [(None, 0, 0.0)] * 2
    assert done.num_answered == 0


def test_a_score_that_is_missing_is_found_by_its_question(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pool(3))
    score_traces(path, tmp_path / "s.parquet", **SMALL)
    table = pq.read_table(tmp_path / "s.parquet")
    row = next(
        at
        for at, trace in enumerate(table.to_pylist())
        if at > 45 and trace["answer"] and trace["status"] == "finished" and trace["num_tokens"]
    )
    tails = table["tail"].to_pylist()
    tails[row] = float("nan")
    wrong = replaced(table, "tail", pa.array(tails))
    with pytest.raises(InvalidInput, match=r"question 'q1': weights\[\d+\] = NaN"):
        vote_traces(wrong, tmp_path / "v.parquet", weight="tail", keep=1.0)


def test_a_trace_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{name}.parquet", pool(2)) for name in "ab")
    with pytest.raises(InvalidInput, match="question 'q0' has trace 0 twice"):
        vote_traces([a, b], tmp_path / "v.parquet")
    assert not (tmp_path / "v.parquet").exists()


def test_one_log_probability_neither_filters_nor_weighs(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pool(1), k=1)
    score_traces(path, tmp_path / "s.parquet", **SMALL)
    for source in (path, tmp_path / "s.parquet"):
        for settings in ({}, {"keep": 1.0}, {"weight": "majority"}):
            with pytest.raises(InvalidInput, match="these traces have k=1"):
                vote_traces(source, tmp_path / "v.parquet", **settings)
        vote_traces(source, tmp_path / "v.parquet", keep=1.0, weight="majority")


def test_scores_of_another_window_are_not_taken_for_those_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pool(1))
    score_traces(path, tmp_path / "s.parquet", **SMALL)
    with pytest.raises(InvalidInput, match="window=5: these traces were scored with window=4"):
        vote_traces(tmp_path / "s.parquet", tmp_path / "v.parquet", window=5)
    done = vote_traces(tmp_path / "s.parquet", tmp_path / "v.parquet")
    assert done.in_force.settings["window"] == 4
    assert done.in_force.origins["window"] == "recorded"


def test_files_that_were_scored_otherwise_or_not_at_all_do_not_vote_together(
    tmp_path: Path,
) -> None:
    a, b = pool(1), pool(1, prefix="r")
    score_traces(a, tmp_path / "a.parquet", window=4)
    score_traces(b, tmp_path / "b.parquet", window=5)
    traces = write(tmp_path / "t.parquet", b)
    out = tmp_path / "v.parquet"
    with pytest.raises(InvalidInput, match=r"were scored with .*'window': 4.* and .*'window': 5"):
        vote_traces([tmp_path / "a.parquet", tmp_path / "b.parquet"], out, window=4)
    with pytest.raises(TraceFileError, match=r"a\.parquet: has no column confidence"):
        vote_traces([tmp_path / "a.parquet", traces], out)
    score_traces(b, tmp_path / "c.parquet", window=4)
    assert vote_traces([tmp_path / "a.parquet", tmp_path / "c.parquet"], out).num_questions == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "x"}, 'measure="x"'),
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"nope": 1}, "unknown setting 'nope'"),
    ],
)
def test_a_vote_that_cannot_be_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        vote_traces(pool(1), tmp_path / "v.parquet", **settings)
    assert list(tmp_path.iterdir()) == []


# ---- memory, threads, kills ----------------------------------------------------------------------


MEMORY = """
import sys, threading
from pathlib import Path
import deepconf, pyarrow, pyarrow.parquet
import deepconf.batch
from deepconf.traces import schema

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3

before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
work = getattr(deepconf, sys.argv[1])
work(sys.argv[2], sys.argv[3], window=64, tail=64)
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("work", ["score_traces", "vote_traces"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, work: str) -> None:
    random = np.random.default_rng(1)
    traces, length, groups = 4_000, 1_024, 30  # 490 MB of confidences.
    values = random.normal(10, 2, traces * length).astype(np.float32)
    offsets = np.arange(0, len(values) + 1, length, dtype=np.int32)
    columns = {
        "trace": pa.array(range(traces), pa.int32()),
        "answer": pa.array(["1"] * traces),
        "status": pa.array(["finished"] * traces),
        "num_tokens": pa.array([length] * traces, pa.int32()),
        "confidence": pa.ListArray.from_arrays(offsets, values),
    }
    names = ["question_id", *columns]
    wanted = pa.schema([schema().field(name) for name in names])
    path = tmp_path / "t.parquet"
    with TraceWriter(path, schema=wanted) as writer:
        for group in range(groups):
            ids = pa.array([f"q{group}"] * traces)
            writer.write(pa.table({"question_id": ids, **columns}).cast(wanted))
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, work, path, tmp_path / "o.parquet"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 300  # MB, over what the imports take.


def test_a_kill_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = """
import os, signal, sys
import deepconf
def progress(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
deepconf.score_traces(sys.argv[1], sys.argv[2], window=4, progress=progress)
"""
    path = write(tmp_path / "t.parquet", *by_question(pool(20)))
    out = tmp_path / "s.parquet"
    run = subprocess.run([sys.executable, "-c", code, path, out], timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert not out.exists()
    assert score_traces(path, out, window=4).num_traces == 800


def test_what_progress_raises_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", *by_question(pool(20)))

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    threads = threading.active_count()
    for work in (score_traces, vote_traces):
        with pytest.raises(KeyboardInterrupt):
            work(path, tmp_path / "s.parquet", progress=stop, **SMALL)
    assert list(tmp_path.iterdir()) == [path]
    assert threading.active_count() == threads


class Number:
    nbytes = 8

    def __init__(self, value: int) -> None:
        self.value = value


def slow(part: int, most: int = 20) -> Iterator[int]:
    for item in range(most):
        if part % 3 == 0 and item % 7 == 0:
            time.sleep(0.002)
        yield part * 1_000 + item


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("room", [1, 64, 1 << 20])
def test_results_come_in_order_and_wait_in_bounded_room(threads: int, room: int) -> None:
    made, most = [0], 0
    lock = threading.Lock()

    def make(item: int) -> Number:
        with lock:
            made[0] += 1
        return Number(item)

    found: list[int] = []
    for number in in_order(map(slow, range(12)), make, threads=threads, room=room):
        found.append(number.value)
        most = max(most, made[0] - len(found))
    assert found == [part * 1_000 + item for part in range(12) for item in range(20)]
    # What waits, what is at hand in each thread, and one that went in while there was room.
    assert most * Number.nbytes <= 2 * room + (2 * threads + 2) * Number.nbytes


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("where", ["parts", "part", "function"])
def test_an_error_in_a_thread_comes_at_its_place(threads: int, where: str) -> None:
    def parts() -> Iterator[Iterator[int]]:
        yield slow(0)
        yield slow(1)
        if where == "parts":
            raise ValueError("here")
        yield broken() if where == "part" else slow(2)
        yield slow(3)

    def broken() -> Iterator[int]:
        raise ValueError("here")
        yield 0

    def make(item: int) -> Number:
        if where == "function" and item == 2_000:
            raise ValueError("here")
        return Number(item)

    found: list[int] = []
    numbers = in_order(parts(), make, threads=threads)
    with pytest.raises(ValueError, match="here"):
        found.extend(number.value for number in numbers)
    assert found == [*range(20), *range(1_000, 1_020)]


def test_an_error_that_is_held_holds_no_thread() -> None:
    table = pool(1, 400)
    threads = threading.active_count()
    reader = read_traces(table, batch_tokens=1)

    def fail(batch: pa.RecordBatch) -> pa.RecordBatch:
        raise ValueError("here")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="here") as held:
            list(reader.map(fail, threads=2))
        assert threading.active_count() == threads
        assert held.value.args == ("here",)
    finally:
        gc.enable()


# ---- the command line ----------------------------------------------------------------------------


def test_the_commands_score_and_vote(tmp_path: Path) -> None:
    table = pool(6, seed=3)
    path = write(tmp_path / "t.parquet", *by_question(table), window=4)
    scores, votes = tmp_path / "s.parquet", tmp_path / "v.parquet"
    result = cli("score", path, "-o", scores, "--tail", 6, "--bottom", 0.25, "--decimals", "none")
    assert result.exit_code == 0, result.output
    assert "window=4 (recorded), tail=6 (given), bottom=0.25 (given)" in result.stderr
    assert "scoring traces: 240 of 240" in result.stderr
    assert result.stdout.startswith("240 traces of ")
    expected = deepconf.score(counted(table), **SMALL)
    np.testing.assert_array_equal(pq.read_table(scores)["tail"].to_numpy(), expected.tail)

    result = cli("vote", scores, "-o", votes, "--measure", "tail", "--weight", "mean",
                 "--keep", 0.5, "--min-ballots", 2, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["num_questions"] == 6
    assert summary["num_known"] == 6
    assert summary["settings"]["measure"] == "tail"
    expected_answers = expected_votes(table, measure="tail", weight="mean", keep=0.5, min_ballots=2)
    found = {row["question_id"]: row["answer"] for row in pq.read_table(votes).to_pylist()}
    assert found == {name: vote.answer for name, vote in expected_answers.items()}
    result = cli("vote", path, "-o", votes)
    assert result.stdout.startswith("6 questions, 6 answered, ")
    assert " of 6 right (" in result.stdout


def test_the_commands_say_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pool(1))
    for arguments, message in [
        (["score", tmp_path / "no.parquet", "-o", "s.parquet"], "there is no such file"),
        (["score", path, "-o", path], "is what is read"),
        (["score", path, "-o", tmp_path / "s.csv"], "must end in .parquet"),
        (["score", path, "-o", tmp_path / "s.parquet", "--decimals", "x"], "--decimals x"),
        (["vote", path, "-o", tmp_path / "s.parquet", "--keep", "2"], "keep"),
        (["vote", path, path, "-o", tmp_path / "s.parquet"], "is named twice"),
    ]:
        result = cli(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_terminated_command_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", *by_question(pool(20)))
    code = """
import os, signal
from deepconf import batch
plain = batch.score_traces
def work(*arguments, progress, **more):
    def told(done, total):
        progress(done, total)
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(*arguments, progress=told, **more)
batch.score_traces = work
from deepconf.cli import main
main()
"""
    run = subprocess.run(
        [sys.executable, "-c", code, "score", path, "-o", tmp_path / "s.parquet"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    assert "interrupted" in run.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_recording_is_never_replaced(tmp_path: Path) -> None:
    table, recording = pool(), tmp_path / "r.parquet"
    pq.write_table(table.replace_schema_metadata({"run": "{}"}), recording)
    before = recording.read_bytes()
    pq.write_table(table, tmp_path / "t.parquet")
    for attempt in (score_traces, vote_traces):
        with pytest.raises(TraceFileError, match="is the recording of an evaluation"):
            attempt(tmp_path / "t.parquet", recording)
    result = cli("replay", tmp_path / "t.parquet", "-o", recording)
    assert "is the recording of an evaluation" in result.stderr
    with pytest.raises(TraceFileError, match="is the recording of an evaluation"):
        deepconf.import_traces([], out=recording)
    assert recording.read_bytes() == before


def test_log_probabilities_are_no_confidences(tmp_path: Path) -> None:
    table = pool()
    lists = [[-c - 1 for c in row] for row in table["confidence"].to_pylist()]
    place = table.schema.get_field_index("confidence")
    wrong = table.set_column(
        place, table.schema.field(place), pa.array(lists, pa.list_(pa.float32()))
    )
    with pytest.raises(InvalidInput, match=r"question .q0.: .* are these log-probabilities"):
        vote_traces(wrong, tmp_path / "v.parquet", keep=1.0, weight="mean", **SMALL)
    whole = wrong.filter(pc.is_in(wrong["status"], pa.array(["finished"])))
    with pytest.raises(InvalidInput, match=r"question .q0., trace .* are these log-probabilities"):
        deepconf.replay(whole, ["low"])


def test_a_window_that_no_trace_reaches_is_warned_of(tmp_path):
    traces = deepconf.from_confidences([[9.0, 8.0], [7.0, 2.0]], ["4", "5"])
    out = tmp_path / "out.parquet"
    said = "no trace reaches the window of 2048 tokens .the longest has 2"
    with pytest.warns(deepconf.SignalNeverArmed, match=said):
        deepconf.score_traces(traces, out)
    with pytest.warns(deepconf.SignalNeverArmed, match=said):
        deepconf.vote_traces(traces, out)
    deepconf.score_traces(traces, out, window=2)
    deepconf.vote_traces(traces, out, keep=1.0, weight="majority")
    pq.write_table(traces.to_arrow(), tmp_path / "t.parquet")
    for command in ("score", "vote"):
        line = [command, str(tmp_path / "t.parquet"), "-o", str(out)]
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0
        assert "warning: no trace reaches the window of 2048 tokens" in result.stderr
