"""What the reader of a result must know of the server that its traces are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepconf.engines.openai._capabilities import Capabilities

__all__ = ["CHANCE", "Tally", "remarks_on"]

CHANCE = -14.0
"""Nats: how improbable it must be that traces are equal, for seeds to be called ignored."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What there is to know of a trace that is over."""

    whole: bool
    """Whether it ran to its end."""
    counted: bool
    """Whether the server said how many tokens there were, or which."""
    tokens: int
    unsure: int
    """Tokens of which the k-th likeliest may be missing."""
    refusals: int
    digest: int
    """Of the tokens."""
    likelihood: float
    """Of them all, nats."""


def remarks_on(tallies: Sequence[Tally], found: Capabilities) -> list[str]:
    """Sentences on the traces of one run; none where all is as it should be."""
    remarks, server = [], found.server
    refusals = sum(tally.refusals for tally in tallies)
    if refusals:
        remarks.append(f"{server} was away or refused requests {refusals} times: tried again")
    unsure, tokens = (sum(getattr(t, name) for t in tallies) for name in ("unsure", "tokens"))
    if unsure:
        remarks.append(
            f"at {unsure:,} of {tokens:,} tokens the sampled token may stand in the place of the "
            f"least likely of those that count: {server} gives only as many as were asked for; a "
            "policy with top_logprobs one less is exact, or a server that gives one more"
        )
    whole = [tally for tally in tallies if tally.whole]
    uncounted = sum(not tally.counted for tally in whole)
    if uncounted:
        remarks.append(
            f"of {uncounted} of {len(whole)} whole traces {server} gave neither token counts nor "
            "token ids: a token whose log-probabilities are lost is noticed only where the text is "
            "longer than the tokens that came"
        )
    chance = sum(tally.likelihood for tally in whole[1:])
    if len({tally.digest for tally in whole}) == 1 and chance < CHANCE:
        remarks.append(
            f"all {len(whole)} traces that ran to their end are equal, token by token: {server} "
            "ignores seeds, or the temperature is 0; their vote is one trace's"
        )
    if found.refused_chat is not None:
        remarks.append(
            f"{server} refuses chat completions, so questions went to completions, without a chat "
            f"template (chat=False, if that is meant): {found.refused_chat}"
        )
    if found.raw is False:
        remarks.append(
            f"{server} gives log-probabilities from after the temperature, and confidence is "
            "defined on those from before (vLLM: --logprobs-mode raw_logprobs)"
        )
    if found.abort is False and len(whole) < len(tallies):
        remarks.append(f"{server} goes on generating what was stopped: no stop saves anything")
    return remarks
