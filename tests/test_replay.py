"""Replays against the live controller driven token by token, and every kind of bad input."""

import dataclasses
import itertools
import json
import math

import deepconf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deepconf import InvalidInput, InvalidType, Policy
from deepconf._windows import fitting
from deepconf.commands import app
from deepconf.lab._draws import draws
from deepconf.lab.live import beside
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_replay import Recorded, slow_replay, synthetic
from typer.testing import CliRunner

COLUMNS = {"question_id": pa.string(), "trace": pa.int32(), "answer": pa.string(),
           "status": pa.string(), "num_tokens": pa.int32(),
           "confidence": pa.list_(pa.float32()), "correct": pa.bool_()}  # fmt: skip


def table(pools, *, marked=True, gold=None, metadata=None):
    rows = [
        (name, at, t.answer, t.status, len(t.confidence), t.confidence, t.correct)
        for name, pool in pools.items()
        for at, t in enumerate(pool)
    ]
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    found = pa.table(
        {name: pa.array(list(values), COLUMNS[name]) for name, values in columns.items()}
    )
    if not marked:
        found = found.drop_columns(["correct"])
    if gold is not None:
        found = found.append_column("gold", pa.array([gold] * found.num_rows, pa.string()))
    return found.replace_schema_metadata(metadata)


POOLS = synthetic(6, 24)
LOW = Policy.low(budget=16, warmup=4, window=8, tail=8)


def scaled(name, **others):
    policy = Policy.preset(name, budget=16, window=8, tail=8, **others)
    return policy.replace(warmup=4) if policy.mode == "online" else policy


def assert_same(played, pools, lag=0):
    """Every run of a replay is that of the controller, fed token by token."""
    most = max(policy.budget for policy in played.policies.values())
    repeats = played.draws["repeats"]
    rows = iter(played.rows)
    for label, policy in played.policies.items():
        for name in played.questions:
            pool = pools[name]
            drawn = draws(len(pool), most, repeats, played.draws["seed"], name)
            for repeat, order in enumerate(drawn):
                slow = slow_replay(pool, policy, order[: policy.budget].tolist(), lag)
                fast = next(rows)
                expected = dataclasses.asdict(slow) | {"unarmed": slow.unarmed is not None}
                expected |= {"policy": label, "question_id": name, "repeat": repeat}
                if played.gold is False:
                    expected["correct"] = fast["correct"]
                assert fast == expected
    assert next(rows, None) is None


def test_every_preset_is_replayed_as_the_live_controller_decides():
    policies = {name: scaled(name) for name in Policy.presets()}
    played = deepconf.replay(table(POOLS), policies, repeats=5, seed=3, lag=2)
    assert_same(played, POOLS, lag=2)
    assert {"stopped", "consensus", "budget"} <= {
        *(name for name in ("stopped",) if played.columns["stopped"].any()),
        *(played.reasons[code] for code in np.unique(played.columns["reason"])),
    }


@st.composite
def policies_of_any_kind(draw):
    budget = draw(st.integers(1, 12))
    mode = draw(st.sampled_from(["online", "online", "offline"]))
    keep = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    stops = ["consensus", "budget"]
    stops += ["certain"] if mode == "online" or keep == 1.0 else []
    measures = ["mean", "lowest_group", "bottom_group", "tail"]
    return Policy.low(
        mode=mode,
        budget=budget,
        warmup=draw(st.integers(1, budget)) if mode == "online" else 0,
        keep=keep,
        window=draw(st.integers(1, 12)),
        tail=draw(st.integers(1, 12)),
        bottom=draw(st.sampled_from([0.1, 0.5])),
        decimals=draw(st.sampled_from([None, None, 1, 3])),
        stop=draw(st.sampled_from(stops)),
        consensus=draw(st.sampled_from([0.5, 0.8, 1.0])),
        weight=draw(st.sampled_from(["majority", *measures])),
        measure=draw(st.sampled_from(measures)),
        max_weight=draw(st.sampled_from([None, 9.0])),
        min_ballots=draw(st.integers(0, 4)),
        concurrency=draw(st.sampled_from([None, None, 1, 3])),
        calibrate_on=draw(st.sampled_from(["finished", "all"])),
        percentile_over=draw(st.sampled_from(["answered", "all"])),
        stopped_vote=draw(st.booleans()),
    )


@st.composite
def pools_of_any_kind(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    longest = draw(st.sampled_from([1, 6, 20, 50]))

    def trace():
        answer = random.choice(["a", "a", "a", "b", "c", ""])
        values = random.uniform(1.0, draw(st.sampled_from([1.5, 20.0])), random.integers(longest))
        status = "length" if random.random() < 0.2 else "finished"
        return Recorded(values.astype(np.float32), answer or None, status, answer == "a")

    return {name: [trace() for _ in range(12)] for name in ("one", "two")}


@pytest.mark.filterwarnings("ignore::deepconf.SignalNeverArmed")
@settings(max_examples=150, deadline=None)
@given(st.lists(policies_of_any_kind(), min_size=1, max_size=3), pools_of_any_kind())
def test_any_policy_on_any_pool_is_replayed_as_the_live_controller_decides(policies, pools):
    labelled = {str(at): policy for at, policy in enumerate(policies)}
    for repeats in (2, None):
        played = deepconf.replay(table(pools), labelled, repeats=repeats, lag=1)
        assert_same(played, pools, lag=1)


def test_a_pool_is_read_once_and_replayed_often():
    grid = deepconf.grid({"low": LOW}, keep=[0.1, 0.5, 0.9], budget=[8, 16])
    pool = deepconf.Pool.read(table(POOLS), grid)
    all_ = pool.replay(repeats=3)
    one = pool.replay({"one": LOW.replace(keep=0.5, consensus=0.7)}, repeats=3)
    assert_same(all_, POOLS)
    assert_same(one, POOLS)
    with pytest.raises(InvalidInput, match="was not read for these: read it again"):
        pool.replay({"other": LOW.replace(window=9)})


def test_draws_are_the_same_for_every_policy_and_for_any_number_of_repeats():
    few, many = draws(24, 16, 2, 7, "q"), draws(24, 20, 5, 7, "q")
    assert (few == many[:2, :16]).all()
    assert all(len(set(row)) == 20 for row in many)
    assert (draws(24, 16, 2, 8, "q") != few).any()
    assert (draws(24, 16, 2, 7, "r") != few).any()
    assert draws(5, 7, None, 0, "q").tolist() == [[0, 1, 2, 3, 4, 0, 1]]


def test_rows_in_any_order_and_in_many_batches_are_the_same_pool():
    whole = table(POOLS)
    order = np.random.default_rng(0).permutation(whole.num_rows)
    shuffled = whole.take(order)
    first = deepconf.replay(whole, {"low": LOW}, repeats=3)
    again = deepconf.replay(shuffled, {"low": LOW}, repeats=3)
    small = deepconf.read_traces(shuffled, batch_tokens=100)
    third = deepconf.replay(small, {"low": LOW}, repeats=3)

    def rows(played):
        found = played.rows
        return sorted(found, key=lambda row: (row["question_id"], row["repeat"]))

    assert rows(first) == rows(again) == rows(third)


def test_the_frontier_is_plain_majority_at_every_budget():
    played = deepconf.replay(table(POOLS), {"low": LOW}, repeats=4)
    frontier = played.frontier
    assert frontier.budgets.tolist() == [1, 2, 3, 4, 6, 8, 11, 16]
    for question, (name, pool) in enumerate(POOLS.items()):
        drawn = draws(len(pool), 16, 4, 0, name)
        for at, budget in enumerate(frontier.budgets):
            rows = [[pool[i] for i in order[:budget]] for order in drawn]
            tokens = np.mean([sum(len(t.confidence) for t in row) for row in rows])
            assert frontier.tokens["majority"][at, question] == tokens
            votes = [deepconf.vote([t.answer for t in row]).answer for row in rows]
            right = np.mean([answer == "right" for answer in votes])
            assert frontier.correct["majority"][at, question] == right
    assert (frontier.tokens["consensus"] <= frontier.tokens["majority"]).all()
    assert (frontier.tokens["consensus"] < frontier.tokens["majority"]).any()


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_the_frontier_depends_on_budgets_only_and_on_no_order_of_policies(order):
    policies = [
        *(Policy.low(budget=budget, window=8, tail=8) for budget in (2, 8, 16)),
        Policy.high(budget=16, warmup=1, window=4, tail=4, consensus=0.5, min_ballots=0),
        Policy.offline(budget=16, window=8, tail=8, concurrency=3, seed=9),
    ]
    traces = table(POOLS)
    first = deepconf.replay(traces, {str(at): policies[at] for at in range(5)}, repeats=2)
    again = deepconf.replay(traces, {str(at): policies[at] for at in order}, repeats=2)
    assert again.frontier.policies == first.frontier.policies
    for name in ("correct", "tokens", "steps"):
        for kind, of in getattr(first.frontier, name).items():
            np.testing.assert_array_equal(getattr(again.frontier, name)[kind], of)


def test_early_consensus_has_the_warmup_of_its_budget_in_flight_and_three_votes_at_least():
    played = deepconf.replay(table(POOLS), LOW.replace(warmup=1, min_ballots=0), repeats=1)
    found = [
        (policy.budget, policy.concurrency, policy.min_ballots)
        for policy in played.frontier.policies["consensus"]
    ]
    assert found[:4] == [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 3)]
    assert found[-2:] == [(11, 2, 3), (16, 4, 4)]


def test_the_full_budget_is_what_nothing_stopped_would_have_cost():
    policies = {"low": LOW, "all": LOW.replace(budget=8)}
    played = deepconf.replay(table(POOLS), policies, repeats=None)
    lengths = [[len(t.confidence) for t in pool] for pool in POOLS.values()]
    expected = [[sum(row[:16]) for row in lengths], [sum(row[:8]) for row in lengths]]
    assert played.full[:, :, 0].tolist() == expected
    assert (played.tokens <= played.full).all()


def test_presets_take_from_the_recording_how_it_was_measured():
    recorded = '{"window": 8, "tail": 8, "budget": 12, "warmup": 0, "mode": "offline"}'
    metadata = {"k": "10", "policy": recorded}
    played = deepconf.replay(table(POOLS, metadata=metadata), ["low", "offline", "official-high"])
    low, offline, official = played.policies.values()
    assert (low.top_logprobs, low.window, low.budget, low.warmup) == (10, 8, 12, 3)
    assert (offline.mode, offline.budget, offline.warmup) == ("offline", 12, 0)
    assert official.decimals == 3
    assert deepconf.replay(table(POOLS, metadata=metadata), "low").policies["low"] == low


@pytest.mark.parametrize("marked", [True, False])
def test_marks_come_from_gold_answers_where_there_are_no_marks(marked):
    pools = synthetic(3, 16)
    with_marks = deepconf.replay(table(pools), {"low": LOW}, repeats=4)
    by_gold = deepconf.replay(table(pools, marked=False, gold="right"), {"low": LOW}, repeats=4)
    assert by_gold.gold
    assert (by_gold.correct == with_marks.correct).all()


def test_where_all_traces_failed_there_is_nothing_to_replay():
    found = table(synthetic(2, 4))
    place = found.schema.get_field_index("status")
    failed = found.set_column(place, "status", [["failed"] * found.num_rows])
    with pytest.raises(InvalidInput, match="all 8 failed when they were recorded"):
        deepconf.replay(failed, {"low": LOW})


def test_one_gold_answer_is_that_of_its_question_wherever_it_stands():
    found = table(synthetic(3, 16), marked=False, gold="right")
    names, gold = found["question_id"].to_pylist(), found["gold"].to_pylist()
    both = zip(names, gold, strict=True)
    place = found.schema.get_field_index("gold")
    some = [text if name not in names[at + 1 :] else None for at, (name, text) in enumerate(both)]
    played = deepconf.replay(found.set_column(place, "gold", [some]), {"low": LOW}, repeats=4)
    assert played.gold
    assert (played.correct == deepconf.replay(found, {"low": LOW}, repeats=4).correct).all()
    other = found.set_column(place, "gold", [[*gold[:3], "left", *gold[4:]]])
    with pytest.raises(InvalidInput, match="has two gold answers, 'right' and 'left'"):
        deepconf.replay(other, {"low": LOW}, repeats=4)


def test_without_known_answers_the_majority_of_the_whole_pool_is_what_counts():
    played = deepconf.replay(table(POOLS, marked=False), {"low": LOW}, repeats=4)
    assert not played.gold
    rows = played.rows
    for name, pool in POOLS.items():
        best = deepconf.vote([t.answer for t in pool]).answer
        mine = [row for row in rows if row["question_id"] == name]
        assert [row["correct"] for row in mine] == [row["answer"] == best for row in mine]


def test_traces_without_any_answer_are_refused_unless_the_right_ones_are_known():
    mute = {
        name: [dataclasses.replace(trace, answer=None) for trace in pool]
        for name, pool in POOLS.items()
    }
    for traces in (table(mute), table(mute, marked=False)):
        with pytest.raises(
            InvalidInput, match="none has an answer, so there is nothing to vote on"
        ):
            deepconf.replay(traces, {"low": LOW})
    known = deepconf.replay(table(mute, marked=False, gold="right"), {"low": LOW}, repeats=2)
    assert known.gold
    assert not known.correct.any()


def test_traces_that_failed_are_left_out_and_counted():
    pools = {"q": [*POOLS["q0"][:17]]}
    pools["q"][3] = dataclasses.replace(pools["q"][3], status="failed")
    pool = deepconf.Pool.read(table(pools), {"low": LOW})
    assert (pool.left_out, pool.sizes.tolist()) == (1, [16])
    rest = {"q": [t for t in pools["q"] if t.status != "failed"]}
    assert_same(pool.replay(repeats=2), rest)


def test_a_question_of_which_all_traces_failed_is_short_and_not_gone():
    traces = table(POOLS)
    status = ["failed"] * 24 + traces["status"].to_pylist()[24:]
    at = traces.schema.get_field_index("status")
    broken = traces.set_column(at, "status", pa.array(status))
    with pytest.raises(InvalidInput, match="question 'q0' has only 0 traces"):
        deepconf.replay(broken, {"low": LOW})
    with pytest.raises(InvalidInput, match="question 'q0' has no trace that could be replayed"):
        deepconf.replay(broken, {"low": LOW}, short_pools="resample")
    skipped = deepconf.replay(broken, {"low": LOW}, repeats=2, short_pools="skip")
    assert skipped.draws["skipped"] == ["q0"]
    assert len(skipped.questions) == 5
    gone = traces.set_column(at, "status", pa.array(["failed"] * traces.num_rows))
    with pytest.raises(InvalidInput, match="all 144 failed when they were recorded"):
        deepconf.replay(gone, {"low": LOW})


def test_a_pool_takes_what_a_replay_takes_and_checks_it():
    pool = deepconf.Pool.read(table(POOLS, metadata={"k": "20"}), {"low": LOW})
    with pytest.raises(InvalidInput, match="wants k=5 and the traces were recorded with k=20"):
        pool.replay({"low": LOW.replace(top_logprobs=5)})
    with pytest.raises(InvalidType, match=r"policies\['low'\] is a int"):
        pool.replay({"low": 3})


def test_the_gold_answer_may_stand_in_any_row_of_a_question():
    traces = table(POOLS, marked=False)
    gold = [None if at % 24 < 3 else "right" for at in range(traces.num_rows)]
    known = deepconf.replay(traces.append_column("gold", pa.array(gold)), {"low": LOW}, repeats=2)
    assert known.gold
    assert (known.correct == deepconf.replay(table(POOLS), {"low": LOW}, repeats=2).correct).all()
    gold[-1] = "wrong 1"
    two = traces.append_column("gold", pa.array(gold))
    for look in (lambda: deepconf.replay(two, {"low": LOW}), lambda: deepconf.diagnose(two)):
        with pytest.raises(InvalidInput, match="question 'q5' has two gold answers"):
            look()


def test_short_pools_are_an_error_or_drawn_again_or_skipped():
    pools = POOLS | {"short": POOLS["q0"][:9], "tiny": POOLS["q1"][:5]}
    with pytest.raises(
        InvalidInput,
        match=r"budget=16 of policy 'low': question 'short' has only 9 traces \(1 more",
    ):
        deepconf.replay(table(pools), {"low": LOW})
    again = deepconf.replay(table(pools), {"low": LOW}, repeats=3, short_pools="resample")
    assert again.draws["resampled"] == ["short", "tiny"]
    assert_same(again, pools)
    skipped = deepconf.replay(table(pools), {"low": LOW}, repeats=3, short_pools="skip")
    assert skipped.questions == list(POOLS)
    assert skipped.draws["skipped"] == ["short", "tiny"]
    with pytest.raises(InvalidInput, match="all would be skipped"):
        deepconf.replay(table(pools), {"low": LOW.replace(budget=64)}, short_pools="skip")


def test_a_grid_is_every_combination_and_leaves_out_what_cannot_be():
    base = {"low": Policy.low(budget=8, warmup=4), "all": Policy.offline(budget=8)}
    found = deepconf.grid(base, warmup=[2, 16], budget=[4, 32])
    assert list(found) == [
        "low warmup=2 budget=4", "low warmup=2 budget=32", "low warmup=16 budget=32",
        "all budget=4", "all budget=32",
    ]  # fmt: skip
    assert found["low warmup=16 budget=32"].warmup == 16
    assert deepconf.grid(base) == base
    pair = {"low": Policy.low(), "high": Policy.high()}
    assert list(deepconf.grid(pair, keep=[0.1, 0.9])) == ["low keep=0.1", "low keep=0.9"]
    assert list(deepconf.grid(LOW, keep=[0.5])) == ["policy keep=0.5"]
    for wrong in (5, ["low"], {"low": "low"}):
        with pytest.raises(InvalidType, match="must be a Policy, or policies by label"):
            deepconf.grid(wrong, keep=[0.5])  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match=r"keep=0\.5: must be a sequence"):
        deepconf.grid(LOW, keep=0.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"none of its policies can be \(low keep=2.0: keep=2"):
        deepconf.grid(base, keep=[2.0])
    with pytest.raises(InvalidType, match="windo"):
        deepconf.grid(base, windo=[2])


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"keep": [0.1, 1.5]}, r"no policy can have keep=1.5 \(low keep=1.5: keep=1.5: must be"),
        ({"budget": [2, 8]}, r"no policy can have budget=2 \(low budget=2: warmup=4: must not"),
        ({"keep": np.array([0.1, 1.5])}, "no policy can have keep="),
    ],
)
def test_a_value_of_a_grid_that_no_policy_can_have_is_an_error(axes, said):
    with pytest.raises(InvalidInput, match=said):
        deepconf.grid({"low": Policy.low(budget=8, warmup=4)}, **axes)


@pytest.mark.parametrize(
    ("base", "axes", "said"),
    [
        (["low"], {}, r"base is \['low'\]: must be a Policy, or policies by label"),
        ({"low": "low"}, {}, "base is {'low': 'low'}"),
        ({"low": LOW}, {"keep": 0.1}, "keep=0.1: must be a sequence of values"),
        ({"low": LOW}, {"stop": "budget"}, "stop='budget': must be a sequence"),
    ],
)
def test_a_grid_is_laid_over_policies_by_label(base, axes, said):
    with pytest.raises(InvalidType, match=said):
        deepconf.grid(base, **axes)


def broken(**changes):
    """The table with one column's value at some row changed."""
    found = table(POOLS)
    for name, (row, value) in changes.items():
        values = found[name].to_pylist()
        values[row] = value
        at = found.schema.get_field_index(name)
        found = found.set_column(at, name, pa.array(values, COLUMNS[name]))
    return found


CONFIDENCE = POOLS["q1"][6].confidence


@pytest.mark.parametrize(
    ("traces", "said"),
    [
        (broken(status=(30, "stopped")), "question 'q1', trace 6: was stopped, and nobody knows"),
        (broken(trace=(30, 5)), "question 'q1' has trace 5 twice"),
        (broken(correct=(30, None)), None),
        (
            broken(confidence=(30, [1.0] * (len(CONFIDENCE) - 1) + [math.inf])),
            f"question 'q1', trace 6, token {len(CONFIDENCE) - 1}: its confidence is inf",
        ),
        (
            broken(answer=(30, "right"), correct=(30, False)),
            "question 'q1': the answer 'right' is marked as right and as wrong",
        ),
        (
            broken(answer=(30, "nobody else"), correct=(30, None)),
            "question 'q1' has answers that are not marked, and 5 other questions are marked",
        ),
        (broken(status=(30, "gone")), "'gone'"),
        (table(POOLS).drop_columns(["confidence"]), "confidence"),
        (table(POOLS).slice(0, 0), "no trace"),
        (table(POOLS, metadata={"k": "5"}), "wants k=20 and the traces were recorded with k=5"),
        (table(POOLS, metadata={"entries": "returned"}), "wants entries='topk'"),
    ],
)
def test_traces_that_cannot_be_replayed_are_refused(traces, said):
    if said is None:
        assert deepconf.replay(traces, {"low": LOW}).gold
        return
    with pytest.raises(InvalidInput, match=said):
        deepconf.replay(traces, {"low": LOW})


@pytest.mark.parametrize(
    ("policies", "others", "error", "said"),
    [
        ({}, {}, InvalidInput, "there is none"),
        (["low", 3], {}, InvalidType, "or names of presets"),
        (7, {}, InvalidType, "policies is 7"),
        ({"low": 3}, {}, InvalidType, r"policies\['low'\] is a int: must be a Policy"),
        (["lo"], {}, deepconf.UnknownPreset, "lo"),
        ({"low": LOW}, {"repeats": 0}, InvalidInput, "repeats=0"),
        ({"low": LOW}, {"repeats": 2.5}, InvalidInput, "repeats=2.5"),
        ({"low": LOW}, {"seed": -1}, InvalidInput, "seed=-1"),
        ({"low": LOW}, {"lag": -1}, InvalidInput, "lag=-1"),
        ({"low": LOW}, {"lag": True}, InvalidInput, "lag=True"),
        ({"low": LOW}, {"lag": 2**62}, InvalidInput, "lag=4611686018427387904: must be at most"),
        (
            {"low": LOW.replace(budget=10**6)},
            {"short_pools": "resample", "repeats": 200},
            InvalidInput,
            "a budget of 1,000,000 and 200 repeats are",
        ),
        ({"low": LOW}, {"most_runs": "10"}, InvalidInput, "most_runs='10'"),
        ({"low": LOW}, {"short_pools": "what"}, InvalidInput, "short_pools='what'"),
        ({"low": LOW}, {"most_runs": 10}, InvalidInput, "narrow the grid"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(policies, others, error, said):
    with pytest.raises(error, match=said):
        deepconf.replay(table(POOLS), policies, **others)


def test_a_grid_of_a_million_policies_is_refused_before_anything_is_replayed():
    pool = deepconf.Pool.read(table(POOLS), {"low": LOW})
    keeps = np.linspace(0.01, 0.99, 1000).tolist()
    taus = np.linspace(0.5, 1.0, 60).tolist()
    grid = {str(i): LOW.replace(keep=k, consensus=c)
            for i, (k, c) in enumerate(itertools.product(keeps, taus))}  # fmt: skip
    told = []
    with pytest.raises(InvalidInput, match="60,000 policies, 6 questions and 64 repeats"):
        pool.replay(grid, progress=lambda *at: told.append(at))
    assert not told
    with pytest.raises(InvalidInput, match="60,000 policies, each question and 640 repeats"):
        deepconf.replay("there is no such file", grid, repeats=640)
    with pytest.raises(InvalidInput, match=r"grid: has 1,000,000 policies: must have 100,000 at"):
        deepconf.grid({"low": LOW}, keep=keeps, consensus=keeps)


def test_progress_is_told_while_reading_and_replaying():
    told = []
    pool = deepconf.Pool.read(
        deepconf.read_traces(table(POOLS), batch_tokens=500),
        {"low": LOW},
        progress=lambda *at: told.append(at),
    )
    assert told[-1] == (144, 144)
    assert len(told) > 3
    told.clear()
    pool.replay(progress=lambda *at: told.append(at))
    assert told == [(done, 6) for done in range(1, 7)]


def test_the_command_writes_a_row_a_run_and_never_over_what_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(table(POOLS), "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()

    def asked(out):
        settings = ["budget=16", "warmup=4", "window=8", "tail=8"]
        options = [part for each in settings for part in ("--set", each)]
        line = ["replay", "t.parquet", "-p", "low", "--repeats", "2", *options, "--out", out]
        return CliRunner().invoke(app, line)

    for out, said in (
        ("t.parquet", "error: t.parquet: is what is read, and would be replaced"),
        ("rows.csv", "rows.csv: the name must end in"),
        ("none/rows.parquet", "none/rows.parquet: cannot be written: there is no folder none"),
    ):
        result = asked(out)
        assert result.exit_code == 2
        assert said in result.stderr
        assert not result.stdout
    assert (tmp_path / "t.parquet").read_bytes() == whole
    written = asked("rows.parquet")
    assert written.exit_code == 0
    assert "nothing could be stopped" not in written.stderr
    assert pq.read_table("rows.parquet").num_rows == 2 * len(POOLS)


def test_the_command_says_where_nothing_could_be_stopped(tmp_path):
    pq.write_table(table(POOLS), tmp_path / "t.parquet")
    line = ["replay", str(tmp_path / "t.parquet"), "-p", "low", "-p", "offline"]
    small = ["--budget", "16", "--window", "2048", "--repeats", "2"]
    result = CliRunner().invoke(app, [*line, *small])
    assert result.exit_code == 0
    assert "note: low: nothing could be stopped: no trace reaches the window" in result.stderr
    assert "note: offline: no trace reaches the window" in result.stderr


def test_live_runs_are_beside_their_replay_whatever_records_come_in():
    policies = {"low": LOW, "all": Policy.offline(budget=16, window=8, tail=8, keep=1.0)}
    played = deepconf.replay(table(POOLS), policies, repeats=None)
    rows = played.to_arrow().to_pylist()
    records = [
        {
            "policy": row["policy"],
            "id": row["question_id"],
            "correct": row["correct"],
            "result": {
                "answer": row["answer"],
                "threshold": row["threshold"],
                "traces": [{"status": "stopped"}] * row["stopped"],
                "tokens": {"generated": row["tokens"], "after_stop": 0},
            },
        }
        for row in rows
    ]
    for some in (records, iter(records)):
        found = beside(table(POOLS), policies, some)
        assert [(each.label, each.same_answer, each.exact) for each in found] == [
            ("low", 6, 6),
            ("all", 6, 6),
        ]


def test_scores_may_be_told_to_a_controller_instead_of_tokens():
    pool = POOLS["q0"][:16]
    told, fed = deepconf.Controller(LOW), deepconf.Controller(LOW)
    for controller in (told, fed):
        controller.start()
    ends = []
    for at in range(4):
        for controller in (told, fed):
            controller.launched(at)
        scores = deepconf.score([pool[at].confidence], window=8, tail=8)[0]
        assert told.scored(at, scores) is None
        fed.tokens(at, pool[at].confidence)
        ends.append([c.finished(at, pool[at].status, pool[at].answer) for c in (told, fed)])
        assert told.scores(at).lowest_group == fed.scores(at).lowest_group
    assert told.threshold == fed.threshold
    assert [type(action).__name__ for action in ends[-1][0]] == [
        type(action).__name__ for action in ends[-1][1]
    ]
    told.launched(4)
    stop = told.scored(4, scores, num_tokens=scores.num_tokens + 2, stop_token=3)
    assert isinstance(stop, deepconf.Action.Stop)
    assert (stop.trace, stop.token, told.status(4)) == (4, 3, "stopping")
    told.launched(5)
    with pytest.raises(InvalidInput, match="num_tokens=1: trace 5 has"):
        told.scored(5, scores, num_tokens=1)
    fed.launched(4)
    fed.tokens(4, pool[4].confidence[:1])
    with pytest.raises(deepconf.EventError, match="its tokens were told"):
        fed.scored(4, scores)


# ---- on the command line ------------------------------------------------------------------------


def written(path, *, marked=True):
    found = table(POOLS, marked=marked, metadata={"policy": '{"window": 8, "tail": 8}'})
    with deepconf.TraceWriter(path, schema=found.schema) as writer:
        writer.write(found)
    return path


def replayed(*arguments):
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def test_the_command_line_replays_a_grid(tmp_path):
    traces, out = written(tmp_path / "t.parquet"), tmp_path / "rows.parquet"
    grid = ["--grid", "keep=0.1,0.9", "--grid", "budget=8,16", "--set", "warmup=4"]
    result = replayed(traces, "-p", "low", *grid, "--repeats", "3", "-o", out)
    assert result.exit_code == 0, result.output
    assert "low keep=0.1 budget=8" in result.stdout.replace("\n", " ")
    assert f"{out}: 72 rows" in result.stderr
    rows = pq.read_table(out)
    low = Policy.low(window=8, tail=8, warmup=4)
    expected = deepconf.replay(
        traces, deepconf.grid({"low": low}, keep=[0.1, 0.9], budget=[8, 16]), repeats=3
    )
    assert rows.to_pylist() == expected.rows
    told = json.loads(replayed(traces, "-p", "low", *grid, "--repeats", "3", "--json").stdout)
    assert told["closing"] == expected.summary().closing
    assert told["rows"][: len(expected.policies)] == json.loads(
        json.dumps(expected.table()[: len(expected.policies)])
    )
    assert told["draws"]["repeats"] == 3


def test_the_command_line_replays_in_launch_order(tmp_path):
    traces = written(tmp_path / "t.parquet", marked=False)
    result = replayed(traces, "-p", "low", "--set", "budget=16", "--repeats", "0", "--json")
    told = json.loads(result.stdout)
    assert (told["repeats"], told["gold"], told["draws"]["repeats"]) == (1, False, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "keep=0.1,0.1"], "has 0.1 twice"),
        (["--grid", "keep"], "must be NAME=VALUE,VALUE"),
        (["--grid", "windo=3"], "windo"),
        (["-p", "medium"], "medium"),
        (["--set", "budget=99"], "--short-pools: 'resample'"),
        (["--most-runs", "5"], "narrow the grid"),
        (["--short-pools", "never"], "short_pools='never'"),
        (["-o", "rows.csv"], "must end in .parquet"),
    ],
)
def test_the_command_line_says_what_cannot_be_replayed(tmp_path, arguments, said):
    result = replayed(written(tmp_path / "t.parquet"), "--set", "budget=16", *arguments)
    assert result.exit_code != 0
    assert said in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


def test_a_window_that_no_trace_reaches_is_warned_of_and_said_in_what_comes_of_it():
    traces = table(POOLS)
    longest = max(len(t.confidence) for pool in POOLS.values() for t in pool)
    long = LOW.replace(window=longest + 1)
    with pytest.warns(deepconf.SignalNeverArmed, match=r"mine: nothing could be stopped"):
        played = deepconf.replay(traces, {"mine": long, "fits": LOW}, repeats=2)
    (note,) = played.summary().notes
    assert f"the window of {longest + 1} tokens (the longest has {longest})" in note
    assert note.split()[0] in repr(played.summary())
    assert played.summary().to_dict()["notes"] == [note]
    with pytest.warns(deepconf.SignalNeverArmed):
        tuned = deepconf.tune(traces, {"mine": long}, repeats=2)
    assert tuned.notes[0] == note
    assert "nothing could be stopped" in repr(tuned)
    offline = Policy.offline(budget=16, window=longest + 1)
    with pytest.warns(deepconf.SignalNeverArmed, match="each is one group, its mean"):
        deepconf.replay(traces, {"mine": offline}, repeats=2)
    votes = offline.replace(keep=1.0, weight="majority")
    assert not deepconf.replay(traces, {"heads": votes}, repeats=2).summary().notes


def test_questions_of_one_trace_are_noted():
    alone = {name: pool[:1] for name, pool in POOLS.items()}
    played = deepconf.replay(table(alone), Policy.low(budget=1, window=2), repeats=1)
    assert "each of the 6 questions has one trace" in played.summary().notes[-1]
    assert "has one trace" in deepconf.diagnose(table(alone)).notes[-1]


def test_a_tie_has_one_value_in_a_diagnosis_and_a_replay():
    rows = [("a", True), ("b", False), ("b", False), ("a", True), ("c", False)]
    traces = pa.table(
        {
            "question_id": ["q1"] * 5 + ["q2"] * 2,
            "trace": pa.array([*range(5), 0, 1], pa.int32()),
            "answer": [*(answer for answer, _ in rows), "a", "a"],
            "status": ["finished"] * 7,
            "num_tokens": pa.array([2] * 7, pa.int32()),
            "confidence": pa.array([[9.0, 8.0]] * 7, pa.list_(pa.float32())),
            "correct": [*(right for _, right in rows), True, True],
        }
    )
    found = deepconf.diagnose(traces, window=1)
    assert found.answers.majority.value == 0.75
    assert (found.answers.majority_wrong, found.answers.tied) == (1, 1)
    assert any("tie for the majority" in note for note in found.notes)
    played = deepconf.replay(
        traces, Policy.low(budget=5, window=1), repeats=400, short_pools="resample"
    )
    assert played.frontier.correct["majority"][-1].mean() == pytest.approx(0.75, abs=0.05)


def test_where_the_file_says_no_budget_it_is_the_fewest_traces_of_a_question(tmp_path):
    pools = {"a": POOLS["q0"], "b": POOLS["q1"][:10]}
    found = table(pools)
    low, offline = deepconf.replay(found, ["low", "offline"]).policies.values()
    assert (low.budget, low.warmup, offline.budget) == (10, 2, 10)
    with deepconf.TraceWriter(tmp_path / "t.parquet", schema=found.schema) as writer:
        writer.write(found)
    told = json.loads(replayed(tmp_path / "t.parquet", "-p", "low", "--json").stdout)
    assert told["rows"][0]["budget"] == 10
    with pytest.raises(InvalidInput, match="budget=256 of policy 'low'"):
        deepconf.replay(found.to_reader(), ["low"])


# ---- settings in force --------------------------------------------------------------------------


def test_a_grid_over_budgets_takes_smaller_warmups():
    low = Policy.low(window=8, tail=8)
    found = deepconf.grid({"low": low}, budget=[8, 32, 64])
    assert [policy.warmup for policy in found.values()] == [2, 8, 16]
    given = deepconf.grid({"low": low.replace(warmup=8)}, budget=[8, 32])
    assert [policy.warmup for policy in given.values()] == [8, 8]


def shown(tmp_path, *options, pools=POOLS):
    path = tmp_path / "t.parquet"
    pq.write_table(table(pools), path)
    line = ["replay", str(path), "--repeats", "2", "--json", *options]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["rows"], result.stderr.splitlines()[0]


def test_the_command_takes_the_options_of_a_policy(tmp_path):
    options = ["-p", "low", "--budget", "16", "--window", "8", "--tail", "8", "--keep", "0.5"]
    rows, settings = shown(tmp_path, *options)
    low = Policy.low(budget=16, window=8, tail=8, keep=0.5)
    expected = deepconf.replay(table(POOLS), {"low": low}, repeats=2).summary()
    assert rows[0]["accuracy"]["value"] == expected.rows[0].accuracy.value
    assert rows[0]["tokens"]["value"] == expected.rows[0].tokens.value
    given = "window=8 (--window); tail=8 (--tail); budget=16 (--budget); keep=0.5 (--keep)"
    assert settings == f"settings: {given}; warmup=4 (a quarter of the budget)"


def test_the_command_says_which_warmups_its_budgets_take(tmp_path):
    options = ["-p", "low", "--grid", "budget=4,8,16", "--window", "8"]
    rows, settings = shown(tmp_path, *options)
    assert [row["label"] for row in rows[:3]] == [f"low budget={size}" for size in (4, 8, 16)]
    assert settings.endswith("; warmup=1, 2, 4 (at most a quarter of each budget)")
    _, settings = shown(tmp_path, *options, "--warmup", "4")
    assert settings.endswith("warmup=4 (--warmup)")


def test_a_preset_has_a_window_that_fits_the_traces():
    lengths = [len(trace.confidence) for pool in POOLS.values() for trace in pool]
    pool = deepconf.Pool.read(table(POOLS), ["low"])
    window = fitting(lengths)
    assert pool.policies["low"].window == pool.policies["low"].tail == window
    assert window < min(lengths)
    recorded = table(POOLS, metadata={"window": "5"})
    assert deepconf.Pool.read(recorded, "low").policies["low"].window == 5


def test_a_replay_becomes_a_frame():
    played = deepconf.replay(table(POOLS), {"low": LOW}, repeats=3)
    frame = played.to_pandas()
    assert list(frame.columns) == played.to_arrow().column_names
    assert len(frame) == 18
    assert frame["tokens"].tolist() == played.to_arrow()["tokens"].to_pylist()


def test_a_summary_shows_itself_in_some_lines():
    many = deepconf.grid({"low": LOW}, keep=[at / 20 for at in range(1, 20)])
    summary = deepconf.replay(table(POOLS), many, repeats=2).summary()
    lines = repr(summary).splitlines()
    assert lines[0] == "<deepconf.Summary: 6 questions, 2 draws of each"
    assert lines[9] == "  and 11 more"
    assert " ".join(line.strip() for line in lines[10:]) == f"{summary.closing}>"
    assert max(map(len, lines)) <= 101
    one = deepconf.replay(table({"q": POOLS["q0"]}), {"low": LOW}, repeats=1)
    assert repr(one) == "<deepconf.Replay: 1 policy, 1 question, 1 repeat>"
    assert str(one) == repr(one.summary())


def test_without_policies_those_of_the_command_are_taken():
    traces = table(POOLS, metadata={"window": "8"})
    assert list(deepconf.replay(traces, repeats=1).policies) == ["low", "high"]
    assert deepconf.tune(traces, repeats=2).confidence.label == "low"
    assert list(deepconf.grid("low", keep=[0.5])) == ["low keep=0.5"]
    with pytest.raises(InvalidType, match=r'as \{"mine": policy\}'):
        deepconf.replay(traces, [LOW])


def test_without_answers_what_agreement_is_and_how_they_become_known_is_said(tmp_path):
    found = deepconf.replay(table(POOLS, marked=False), LOW, repeats=1).summary()
    assert "agreement is with the vote of all traces" in found.notes[-1]
    assert "marked(gold)" in found.notes[-1]
    pq.write_table(table(POOLS), tmp_path / "t.parquet")
    for command in ("replay", "tune", "diagnose"):
        result = CliRunner().invoke(app, [command, str(tmp_path / "t.parquet"), "--gold", "g"])
        assert result.exit_code == 2
        assert "marked(gold)" in " ".join(result.stderr.replace("│", " ").split())


def test_a_range_and_a_file_of_settings_that_is_none_are_named(tmp_path):
    pq.write_table(table(POOLS), tmp_path / "t.parquet")
    line = [str(tmp_path / "t.parquet"), "-p", "low", "--window", "8"]
    result = CliRunner().invoke(app, ["replay", *line, "--grid", "keep=0.1:0.9"])
    assert "keep=0.1,0.9" in result.stderr
    result = CliRunner().invoke(app, ["tune", *line, "--out", str(tmp_path / "dc.txt")])
    assert "ends in .json" in " ".join(result.stderr.split())
