"""What a server was found to give."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Capabilities"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server was found to give when it was asked for a few tokens.

    None stands for what could not be found out.
    """

    server: str
    """Its address."""
    model: str
    """The model's name there."""
    software: str | None
    """Who owns the model, as the server says: `vllm`, `sglang`, `llamacpp`."""
    interface: Literal["chat", "completions"]
    """Chat completions, or completions."""
    top_logprobs: int
    """How many log-probabilities a token it gave, at the most that were asked for."""
    reasoning: bool | None
    """Whether reasoning comes apart from the answer, with its log-probabilities."""
    usage: bool
    """Whether it says how many tokens there were, which is compared with those that came."""
    token_ids: bool
    """Whether each chunk names its tokens, which are compared with their log-probabilities."""
    seed: Literal["repeats", "differs", "ignored"] | None
    """`repeats`: a seed gives the same tokens again, and another seed others; `differs`: even the
    same seed gives others; `ignored`: any seed gives the same."""
    raw: bool | None
    """Whether log-probabilities are from before the temperature."""
    abort: bool | None
    """Whether it stops to generate when the connection is closed."""
    max_model_len: int | None
    """Tokens in its context."""
    refused_chat: str | None = None
    """What it said where chat completions were tried first, and are not to be had."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Capabilities:
        """Out of `as_dict`, of whatever version: what it does not know is None."""
        found: dict[str, Any] = {
            each.name: values.get(each.name) for each in dataclasses.fields(cls)
        }
        return cls(**found)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """In words, on one line."""
        seeds = {
            "repeats": "seeds repeat a trace",
            "differs": "seeds do not repeat a trace",
            "ignored": "seeds are ignored",
            None: "seeds not tried",
        }
        parts = [
            f"{self.model} at {self.server}",
            "chat completions" if self.interface == "chat" else "completions",
            f"{self.top_logprobs} log-probabilities a token",
            _said(self.raw, "from before the temperature", "from after the temperature"),
            seeds[self.seed],
            "token counts" if self.usage else "no token counts",
            _said(self.abort, "stops take effect", "goes on generating after a stop"),
        ]
        parts += ["reasoning apart from the answer"] if self.reasoning else []
        return ", ".join(part for part in parts if part)


def _said(found: bool | None, yes: str, no: str) -> str:
    return "" if found is None else yes if found else no
