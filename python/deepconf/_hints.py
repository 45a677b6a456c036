"""What to call instead, for a call that was given something else than it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

__all__ = ["instead_of_score"]

_MUST = "score takes token confidences, an array a trace"


def instead_of_score(traces: Any, item: Any) -> str | None:
    """The message for what `score` was given; None where its own says it better.

    Args:
        traces: all of it.
        item: the part that is no trace.
    """
    for value in (traces, item):
        what = _what(value)
        if what is not None:
            where = "traces is" if value is traces else "traces holds"
            return f"{where} {what}"
    return None


def _what(value: Any) -> str | None:
    kind = type(value).__name__
    if isinstance(value, str | os.PathLike):
        return (
            f"{value!r:.100}, a {kind}: {_MUST}. For a trace file call score_traces or "
            "read_traces, for a file of responses deepconf.from_openai(path).score()"
        )
    if kind == "Traces" and hasattr(value, "confidences"):
        return f"a {kind}: call its own .score()"

    if hasattr(value, "columns"):
        return (
            f"a {kind}, a table: give its column of confidences, which must be a list of float or "
            "double; score_traces takes a table in the columns of a trace file"
        )

    def has(name: str) -> bool:
        return name in value if isinstance(value, Mapping) else hasattr(value, name)

    if has("outputs") or has("token_ids"):
        return f"a {kind} of vLLM: {_MUST}. Call deepconf.from_vllm(outputs).score()"
    if has("choices") or has("logprobs") or has("message") or has("custom_id"):
        return (
            f"a {kind} of an OpenAI-style server: {_MUST}. Call "
            "deepconf.from_openai(responses).score()"
        )
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:5]))
        return f"a {kind} with the keys {keys}: {_MUST}"
    if has("confidence") and has("status"):
        return f"a {kind}: {_MUST}. Pass [trace.confidence for trace in traces]"
    return None
