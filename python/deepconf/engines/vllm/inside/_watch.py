"""How a request asks to be scored where it is generated."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

__all__ = ["Watch", "unwatchable"]

_PREFIX = "deepconf_"

# Of tokens, as the core counts them.
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Watch:
    """What the worker must know of a trace; travels in `SamplingParams.extra_args`."""

    trace: str
    """Its name, under which its confidences are fetched; one that no other request has."""
    top_logprobs: int
    """k, how many of the most likely tokens count."""
    window: int
    """w, tokens in a group."""
    logprob_floor: float | None = None
    """Raises smaller log-probabilities to this, nats."""
    threshold: float | None = None
    """s, nats: a group below it stops the trace."""
    stop_token: int | None = None
    """The token that ends the request, forced where the trace is to stop."""

    def as_extra_args(self) -> dict[str, Any]:
        """Flat, as vLLM's server takes them too (`vllm_xargs`); what is None is left out."""
        values = dataclasses.asdict(self)
        return {_PREFIX + name: value for name, value in values.items() if value is not None}

    @classmethod
    def of(cls, params: Any) -> Watch | None:
        """That of `SamplingParams`; None where nobody asks.

        Raises:
            ValueError: something is missing, unknown or out of range.
        """
        given = {
            name.removeprefix(_PREFIX): value
            for name, value in (getattr(params, "extra_args", None) or {}).items()
            if name.startswith(_PREFIX)
        }
        if not given:
            return None
        names = {field.name for field in dataclasses.fields(cls)}
        wanted = {"trace", "top_logprobs", "window"}
        for name in sorted(wanted - given.keys()):
            raise ValueError(f"{_PREFIX}{name} is missing: {_list(wanted)} go together")
        for name in sorted(given.keys() - names):
            raise ValueError(f"{_PREFIX}{name} is not known: there are {_list(names)}")
        for name, value in given.items():
            given[name] = _checked(name, value)
        watch = cls(**given)
        if watch.threshold is not None and watch.stop_token is None:
            raise ValueError(
                f"{_PREFIX}threshold needs {_PREFIX}stop_token, which ends the request"
            )
        if getattr(params, "n", 1) != 1:
            raise ValueError(f"n={params.n}: must be 1, one request is one trace")
        return watch


def unwatchable(vllm_config: Any) -> str | None:
    """Why the workers of an engine of this configuration cannot score; None where they can."""
    if vllm_config.speculative_config is not None:
        return "speculative decoding: rows of tokens that are not accepted would be scored"
    if vllm_config.diffusion_config is not None:
        return "a diffusion model: it does not sample one token after another"
    if vllm_config.parallel_config.enable_batch_sharded_sampling:
        return "enable_batch_sharded_sampling=True: no worker sees all traces"
    return None


_KINDS: dict[str, tuple[type, float, float]] = {
    "trace": (str, 0, 0),
    "top_logprobs": (int, 2, _MOST),
    "window": (int, 1, _MOST),
    "logprob_floor": (float, -sys.float_info.max, -sys.float_info.min),
    "threshold": (float, -sys.float_info.max, sys.float_info.max),
    "stop_token": (int, 0, _MOST),
}


def _checked(name: str, value: Any) -> Any:
    """A value of its kind; what the worker does not take would end it, and with it the engine."""
    kind, least, most = _KINDS[name]
    if kind is str:
        sound = isinstance(value, str) and value != ""
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        sound = is_number and least <= value <= most and (kind is float or value == int(value))
    if sound:
        return kind(value)
    must = {
        str: "a string that is not empty",
        int: f"an integer of at least {least} and at most {most}",
        float: f"a finite{' negative' if most < 0 else ''} number of nats",
    }[kind]
    raise ValueError(f"{_PREFIX}{name}={value!r}: must be {must}")


def _list(names: set[str]) -> str:
    return ", ".join(_PREFIX + name for name in sorted(names))
