"""The log-probabilities of responses that one has."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf._core import openai_confidences
from deepconf.engines.base import check_counted
from deepconf.errors import InvalidInput, InvalidType

__all__ = ["confidences"]


def confidences(
    response: Any,
    *,
    k: int | None = None,
    entries: Literal["topk", "returned"] = "topk",
    logprob_floor: float | None = None,
) -> NDArray[np.float32]:
    """Token confidences of a response of an OpenAI-style server.

    Args:
        response: parsed JSON or the client's objects: a chat completion or completion with one
            choice, a choice, or its `logprobs`. A streamed chunk is like a whole response.
        k: how many of the most likely tokens count; None for as many as every token has.
        entries: "topk", or "returned" to count the sampled token too where it is not among them.
        logprob_floor: raises smaller log-probabilities to this, nats. Some servers report masked
            tokens as -9999.

    Returns:
        float32 `[num_tokens]`, nats; ready for `deepconf.score`.

    Raises:
        InvalidInput: the response carries no log-probabilities, fewer than k, or one a token.
        InvalidType: it is no such response.
    """
    check_counted(k, entries)
    choices = _field(response, "choices")
    if choices is not None:
        if not isinstance(choices, list | tuple):
            raise InvalidType(f"choices is a {type(choices).__name__}: must be a list of choices")
        if len(choices) != 1:
            raise InvalidInput(f"the response has {len(choices)} choices: pass one of them")
        response = choices[0]
    logprobs = _field(response, "logprobs")
    found = response if logprobs is None else logprobs
    return openai_confidences(found, k, entries == "returned", logprob_floor)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
