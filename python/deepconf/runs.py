"""Run files: what an evaluation has finished, one JSON line for each policy and question.

The first line says what was run; each further line is one finished question under one policy. A
line is written in one piece and forced to disk, so a process that is killed loses the questions it
was working on and no others. Opening the file again carries on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepconf._locked import LockedFile
from deepconf.errors import InvalidInput, RunFileError

__all__ = ["FORMAT", "RunFile", "differing"]

FORMAT = 2
"""The number in the first line, `{"deepconf_run": 2, ...}`."""

_START = b'{"deepconf_run": '
# What a first line may say otherwise without the results being another run's.
_FREE = ("deepconf_run", "versions", "policies", "capabilities")
_ADVICE = "choose another --out, or --overwrite"


class RunFile(LockedFile):
    """A run file, open for reading and appending, locked against other processes.

    Args:
        path: where it is or is to be; missing folders are made.
        header: what is run, as JSON values: `model`, `policies` and whatever else must be the same
            for results to go together.
        overwrite: starts anew where the file holds another run, or this one. What is there is kept
            until `begin`.

    Attributes:
        records: the lines there are, in order; `append` adds to them.
        torn: bytes of an unfinished last line that were dropped.

    Raises:
        InvalidInput: the header is no JSON.
        MissingExtra: the file system has no locks, and filelock is not installed.
        RunFileError: it cannot be read or written, is no run file, holds another run, is damaged,
            or is open elsewhere.
    """

    def __init__(
        self, path: str | Path, header: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.header = dict(header)
        _check_json(self.header)
        self.records: list[dict[str, Any]] = []
        self.torn = 0
        self._anew = False
        super().__init__(path, "run file", "--out")
        try:
            self._take_up(overwrite)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """With `overwrite`, lets go of what is there; to be called when work can start.

        Raises:
            RunFileError: it cannot be written.
        """
        if self._anew:
            self.truncate(0)
            self.write(_line({"deepconf_run": FORMAT, **self.header}))
            self._anew = False

    def note(self, **notes: Any) -> None:
        """Adds to the first line what is written down and not compared.

        Where something is finished already, the first line stays as it is.
        """
        if not self.records or self._anew:
            self.header |= notes
            self._anew = True

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line; when this returns, the line is on the disk.

        Raises:
            RunFileError: it could not be written; the file is then as it was.
        """
        self.begin()
        self.write(_line(record))
        self.records.append(dict(record))

    def __enter__(self) -> RunFile:
        return self

    def _take_up(self, overwrite: bool) -> None:
        """Reads what is there, or writes the first line."""
        content = self._read() if self._regular else b""
        if content and not content.startswith(_START) and not _START.startswith(content):
            raise RunFileError(
                f"{self.path}: not a run file, and left as it is: choose another --out"
            )
        whole = content.rfind(b"\n") + 1
        self.torn = len(content) - whole
        lines = content[:whole].splitlines()
        if overwrite or len(lines) <= 1:
            self.torn = 0
            self._anew = True
            if len(lines) <= 1:  # Nothing has finished, so nothing can be lost ...
                if lines and not overwrite:
                    self._parse(lines[0], 1)  # ... unless a damaged line end hides what has.
                self.begin()
            return
        parsed = [self._parse(line, number) for number, line in enumerate(lines, start=1)]
        if parsed[0].get("deepconf_run") != FORMAT:
            raise RunFileError(
                f"{self.path}: a run file of format {parsed[0].get('deepconf_run')!r}, and this "
                f"version of deepconf reads format {FORMAT}: {_ADVICE}"
            )
        for number, record in enumerate(parsed[1:], start=2):
            kinds = (("policy", str), ("id", str), ("result", dict))
            if not all(isinstance(record.get(key), kind) for key, kind in kinds):
                raise self._damaged(number, "it is no result: policy, id or result is missing")
        self._check(parsed[0], parsed[1:])
        self.records = parsed[1:]
        if self.torn:
            self.truncate(whole)

    def _read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise self.error("cannot be read", error) from error

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number, str(error)) from error
        if not isinstance(value, dict):
            raise self._damaged(number, "it is not a JSON object")
        return value

    def _check(self, found: dict[str, Any], records: list[dict[str, Any]]) -> None:
        wanted = json.loads(json.dumps(self.header))
        differences = differing(found, wanted)
        there = found.get("policies") or {}
        if not isinstance(there, dict):
            raise self._damaged(1, "its policies are not a JSON object")
        policies = dict(there)
        for record in records:
            # A policy that was asked for later stands in its results only.
            policies.setdefault(record["policy"], record["result"].get("policy"))
        for label, policy in wanted.get("policies", {}).items():
            if label in policies:
                differences += _differences(policies[label], policy, f"policy {label}: ")
        if differences:
            raise RunFileError(
                f"{self.path} holds another run ({'; '.join(differences)}): {_ADVICE}"
            )

    def _damaged(self, number: int, why: str) -> RunFileError:
        return RunFileError(
            f"{self.path}, line {number}: damaged ({why}); a line cut short at the end would have "
            f"been redone, but this one has its end: {_ADVICE}"
        )


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any], name: str = "") -> list[str]:
    """What tells two headers apart, or two policies, each as words that begin with `name`.

    The policies in two headers are not looked at.
    """
    theirs, ours = dict(theirs), dict(ours)
    mark = theirs.get("model_fingerprint")
    # A model whose files are the same is the same model, wherever it stands.
    same_weights = mark is not None and mark == ours.get("model_fingerprint")
    for free in (*_FREE, "model") if same_weights else _FREE:
        theirs.pop(free, None)
        ours.pop(free, None)
    return _differences(theirs, ours, name)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _check_json(value: Any, name: str = "") -> None:
    """Raises `InvalidInput` that names what cannot be written as JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidInput(f"{name} has the key {key!r}: must be a string")
            _check_json(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check_json(item, f"{name}[{place}]")
    elif value is not None and not isinstance(value, str | int | float):
        raise InvalidInput(
            f"{name} is {value!r}: must be a JSON value, since the run file says what was run"
        )


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """What is not the same, each as `name: theirs there, ours here`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [*theirs, *(key for key in ours if key not in theirs)]
        prefix = name if not name or name.endswith(" ") else f"{name}."
        return [
            difference
            for key in keys
            for difference in _differences(theirs.get(key), ours.get(key), f"{prefix}{key}")
        ]
    if theirs == ours:
        return []
    there, here = ("unset" if value is None else repr(value) for value in (theirs, ours))
    return [f"{name} is {there} there and {here} here"]
