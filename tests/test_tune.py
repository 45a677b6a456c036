"""Choosing a policy: what is chosen, what is said of it, and what is written."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from deepconf import Policy, _settings, _tables, _terminal
from deepconf._options import Common
from deepconf._setup import Setup
from deepconf.cli import main
from deepconf.errors import DeepConfError, InvalidInput, InvalidType, RunFileError
from deepconf.lab import _goal
from deepconf.lab._goal import Condition
from deepconf.lab._verdict import separated
from deepconf.lab.played import Frontier, Replay
from deepconf.lab.replay import Pool, grid
from deepconf.lab.tune import Tuning, tune
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_replay import slow_replays, synthetic
from test_diagnose import table

BASE: dict[str, Any] = {"budget": 16, "warmup": 4, "window": 6, "tail": 8}
GRID = grid({"low": Policy.low(**BASE)}, keep=[0.1, 0.3, 0.5, 0.7, 0.9])


# ---- goals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("accuracy >= majority - 0.005", Condition("accuracy", True, 1.0, -0.005)),
        ("accuracy>=majority-0.5%", Condition("accuracy", True, 1.0, -0.005)),
        ("accuracy >= majority", Condition("accuracy", True, 1.0, 0.0)),
        ("accuracy >= 0.9", Condition("accuracy", True, 0.0, 0.9)),
        ("accuracy >= 90%", Condition("accuracy", True, 0.0, 0.9)),
        ("tokens <= 0.5 * majority", Condition("tokens", False, 0.5, 0.0)),
        ("tokens <= 50%*majority + 100", Condition("tokens", False, 0.5, 100.0)),
        ("tokens <= 20_000", Condition("tokens", False, 0.0, 20000.0)),
        ("  steps <= 1e3 ", Condition("steps", False, 0.0, 1000.0)),
    ],
)
def test_a_goal_is_read(text: str, condition: Condition) -> None:
    (found,) = _goal.parse(text)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(condition))


def test_several_conditions_are_joined_by_and() -> None:
    found = _goal.parse("accuracy >= majority and tokens <= 0.5 * majority and steps <= 9")
    assert [each.metric for each in found] == ["accuracy", "tokens", "steps"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has no >= or <=: a goal is METRIC >= BOUND"),
        ("accuracy", "'accuracy' has no >= or <="),
        ("acuracy >= 0.9", "'acuracy' is no metric: it is accuracy, tokens or steps"),
        ("accuracy <= 0.9", "accuracy <= is no goal: it is accuracy >="),
        ("tokens >= 5", "tokens >= is no goal: it is tokens <="),
        ("accuracy > 0.9", "accuracy > is no goal: it is accuracy >="),
        ("accuracy >= pass@1", "'pass@1' is no bound: it is a number, or majority"),
        ("accuracy >= majority - ", "'majority -' is no bound"),
        ("accuracy >= majority * 2", "is no bound"),
        ("accuracy >= 90", "accuracy is a share, in \\[0, 1\\]: 90% is 0.9"),
        ("tokens <= 50%", "tokens have no %, but a share of majority's"),
        ("steps <= majority - 10%", "steps have no %, but a share of majority's"),
        ("tokens <= 1e400", "'1e400' is too large a number"),
        ("accuracy >= 0.9 and", "'' has no >= or <="),
        ("accuracy >= 0.9, tokens <= 5", "is no bound"),
    ],
)
def test_a_goal_that_means_nothing_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        _goal.parse(text)
    assert str(caught.value).startswith(f"goal={text!r}: ")


def test_a_goal_is_a_string() -> None:
    with pytest.raises(InvalidType, match=r"goal=0\.9 is a"):
        _goal.parse(0.9)  # type: ignore[arg-type]


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_is_a_goal_or_an_error(text: str) -> None:
    for goal in (text, f"accuracy >= {text}", f"tokens <= {text} * majority"):
        with contextlib.suppress(InvalidInput):
            assert _goal.parse(goal)


# ---- choosing, on replays made by hand ----------------------------------------------------------


def made(
    correct: Any,
    tokens: Any,
    *,
    majority: Any = 0.8,
    budget_tokens: tuple[float, ...] = (10.0, 100.0),
    gold: bool = True,
) -> Replay:
    """A replay of policies with these accuracies and tokens, `[policies, questions]`."""
    right = np.asarray(correct, float)
    cost = np.broadcast_to(np.asarray(tokens, float), right.shape)
    questions = right.shape[1]
    plain = np.broadcast_to(np.asarray(majority, float), (questions,))
    frontier = Frontier(
        budgets=np.array([1, 16]),
        correct=dict.fromkeys(("majority", "consensus"), np.stack([plain / 2, plain])),
        tokens=dict.fromkeys(
            ("majority", "consensus"), np.outer(budget_tokens, np.ones(questions))
        ),
        policies={
            kind: [
                Policy.offline(
                    window=6,
                    tail=8,
                    budget=budget,
                    keep=1.0,
                    weight="majority",
                    stop=stop,
                    consensus=0.9,
                    min_ballots=2,
                )
                for budget in (1, 16)
            ]
            for kind, stop in (("majority", "budget"), ("consensus", "consensus"))
        },
        steps=dict.fromkeys(("majority", "consensus"), np.outer(budget_tokens, np.ones(questions))),
    )
    repeats = 10
    # Shares in tenths, as so many right repeats.
    draws = (np.arange(repeats) < np.round(right * repeats)[..., None]).astype(np.int8)
    spent = np.repeat(cost[..., None], repeats, axis=2).astype(np.int64)
    return Replay(
        policies={f"p{at}": Policy.low(**BASE, seed=at) for at in range(len(right))},
        questions=[f"q{at}" for at in range(questions)],
        gold=gold,
        correct=draws,
        tokens=spent,
        full=np.full_like(spent, 100),
        steps=spent,
        columns={},
        answers=[],
        reasons=(),
        frontier=frontier,
        draws={},
    )


def flat(*accuracies: float, questions: int = 20) -> Any:
    return np.repeat(np.array(accuracies)[:, None], questions, axis=1)


def test_the_cheapest_that_reaches_the_goal_is_chosen() -> None:
    played = made(flat(0.9, 0.8, 0.7), [[50], [30], [10]])
    found = tune(played)
    assert (found.label, found.majority_is_better) == ("p1", False)
    assert (found.confidence.tokens.value, found.confidence.meets_goal) == (30.0, True)
    assert found.policy == played.policies["p1"]
    assert tune(played, goal="accuracy >= majority - 20%").label == "p2"
    assert tune(played, goal="accuracy >= 0.85").label == "p0"
    assert tune(played, goal="tokens <= 0.4 * majority", maximise="accuracy").label == "p1"
    assert tune(played, goal="tokens <= 60", maximise="accuracy").label == "p0"
    assert tune(played, goal="steps <= 20", maximise="accuracy").label == "p2"
    assert tune(played, minimise="steps").confidence.label == "p1"


def test_of_what_misses_the_goal_the_nearest_is_chosen_and_told() -> None:
    found = tune(made(flat(0.5, 0.6), [[10], [20]], majority=0.7), goal="accuracy >= 0.9")
    assert (found.confidence.label, found.confidence.meets_goal) == ("p1", False)
    assert any("misses the goal (accuracy >= 0.9)" in note for note in found.notes)


def test_where_majority_reaches_the_goal_for_less_it_is_recommended() -> None:
    played = made(flat(0.8), 50, budget_tokens=(10.0, 40.0))
    found = tune(played)
    assert found.majority_is_better
    assert found.label == "majority with early consensus, budget=16"
    expected = Policy.offline(
        window=6, tail=8, budget=16, keep=1.0, weight="majority", stop="consensus",
        consensus=0.9, min_ballots=2,
    )  # fmt: skip
    assert found.policy == expected
    assert found.closing.startswith(
        "recommended: majority with early consensus, budget=16, since it takes no more tokens; "
    )
    assert found.same_tokens["majority"].beyond == "above"


def test_majority_is_recommended_where_only_it_reaches_the_goal() -> None:
    found = tune(made(flat(0.5), 10))
    assert found.majority_is_better
    assert not found.confidence.meets_goal


def test_what_is_printed_is_not_what_it_was_chosen_by() -> None:
    # Fifty coins: the luckiest looks good on the questions it was chosen on.
    random = np.random.default_rng(5)
    coins = (random.random((50, 40)) < 0.5).astype(float)
    found = tune(made(coins, 50, majority=0.5), goal="tokens <= 100", maximise="accuracy")
    choice = found.confidence
    assert choice.fitted_accuracy > 0.6
    assert choice.accuracy.value < choice.fitted_accuracy - 0.05
    assert choice.close >= 10
    assert any("too few to tell" in note for note in found.notes) or found.majority_is_better


def test_cross_fitted_figures_are_those_of_what_the_other_folds_chose() -> None:
    random = np.random.default_rng(1)
    correct = random.integers(0, 11, (6, 12)) / 10
    tokens = random.integers(10, 90, (6, 12)).astype(float)
    found = tune(made(correct, tokens), goal="accuracy >= 0.4", folds=4, seed=3).confidence
    fold = np.random.default_rng(3).permutation(np.arange(12) % 4)
    accuracy, spent = [], []
    for question in range(12):
        rest = fold != fold[question]
        ok = [p for p in range(6) if correct[p, rest].mean() >= 0.4 - 1e-9]
        best = min(ok or range(6), key=lambda p: tokens[p, rest].mean())
        accuracy.append(correct[best, question])
        spent.append(tokens[best, question])
    assert found.accuracy.value == pytest.approx(np.mean(accuracy))
    assert found.tokens.value == pytest.approx(np.mean(spent))
    assert sum(found.by_fold.values()) == 4


def test_the_closing_sentence_gives_no_policy_the_figures_of_another() -> None:
    random = np.random.default_rng(5)
    coins = (random.random((50, 40)) < 0.5).astype(float)
    played = made(coins, 50, majority=0.3)
    found = tune(played, goal="tokens <= 100", maximise="accuracy")
    assert not found.majority_is_better
    assert len(found.confidence.by_fold) > 1
    assert f"recommended: {found.label}; what is chosen so has " in found.closing
    assert "Accuracy: what is chosen by confidence is better here than plain " in found.closing
    agreed = tune(made(flat(0.9), 50, majority=0.6))
    assert "recommended: p0; it has 90.0% accuracy" in agreed.closing
    assert "Accuracy: p0 is better here than" in agreed.closing
    assert "at the same tokens: 90.0% against 43.3% (+" in agreed.closing


def test_a_clear_choice_is_not_called_unclear() -> None:
    found = tune(made(flat(0.9, 0.1, questions=40), [[50], [40]]))
    assert found.confidence.close == 0
    assert found.notes == []


def test_without_gold_it_is_agreement_and_says_so() -> None:
    found = tune(made(flat(0.9), 50, gold=False))
    assert not found.gold
    assert "no answers are known: accuracy here is agreement" in found.notes[0]
    assert "90.0% agreement" in found.closing


def test_fewer_questions_than_folds_are_a_fold_each() -> None:
    assert tune(made(flat(0.9, questions=3), 50)).folds == 3
    with pytest.raises(InvalidInput, match="traces: 1 question: tuning chooses on some questions"):
        tune(made(flat(0.9, questions=1), 50))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folds": 1}, "folds=1: must be a whole number of at least 2"),
        ({"folds": 2.5}, "folds=2.5"),
        ({"minimise": "time"}, "minimise='time': must be 'tokens' or 'steps'"),
        ({"maximise": "tokens"}, "maximise='tokens': must be 'accuracy'"),
        ({"minimise": "tokens", "maximise": "accuracy"}, "one of them only"),
        ({"goal": "fast"}, "goal='fast'"),
        ({"out": "/nowhere/deepconf.json"}, "there is no folder /nowhere"),
        ({"out": "deepconf.json", "name": "low"}, "name='low': must be a name, and not"),
        ({"out": "deepconf.json", "name": " "}, "name=' ': must be a name"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DeepConfError, match=message):
        tune(made(flat(0.9), 50), **wrong)


# ---- choosing, on replays of real decisions -----------------------------------------------------


def test_confidence_that_tells_right_from_wrong_is_chosen() -> None:
    found = tune(slow_replays(synthetic(30, informative=3.0), GRID), goal="accuracy >= majority")
    assert not found.majority_is_better
    assert found.same_tokens["majority"].difference.clear
    assert found.against_majority is not None
    assert found.against_majority.value > 0


def test_blind_confidence_loses_to_majority_and_is_called_blind(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    pq.write_table(table(synthetic(30, informative=0.0), window=6, k=20), path)
    found = tune(path, GRID, repeats=8)
    assert found.majority_is_better
    assert found.policy.weight == "majority"
    assert found.separation is not None
    assert found.separation.low is not None
    assert found.separation.low < 0.5
    assert separated("lowest_group", found.separation) in found.notes  # As a diagnosis says it.


def test_a_pool_and_its_replay_give_the_same(tmp_path: Path) -> None:
    pool = Pool.read(table(synthetic(10, informative=2.0)), GRID)
    first = tune(pool, repeats=6, seed=2).to_dict()
    assert tune(pool, GRID, repeats=6, seed=2).to_dict() == first
    assert tune(pool.replay(GRID, repeats=6, seed=2), seed=2).to_dict() == first
    assert first["separation"] is None
    told: list[str] = []
    traces = table(synthetic(10, informative=2.0))
    whole = tune(
        traces, GRID, repeats=6, seed=2, progress=lambda what, done, total: told.append(what)
    ).to_dict()
    assert list(dict.fromkeys(told)) == ["reading traces", "replaying questions", "scoring traces"]
    assert whole["separation"]["value"] > 0.7
    assert {**whole, "separation": None} == first


def test_a_grid_beyond_all_measure_is_refused_before_anything_is_read() -> None:
    many = {f"p{at}": Policy.low(**BASE) for at in range(400_000)}
    with pytest.raises(InvalidInput, match="400,000 policies and 64 repeats are 25,600,000 runs"):
        tune("/nowhere/*.parquet", many)


def test_unmarked_traces_are_tuned_against_their_vote() -> None:
    found = tune(table(synthetic(10), marked=False), GRID, repeats=4)
    assert (found.gold, found.separation) == (False, None)
    assert found.full["accuracy"] == pytest.approx(1.0, abs=0.1)


def test_a_tuning_is_shown_and_is_json() -> None:
    found = tune(slow_replays(synthetic(12), GRID))
    out = io.StringIO()
    _tables.show_tuning(_terminal.console(out), found)
    assert found.closing in out.getvalue()
    assert found.confidence.label in out.getvalue()
    assert "plain majority, full budget" in out.getvalue()
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["policy"] == found.policy.as_dict()
    assert plain["confidence"]["policy"]["window"] == 6
    steps = tune(slow_replays(synthetic(12), GRID), minimise="steps")
    assert steps.majority.steps.value > 0
    _tables.show_tuning(_terminal.console(out), steps)


# ---- what is written ----------------------------------------------------------------------------


def chosen(path: Path, **options: Any) -> dict[str, Policy]:
    """The policies that the command line has with this settings file."""
    return Setup.make(Common(model="any", settings=path, **options), []).policies


def test_what_is_written_is_what_the_command_line_reads(tmp_path: Path) -> None:
    path = tmp_path / "deepconf.json"
    path.write_text('{"window": 9, "warmup": 2, "sampling": {"top_p": 0.9}}')
    found = tune(made(flat(0.9), 50), out=path)
    content = json.loads(path.read_text())
    assert content["window"] == 9
    assert content["sampling"] == {"top_p": 0.9}
    assert chosen(path) == {"tuned": found.policy}
    assert chosen(path, budget=12)["tuned"] == found.policy.replace(budget=12)
    other = tune(made(flat(0.8), 50, budget_tokens=(1.0, 2.0)), out=path, name="vote")
    assert other.policy.mode == "offline"
    assert chosen(path) == {"vote": other.policy}
    assert set(json.loads(path.read_text())["policies"]) == {"tuned", "vote"}
    assert [each.name for each in tmp_path.iterdir()] == ["deepconf.json"]


def test_a_new_file_holds_the_policy_only(tmp_path: Path) -> None:
    path = tmp_path / "deepconf.json"
    tune(made(flat(0.9), 50), out=path)
    settings = {"preset": "low", "budget": 16, "warmup": 4, "window": 6, "tail": 8}
    assert json.loads(path.read_text()) == {"policies": {"tuned": settings}, "policy": "tuned"}
    assert _settings.read(path).chosen == "tuned"


def test_a_file_that_is_no_settings_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "deepconf.json"
    path.write_text("notes")
    with pytest.raises(InvalidInput, match="cannot be read"):
        tune(made(flat(0.9), 50), out=path)
    assert path.read_text() == "notes"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deepconf.json"
    path.write_text("{}")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFileError, match=r"deepconf\.json: cannot be written: .*No space left"):
        tune(made(flat(0.9), 50), out=path)
    assert path.read_text() == "{}"
    assert [each.name for each in tmp_path.iterdir()] == ["deepconf.json"]


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "traces.parquet"
    policy = Policy.offline(budget=16, window=6, tail=8, top_logprobs=10).as_dict()
    pq.write_table(table(synthetic(12, informative=2.0), k=10, policy=policy), path)
    return path


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["tune", *arguments])
    found = capsys.readouterr()
    return int(caught.value.code or 0), found.out, found.err


def test_the_command_does_what_the_function_does(traces: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "deepconf.json"
    grid_ = ["--grid", "keep=0.1,0.5,0.9", "--grid", "warmup=3,4"]
    arguments = [str(traces), *grid_, "--repeats", "6", "--out", str(out)]
    code, text, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    # k, window, tail and budget are the recording's.
    base = Policy.low(budget=16, warmup=4, window=6, tail=8, top_logprobs=10)
    candidates = grid({"low": base}, keep=[0.1, 0.5, 0.9], warmup=[3, 4])
    expected: Tuning = tune(traces, candidates, repeats=6)
    assert json.loads(text) == json.loads(json.dumps(expected.to_dict()))
    assert chosen(out) == {"tuned": expected.policy}
    assert f"{out}: the policy tuned: {expected.label}" in err
    code, text, err = run(capsys, *arguments, "--policy", "tuned")
    assert code == 0, err
    assert "tuned keep=" in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--grid", "keep"], "--grid 'keep': must be NAME=VALUE,VALUE"),
        (["--goal", "cheap"], "goal='cheap'"),
        (["--policy", "lo"], "lo"),
        (["--set", "budget=17"], "budget=17"),
        (["--set", "warmup=17"], "warmup=17"),
        (["--minimise", "time"], "minimise='time'"),
        (["--set", "top_logprobs=20"], "k=20"),
    ],
)
def test_the_command_says_what_is_wrong(
    traces: Path, wrong: list[str], message: str, capsys: Any
) -> None:
    code, text, err = run(capsys, str(traces), *wrong)
    assert (code, text) == (2, "")
    assert message in " ".join(err.split())
