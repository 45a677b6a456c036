"""The package as a whole: what it imports, its exceptions, threads and forks."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import deepconf
import numpy as np
import oracle
import pytest
from deepconf import errors


def python(program: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


IMPORTS = """
import sys
import numpy
before = set(sys.modules)
import deepconf
print(sorted(set(sys.modules) - before))
"""


def test_importing_loads_numpy_and_the_standard_library_only() -> None:
    loaded = set(ast.literal_eval(python(IMPORTS)))
    tops = {name.partition(".")[0] for name in loaded}
    assert "deepconf._core" in loaded
    assert tops <= {"deepconf", "numpy", *sys.stdlib_module_names}
    assert not tops & {"asyncio", "concurrent", "email", "http", "json", "socket", "ssl"}
    assert "deepconf.deepthink" not in loaded


def test_what_is_exported_is_there() -> None:
    assert len(set(deepconf.__all__)) == len(deepconf.__all__)
    for name in deepconf.__all__:
        assert getattr(deepconf, name) is not None
    assert dir(deepconf) == sorted(deepconf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = deepconf.scores


def test_everything_public_is_documented() -> None:
    public = [getattr(deepconf, name) for name in deepconf.__all__ if not name.startswith("_")]
    assert [thing for thing in public if not thing.__doc__] == []


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidInput, ValueError),
        (errors.InvalidType, TypeError),
        (errors.UnknownPreset, ValueError),
        (errors.EventError, RuntimeError),
        (errors.EngineError, RuntimeError),
        (errors.RunFileError, OSError),
        (errors.TraceFileError, OSError),
        (errors.MissingExtra, ImportError),
    ],
)
def test_an_error_is_of_the_family_and_of_the_kind_python_has(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, errors.DeepConfError)
    assert issubclass(error, builtin)


def test_errors_of_the_extension_are_those_of_the_package() -> None:
    with pytest.raises(ValueError, match="window=0") as raised:
        deepconf.score([], window=0)
    assert type(raised.value) is deepconf.InvalidInput


WITHOUT = """
import sys
sys.modules["vllm"] = sys.modules["math_verify"] = sys.modules["pyarrow"] = None
import deepconf
from deepconf.traces import schema
for make in (
    schema,
    lambda: deepconf.engines.VLLM("model", sampling={}),
    lambda: deepconf.answers.AnswerBook(math=True),
):
    try:
        make()
    except deepconf.MissingExtra as error:
        print(error.extra, error, sep=": ")
"""


def test_what_is_missing_names_the_extra_that_brings_it() -> None:
    packages = {"arrow": "pyarrow", "vllm": "vllm", "math": "math-verify"}
    for line, (extra, package) in zip(python(WITHOUT).splitlines(), packages.items(), strict=True):
        start = f"{extra}: this needs the package {package}, which is not installed: pip install '"
        # What the index has: the packages, whatever this one is called there.
        assert line.startswith(f"{start}{package}"), line
        assert line.endswith(f"(the extra {extra} of deepconf-rs)"), line


FORK = """
import os, signal, sys
import numpy as np
import deepconf

traces = np.random.default_rng(0).uniform(0, 20, (200, 500)).astype(np.float32)

def mean():
    return deepconf.score(traces, window=16, threads=2).lowest_group.tobytes()

before = mean()
child = os.fork()
if child == 0:
    signal.alarm(60)  # Waiting for the parent's threads would last for ever.
    same = mean() == before
    answers = list(range(1000))
    same &= deepconf.vote_many(answers, answers, threads=2).questions == answers
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
print(status, mean() == before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_scores_as_its_parent() -> None:
    assert python(FORK).split() == ["0", "True"]


def test_many_threads_score_and_vote_alike() -> None:
    rng = np.random.default_rng(4)
    traces = rng.uniform(0, 20, (64, 400)).astype(np.float32)
    answers = rng.integers(0, 5, 64).tolist()
    together = threading.Barrier(8)

    def work(number: int) -> tuple[object, ...]:
        together.wait()
        found = []
        for _ in range(20):
            scores = deepconf.score(traces, window=32, threads=number % 3 or None)
            vote = deepconf.vote(answers, scores.lowest_group, keep=0.5)
            found.append((oracle.fields(scores), tuple(vote.ballots.items())))
        assert len(set(found)) == 1
        return found[0]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1
