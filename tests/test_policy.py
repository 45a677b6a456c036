"""Policies: presets, settings in and out, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from deepconf import Policy
from deepconf.errors import DeepConfError, InvalidInput, InvalidType, UnknownPreset

# Each setting, and a value that no preset has.
CHANGED: dict[str, Any] = {
    "mode": "offline",
    "budget": 100,
    "warmup": 0,
    "concurrency": 3,
    "seed": 2**63 - 256,
    "top_logprobs": 5,
    "entries": "returned",
    "logprob_floor": -50.5,
    "decimals": 4,
    "window": 2**31,
    "tail": 77,
    "bottom": 0.5,
    "keep": 0.375,
    "measure": "tail",
    "weight": "mean",
    "max_weight": 12.5,
    "stop": "budget",
    "consensus": 0.75,
    "min_ballots": 9,
    "calibrate_on": "all",
    "percentile_over": "all",
    "stopped_vote": True,
}


def test_every_setting_reads_back() -> None:
    policy = Policy(**CHANGED)
    assert policy.as_dict() == CHANGED
    assert {name: getattr(policy, name) for name in CHANGED} == CHANGED
    assert set(CHANGED) <= set(dir(policy))


@pytest.mark.parametrize("name", CHANGED)
def test_every_setting_is_documented_and_read_only(name: str) -> None:
    assert getattr(Policy, name).__doc__
    with pytest.raises(AttributeError):
        setattr(Policy.low(), name, CHANGED[name])


def test_a_setting_that_does_not_exist_cannot_be_read() -> None:
    with pytest.raises(AttributeError, match="windo"):
        _ = Policy.low().windo  # type: ignore[attr-defined]


COMMON = {"mode": "online", "budget": 256, "warmup": 16, "window": 2048, "top_logprobs": 20}
PAPER = {**COMMON, "min_ballots": 0, "percentile_over": "all", "stop": "consensus"}
OFFICIAL = {
    **COMMON,
    "entries": "returned",
    "decimals": 3,
    "weight": "majority",
    "stop": "budget",
    "calibrate_on": "all",
    "stopped_vote": True,
    "min_ballots": 0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "low": {**COMMON, "keep": 0.1, "weight": "lowest_group", "consensus": 0.95, "min_ballots": 3},
    "high": {**COMMON, "keep": 0.9, "weight": "lowest_group", "stop": "consensus"},
    "offline": {"mode": "offline", "warmup": 0, "keep": 0.1, "measure": "bottom_group"},
    "paper-low": {**PAPER, "keep": 0.1},
    "paper-high": {**PAPER, "keep": 0.9},
    "official-low": {**OFFICIAL, "keep": 0.1},
    "official-high": {**OFFICIAL, "keep": 0.9},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_they_are_called(name: str) -> None:
    found = Policy.preset(name).as_dict()
    assert {key: found[key] for key in PRESETS[name]} == PRESETS[name]


def test_presets_by_name_and_by_method() -> None:
    assert Policy.presets() == list(PRESETS)
    assert Policy() == Policy.low() == Policy.preset("low")
    assert Policy.high(seed=3) == Policy.preset("high", seed=3)
    assert Policy.offline(keep=0.5) == Policy.preset("offline", keep=0.5)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(UnknownPreset, match='"lo": the presets are low, high, offline, paper-low'):
        Policy.preset("lo")


def test_replacing_leaves_the_original() -> None:
    policy = Policy.low()
    other = policy.replace(window=64, keep=0.25)
    assert (other.window, other.keep, policy.window, policy.keep) == (64, 0.25, 2048, 0.1)
    assert other.replace(window=2048, keep=0.1) == policy
    with pytest.raises(InvalidInput):
        policy.replace(window=0)


@pytest.mark.parametrize("policy", [*map(Policy.preset, PRESETS), Policy(**CHANGED)], ids=str)
@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda policy: pickle.loads(pickle.dumps(policy)),
        lambda policy: eval(repr(policy), {"Policy": Policy}),
        lambda policy: Policy(**policy.as_dict()),
    ],
    ids=["copy", "deepcopy", "pickle", "repr", "as_dict"],
)
def test_a_copy_is_equal_and_hashes_alike(
    policy: Policy, again: Callable[[Policy], Policy]
) -> None:
    other = again(policy)
    assert (other, hash(other)) == (policy, hash(policy))


def test_every_setting_counts_in_a_comparison() -> None:
    policy = Policy.low(warmup=0, mode="offline", stop="budget")
    for name, value in CHANGED.items():
        if getattr(policy, name) != value:
            assert policy.replace(**{name: value}) != policy, name
    assert policy != "low"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("kind", [np.int32, np.uint64, np.int8])
def test_whole_numbers_of_numpy_are_taken(kind: Any) -> None:
    assert Policy.low(window=kind(7)).window == 7
    assert Policy.low(keep=np.float32(0.5)).keep == 0.5


BAD: list[tuple[dict[str, Any], type[DeepConfError], str]] = [
    ({"windo": 3}, InvalidType, r'unknown setting "windo": did you mean window\? The settings'),
    ({"window": "3"}, InvalidType, "window='3' is a text: must be a whole number"),
    ({"window": 2.5}, InvalidType, "window=2.5 is a float"),
    ({"window": None}, InvalidType, "window=None"),
    ({"window": -1}, InvalidInput, "window=-1: out of range, or negative"),
    ({"window": 0}, InvalidInput, "window=0: must be between 1 and 2147483648"),
    ({"tail": 2**31 + 1}, InvalidInput, "tail=2147483649"),
    ({"seed": 2**64}, InvalidInput, "seed=18446744073709551616: out of range"),
    ({"mode": "x"}, InvalidInput, 'mode="x": must be one of online, offline'),
    ({"mode": 3}, InvalidType, "mode=3 is a .*: must be a string"),
    ({"entries": "all"}, InvalidInput, "must be one of topk, returned"),
    ({"measure": "max"}, InvalidInput, "must be one of mean, lowest_group, bottom_group, tail"),
    ({"weight": ""}, InvalidInput, "must be one of majority, mean, lowest_group"),
    ({"stop": "now"}, InvalidInput, "must be one of consensus, certain, budget"),
    ({"calibrate_on": "some"}, InvalidInput, "must be one of finished, all"),
    ({"percentile_over": "some"}, InvalidInput, "must be one of answered, all"),
    ({"bottom": "x"}, InvalidType, "bottom='x' is a text: must be a number"),
    ({"bottom": 0}, InvalidInput, r"bottom=0: .* in \(0, 1\]"),
    ({"keep": 1.01}, InvalidInput, "keep=1.01"),
    ({"consensus": 0}, InvalidInput, "consensus=0: must be a share of the vote"),
    ({"max_weight": -1}, InvalidInput, "max_weight=-1: must be finite and above 0"),
    ({"logprob_floor": 1}, InvalidInput, "logprob_floor=1: must be a finite negative"),
    ({"decimals": 10}, InvalidInput, "decimals=10: must be 9 at the most"),
    ({"stopped_vote": 1}, InvalidType, "stopped_vote=1 is a .*: must be True or False"),
    ({"budget": 0}, InvalidInput, "budget=0: must be between 1 and 1000000 traces"),
    ({"top_logprobs": 1}, InvalidInput, "top_logprobs=1: must be at least 2: minus the log-prob"),
    ({"seed": 2**63 - 255}, InvalidInput, r"seed=\d+: seed \+ budget .* must not exceed 2\^63"),
    ({"budget": 15, "warmup": 16}, InvalidInput, "warmup=16: must not exceed the budget of 15"),
    ({"concurrency": 0}, InvalidInput, "concurrency=0"),
    ({"top_logprobs": 0}, InvalidInput, "top_logprobs=0"),
    ({"warmup": 0}, InvalidInput, "warmup=0: online, at least 1"),
    ({"mode": "offline"}, InvalidInput, "warmup=16: must be 0 offline"),
    ({"mode": "offline", "warmup": 0, "stop": "certain"}, InvalidInput, 'stop="certain"'),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD)
def test_a_wrong_setting_is_refused_by_name(
    settings: dict[str, Any], error: type[DeepConfError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Policy.low(**settings)
    with pytest.raises(error, match=message):
        Policy.low().replace(**settings)


def test_a_warmup_that_is_not_given_is_at_most_a_quarter_of_the_budget() -> None:
    budgets = {256: 16, 64: 16, 63: 15, 8: 2, 3: 1, 1: 1}
    for budget, warmup in budgets.items():
        for policy in (Policy.low(budget=budget), Policy.low().replace(budget=budget)):
            assert policy.warmup == warmup
            assert f"warmup={warmup}," in repr(policy)
    small = Policy.preset("official-low", budget=8)
    assert (small.warmup, small.replace(budget=64).warmup) == (2, 16)
    assert small == Policy.preset("official-low", budget=8, warmup=2)
    assert hash(small) == hash(Policy.preset("official-low", budget=8, warmup=2))
    assert Policy.offline(budget=8).warmup == 0


def test_a_warmup_that_is_given_stays() -> None:
    given = Policy.low(budget=64, warmup=16)
    assert given.replace(budget=16).warmup == 16
    assert Policy.low(warmup=8).replace(keep=0.5).warmup == 8
    with pytest.raises(InvalidInput, match="warmup=16: must not exceed the budget of 8"):
        given.replace(budget=8)


@pytest.mark.parametrize("policy", [Policy.low(budget=8), Policy.low(budget=8, warmup=4)])
def test_a_copy_knows_whether_the_warmup_was_given(policy: Policy) -> None:
    again = pickle.loads(pickle.dumps(policy))
    assert again == policy
    assert again.replace(budget=64) == policy.replace(budget=64)


def test_a_setting_that_nearly_exists_is_suggested() -> None:
    with pytest.raises(InvalidType, match=r"did you mean window\?"):
        Policy.low(windw=2)
    with pytest.raises(InvalidType, match=r'unknown setting "zzz": The settings are mode'):
        Policy.low(zzz=2)
