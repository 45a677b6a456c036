"""What vLLM returns and raises, in our words."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf._core import dict_confidences, flat_confidences
from deepconf.engines.base import Finish, Signal, check_counted
from deepconf.errors import EngineError, InvalidInput, InvalidType

__all__ = ["confidences", "finish_of", "of_logprobs", "reason_of"]

# "repetition" comes of `repetition_detection`: such a trace was cut short.
_FINISH: dict[str, Finish] = {
    "stop": "finished",
    "length": "length",
    "repetition": "length",
    "abort": "aborted",
}


def confidences(
    output: Any,
    *,
    k: int | None = None,
    entries: Literal["topk", "returned"] = "topk",
    logprob_floor: float | None = None,
) -> NDArray[np.float32]:
    """Token confidences of an output that vLLM returned.

    Args:
        output: a `CompletionOutput`, a `RequestOutput` with one completion, or its `logprobs`: flat
            (`flat_logprobs=True`) or a list of dicts.
        k: how many of the most likely tokens count; None for as many as were asked for.
        entries: "topk", or "returned" to count the sampled token too where it is not among them.
        logprob_floor: raises smaller log-probabilities to this, nats.

    Returns:
        float32 `[num_tokens]`, nats; ready for `deepconf.score`.

    Raises:
        InvalidInput: the output carries no log-probabilities, or fewer than k.
        InvalidType: it is no output of vLLM.
    """
    check_counted(k, entries)
    completions = getattr(output, "outputs", None)
    if completions is not None:
        if not isinstance(completions, list | tuple):
            kind = type(completions).__name__
            raise InvalidType(f"output.outputs is a {kind}: must be a list of CompletionOutput")
        if len(completions) != 1:
            raise InvalidInput(
                f"the request has {len(completions)} completions: pass one of output.outputs"
            )
        output = completions[0]
    logprobs = output
    if hasattr(output, "token_ids") and hasattr(output, "finish_reason"):
        logprobs = getattr(output, "logprobs", None)
        if logprobs is None:
            raise InvalidInput(
                "the output has no log-probabilities: ask for them with SamplingParams(logprobs=20)"
            )
    flat = all(hasattr(logprobs, name) for name in ("logprobs", "end_indices", "ranks"))
    if flat or isinstance(logprobs, list):
        return of_logprobs(logprobs, Signal(k or 0, entries, logprob_floor))
    raise InvalidType(
        f"output is a {type(output).__name__}: must be a CompletionOutput of vLLM, or its logprobs"
    )


def of_logprobs(logprobs: Any, signal: Signal) -> NDArray[np.float32]:
    """Either form; `top_logprobs` 0 stands for as many as there are."""
    if not logprobs:
        return np.empty(0, np.float32)
    floor, returned = signal.logprob_floor, signal.entries == "returned"
    if isinstance(logprobs, list):
        return dict_confidences(logprobs, signal.top_logprobs or None, returned, floor)
    entries, ends, ranks = logprobs.logprobs, logprobs.end_indices, logprobs.ranks
    return flat_confidences(entries, ends, ranks, signal.top_logprobs or None, returned, floor)


def finish_of(request_id: str, reason: str | None) -> Finish | None:
    """How vLLM says that it ended, in our words."""
    if reason is not None and reason not in _FINISH:
        raise EngineError(f"vLLM ended request {request_id} with {reason!r}")
    return None if reason is None else _FINISH[reason]


def reason_of(error: BaseException) -> str:
    """An exception with its causes: vLLM's own often say nothing without them."""
    parts: list[str] = []
    found: BaseException | None = error
    while found is not None and len(parts) < 5:
        text = f"{type(found).__name__}: {found}".rstrip(": ")
        parts += [text] if text not in parts else []
        found = found.__cause__
    return ", from ".join(parts)
