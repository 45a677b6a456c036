"""Which settings win: a preset's, a settings file's, its own policies', options', `--set`'s.

>>> low = in_force(["low"], {"window": 32}, {"budget": 8}, {})["low"]
>>> low.policy.warmup, low.origins["warmup"]
(2, 'a quarter of the budget')
>>> in_words({"low": low})
'window=32 (deepconf.json); budget=8 (--budget); warmup=2 (a quarter of the budget)'
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepconf._core import Policy
from deepconf._settings import FILE, recorded
from deepconf._windows import fitting
from deepconf.errors import InvalidInput, InvalidType, UnknownPreset

__all__ = ["OPTIONS", "InForce", "Layer", "build", "in_force", "in_words", "merged", "of_traces"]

OPTIONS = "options"
"""The origin of what has an option of its own."""

# What an offline policy has no use for: it stops nothing and runs to the end of its budget.
_ONLINE = ("warmup", "stop")


@dataclass(frozen=True)
class Layer:
    """Settings that were given at one place, which win over those before."""

    origin: str
    """Where, as messages say it: `deepconf.json`, `--set`, or `OPTIONS`."""
    settings: Mapping[str, Any]
    for_all: bool = False
    """Whether it is meant for all policies, so that an offline one takes what it has a use for."""

    def of(self, name: str) -> str:
        """Where one of them was given."""
        return f"--{name.replace('_', '-')}" if self.origin == OPTIONS else self.origin


@dataclass(frozen=True)
class InForce:
    """A policy, and where its settings come from."""

    policy: Policy
    origins: dict[str, str]
    """Of each setting that is not the preset's: where it was given."""


def of_traces(settings: Mapping[str, Any]) -> tuple[Layer, ...]:
    """What recorded traces say of any policy on them: their length, and how they were measured.

    Args:
        settings: of a trace file; `fewest` and `lengths` where it says no budget and no window,
            see `lab._reading.sized`.
    """
    found = recorded(settings)
    fit = fitting(settings.get("lengths", ()))
    fits = {} if "window" in found or "lengths" not in settings else {"window": fit, "tail": fit}
    fewest = settings.get("fewest")
    most = {"budget": min(fewest, Policy.low().budget)} if fewest else {}
    return (
        Layer("an eighth of the traces' length", fits, for_all=True),
        Layer("the fewest traces of a question", most, for_all=True),
        Layer("the recording", found, for_all=True),
    )


def build(
    names: Sequence[str],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    explicit: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]] = {},
    origin: str = FILE,
    **more: Any,
) -> dict[str, Policy]:
    """The policies asked for, by name: those of `in_force`, without their origins."""
    every = in_force(names, defaults, options, explicit, own, origin, **more)
    return {name: found.policy for name, found in every.items()}


def in_force(
    names: Sequence[str],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    explicit: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]] = {},
    origin: str = FILE,
    *,
    below: Sequence[Layer] = (),
    grid: Mapping[str, Any] = {},
) -> dict[str, InForce]:
    """The policies asked for, by name, and where their settings come from.

    Where a budget is given and no warmup with it, it warms up with a quarter of its traces at the
    most: a preset's warmup, and the default of a file under an option, are for larger budgets.

    Args:
        names: presets, or policies of the settings file.
        defaults: from the settings file.
        options: from options, which win over it. Like the defaults, those that mean nothing to an
            offline policy do not touch it.
        explicit: from `--set`, which wins over all and applies to every policy.
        own: the policies of the settings file, which win over its defaults.
        origin: what the defaults are from.
        below: what wins over a preset only.
        grid: of one place of a grid, which wins over all.

    Raises:
        InvalidInput: a policy does not exist, a setting is wrong, or two policies are the same. The
            message says where the settings that it names were given.
    """
    found: dict[str, InForce] = {}
    presets = Policy.presets()
    for name in names:
        if name not in presets and name not in own:
            every = ", ".join([*presets, *own])
            raise UnknownPreset(
                f"--policy {name}: there is no such policy, but {every}; for several, give "
                "--policy again"
            )
        mine = dict(own.get(name, {}))
        preset = mine.pop("preset", "low") if name in own else name
        built = _built(
            preset,
            (*below, Layer(origin, defaults, for_all=True)),
            (
                Layer(f"the policy {name} of {origin}", mine),
                Layer(OPTIONS, options, for_all=True),
                Layer("--set", explicit),
                Layer("--grid", grid, for_all=True),
            ),
        )
        for other, same in found.items():
            if same.policy == built.policy:
                raise InvalidInput(
                    f"policies {other} and {name} are the same with these settings, so there is "
                    "nothing to compare"
                )
        found[name] = built
    return found


def merged(*layers: Layer) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of layers, and where each was given."""
    settings = {name: value for layer in layers for name, value in layer.settings.items()}
    return settings, {name: layer.of(name) for layer in layers for name in layer.settings}


def in_words(
    policies: Mapping[str, InForce],
    others: Mapping[str, Any] = {},
    origins: Mapping[str, str] = {},
) -> str:
    """All that is in force and not a preset's, by where it was given.

    Args:
        policies: by label; what only some of them have is said to be theirs.
        others: further settings.
        origins: where those were given.
    """
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, found in policies.items():
        values = found.policy.as_dict()
        for name, origin in found.origins.items():
            where[origin, f"{name}={values[name]}"].append(label)
    for name, value in others.items():
        where[origins[name], f"{name}={value}"] = list(policies)
    groups: dict[str, list[str]] = defaultdict(list)
    for (origin, pair), labels in where.items():
        some = "" if len(labels) == len(policies) else f" in {' and '.join(labels)}"
        groups[origin].append(pair + some)
    return "; ".join(f"{', '.join(pairs)} ({origin})" for origin, pairs in groups.items())


def _built(preset: str, defaults: Sequence[Layer], given: Sequence[Layer]) -> InForce:
    """A preset with these layers over it: what is for policies at large, then what is for it."""
    policy = Policy.preset(preset)
    layers = [*defaults, *given]
    mode = merged(*layers)[0].get("mode", policy.mode)
    if mode == "offline":
        layers = [_without_online(layer) if layer.for_all else layer for layer in layers]
    settings, origins = merged(*layers)
    if mode == "offline" != policy.mode:  # What the preset says of them is for runs online.
        plain = Policy.offline().as_dict()
        settings = {name: plain[name] for name in _ONLINE} | settings
    _lower_warmup(layers, len(defaults), settings)
    try:
        made = policy.replace(**settings)
    except (InvalidInput, InvalidType) as error:
        raise type(error)(_placed(str(error), preset, policy, origins)) from None
    default = merged(*layers)[0].get("warmup", policy.warmup)
    if made.mode == "online" and made.warmup != default:
        origins["warmup"] = "a quarter of the budget"
    return InForce(made, origins)


def _without_online(layer: Layer) -> Layer:
    useful = {name: value for name, value in layer.settings.items() if name not in _ONLINE}
    return Layer(layer.origin, useful)


def _lower_warmup(layers: Sequence[Layer], defaults: int, settings: dict[str, Any]) -> None:
    """As a policy lowers the warmup of its preset: that of a default, where a later budget is less.

    Args:
        layers: all there are.
        defaults: how many of them are defaults.
        settings: of all layers.
    """

    def place(name: str) -> int:
        return max((at for at, layer in enumerate(layers) if name in layer.settings), default=-1)

    budget, warmup = settings.get("budget"), settings.get("warmup")
    if not 0 <= place("warmup") < min(defaults, place("budget")):
        return
    if type(budget) is int and type(warmup) is int:  # Else it is said where the policy is made.
        settings["warmup"] = min(warmup, max(1, budget // 4))


def _placed(message: str, preset: str, policy: Policy, origins: Mapping[str, str]) -> str:
    """A message about settings, and where those were given that it names."""
    if message.startswith("unknown setting"):  # And lists those that there are.
        given = next((origins[name] for name in origins if f'"{name}"' in message), None)
        return f"{message} (from {given})" if given else message
    about = message.partition("must be one of")[0]  # What it must be may be called as a setting is.
    words = set(re.findall(r"\w+", about))
    named = [name for name in policy.as_dict() if name in words]
    where = [f"{name} is from {origins.get(name, f'the preset {preset}')}" for name in named]
    return f"{message} ({', '.join(where)})" if where else message
