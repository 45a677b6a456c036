"""What recorded traces say of confidence, against slow and obvious figures."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deepconf import _tables, _terminal
from deepconf.cli import main
from deepconf.errors import DeepConfError, InvalidInput
from deepconf.lab._verdict import gainable
from deepconf.lab.diagnose import Diagnosis, diagnose
from deepconf.traces import schema
from slow_replay import Recorded, synthetic
from test_statistics import brute_pairs

WINDOW, TAIL, BOTTOM = 6, 8, 0.2


def table(
    pools: Mapping[str, Sequence[Recorded]],
    *,
    marked: bool = True,
    gold: str | None = None,
    **settings: Any,
) -> pa.Table:
    """Pools as a trace file has them."""
    rows = [
        {
            "question_id": name,
            "trace": at,
            "answer": trace.answer,
            "status": trace.status,
            "num_tokens": len(trace.confidence),
            "confidence": trace.confidence,
            "correct": trace.correct if marked else None,
            "gold": gold,
        }
        for name, pool in pools.items()
        for at, trace in enumerate(pool)
    ]
    columns = schema()
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }
    full = [{name: row.get(name) for name in columns.names} for row in rows]
    return pa.Table.from_pylist(full, schema=columns.with_metadata(texts or None))


def looked(traces: Any, **settings: Any) -> Diagnosis:
    return diagnose(traces, **{"window": WINDOW, "tail": TAIL, "bottom": BOTTOM, **settings})


def test_every_auroc_is_that_of_brute_force() -> None:
    pools = synthetic(6, 10)
    found = looked(table(pools))
    traces = [(at, t) for at, pool in enumerate(pools.values()) for t in pool]
    scores = oracle.score([t.confidence for _, t in traces], WINDOW, TAIL, BOTTOM)
    right = [t.correct for _, t in traces]
    for name, separation in found.separation.items():
        won, pairs = brute_pairs(scores[name], right, [at for at, _ in traces], 6)
        assert separation.within is not None
        assert separation.within.value == pytest.approx(won.sum() / pairs.sum())
        won, pairs = brute_pairs(scores[name], right, [0] * len(traces), 1)
        assert separation.pooled == pytest.approx(won[0] / pairs[0])
    assert list(found.separation) == list(oracle.SCORES)


def test_the_candidates_are_counted() -> None:
    def pool(answers: str) -> list[Recorded]:
        return [
            Recorded(np.full(9, 5, np.float32), None if a == "-" else a, "finished", a == "a")
            for a in answers
        ]

    pools = {
        "easy": pool("aaab"),
        "missed": pool("bbac"),
        "none": pool("bbcd"),
        "tie": pool("ab--"),
    }
    found = looked(table(pools)).answers
    assert found.pass_1 is not None
    assert found.majority is not None
    assert found.pass_n is not None
    assert found.pass_1.value == pytest.approx((3 + 1 + 0 + 1) / 16)
    # A tie counts with the share of right answers in it.
    assert found.majority.value == (1 + 0.5) / 4
    assert found.pass_n.value == 0.75
    assert (found.majority_wrong, found.within_reach, found.tied) == (3, 2, 1)
    assert found.wrong_concentration == pytest.approx(np.mean([1, 2 / 3, 0.5, 1]))
    assert found.answered == 14 / 16
    assert found.agreement == pytest.approx(np.mean([0.75, 0.5, 0.5, 0.5]))
    assert found.distinct == pytest.approx(np.mean([2, 3, 3, 2]))
    shares = [(0.75, 0.25), (0.5, 0.25, 0.25), (0.5, 0.25, 0.25), (0.5, 0.5)]
    entropy = [-sum(p * math.log(p) for p in each) for each in shares]
    assert found.entropy == pytest.approx(np.mean(entropy))


def test_the_figures_of_random_pools_are_the_obvious_ones() -> None:
    pools = synthetic(30, 9, seed=3)
    found = looked(table(pools)).answers
    winners = []
    for pool in pools.values():
        votes = Counter(t.answer for t in pool if t.answer is not None)
        leading = [answer for answer, n in votes.items() if n == max(votes.values())]
        winners.append(leading.count("right") / max(1, len(leading)))
    assert found.majority is not None
    assert found.pass_n is not None
    assert found.majority.value == pytest.approx(np.mean(winners))
    reached = [any(t.correct for t in pool) for pool in pools.values()]
    assert found.pass_n.value == pytest.approx(np.mean(reached))


def test_the_ways_traces_come_change_nothing(tmp_path: Path) -> None:
    traces = table(synthetic(5, 12))
    expected = looked(traces).to_dict()
    path = tmp_path / "traces.parquet"
    pq.write_table(traces, path, row_group_size=7)
    assert looked(path).to_dict() == expected
    assert looked(str(tmp_path / "*.parquet")).to_dict() == expected
    assert looked(traces.to_reader(max_chunksize=3)).to_dict() == expected
    assert looked(traces, threads=1).to_dict() == expected
    shuffled = traces.take(np.random.default_rng(0).permutation(len(traces)))
    for name, each in looked(shuffled).to_dict()["separation"].items():
        assert each["pooled"] == pytest.approx(expected["separation"][name]["pooled"])
    assert looked(shuffled).answers.majority.value == expected["answers"]["majority"]["value"]  # type: ignore[union-attr]


def test_the_recording_says_how_scores_are_taken() -> None:
    pools = synthetic(3, 6)
    policy = {"window": 7, "tail": 5, "bottom": 0.3, "budget": 6}
    found = diagnose(table(pools, policy=policy))
    assert (found.window, found.tail, found.bottom) == (7, 5, 0.3)
    found = diagnose(table(pools, window=9, k=20), tail=4)
    assert (found.window, found.tail, found.bottom) == (9, 4, 0.1)
    found = diagnose(table(pools), window=2048)
    assert (found.window, found.armed) == (2048, 0.0)
    assert "Only 0% of the traces are a window long" in found.closing
    assert "choose a smaller window, such as 2." in found.closing
    assert not any("window" in note for note in found.notes)
    found = diagnose(table(pools))
    assert (found.window, found.tail, found.armed) == (2, 2, 1.0)
    assert found.notes[0].startswith("window=2 is an eighth of the traces' length, since nothing")
    # What can be read once is not looked at before.
    assert diagnose(table(pools).to_reader()).window == 2048
    with pytest.raises(InvalidInput, match="window=0"):
        diagnose(table(pools), window=0)


def test_a_diagnosis_shows_itself_in_some_lines() -> None:
    found = looked(table(synthetic(30, 16)))
    lines = repr(found).splitlines()
    assert lines[0] == "<deepconf.Diagnosis: 480 traces of 30 questions, window 6"
    assert lines[1].startswith("  AUROC within questions: mean 0.")
    assert " ".join(line.strip() for line in lines[2:]).endswith(f"{found.closing} {found.thumb}>")
    assert max(map(len, lines)) <= 101


@pytest.mark.parametrize(
    ("questions", "wrong", "within_reach", "says"),
    [
        (40, 0, 0, "misses no question, so no vote could gain an answer."),
        (40, 3, 0, "misses 3 of 40 questions, of which none has a right answer among"),
        (40, 3, 1, "of which 1 has a right answer among the candidates: a vote that gained all"),
        (40, 9, 5, "of which 5 have a right answer among the candidates: a vote that gained all"),
        (40, 9, 6, "of which 6 have a right answer among the candidates: that much a vote could"),
        (1, 1, 1, "misses 1 of 1 question, of which 1 has"),
    ],
)
def test_what_there_is_to_gain(questions: int, wrong: int, within_reach: int, says: str) -> None:
    assert says in gainable(questions, wrong, within_reach)


def test_where_majority_is_right_nothing_is_said_to_be_gained() -> None:
    sharp = looked(table(synthetic(40, 16, informative=3.0)))
    assert sharp.answers.majority_wrong is not None
    assert sharp.answers.within_reach is not None
    said = gainable(40, sharp.answers.majority_wrong, sharp.answers.within_reach)
    assert said in sharp.closing
    assert "perhaps" not in sharp.closing


def test_reliability_curves_hold_every_trace_once() -> None:
    pools = synthetic(20, 16)
    found = looked(table(pools))
    for curves in (found.reliability, found.reliability_within):
        for bins in curves.values():
            assert sum(each.traces for each in bins) == 320
            assert all(a.high <= b.low for a, b in itertools.pairwise(bins))
            right = sum(each.accuracy * each.traces for each in bins)
            assert right == pytest.approx(sum(t.correct for p in pools.values() for t in p))
    assert {each.traces for each in found.reliability["mean"]} == {32}
    within = found.reliability_within["mean"]
    assert 0 < within[0].low < within[-1].high < 1
    # Right ones are surer by two nats.
    assert within[0].accuracy < 0.3 < 0.6 < within[-1].accuracy


def test_ranks_within_a_question_do_not_see_other_questions() -> None:
    def pool(level: float, right: Sequence[bool]) -> list[Recorded]:
        return [
            Recorded(np.full(9, level + at, np.float32), f"{r}", "finished", r)
            for at, r in enumerate(right)
        ]

    pools = {"hard": pool(1.0, [False, False]), "easy": pool(50.0, [True, True])}
    found = looked(table(pools))
    assert found.separation["mean"].pooled == 1.0
    assert found.separation["mean"].within is None
    assert [each.accuracy for each in found.reliability_within["mean"]] == [0.5, 0.5]
    assert "No question has right traces beside wrong ones" in found.closing


def test_without_known_answers_there_is_agreement_and_dispersion() -> None:
    found = looked(table(synthetic(8, 8), marked=False))
    assert (found.known, found.separation, found.reliability) == (0, {}, {})
    assert found.answers.pass_1 is None
    assert found.answers.agreement > 0
    assert "No answers are known" in found.closing
    out = io.StringIO()
    _tables.show_diagnosis(_terminal.console(out), found)
    assert "AUROC" not in out.getvalue()
    assert "the leading one has" in out.getvalue()


def test_gold_answers_mark_what_nothing_else_does() -> None:
    pools = synthetic(6, 8)
    expected = looked(table(pools)).to_dict()
    found = looked(table(pools, marked=False, gold="right")).to_dict()
    assert found == expected


def test_some_questions_may_be_unknown() -> None:
    pools = synthetic(6, 8)
    both = pa.concat_tables(
        [table(pools), table({"new": synthetic(1, 8, seed=9)["q0"]}, marked=False)]
    )
    found = looked(both)
    assert (found.questions, found.known) == (7, 6)
    expected = looked(table(pools))
    assert found.separation == expected.separation
    assert found.answers.majority == expected.answers.majority
    assert found.notes[:1] == [
        "1 of 7 questions have no known answer, and count in agreement and dispersion only"
    ]


def test_traces_that_were_cut_are_left_out_and_told() -> None:
    traces = table(synthetic(3, 8))
    status = ["stopped", "aborted", "failed", "stopped", *traces["status"].to_pylist()[4:]]
    cut = traces.set_column(3, schema().field("status"), pa.array(status))
    found = looked(cut)
    assert found.traces == 20
    assert found.left_out == {"stopped": 2, "aborted": 1, "failed": 1}
    assert "2 stopped, 1 aborted, 1 failed" in found.notes[0]
    with pytest.raises(InvalidInput, match=r"none ran to its end \(2 stopped, 1 aborted, 1 failed"):
        looked(cut.slice(0, 4))


def test_an_empty_trace_is_wrong_and_has_no_score() -> None:
    pools = {
        "q": [*synthetic(1, 6)["q0"], Recorded(np.empty(0, np.float32), "right", correct=True)]
    }
    found = looked(table(pools))
    assert found.traces == 7
    assert found.answers.pass_1 is not None
    assert found.answers.pass_1.value == pytest.approx(sum(t.correct for t in pools["q"][:6]) / 7)
    assert sum(each.traces for each in found.reliability["mean"]) == 6


def test_blind_confidence_is_called_so() -> None:
    blind = looked(table(synthetic(40, 16, informative=0.0)))
    assert "does not tell right traces from wrong ones" in blind.closing
    assert "majority is the better choice" in blind.closing
    sharp = looked(table(synthetic(40, 16, informative=3.0)))
    assert sharp.closing.startswith("Confidence tells right traces from wrong ones (")


def test_questions_that_are_too_few_to_say_are_called_so() -> None:
    found = looked(table(synthetic(4, 6, informative=0.5, seed=3)))
    within = [each.within for each in found.separation.values() if each.within is not None]
    best = max(within, key=lambda each: each.value)
    assert (best.low or 1.0) <= 0.5
    assert (best.high or 0.0) >= 0.65
    assert found.closing.startswith("These questions are too few to say whether confidence tells")


def test_all_right_is_nothing_to_tell_apart() -> None:
    pools = {
        f"q{at}": [Recorded(np.full(9, 5, np.float32), "a", correct=True)] * 3 for at in range(4)
    }
    found = looked(table(pools))
    assert found.separation["tail"].pooled is None
    assert found.answers.wrong_concentration is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_traces_without_any_answer_are_all_wrong() -> None:
    pools = {f"q{at}": [Recorded(np.full(9, 5, np.float32), None)] * 3 for at in range(2)}
    found = looked(table(pools))
    assert found.answers.majority is not None
    assert (found.answers.majority.value, found.answers.within_reach) == (0.0, 0)
    assert (found.answers.answered, found.answers.agreement, found.answers.entropy) == (0, 0, 0)
    _tables.show_diagnosis(_terminal.console(io.StringIO()), found)
    unmarked = looked(table(pools, marked=False))
    assert unmarked.known == 0


def test_some_answers_may_be_unmarked() -> None:
    def pool(marks: Sequence[bool | None]) -> pa.Table:
        traces = [Recorded(np.full(9, 5 + at, np.float32), f"{at}") for at in range(len(marks))]
        column = schema().get_field_index("correct")
        rows = table({"q": traces})
        return rows.set_column(column, schema().field("correct"), pa.array(marks, pa.bool_()))

    found = looked(pool([True, False, None]))
    assert "1 trace has an answer that nothing marks" in found.notes[0]
    assert found.separation["mean"].pooled == 0.0
    assert sum(each.traces for each in found.reliability["mean"]) == 2


def bad(column: str, at: int, value: Any) -> pa.Table:
    traces = table(synthetic(2, 4))
    rows = traces.to_pylist()
    rows[at][column] = value
    return pa.Table.from_pylist(rows, schema=traces.schema)


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        (bad("trace", 1, 0), "question 'q0', trace 0: is there more than once"),
        (bad("confidence", 5, [math.nan] * 100), "question 'q1', trace 1: .*NaN at trace 0"),
        (bad("status", 5, "done"), "done"),
        (table({"q": []}), "no trace"),
        (table(synthetic(1)).drop_columns(["confidence"]), "confidence"),
    ],
)
def test_what_is_wrong_with_traces_is_named(traces: pa.Table, message: str) -> None:
    if "confidence" in traces.schema.names:  # As many as the confidences are.
        sizes = [len(each) for each in traces["confidence"].to_pylist()]
        at = traces.schema.get_field_index("num_tokens")
        traces = traces.set_column(at, traces.schema.field(at), pa.array(sizes, pa.int32()))
    with pytest.raises(DeepConfError, match=message):
        looked(traces)


def test_an_answer_that_is_right_and_wrong_is_refused() -> None:
    pool = [Recorded(np.full(9, 5, np.float32), "7", "finished", right) for right in (True, False)]
    with pytest.raises(InvalidInput, match="'q': the answer '7' is marked as right and as wrong"):
        looked(table({"q": pool}))


def test_the_data_has_every_figure() -> None:
    found = looked(table(synthetic(6, 20)))
    rows = found.to_arrow()
    assert rows.column_names == ["score", "kind", "bin", "low", "high", "traces", "value"]
    kinds = Counter(rows["kind"].to_pylist())
    assert kinds["auroc"] == kinds["auroc_within"] == 4
    assert kinds["reliability"] == 40
    first = rows.slice(0, 1).to_pylist()[0]
    assert (first["score"], first["value"]) == ("mean", found.separation["mean"].pooled)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["window"] == WINDOW


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    looked(table(synthetic(3, 4)), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (12, 12)


# ---- the command --------------------------------------------------------------------------------


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["diagnose", *arguments])
    found = capsys.readouterr()
    return int(caught.value.code or 0), found.out, found.err


def test_the_command_shows_what_the_function_finds(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "traces.parquet"
    pq.write_table(table(synthetic(12, 16), window=WINDOW, k=20), path)
    expected = diagnose(path, tail=TAIL)
    code, out, err = run(capsys, str(path), "--tail", str(TAIL))
    assert (code, err) == (0, "scoring traces: 192 of 192\n")
    assert expected.closing in out
    assert "lowest group, rank in question" in out
    code, out, _ = run(capsys, str(path), "--tail", str(TAIL), "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(expected.to_dict()))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(capsys, str(tmp_path / "none.parquet"))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "none.parquet" in err
