"""Questions, AUROC and the table of an evaluation, checked by hand."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deepconf import Policy
from deepconf._reckoning import summarise
from deepconf._statistics import auroc
from deepconf.errors import InvalidInput
from deepconf.questions import Question, load_questions, read_questions
from deepconf.report import Report

# ---- questions ----------------------------------------------------------------------------------


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def test_questions_are_read(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1+1=?"}]
    path = write(
        tmp_path / "q.jsonl",
        {"id": "a", "question": "1+1=?", "answer": "2"},
        "",
        {"question": chat, "answer": 2, "source": "school"},
        {"id": 7, "question": "½?", "answer": 0.5},
    )
    assert load_questions(path) == [
        Question("a", "1+1=?", "2"),
        Question("3", chat, "2"),
        Question("7", "½?", "0.5"),
    ]


GOOD = {"id": "a", "question": "1+1=?", "answer": "2"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "1+1', "not JSON"),
        ("[1, 2]", "must be an object"),
        ({"answer": "2"}, "there is no 'question'"),
        ({"id": "a", "question": "2+2=?", "answer": "4"}, "id 'a' is taken by line 1"),
        ({"id": 1.5, "question": "2+2=?", "answer": "4"}, "id is 1.5"),
        ({"question": "  ", "answer": "4"}, "question is '  '"),
        ({"question": [], "answer": "4"}, "question is []"),
        ({"question": [{"role": "user"}], "answer": "4"}, "must have role and content"),
        ({"question": "2+2=?", "answer": [4]}, "answer is [4]"),
        ({"question": "2+2=?", "answer": True}, "answer is True"),
        ({"question": "2+2=?", "answer": ""}, "answer is empty"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: Any, says: str) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, line)
    with pytest.raises(InvalidInput) as caught:
        load_questions(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert says in str(caught.value)


def test_an_answer_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "1+1=?"}, {"question": "2+2=?", "answer": None})
    assert [question.answer for question in load_questions(path)] == [None, None]


def test_questions_come_in_other_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": "a", "question": "1+1=?", "answer": "2"}, {"question": "½?"}]
    expected = [Question("a", "1+1=?", "2"), Question("2", "½?", None)]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    marked = tmp_path / "windows.jsonl"
    marked.write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig")
    assert load_questions(marked) == expected
    array = tmp_path / "array.json"
    array.write_text(json.dumps(rows, indent=2))
    assert load_questions(array) == expected
    array.write_text('[{"question": "1+1=?"}, 3]')
    with pytest.raises(InvalidInput, match=r"array\.json, entry 2: must be an object"):
        load_questions(array)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert load_questions("-") == expected


def test_questions_come_in_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    chat = [{"role": "user", "content": "1+1=?"}]
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"question": [chat, chat], "answer": [2, None]}), path)
    assert load_questions(path) == [Question("1", chat, "2"), Question("2", chat, None)]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InvalidInput, match="cannot be read as Parquet"):
        load_questions(path)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no questions"):
        load_questions(write(tmp_path / "q.jsonl", "", " "))
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_questions(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load_questions(tmp_path / "latin.jsonl")
    with pytest.raises(InvalidInput, match="there are none"):
        read_questions([])
    with pytest.raises(InvalidInput, match=r"questions\[1\]: id 'a' is taken"):
        read_questions([GOOD, GOOD])


# ---- AUROC --------------------------------------------------------------------------------------


def naive_auroc(scores: Any, right: Any) -> float:
    pairs = [
        (good, bad)
        for (good, x), (bad, y) in itertools.product(zip(scores, right, strict=True), repeat=2)
        if x and not y
    ]
    return sum(1.0 if g > b else 0.5 if g == b else 0.0 for g, b in pairs) / len(pairs)


@pytest.mark.parametrize("levels", [2, 5, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_naive_one(levels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    right = random.random(80) < 0.4
    right[:2] = True, False
    scores = random.integers(levels, size=80) / levels + 0.1 * right
    assert auroc(scores, right) == pytest.approx(naive_auroc(scores, right), abs=1e-15)


def test_auroc_at_the_edges() -> None:
    assert auroc([2.0, 1.0], [True, False]) == 1.0
    assert auroc([1.0, 2.0], [True, False]) == 0.0
    assert auroc([1.0, 1.0, 1.0], [True, False, False]) == 0.5
    assert auroc([2.0, np.nan, 1.0], [True, True, False]) == 1.0
    assert np.isnan(auroc([1.0, 2.0], [True, True]))
    assert np.isnan(auroc([], []))
    with pytest.raises(InvalidInput, match="two equal rows"):
        auroc([1.0], [True, False])


# ---- the table ----------------------------------------------------------------------------------


def trace(answer: str | None, correct: bool, *scores: float, status: str = "finished") -> Any:
    mean, lowest, bottom, tail = scores
    return {
        "answer": answer,
        "correct": correct,
        "status": status,
        "num_tokens": 10,
        "mean": mean,
        "lowest_group": lowest,
        "bottom_group": bottom,
        "tail": tail,
    }


def record(policy: str, name: str, correct: bool, traces: Any, **more: Any) -> Any:
    tokens = more.pop("tokens", 10 * len(traces))
    times = {"started": more.pop("started", 0.0), "ended": more.pop("ended", 1.0)}
    result = {
        "answer": None,
        "fallback": False,
        "unarmed": None,
        "tokens": {"generated": tokens},
        "traces": traces,
        **more,
    }
    return {"policy": policy, "id": name, "correct": correct, **times, "result": result}


def by_hand() -> Report:
    """Two questions of four traces; the right answers are A and X."""
    first = [
        trace("A", True, 4.0, 1.0, 1.0, 1.0),
        trace("B", False, 1.0, 2.0, 2.0, 2.0),
        trace("B", False, 1.0, 2.0, 2.0, 2.0),
        trace(None, False, 9.0, 9.0, 9.0, 9.0),
    ]
    second = [
        trace("X", True, 3.0, 3.0, 1.0, 3.0),
        trace("Y", False, 1.0, 1.0, 4.0, 1.0, status="length"),
        trace("X", True, 3.0, 3.0, 1.0, 3.0),
        trace("Z", False, 1.0, 1.0, 1.0, 1.0),
    ]
    records = [
        record("offline", "q1", False, first, started=0.0, ended=4.0),
        record("offline", "q2", True, second, started=1.0, ended=3.0, tokens=60),
        record("low", "q1", True, first[:2], started=10.0, ended=11.0, fallback=True),
        record("low", "q2", True, second[:2], started=20.0, ended=22.5, unarmed="too short"),
        record("low", "elsewhere", True, first),
        record("high", "q1", True, first),
    ]
    policies = {"low": Policy.low(), "offline": Policy.offline(budget=4, min_ballots=1)}
    return summarise("m", ["q1", "q2"], policies, records)


def test_rows_by_hand() -> None:
    report = by_hand()
    rows = {row.method: row for row in report.rows}
    assert len(report.rows) == 3 + 4 * 3 + 2 + 1 + 1
    assert rows["pass@1"].accuracy == (1 / 4 + 2 / 4) / 2
    assert rows["pass@1"].tokens == 40 / 4 + 60 / 4
    assert rows["pass@1"].against_offline == pytest.approx(-0.75)
    assert rows["majority"].accuracy == 0.5  # B, X
    assert rows["mean, all"].accuracy == 1.0  # A 4 : B 2, X 6
    assert rows["mean, top 90%"].accuracy == 1.0
    assert rows["mean, top 10%"].accuracy == 1.0  # one trace of q1, both X of q2
    assert rows["lowest group, all"].accuracy == 0.5  # A 1 : B 4
    assert rows["bottom group, all"].accuracy == 0.0  # and Y 4 : X 2
    assert rows["bottom group, top 10%"].accuracy == 0.0
    assert rows["tail, all"].accuracy == 0.5
    tokens = {row.tokens for row in report.rows if row.kind == "vote"}
    assert tokens == {100.0, rows["early consensus"].tokens}
    assert rows["mean, all"].same_as is None  # It is right in q1, and majority is not.
    assert rows["mean, top 90%"].same_as == "mean, all"
    assert rows["lowest group, all"].same_as == "majority"
    assert rows["bottom group, all"].against_majority.lost == 1  # type: ignore[union-attr]
    low, offline = rows["low"], rows["offline"]
    assert (low.accuracy, low.tokens, low.against_offline, low.fallback) == (1.0, 40.0, -0.6, 1)
    assert low.seconds == 3.5  # the pause between does not count
    assert offline.seconds == 4.0  # what overlaps counts once
    assert offline.against_offline == 0.0
    assert report.complete
    # Right: 4, 3, 3; wrong: 1, 1, 9, 1, 1 by the mean.
    assert report.auroc["mean"] == pytest.approx(12 / 15)
    assert report.auroc["bottom_group"] == pytest.approx(
        naive_auroc([1, 2, 2, 9, 1, 4, 1, 1], [1, 0, 0, 0, 1, 0, 1, 0])
    )


def test_a_report_as_text_and_as_json() -> None:
    report = by_hand()
    text = report.table()
    assert text.startswith("m: 2 questions\n")
    lines = [line.split() for line in text.splitlines()]
    assert ["pass@1", "37.5%", "±", "12.5", "25", "-75.0%", "–", "–"] in lines
    low = ["low", "100.0%", "±", "0.0", "40", "-60.0%", "3.5", "s"]
    assert [*low, "0", "lost,", "0", "won,", "p", "=", "1"] in lines
    assert "right in the same questions as majority: lowest group, all; " in text
    assert not any(line[:2] == ["lowest", "group,"] and "all" in line for line in lines)
    assert "low: in 1 of 2 questions the signal never armed: too short" in text
    assert "low: 1/2" in text
    assert "AUROC" in text
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["rows"][-1]["method"] == "offline"
    assert again["rows"][0]["accuracy"] == 0.375


def test_nothing_is_made_up_without_an_offline_run() -> None:
    traces = [trace("A", True, 1.0, 1.0, 1.0, 1.0)]
    report = summarise(
        "m", ["q1", "q2"], {"low": Policy.low()}, [record("low", "q1", True, traces)]
    )
    assert [row.method for row in report.rows] == ["low"]
    assert report.rows[0].against_offline is None
    assert report.auroc == {}
    assert not report.complete
    assert "no offline policy" in report.table()
    assert "low: 1 of 2 questions finished" in report.table()
    empty = summarise("m", ["q1"], {"low": Policy.low()}, [])
    assert empty.rows[0].accuracy is None
    assert "–" in empty.table()


def test_an_offline_run_that_stops_early_is_no_baseline() -> None:
    traces = [trace("A", True, 1.0, 1.0, 1.0, 1.0)]
    early = Policy.offline(stop="consensus")
    report = summarise("m", ["q"], {"offline": early}, [record("offline", "q", True, traces)])
    assert [row.method for row in report.rows] == ["offline"]


# ---- majority at the same tokens ----------------------------------------------------------------


def votes(answers: str, right: str, tokens: int = 10) -> list[Any]:
    """Finished traces with these answers, all as confident."""
    return [{**trace(a, a == right, 5.0, 5.0, 5.0, 5.0), "num_tokens": tokens} for a in answers]


def compared(low: list[bool], spent: int) -> Report:
    """A policy on questions whose majority is right from three traces on."""
    names = [f"q{at}" for at in range(len(low))]
    traces = votes("BAAAAAAA", "A")
    records = [record("offline", name, True, traces) for name in names]
    mine = zip(names, low, strict=True)
    records += [record("low", name, right, traces[:2], tokens=spent) for name, right in mine]
    policies = {"offline": Policy.offline(budget=8, min_ballots=1), "low": Policy.low(warmup=4)}
    return summarise("m", names, policies, records)


def test_majority_stands_beside_a_policy_at_its_tokens() -> None:
    report = compared([True, False, False, True], spent=55)
    (row,) = [row for row in report.rows if row.method == "low"]
    (beside,) = [row for row in report.rows if row.method == "majority of 5"]
    assert (beside.kind, beside.accuracy, beside.tokens) == ("majority", 1.0, 4 * 50.0)
    assert beside.against_offline == pytest.approx(50 / 80 - 1)
    assert row.against_majority is not None
    assert (row.against_majority.won, row.against_majority.lost) == (0, 2)
    assert row.against_majority.p == 0.5
    # The first trace is wrong: four of five are no consensus, seven of eight neither.
    assert next(row for row in report.rows if row.method == "early consensus").tokens == 4 * 80.0
    text = report.table()
    assert re.search(r"low +50\.0% ± 28\.9 .* 2 lost, 0 won, p = 0\.5\n  majority of 5 ", text)
    assert text.splitlines()[-1] == report.closing
    assert report.closing.startswith("accuracy: offline (the most accurate of 2)") or (
        "is as good as offline" in report.closing
    )
    assert json.loads(json.dumps(report.to_dict()))["closing"] == report.closing


def test_the_closing_sentence_says_that_majority_is_better() -> None:
    traces = votes("BAAAAAAA", "A")
    names = [f"q{at}" for at in range(20)]
    records = [record("offline", name, True, traces) for name in names]
    records += [record("low", name, False, traces[:2], tokens=60) for name in names]
    policies = {"offline": Policy.offline(budget=8, min_ballots=1), "low": Policy.low(warmup=4)}
    report = summarise("m", names, policies, records)
    (low,) = [row for row in report.rows if row.method == "low"]
    assert low.against_majority is not None
    assert (low.against_majority.lost, low.against_majority.p) == (20, 2 / 2**20)


def test_an_interrupted_run_is_compared_over_the_questions_that_all_policies_have() -> None:
    whole = compared([True, False, False, True], spent=55)
    policies = {"offline": Policy.offline(budget=8, min_ballots=1), "low": Policy.low(warmup=4)}
    names = [f"q{at}" for at in range(4)]
    report = summarise("m", names, policies, whole.records[:-2])
    (beside,) = [row for row in report.rows if row.method == "majority of 5"]
    assert beside.questions == 2
    assert "2 of 4 questions finished: its row, and those of majority below it" in report.notes[0]
    assert report.closing.endswith("That is over the 2 questions that all policies have.")
    half = summarise("m", names[:2], policies, whole.records[:2] + whole.records[4:6])
    assert report.closing.startswith(half.closing)


def test_a_policy_with_a_failed_trace_is_compared_on_the_other_questions() -> None:
    report = compared([True, True], spent=55)
    records = report.records
    records[-1]["result"]["traces"] = [
        {**each, "status": "failed"} for each in records[-1]["result"]["traces"]
    ]
    policies = {"offline": Policy.offline(budget=8, min_ballots=1), "low": Policy.low(warmup=4)}
    again = summarise("m", ["q0", "q1"], policies, records)
    (beside,) = [row for row in again.rows if row.method == "majority of 5"]
    assert (beside.questions, beside.tokens) == (1, 50.0)


def test_without_pyarrow_nothing_is_compared_and_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    report = compared([True, False], spent=55)
    assert report.closing == ""
    assert all(row.kind != "majority" for row in report.rows)
    assert any("no policy is compared with majority" in note for note in report.notes)
    assert any(row.method == "majority" for row in report.rows)


def test_questions_without_answers_are_not_marked() -> None:
    traces = [{**each, "correct": None} for each in votes("AAB", "A")]
    record_of = record("offline", "q", False, traces)
    policies = {"offline": Policy.offline(budget=3, min_ballots=1)}
    report = summarise("m", ["q"], policies, [{**record_of, "correct": None}])
    (row,) = report.rows
    assert (row.method, row.accuracy, row.tokens) == ("offline", None, 30.0)
    assert "without an answer to compare with: 1 question;" in report.table()
    assert report.closing == ""


def test_traces_without_an_answer_are_counted() -> None:
    traces = [*votes("AA", "A"), trace(None, False, 1.0, 1.0, 1.0, 1.0)]
    policies = {"offline": Policy.offline(budget=3, min_ballots=1)}
    report = summarise("m", ["q"], policies, [record("offline", "q", True, traces)])
    assert report.answered == {"offline": (2, 3)}
    assert "traces with an answer: offline 2 of 3" in report.table()
