"""Run files: what an evaluation has finished, one JSON line for each policy and question.

The first line says what was run; each further line is one finished question under one policy. A
line is written in one piece and forced to disk, so a process that is killed loses the questions it
was working on and no others. Opening the file again carries on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from deepconf.errors import InvalidInput, MissingExtra, RunFileError

__all__ = ["FORMAT", "RunFile"]

FORMAT = 2
"""The number in the first line, `{"deepconf_run": 2, ...}`."""

_START = b'{"deepconf_run": '
# What a first line may say otherwise without the results being another run's.
_FREE = ("deepconf_run", "versions", "policies")
# A child that is forked while a file is open must not hold its lock when this process is gone.
_OPEN: weakref.WeakSet[RunFile] = weakref.WeakSet()
_ADVICE = "choose another --out, or --overwrite"
# What `flock` says where there are no such locks; anything else is a fault.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class RunFile:
    """A run file, open for reading and appending, locked against other processes.

    On a file system without locks a file beside it, `PATH.lock`, says who is writing; one that was
    left by a process of this machine that is gone counts for nothing.

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
        self.path = Path(path).expanduser()
        self.header = dict(header)
        _check_json(self.header)
        self.records: list[dict[str, Any]] = []
        self.torn = 0
        self._anew = False
        self._lock_file: Any = None
        self._fd = self._open()
        _OPEN.add(self)
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
            self._truncate(0)
            self._write({"deepconf_run": FORMAT, **self.header})
            self._anew = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line; when this returns, the line is on the disk.

        Raises:
            RunFileError: it could not be written; the file is then as it was.
        """
        self.begin()
        self._write(record)
        self.records.append(dict(record))

    def close(self) -> None:
        """Closes the file and lets go of the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lock_file is not None:
            self._lock_file.release()
            self._lock_file = None

    def __enter__(self) -> RunFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise self._error("cannot be opened", error) from error
        try:
            self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
            self._lock(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lock(self, fd: int) -> None:
        try:
            import fcntl
        except ImportError:  # No advisory locks on this platform.
            self._lock_beside()
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._taken() from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise self._error("cannot be locked", error) from error
            if self._regular:
                self._lock_beside()

    def _lock_beside(self) -> None:
        """Locks by a file that says who we are, where the file system has no locks."""
        try:
            from filelock import SoftFileLock, Timeout
        except ImportError as error:
            raise MissingExtra("cli", "filelock") from error
        beside = f"{self.path}.lock"
        lock = SoftFileLock(beside, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise self._taken(
                f" ({' '.join(str(error).split())} If that process is gone, delete {beside})"
            ) from error
        except OSError as error:
            raise self._error("cannot be locked", error) from error
        self._lock_file = lock

    def _taken(self, more: str = "") -> RunFileError:
        return RunFileError(
            f"{self.path}: another process is writing this run file{more}: wait for it, or choose "
            f"another --out"
        )

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
            self._truncate(whole)

    def _read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise self._error("cannot be read", error) from error

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
        theirs, ours = dict(found), dict(wanted)
        _same_weights(theirs, ours)
        for free in _FREE:
            theirs.pop(free, None)
            ours.pop(free, None)
        differences = _differences(theirs, ours)
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

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        before = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written")
            if self._regular:
                os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(RunFileError):
                self._truncate(before)
            raise self._error("cannot be written", error) from error

    def _truncate(self, size: int) -> None:
        if not self._regular:
            return
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise self._error("cannot be written", error) from error

    def _error(self, what: str, error: OSError) -> RunFileError:
        return RunFileError(f"{self.path}: {what}: {error.strerror or error}")

    def _damaged(self, number: int, why: str) -> RunFileError:
        return RunFileError(
            f"{self.path}, line {number}: damaged ({why}); a line cut short at the end would have "
            f"been redone, but this one has its end: {_ADVICE}"
        )


def _close_after_fork() -> None:
    for file in list(_OPEN):
        file._lock_file = None  # It is the parent's, who has not let go of it.
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_after_fork)


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


def _same_weights(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """A model whose files are the same is the same model, wherever it stands."""
    mark = theirs.get("model_fingerprint")
    if mark is not None and mark == ours.get("model_fingerprint"):
        for header in (theirs, ours):
            header.pop("model", None)


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
