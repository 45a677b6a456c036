"""Every argument of every function of the extension, of every wrong type: an error of deepconf."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import deepconf
import numpy as np
import pyarrow as pa
import pytest
from deepconf import _core
from deepconf.errors import DeepConfError, InvalidInput, InvalidType
from hypothesis import given
from hypothesis import strategies as st
from test_hostile import JUNK, hostile

POLICY = deepconf.Policy.offline(budget=4, window=2)
SCORES = deepconf.score([[1.0, 2.0, 3.0]], window=2)
VOTE = deepconf.vote(["a", "b", "a"])
VOTES = deepconf.vote_many([1, 2, 1], ["a", "b", "a"])
TABLE = [[-1.0, -2.0], [-1.0, -3.0]]


def started() -> deepconf.Controller:
    controller = deepconf.Controller(POLICY)
    controller.start()
    controller.launched(0)
    return controller


def closed() -> Any:
    pool = _core.ReplayPool([POLICY])
    pool.add([0] * 4, range(4), [0] * 4, [0] * 4, pa.array([[1.0, 2.0]] * 4))
    pool.close()
    return pool


class Logprob:
    logprob = -1.0


# What is called, and arguments that are right.
Call = tuple[Callable[[], Callable[..., Any]], dict[str, Any]]
CALLS: dict[str, Call] = {
    "score": (
        lambda: deepconf.score,
        {
            "traces": [[1.0, 2.0]], "window": 2, "tail": 2, "bottom": 0.1, "decimals": 3,
            "threads": 1,
        },
    ),
    "token_confidence": (
        lambda: deepconf.token_confidence,
        {"logprobs": TABLE, "logprob_floor": -9.0, "threads": 1},
    ),
    "token_entropy": (
        lambda: deepconf.token_entropy,
        {"logprobs": TABLE, "logprob_floor": -9.0, "threads": 1},
    ),
    "logits_confidence": (
        lambda: deepconf.logits_confidence,
        {"logits": TABLE, "k": 2, "logprob_floor": -9.0, "threads": 1},
    ),
    "vote": (
        lambda: deepconf.vote,
        {"answers": ["a"], "weights": [1.0], "keep": 0.5, "scores": [1.0], "min_ballots": 1},
    ),
    "vote_many": (
        lambda: deepconf.vote_many,
        {
            "questions": [1], "answers": ["a"], "weights": [1.0], "keep": 0.5, "scores": [1.0],
            "min_ballots": 1, "threads": 1,
        },
    ),
    "row_confidences": (
        lambda: _core.row_confidences,
        {"logprobs": [[-1.0, -1.0, -2.0]], "k": 2, "ranks": [1], "floor": -9.0},
    ),
    "flat_confidences": (
        lambda: _core.flat_confidences,
        {
            "logprobs": [-1.0, -1.0, -2.0], "ends": [3], "ranks": [1, 1, 2], "k": 2,
            "returned": False, "floor": -9.0,
        },
    ),
    "dict_confidences": (
        lambda: _core.dict_confidences,
        {"rows": [{0: Logprob, 1: Logprob}], "k": 2, "returned": False, "floor": -9.0},
    ),
    "openai_confidences": (
        lambda: _core.openai_confidences,
        {
            "logprobs": {"top_logprobs": [{"a": -1.0, "b": -2.0}]}, "k": 2, "returned": False,
            "floor": -9.0,
        },
    ),
    "TraceScorer": (
        lambda: deepconf.TraceScorer,
        {"window": 2, "tail": 2, "bottom": 0.1, "threshold": 1.0},
    ),
    "TraceScorer.push": (lambda: deepconf.TraceScorer().push, {"confidence": 1.0}),
    "TraceScorer.extend": (lambda: deepconf.TraceScorer().extend, {"confidences": [1.0]}),
    "BatchScorer": (
        lambda: deepconf.BatchScorer,
        {"slots": 2, "window": 2, "tail": 2, "threshold": 1.0},
    ),
    "BatchScorer.step": (
        lambda: deepconf.BatchScorer(2).step, {"slot_ids": [0], "confidences": [1.0]},
    ),
    "BatchScorer.reset": (lambda: deepconf.BatchScorer(2).reset, {"slot_ids": [0]}),
    "BatchScorer.set_threshold": (
        lambda: deepconf.BatchScorer(2).set_threshold, {"threshold": 1.0, "slot_ids": [0]},
    ),
    "Policy.preset": (lambda: lambda name: deepconf.Policy.preset(name), {"name": "low"}),
    "Controller": (lambda: deepconf.Controller, {"policy": POLICY}),
    "Controller.launched": (lambda: started().launched, {"trace": 1}),
    "Controller.relaunched": (lambda: started().relaunched, {"trace": 0}),
    "Controller.tokens": (lambda: started().tokens, {"trace": 0, "confidences": [1.0]}),
    "Controller.step": (lambda: started().step, {"traces": [0], "confidences": [1.0]}),
    "Controller.scored": (
        lambda: started().scored,
        {"trace": 0, "scores": SCORES[0], "num_tokens": 3, "stop_token": None},
    ),
    "Controller.finished": (
        lambda: started().finished, {"trace": 0, "finish": "finished", "answer": "a"},
    ),
    "Controller.ended": (lambda: started().ended, {"trace": 0, "finish": "finished"}),
    "Controller.answered": (lambda: started().answered, {"trace": 0, "answer": "a"}),
    "Controller.failed": (lambda: started().failed, {"trace": 0}),
    "Controller.status": (lambda: started().status, {"trace": 0}),
    "Controller.scores": (lambda: started().scores, {"trace": 0}),
    "ReplayPool": (lambda: _core.ReplayPool, {"policies": [POLICY]}),
    "ReplayPool.add": (
        lambda: _core.ReplayPool([POLICY]).add,
        {
            "questions": [0], "traces": [0], "answers": [0], "at_limit": [0],
            "confidences": pa.array([[1.0]]),
        },
    ),
    "ReplayPool.run": (
        lambda: closed().run,
        {
            "question": 0, "policies": [POLICY],
            "draws": np.arange(4, dtype=np.uint32).reshape(1, 4), "lag": 0, "threads": 1,
        },
    ),
    "Scores": (
        lambda: deepconf.Scores,
        dict(
            zip(
                ["mean", "lowest_group", "bottom_group", "tail", "num_tokens", "short"],
                SCORES.__getnewargs__(), strict=True,
            )
        ),
    ),
    "TraceScores": (
        lambda: deepconf.TraceScores,
        dict(
            zip(
                ["mean", "lowest_group", "bottom_group", "tail", "num_tokens", "short"],
                SCORES[0].__getnewargs__(), strict=True,
            )
        ),
    ),
    "Vote": (
        lambda: deepconf.Vote,
        dict(
            zip(
                [
                    "answer", "ballots", "voters", "share", "num_voters", "threshold", "fallback",
                ],
                VOTE.__getnewargs__(), strict=True,
            )
        ),
    ),
    "Votes": (
        lambda: deepconf.Votes,
        dict(
            zip(
                ["questions", "answers", "share", "num_voters", "fallback"],
                VOTES.__getnewargs__(), strict=True,
            )
        ),
    ),
}  # fmt: skip
# Without arguments, with settings as theirs (`test_hostile.py`), or made by a controller alone.
OTHERS = {"Action", "Outcome", "Policy", "Policy.low", "Policy.high", "Policy.offline"}


def test_every_function_and_method_is_called_with_junk() -> None:
    found = set()
    for name, thing in vars(_core).items():
        if name.startswith("_") or not callable(thing):
            continue
        found.add(name)
        if inspect.isclass(thing) and name != "Action":
            methods = {
                m for m in vars(thing) if not m.startswith("_") and callable(getattr(thing, m))
            }
            for method in methods:
                takes = inspect.signature(getattr(thing, method)).parameters
                if len(takes.keys() - {"self", "settings"}) > 0:
                    found.add(f"{name}.{method}")
    assert found - OTHERS == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_what_is_right_is_taken(name: str) -> None:
    make, right = CALLS[name]
    try:
        make()(**right)
    except deepconf.EventError:
        assert name == "Controller.answered"


def refusal(call: Callable[[], Any]) -> str | None:
    """What deepconf says against it."""
    try:
        call()
    except deepconf.EventError:
        return "no event"
    except DeepConfError as error:
        return str(error)
    return None


WRONG: list[Any] = [object(), b"bytes", 1j, {"a": 1}, [object()], "text", [1j], 2**200, -(2**200)]


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n in CALLS for a in CALLS[n][1]])
def test_an_argument_of_a_wrong_type_is_named(name: str, argument: str) -> None:
    make, right = CALLS[name]
    # By its name, or by what is in it.
    names = (argument, "trace 0", "logprobs", "preset=", "the columns have", "no event")
    for wrong in WRONG:
        message = refusal(partial(make(), **{**right, argument: wrong}))
        assert message is None or any(name in message for name in names), f"{wrong!r}: {message}"
    refuses = {"answers", "questions", "answer", "voters", "ballots", "finish", "name"}
    if argument not in refuses:
        with pytest.raises(DeepConfError):
            make()(**{**right, argument: object()})


@hostile
@given(st.sampled_from([(n, a) for n in CALLS for a in CALLS[n][1]]), JUNK)
def test_no_junk_for_an_argument_raises_anything_else(which: tuple[str, str], junk: Any) -> None:
    name, argument = which
    make, right = CALLS[name]
    with contextlib.suppress(DeepConfError):
        make()(**{**right, argument: junk})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deepconf.vote(["a"], None, "x"), "keep='x' is a text: must be a number"),
        (lambda: deepconf.vote(["a"], keep=None), "keep=None is a .*: must be a number"),
        (lambda: deepconf.Policy.preset(5), "name=5 is a .*int.*: must be a string"),
        (lambda: deepconf.TraceScorer().push("a"), "confidence='a' is a text"),
        (lambda: deepconf.Controller(3), "policy=3 is a .*int.*: must be a Policy"),
        (lambda: started().finished(0, 7), "finish=7 is a .*int.*: must be a string"),
        (lambda: started().finished(0, "finished", 7), "answer=7 is a"),
        (lambda: deepconf.score([[1j]]), "trace 0 has dtype complex128"),
        (lambda: deepconf.score([], bottom=[0.1] * 99), r"bottom=\[0.1, .*\.\.\. is a"),
        (lambda: deepconf.score([], bottom=None), "bottom=None is a"),
    ],
)
def test_the_message_names_argument_value_and_type(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidType, match=message):
        call()


def test_a_threshold_of_a_wrong_type_is_refused() -> None:
    scorer = deepconf.TraceScorer(threshold=2.0)
    with pytest.raises(InvalidType, match="threshold='x'"):
        scorer.threshold = "x"  # type: ignore[assignment]
    assert scorer.threshold == 2.0


def test_numbers_beyond_any_pool_are_refused() -> None:
    lists = pa.array([[1.0]])
    for questions, answers in (([2**31], [0]), ([0], [2**31]), ([-1], [0]), ([0], [-2])):
        pool = _core.ReplayPool([POLICY])
        with pytest.raises(InvalidInput, match="must be from 0 to"):
            pool.add(questions, [0], answers, [0], lists)


def test_votes_are_pickled() -> None:
    again = pickle.loads(pickle.dumps(VOTES))
    for name in ("questions", "answers"):
        assert getattr(again, name) == getattr(VOTES, name)
    for name in ("share", "num_voters", "fallback"):
        np.testing.assert_array_equal(getattr(again, name), getattr(VOTES, name))
    columns = VOTES.__getnewargs__()
    with pytest.raises(InvalidInput, match="must be one a question in each"):
        deepconf.Votes(*columns[:-1], np.zeros(5, bool))
