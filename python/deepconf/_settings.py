"""What settings files and options say; which of it wins: `_layers`."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepconf._core import Policy
from deepconf.errors import InvalidInput, RunFileError

__all__ = [
    "FILE",
    "Defaults",
    "axes",
    "check_target",
    "describe",
    "engine_args",
    "find",
    "json_object",
    "pairs",
    "read",
    "recorded",
    "store",
]

FILE = "deepconf.json"
"""What a settings file is called."""
# The settings on which what a trace file holds depends, or its scores do.
_MEASURED = ("top_logprobs", "entries", "logprob_floor", "window", "tail", "bottom")
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
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Policies of its own, by name: settings over those of their `preset`."""
    chosen: str | None = None
    """The policy that is taken where none is asked for."""

    @property
    def origin(self) -> str:
        """Where what it says comes from, in words; without a file, from what is replayed."""
        return "the recording" if self.path is None else str(_short(self.path))


def _short(path: Path) -> Path:
    """Relative to where we are, if it is below."""
    with contextlib.suppress(ValueError, OSError):
        return path.resolve().relative_to(Path.cwd().resolve())
    return path


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
    return Defaults() if path is None else read(path)


def read(path: Path) -> Defaults:
    """A settings file.

    Raises:
        InvalidInput: it cannot be read, or has a key that means nothing.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path}: must be a JSON object of settings")
    parts = {name: found.pop(name, {}) for name in ("sampling", "engine", "policies")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise InvalidInput(f"{path}: {name} is {part!r}: must be an object")
    chosen = found.pop("policy", None)
    _check_keys(found, f"{path}", "sampling", "engine", "policies", "policy")
    presets = Policy.presets()
    for name, settings in parts["policies"].items():
        place = f"{path}: policies: {name}"
        if name in presets:
            raise InvalidInput(f"{place}: is the name of a preset: choose another")
        if not isinstance(settings, dict):
            raise InvalidInput(f"{place} is {settings!r}: must be an object of settings")
        _check_keys({key for key in settings if key != "preset"}, place, "preset")
        if settings.get("preset", "low") not in presets:
            names = ", ".join(presets)
            raise InvalidInput(f"{place}: preset is {settings['preset']!r}: must be one of {names}")
    every = [*presets, *parts["policies"]]
    if chosen is not None and chosen not in every:
        raise InvalidInput(f"{path}: policy is {chosen!r}: must be one of {', '.join(every)}")
    return Defaults(path, found, **parts, chosen=chosen)


def _check_keys(keys: Iterable[str], place: str, *others: str) -> None:
    known = Policy.low().as_dict()
    for name in keys:
        if name not in known:
            names = ", ".join([*others, *known])
            raise InvalidInput(f"{place}: unknown key {name!r}: the keys are {names}")


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings of a trace file say of any policy on it: how it was measured, its budget.

    >>> recorded({"k": 10, "window": 32, "model": "tiny"})
    {'top_logprobs': 10, 'window': 32}
    """
    names = {"k": "top_logprobs", "entries": "entries", "window": "window"}
    found = {to: settings[name] for name, to in names.items() if settings.get(name) is not None}
    policy = settings.get("policy") or {}
    return found | {name: policy[name] for name in (*_MEASURED, "budget") if name in policy}


def describe(policy: Policy, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A policy as a settings file with these defaults names it: a preset, and what differs.

    Of the presets, the one from which the fewest settings differ.
    """
    wanted = policy.as_dict()
    presets = {name: Policy.preset(name).as_dict() for name in Policy.presets()}
    name = min(presets, key=lambda name: sum(presets[name][key] != wanted[key] for key in wanted))
    # A default of the file would come between a preset and what is left out here.
    return {"preset": name} | {
        key: value
        for key, value in wanted.items()
        if presets[name][key] != value or defaults.get(key, value) != value
    }


def check_target(path: Path, name: str) -> dict[str, Any]:
    """Before hours are spent: whether a policy of this name can be stored in this settings file.

    Returns:
        What the file holds; nothing where there is none yet.

    Raises:
        InvalidInput: `name` is none, or that of a preset, or the file is none of settings.
        RunFileError: there can be no such file.
    """
    if not isinstance(name, str) or not name.strip() or name in Policy.presets():
        raise InvalidInput(f"name={name!r}: must be a name, and not that of a preset")
    path = path.expanduser()
    if path.suffix.lower() != ".json" and not path.is_dir():
        raise InvalidInput(f"{path}: a file of settings ends in .json, such as deepconf.json")
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise RunFileError(f"{path}: cannot be written: {why}")
    if not path.exists():
        return {}
    read(path)  # Says what is wrong with it.
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def store(path: Path, name: str, policy: Policy) -> None:
    """Adds a policy to a settings file, and chooses it there; what else it holds stays.

    Raises:
        InvalidInput: as `check_target`.
        RunFileError: it cannot be written; what was there is as it was.
    """
    content = check_target(path, name)
    path = path.expanduser()
    defaults = read(path).policy if path.exists() else {}
    content.setdefault("policies", {})[name] = describe(policy, defaults)
    content["policy"] = name
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunFileError(f"{path}: cannot be written: {error}") from error


def axes(given: Iterable[str], option: str) -> dict[str, list[Any]]:
    """`NAME=VALUE,VALUE,...` options as lists; a name that is given again goes on.

    >>> axes(["keep=0.1,0.5", "stop=consensus,budget", "keep=0.9"], "--grid")
    {'keep': [0.1, 0.5, 0.9], 'stop': ['consensus', 'budget']}

    Raises:
        InvalidInput: one has no name, no `=`, no value, or a value twice.
    """
    found: dict[str, list[Any]] = {}
    for pair in given:
        name, equals, values = pair.partition("=")
        if not equals or not name.strip() or not all(v.strip() for v in values.split(",")):
            raise InvalidInput(f"{option} {pair!r}: must be NAME=VALUE,VALUE,...")
        if re.fullmatch(r"[-+.\d:]+:[-+.\d]+", values):
            listed = values.replace(":", ",")
            raise InvalidInput(
                f"{option} {pair!r}: is no range: name each value, as {name}={listed}"
            )
        known = found.setdefault(name.strip().replace("-", "_"), [])
        for value in map(_value, map(str.strip, values.split(","))):
            if value in known:
                raise InvalidInput(f"{option} {pair!r}: has {value!r} twice")
            known.append(value)
    return found


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
