"""Forks, locks and threads: nothing waits for ever, and no thread is left over."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import deepconf
import numpy as np
import pyarrow as pa
import pytest
from deepconf import _core

LONG = 200_000
POLICY = deepconf.Policy.offline(budget=4, window=2)


def texts() -> list[str]:
    return ["a", "b"] * (LONG // 2)


def events() -> Any:
    controller = deepconf.Controller(deepconf.Policy.high(budget=8, warmup=4, window=2))
    waiting = controller.start()
    while waiting:
        action = waiting.pop(0)
        if isinstance(action, deepconf.Action.Launch):
            for trace in action.traces:
                controller.launched(trace)
                controller.tokens(trace, np.full(LONG, 9.0, np.float32))
                waiting += controller.finished(trace, "finished", "42")
    return controller.outcome.answer


def streamed() -> Any:
    scorer = deepconf.TraceScorer(window=16)
    scorer.extend(np.ones(LONG, np.float32))
    return scorer.scores().mean


def stepped() -> Any:
    scorer = deepconf.BatchScorer(LONG, window=2)
    return scorer.step(np.arange(LONG), np.ones(LONG)).sum()


def replayed() -> Any:
    pool = _core.ReplayPool([POLICY])
    lists = pa.array([np.full(LONG, 3.0)] * 4, pa.list_(pa.float32()))
    pool.add([0] * 4, [0, 1, 2, 3], [0, 0, 1, 1], [0] * 4, lists)
    pool.close()
    draws = np.tile(np.arange(4, dtype=np.uint32), (LONG // 100, 1))
    return pool.run(0, [POLICY], draws)["tokens"].sum()


ROWS = np.full((LONG, 2), -1.0, np.float32)
WEIGHTS = np.linspace(1, 2, LONG)
FLAT = ([-1.0] * (3 * LONG), list(range(3, 3 * LONG + 3, 3)), [1, 1, 2] * LONG, 2)


class Likely:
    logprob = -1.0


# One of every public function and class that computes, on more rows than one thread works on.
COMPUTES: dict[str, Callable[[], Any]] = {
    "score": lambda: deepconf.score([np.ones(LONG, np.float32)] * 4, window=16).mean.sum(),
    "token_confidence": lambda: deepconf.token_confidence(ROWS).sum(),
    "token_entropy": lambda: deepconf.token_entropy(ROWS).sum(),
    "logits_confidence": lambda: deepconf.logits_confidence(ROWS, 2).sum(),
    "vote": lambda: deepconf.vote(texts(), WEIGHTS, keep=0.5).answer,
    "vote_many": lambda: deepconf.vote_many(np.arange(LONG), texts(), WEIGHTS, 0.5).share.sum(),
    "row_confidences": lambda: _core.row_confidences(np.full((LONG, 3), -1.0, np.float32), 2).sum(),
    "flat_confidences": lambda: _core.flat_confidences(*FLAT).sum(),
    "dict_confidences": lambda: _core.dict_confidences([{0: Likely, 1: Likely}] * LONG).sum(),
    "openai_confidences": lambda: _core.openai_confidences(
        {"top_logprobs": [{"a": -1.0, "b": -2.0}] * LONG}
    ).sum(),
    "TraceScorer": streamed,
    "BatchScorer": stepped,
    "Controller": events,
    "ReplayPool": replayed,
}
# What these hold was computed by one of those.
HOLD = {"Action", "Outcome", "Policy", "Scores", "TraceScores", "Vote", "Votes"}


def test_every_public_name_of_the_extension_is_run_in_a_fork() -> None:
    public = {name for name, thing in vars(_core).items() if callable(thing) and name[0] != "_"}
    assert public == HOLD | COMPUTES.keys()


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def computed(name: str) -> Any:
    return COMPUTES[name]()


@forks
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_what_its_parent_does() -> None:
    expected = {name: computed(name) for name in COMPUTES}
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = {name: pool.apply_async(computed, (name,)) for name in COMPUTES}
        for name, value in found.items():
            assert value.get(60) == expected[name], name
        # Twice, and so on pools that the children made.
        assert pool.apply_async(computed, ("score",)).get(60) == expected["score"]
    assert computed("score") == expected["score"]


GRANDCHILD = """
import os, deepconf, numpy as np
def work():
    return deepconf.vote(["a"] * 100_000, np.ones(100_000), keep=0.5).answer
work()
for _ in range(3):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        os._exit(0)
    assert work() == "a"
"""


def run(program: str, seconds: float = 60) -> str:
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@forks
def test_a_fork_of_a_fork_computes() -> None:
    run(GRANDCHILD)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

LEFT_OVER = """
import os, sys
sys.path.insert(0, "tests")
import test_threads as t
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
few = t.np.ones((10, 2), t.np.float32)
t.deepconf.vote(["a", "b"], [1.0, 2.0], keep=0.5)
t.deepconf.score([few[0]], window=1, threads=7)
t.deepconf.token_confidence(-few)
assert threads() == before, "small work started threads"
for name in t.COMPUTES:
    t.computed(name)
pool = threads() - before
assert pool == len(os.sched_getaffinity(0)), pool
for count in (1, 2, 3, 4, 5, 6, 64, 4096):
    t.deepconf.score([t.np.ones(t.LONG)] * 2, threads=count)
    t.deepconf.vote_many(t.np.arange(t.LONG), t.texts(), threads=count)
assert threads() - before == pool
"""


@linux
def test_there_is_one_pool_whatever_is_asked_for() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAYON_NUM_THREADS"}
    found = subprocess.run(
        [sys.executable, "-c", LEFT_OVER], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("threads", [0, -1, 4097, 60_000, 2**64, 2**200, "2", 2.0, [2]])
def test_a_number_of_threads_that_cannot_be_is_refused_at_once(threads: Any) -> None:
    started = time.monotonic()
    for call in (
        lambda: deepconf.score([np.ones(LONG)], threads=threads),
        lambda: deepconf.vote_many([1], ["a"], threads=threads),
        lambda: deepconf.token_confidence(ROWS, threads=threads),
    ):
        with pytest.raises(deepconf.DeepConfError, match="threads="):
            call()
    assert time.monotonic() - started < 5


FINALIZER = """
import gc, deepconf
c = deepconf.Controller(deepconf.Policy.high(budget=8, warmup=4, window=2))
waiting = c.start()
while waiting:
    match waiting.pop(0):
        case deepconf.Action.Launch(traces):
            for t in traces:
                c.launched(t)
                c.tokens(t, [9.0, 8.0, 9.0])
                waiting += c.finished(t, "finished", "42")

class Watcher:
    def __init__(self):
        self.me = self
    def __del__(self):
        c.num_tokens, c.outcome, str(c)

gc.set_threshold(1, 10, 10)
for look in ("outcome", "policy", "threshold", "__str__", "__repr__", "cancel"):
    gc.collect()
    gc.disable()
    for _ in range(3):
        Watcher()
    keep = [{} for _ in range(1000)]  # None is left in the interpreter's free list.
    gc.enable()
    value = getattr(c, look)
    value() if callable(value) else value
"""

IMPORT_HOOK = """
import builtins, threading, time, deepconf
scorer = deepconf.TraceScorer(window=2)
batch = deepconf.BatchScorer(2, window=2)
controller = deepconf.Controller(deepconf.Policy.low())
real = builtins.__import__
def slow(*args, **kw):
    time.sleep(0)
    return real(*args, **kw)
builtins.__import__ = slow
over = time.monotonic() + 2
def bad():
    while time.monotonic() < over:
        for call in (
            lambda: scorer.push(float("nan")),
            lambda: batch.step([0, 5], [1.0, 2.0]),
            lambda: controller.launched(3),
        ):
            try:
                call()
            except deepconf.DeepConfError:
                continue
            raise AssertionError
threads = [threading.Thread(target=bad) for _ in range(2)]
for thread in threads:
    thread.start()
while time.monotonic() < over:
    scorer.num_tokens, batch.num_tokens, controller.num_tokens
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("program", [FINALIZER, IMPORT_HOOK], ids=["finalizer", "import hook"])
def test_python_never_runs_under_a_lock(program: str) -> None:
    run(program)


def test_a_getter_that_waits_lets_the_interpreter_go() -> None:
    scorer = deepconf.TraceScorer(window=2048, bottom=None)
    confidences = np.ones(60_000_000, np.float32)
    extending = threading.Thread(target=lambda: scorer.extend(confidences))
    found: list[int] = []
    looking = threading.Thread(target=lambda: found.append(scorer.num_tokens))
    extending.start()
    time.sleep(0.01)
    looking.start()
    # This thread goes on: each look of it comes back while the others are at it.
    turns = 0
    while looking.is_alive():
        turns += 1
        time.sleep(0.001)
    extending.join()
    assert found in ([0], [len(confidences)])
    assert turns > 10 or found == [0]


def test_one_pool_is_read_and_run_by_many_threads() -> None:
    pool = _core.ReplayPool([POLICY])
    lists = pa.array([np.full(1000, 3.0)] * 4, pa.list_(pa.float32()))

    def add(question: int) -> None:
        for _ in range(20):
            pool.add([question] * 4, [0, 1, 2, 3], [0, 0, 1, 1], [0] * 4, lists)
            assert pool.num_lows >= 0
            with pytest.raises(deepconf.InvalidInput, match="close the pool first"):
                pool.run(0, [POLICY], np.zeros((1, 4), np.uint32))

    pool.add([0] * 4, [0, 1, 2, 3], [0, 0, 1, 1], [0] * 4, lists)
    threads = [threading.Thread(target=add, args=(question,)) for question in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    with pytest.raises(deepconf.InvalidInput, match="two traces"):
        pool.close()


def test_an_array_that_is_written_to_makes_no_panic() -> None:
    array = np.zeros(6000, np.float32)
    other = np.random.default_rng(0).random(6000, np.float32) * 2000
    over = time.monotonic() + 3

    def scribble() -> None:
        while time.monotonic() < over:
            np.copyto(array, other)
            np.copyto(array, 0)

    writer = threading.Thread(target=scribble)
    writer.start()
    while time.monotonic() < over:
        try:
            found = deepconf.score([array] * 40, window=16)
        except deepconf.InvalidInput:
            continue
        assert found.num_tokens.tolist() == [6000] * 40
    writer.join()
