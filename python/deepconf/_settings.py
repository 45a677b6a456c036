"""Where the command line gets its settings: presets, `deepconf.json`, options, `--set`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepconf._core import Policy
from deepconf.errors import InvalidInput

__all__ = ["Defaults", "build", "engine_args", "find", "json_object", "pairs"]

FILE = "deepconf.json"
# What an offline policy has no use for: it stops nothing and runs to the end of its budget.
_ONLINE = ("warmup", "stop")
# What an engine takes that is no argument of vLLM's, and how to say it here.
_NOT_VLLM = {
    "model": "it is --model",
    "self": "there is no such argument",
    "sampling": "use --sampling, or the object sampling in deepconf.json",
    "chat": "use --chat or --no-chat",
    "chat_template_kwargs": "use --chat-template-kwargs",
}


@dataclass(frozen=True)
class Defaults:
    """What a settings file says, or nothing."""

    path: Path | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As `name=value`, in the order of the file."""
        named = self.policy | self.sampling | self.engine
        return ", ".join(f"{name}={value}" for name, value in named.items())


def find(model: str) -> Defaults:
    """The settings file in a local model's folder or beside it.

    Raises:
        InvalidInput: there is one, and it cannot be read or has a key that means nothing.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return Defaults()
    folder = folder.resolve()
    path = next((p for p in (folder / FILE, folder.parent / FILE) if p.is_file()), None)
    if path is None:
        return Defaults()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path}: must be a JSON object of settings")
    parts = {name: found.pop(name, {}) for name in ("sampling", "engine")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise InvalidInput(f"{path}: {name} is {part!r}: must be an object")
    known = Policy.low().as_dict()
    for name in found:
        if name not in known:
            names = ", ".join(["sampling", "engine", *known])
            raise InvalidInput(f"{path}: unknown key {name!r}: the keys are {names}")
    return Defaults(path, found, **parts)


def pairs(given: Iterable[str], option: str) -> dict[str, Any]:
    """`NAME=VALUE` options as a dict; a value is JSON or a Python literal, else a string.

    >>> pairs(["keep=0.2", "stop=budget", "concurrency=null"], "--set")
    {'keep': 0.2, 'stop': 'budget', 'concurrency': None}

    Raises:
        InvalidInput: one has no name or no `=`.
    """
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InvalidInput(f"{option} {pair!r}: must be NAME=VALUE")
        found[name.strip().replace("-", "_")] = _value(value.strip())
    return found


def engine_args(defaults: Defaults, given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments of the settings file and of `--engine-arg`, which wins.

    Raises:
        InvalidInput: one is no argument of vLLM's, and has an option of its own.
    """
    for place, names in (("--engine-arg", given), (f"{defaults.path}: engine", defaults.engine)):
        for name in names:
            if name in _NOT_VLLM:
                raise InvalidInput(f"{place} {name!r}: cannot be set there: {_NOT_VLLM[name]}")
    return {**defaults.engine, **given}


def json_object(text: str | None, option: str) -> dict[str, Any]:
    """A JSON object given as an option; empty where it was not given.

    Raises:
        InvalidInput: it is none.
    """
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{option} {text!r}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{option} {text!r}: must be a JSON object")
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def build(
    names: Sequence[str],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    explicit: Mapping[str, Any],
) -> dict[str, Policy]:
    """The policies asked for, by name.

    Args:
        names: presets.
        defaults: from the settings file.
        options: from options, which win over it. Like the defaults, those that mean nothing to an
            offline policy do not touch it.
        explicit: from `--set`, which wins over all and applies to every policy.

    Raises:
        InvalidInput: a preset does not exist, a setting is wrong, or two policies are the same.
    """
    policies: dict[str, Policy] = {}
    for name in names:
        policy = Policy.preset(name)
        settings = {**defaults, **options}
        if {**settings, **explicit}.get("mode", policy.mode) == "offline":
            settings = {key: value for key, value in settings.items() if key not in _ONLINE}
        policy = policy.replace(**{**settings, **explicit})
        for other, same in policies.items():
            if policy == same:
                raise InvalidInput(
                    f"policies {other} and {name} are the same with these settings, so there is "
                    f"nothing to compare"
                )
        policies[name] = policy
    return policies
