"""Helper processes: a place for work that may run for ever or eat all memory, and can be killed.

`run` gives a function's name and JSON arguments to one of two processes, which all questions of
this process share, and returns a future. A helper imports nothing of the user's program, takes no
Ctrl-C, has a limit on its memory, and dies with its parent, however that ends. It is killed when a
task exceeds its time, and another takes its place.

Linux kills a helper when the *thread* that started it ends. So each helper has a thread of its own
here, which starts it, talks to it and lives as long as the process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Failed", "TimedOut", "Unavailable", "last_match", "run"]

_HELPERS = 2
_STARTUP = 60.0  # Seconds to start and import, which no task should pay for.
_MEMORY = 4 << 30  # Bytes of address space; the algebra itself takes a tenth.


class TimedOut(Exception):
    """The task took too long; its helper was killed."""


class Failed(Exception):
    """The task raised an exception, or its helper died of it; says which."""


class Unavailable(Exception):
    """No helper could be started, or it lacks the task's module; says why."""


class _Died(Exception):
    """The helper is gone."""


@dataclass
class _Task:
    name: str
    arguments: tuple[Any, ...]
    limit: float
    future: Future[Any] = field(default_factory=Future)


def run(name: str, *arguments: Any, limit: float) -> Future[Any]:
    """Has a helper call a function.

    Args:
        name: "module:function".
        arguments: what JSON can say.
        limit: seconds the call may take, from when it begins.

    Returns:
        What the function returns, as JSON has it. The future raises `TimedOut`, `Failed` or
        `Unavailable`; a call that has not begun can be cancelled.
    """
    task = _Task(name, arguments, limit)
    _Pool.shared().tasks.put(task)
    return task.future


# ---- here ---------------------------------------------------------------------------------------


class _Pool:
    _shared: _Pool | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self.closed = False
        self.helpers = [_Helper() for _ in range(_HELPERS)]
        for helper in self.helpers:
            threading.Thread(
                target=self._serve, args=(helper,), name="deepconf-helper", daemon=True
            ).start()

    @classmethod
    def shared(cls) -> _Pool:
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
                atexit.register(cls._shared.close)
            return cls._shared

    @classmethod
    def forget(cls) -> None:
        """After a fork the helpers are the parent's; a child that needs some has its own."""
        cls._lock = threading.Lock()
        if cls._shared is not None:
            atexit.unregister(cls._shared.close)
            for helper in cls._shared.helpers:
                helper.disown()
        cls._shared = None

    def close(self) -> None:
        self.closed = True
        for helper in self.helpers:
            helper.kill()

    def _serve(self, helper: _Helper) -> None:
        while not self.closed:
            task = self.tasks.get()
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                try:
                    value = helper.call(task)
                except _Died:  # Not by the task, as a rule: by whoever is short of memory.
                    if self.closed:
                        raise
                    value = helper.call(task)
            except _Died as error:
                task.future.set_exception(Failed(str(error)))
            except Exception as error:
                task.future.set_exception(error)
            else:
                task.future.set_result(value)


class _Helper:
    """One process, and the talk with it: a line of JSON each way."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def call(self, task: _Task) -> Any:
        process = self._started()
        with _Limit(process, _STARTUP) as startup:
            self._say(process, [task.name, task.arguments, task.limit])
            first = self._heard(process)
        if startup.exceeded:
            self._gone()
            raise Unavailable(f"a helper process did not start within {_STARTUP:g} s")
        if first is None:
            raise _Died(f"a helper process ended with code {self._gone()}")
        if "unavailable" in first:
            raise Unavailable(first["unavailable"])
        with _Limit(process, task.limit) as limit:
            reply = self._heard(process)
        if limit.exceeded:
            self._gone()
            raise TimedOut(f"{task.name} took more than {task.limit:g} s")
        if reply is None:
            raise _Died(f"a helper process ended with code {self._gone()}")
        if "failed" in reply:
            raise Failed(reply["failed"])
        return reply["value"]

    def kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def disown(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError, ValueError):
                    os.close(pipe.fileno())  # type: ignore[union-attr]
            process.returncode = 0  # Else its destructor would wait for a process of the parent.

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._gone()
        try:
            # Isolated: neither the directory we are in nor that of the script is on its path.
            process = subprocess.Popen(
                [sys.executable, "-I", __file__, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C in a terminal goes to the parent alone.
                # A thread pool for a machine's many cores would take the memory it may have.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except (OSError, TypeError) as error:
            raise Unavailable(f"a helper process does not start: {error}") from error
        self._process = process
        with _Limit(process, _STARTUP):
            self._say(process, _import_path())
            heard = self._heard(process)
        if heard is None:
            code = self._gone()
            raise Unavailable(f"a helper process does not start: it ended with code {code}")
        return process

    def _gone(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # What a dead process has not read is lost.
                pipe.close()  # type: ignore[union-attr]
        return process.returncode

    @staticmethod
    def _say(process: subprocess.Popen[str], what: Any) -> None:
        with contextlib.suppress(OSError):  # A dead process gives no reply either.
            process.stdin.write(json.dumps(what) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

    @staticmethod
    def _heard(process: subprocess.Popen[str]) -> dict[str, Any] | None:
        try:
            heard: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        except (OSError, ValueError):
            return None
        return heard


class _Limit:
    """Kills a process that is not done by then."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self.exceeded = False
        self._process = process
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._kill)
        self._timer.daemon = True

    def _kill(self) -> None:
        self.exceeded = True
        self._process.kill()

    def __enter__(self) -> _Limit:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()  # From here on `exceeded` does not change.


def _import_path() -> list[str]:
    """Where this process finds modules, less the directory it is in, which may hold anything."""
    here = os.getcwd() if os.path.exists(".") else None
    path = [p for p in sys.path if p and os.path.abspath(p) != here]
    ours = str(Path(__file__).parent.parent)
    return path if ours in path else [*path, ours]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Pool.forget)


# ---- in the helper ------------------------------------------------------------------------------


def _serve(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    _limit_memory()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What a library prints is no reply.

    def reply(**what: Any) -> None:
        replies.write(json.dumps(what) + "\n")
        replies.flush()

    sys.path[:] = json.loads(sys.stdin.readline())
    reply(started=True)
    for line in sys.stdin:
        name, arguments, limit = json.loads(line)
        module, _, function = name.partition(":")
        try:
            call = getattr(importlib.import_module(module), function)
        except BaseException as error:
            reply(unavailable=f"{module} cannot be imported: {error!r}")
            continue
        reply(began=True)
        _alarm(limit + 1)
        try:
            value = call(*arguments)
        except BaseException as error:
            reply(failed=f"{type(error).__name__}: {error}"[:1_000])
        else:
            reply(value=value)
        _alarm(0)


def _alarm(seconds: float) -> None:
    """The kernel ends what outlives its limit, and nobody there to kill it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e6))


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        # PR_SET_PDEATHSIG is 1. A thread could not watch while C code holds the interpreter.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if hasattr(os, "getppid") and sys.platform != "win32" and os.getppid() != parent:
        os._exit(1)  # It died before we asked.


def _watch(parent: int) -> None:
    while sys.platform == "win32" or os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def last_match(pattern: str, flags: int, group: str | int, text: str) -> str | None:
    """What a group of a regular expression holds where it matches last."""
    found = None
    for match in re.compile(pattern, flags).finditer(text):
        found = match[group]
    return found


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
