"""Which settings a pass over recorded traces goes by: those given, else recorded, else default."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepconf._core import Policy
from deepconf.errors import InvalidInput, SignalNeverArmed

if TYPE_CHECKING:
    from deepconf.traces import TraceReader

__all__ = [
    "SCORING",
    "VOTING",
    "InForce",
    "check_window",
    "is_scored",
    "measures",
    "scoring_settings",
    "voting_settings",
]

SCORING = ("window", "tail", "bottom", "decimals")
VOTING = ("measure", "weight", "keep", "min_ballots", "max_weight", "percentile_over")


@dataclass(frozen=True)
class InForce:
    """Settings, and where each is from."""

    policy: Policy = field(repr=False)
    """Holds them; what does not matter here is as in `Policy.offline()`."""
    origins: dict[str, str]
    """For each setting that matters `given`, `recorded` (the file says so) or `default`."""

    @property
    def settings(self) -> dict[str, Any]:
        """Those that matter, by name."""
        return {name: getattr(self.policy, name) for name in self.origins}

    def __str__(self) -> str:
        """All of them, in one line."""
        each = self.settings.items()
        return ", ".join(f"{name}={value} ({self.origins[name]})" for name, value in each)


def scoring_settings(reader: TraceReader, given: Mapping[str, Any] | None = None) -> InForce:
    """The settings that `score_traces` would use: those given, else recorded, else the defaults.

    Raises:
        InvalidInput: a setting that cannot be right; files that were recorded with other values of
            one that is not given.
    """
    return _in_force(reader, dict(given or {}), SCORING)


def voting_settings(reader: TraceReader, given: Mapping[str, Any] | None = None) -> InForce:
    """The settings that `vote_traces` would use: those given, else recorded, else the defaults.

    Raises:
        InvalidInput: as for `scoring_settings`; or the traces were scored with another setting, or
            with k = 1, and confidence were to filter or weigh.
    """
    given = dict(given or {})
    voting = {name: value for name, value in given.items() if name in VOTING}
    found = _in_force(reader, voting, VOTING)
    needed = measures(found.policy)
    if not needed:  # Nothing is scored.
        return found
    if reader.settings.get("k") == 1:
        raise InvalidInput(
            "these traces have k=1, and the log-probability of one token is lowest where the model "
            "is surest, so it can neither filter nor weigh: record k=2 or more, or count heads, "
            "with weight='majority' and keep=1"
        )
    if "scores" in reader.differing:
        each = " and ".join(repr(scores) for scores in reader.differing["scores"])
        raise InvalidInput(f"the files were scored with {each}: score them alike")
    found = _in_force(reader, given, (*VOTING, *SCORING))
    policy = found.policy
    if is_scored(reader, needed):
        scored = reader.settings.get("scores", {})
        for name in SCORING:
            if name in given and name in scored and getattr(policy, name) != scored[name]:
                raise InvalidInput(
                    f"{name}={given[name]!r}: these traces were scored with {name}="
                    f"{scored[name]!r}; score them again"
                )
    return found


def _in_force(reader: TraceReader, given: dict[str, Any], names: tuple[str, ...]) -> InForce:
    recorded = {
        name: value for name in names if name not in given for value in _recorded(reader, name)
    }
    policy = Policy.offline(**{**recorded, **given})
    origins = {
        name: "given" if name in given else "recorded" if name in recorded else "default"
        for name in names
    }
    return InForce(policy, origins)


def _recorded(reader: TraceReader, name: str) -> list[Any]:
    """What the files say of a setting: nothing, or one value.

    Raises:
        InvalidInput: they say different things.
    """

    def said(key: str) -> list[Any]:
        return [reader.settings[key]] if key in reader.settings else reader.differing.get(key, [])

    scores = [found[name] for found in said("scores") if name in found]
    if not scores and name == "window":
        scores = said("window")
    found = scores or [
        # Online, the lowest group is what traces are ranked by, always.
        "lowest_group" if name == "measure" and policy.get("mode") == "online" else policy[name]
        for policy in said("policy")
        if name in policy
    ]
    different = [value for at, value in enumerate(found) if value not in found[:at]]
    if len(different) > 1:
        each = " and ".join(repr(value) for value in different)
        raise InvalidInput(f"the files were recorded with {name}={each}: say which, with {name}=")
    return different


def measures(policy: Policy) -> list[str]:
    """The measures that a vote looks at."""
    ranked = [policy.measure] if policy.keep < 1.0 else []
    weighed = [policy.weight] if policy.weight != "majority" else []
    return list(dict.fromkeys([*ranked, *weighed]))


def check_window(policy: Policy, longest: int, stacklevel: int) -> None:
    """Warns where no trace is a window long, so that the lowest group of each is its mean.

    Args:
        policy: as traces were scored.
        longest: tokens of the longest trace; 0 where there is none.
        stacklevel: whose call it is about, as of `warnings.warn` here.
    """
    if 0 < longest < policy.window:
        warnings.warn(
            f"no trace reaches the window of {policy.window} tokens (the longest has {longest}): "
            "each is one group, its mean; use a smaller window, such as an eighth of their length",
            SignalNeverArmed,
            stacklevel=stacklevel + 1,
        )


def is_scored(reader: TraceReader, needed: list[str]) -> bool:
    """Whether these scores are there to be read, in every file and by the same settings."""
    return "scores" in reader.settings and reader.has(*needed)
