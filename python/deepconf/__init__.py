"""Deep Think with Confidence: score, filter and vote over parallel reasoning traces.

>>> import deepconf
>>> s = deepconf.score([[9.0, 8.0, 9.0], [9.0, 2.0, 3.0]], window=2)
>>> s.lowest_group
array([8.5, 2.5])
>>> deepconf.vote(["42", "41"], weights=s.lowest_group).answer
'42'

A scorer (`score`, `token_confidence`, `token_entropy`, `logits_confidence`, `TraceScorer`,
`BatchScorer`), votes (`vote`, `vote_many`), responses that are there (`from_vllm`, `from_openai`),
trace files (`read_traces`, `TraceWriter`), decisions (`Policy`, `Controller`) and a driver
(`DeepThink` on an engine of `deepconf.engines`). Confidences are in nats; higher is surer. The
method: arXiv 2508.15260.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepconf import errors
from deepconf._core import (
    Action,
    BatchScorer,
    Controller,
    Outcome,
    Policy,
    Scores,
    TraceScorer,
    TraceScores,
    Vote,
    Votes,
    __version__,
    logits_confidence,
    score,
    token_confidence,
    token_entropy,
    vote,
    vote_many,
)
from deepconf.errors import (
    DeepConfError,
    DeepConfWarning,
    EngineDied,
    EngineError,
    EventError,
    Interrupted,
    InvalidInput,
    InvalidType,
    MissingExtra,
    RunFileError,
    RunWarning,
    SignalNeverArmed,
    TraceFileError,
    UnknownPreset,
)

if TYPE_CHECKING:
    from deepconf import answers, engines
    from deepconf.batch import score_traces, vote_traces
    from deepconf.deepthink import DeepThink
    from deepconf.held import Traces
    from deepconf.importing import import_traces
    from deepconf.lab.diagnose import Diagnosis, diagnose
    from deepconf.lab.played import Replay
    from deepconf.lab.replay import Pool, grid, replay
    from deepconf.lab.tune import Tuning, tune
    from deepconf.responses import from_confidences, from_openai, from_vllm
    from deepconf.result import Result, Trace
    from deepconf.traces import TraceReader, TraceWriter, read_traces

__all__ = [
    "Action",
    "BatchScorer",
    "Controller",
    "DeepConfError",
    "DeepConfWarning",
    "DeepThink",
    "Diagnosis",
    "EngineDied",
    "EngineError",
    "EventError",
    "Interrupted",
    "InvalidInput",
    "InvalidType",
    "MissingExtra",
    "Outcome",
    "Policy",
    "Pool",
    "Replay",
    "Result",
    "RunFileError",
    "RunWarning",
    "Scores",
    "SignalNeverArmed",
    "Trace",
    "TraceFileError",
    "TraceReader",
    "TraceScorer",
    "TraceScores",
    "TraceWriter",
    "Traces",
    "Tuning",
    "UnknownPreset",
    "Vote",
    "Votes",
    "__version__",
    "answers",
    "diagnose",
    "engines",
    "errors",
    "from_confidences",
    "from_openai",
    "from_vllm",
    "grid",
    "import_traces",
    "logits_confidence",
    "read_traces",
    "replay",
    "score",
    "score_traces",
    "token_confidence",
    "token_entropy",
    "tune",
    "vote",
    "vote_many",
    "vote_traces",
]

# The driver pulls in asyncio: whoever only scores does not pay for it.
_LAZY = {
    "DeepThink": "deepconf.deepthink",
    "Diagnosis": "deepconf.lab.diagnose",
    "Pool": "deepconf.lab.replay",
    "Replay": "deepconf.lab.played",
    "Result": "deepconf.result",
    "Trace": "deepconf.result",
    "TraceReader": "deepconf.traces",
    "TraceWriter": "deepconf.traces",
    "Traces": "deepconf.held",
    "Tuning": "deepconf.lab.tune",
    "answers": "deepconf.answers",
    "diagnose": "deepconf.lab.diagnose",
    "engines": "deepconf.engines",
    "from_confidences": "deepconf.responses",
    "from_openai": "deepconf.responses",
    "from_vllm": "deepconf.responses",
    "grid": "deepconf.lab.replay",
    "import_traces": "deepconf.importing",
    "read_traces": "deepconf.traces",
    "replay": "deepconf.lab.replay",
    "score_traces": "deepconf.batch",
    "tune": "deepconf.lab.tune",
    "vote_traces": "deepconf.batch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'deepconf' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name] == f"deepconf.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
