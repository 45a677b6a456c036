"""What is left when a process with an engine is ended from outside: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

psutil: Any = pytest.importorskip("psutil")

CLI = [sys.executable, "-m", "deepconf.cli"]
MODEL = TINY / "model"

# A family as vLLM's: our process, its child, and children of that.
FAMILY = """
import multiprocessing, os, subprocess, sys, threading, time

from deepconf.engines.vllm._guardian import Guardian


def core():
    workers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
               for _ in range(2)]
    print("pids", os.getpid(), *(worker.pid for worker in workers), flush=True)
    time.sleep(600)


def start(guardian, method):
    guardian.watch()
    multiprocessing.get_context(method).Process(target=core, daemon=False).start()


if __name__ == "__main__":
    how = sys.argv[2]
    guardian = Guardian()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                                close_fds=False, stdout=subprocess.DEVNULL)
    if how == "forked" and os.fork() == 0:
        time.sleep(600)
    thread = threading.Thread(target=start, args=(guardian, sys.argv[1]))
    thread.start()
    thread.join()
    print("stranger", stranger.pid, flush=True)
    sys.stdin.readline()
    if how == "done":
        guardian.close()
    os._exit(0)
"""


def until(true: Callable[[], object], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(processes: list[Any]) -> list[Any]:
    return [
        p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    ]  # A dead one that nobody waits for is a zombie in a container.


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize("how", ["killed", "forked", "exits", "done"])
def test_the_guardian_ends_what_is_left(tmp_path: Path, method: str, how: str) -> None:
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    with subprocess.Popen(
        [sys.executable, script, method, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        said: dict[str, list[int]] = {}
        while len(said) < 2:
            word, *pids = process.stdout.readline().split()
            said[word] = [int(pid) for pid in pids]
        everyone = psutil.Process(process.pid).children(recursive=True)
        engine = [psutil.Process(pid) for pid in said["pids"]]
        stranger = psutil.Process(said["stranger"][0])
        guardians = [p for p in everyone if "_guardian.py" in " ".join(p.cmdline())]
        try:
            assert len(guardians) == 1
            guardians[0].terminate()  # Which it does not heed.
            if how in ("exits", "done"):
                process.stdin.write("\n")
                process.stdin.flush()
            else:
                process.kill()
            process.wait()
            assert until(lambda: not alive(guardians))
            assert not alive(engine)
            assert alive([stranger])
        finally:
            for left in alive(everyone):
                left.kill()


def started(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        start_new_session=True,
    )


def family(process: subprocess.Popen[str]) -> list[Any]:
    return list(psutil.Process(process.pid).children(recursive=True))


def core_of(process: subprocess.Popen[str]) -> list[Any]:
    with_name = []
    for child in family(process):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "spawn_main" in command or "EngineCore" in command:
            with_name.append(child)
    return with_name


def assert_nothing_is_left(everyone: list[Any]) -> None:
    gone = until(lambda: not alive(everyone), 60)
    left = alive(everyone)
    for process in left:
        process.kill()
    assert gone, left


def test_a_kill_while_the_engine_starts_leaves_nothing() -> None:
    pytest.importorskip("vllm")
    process = started(*CLI, "think", "1*2=?", "-m", MODEL, "-p", "offline", "--budget", 8)
    assert until(lambda: core_of(process), 300)
    everyone = family(process)
    process.kill()
    process.communicate()
    assert_nothing_is_left(everyone)


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_while_it_generates_leaves_nothing(name: str, code: int, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    out = tmp_path / "run.jsonl"
    command = [*CLI, "eval", TINY / "questions.jsonl", "-m", MODEL, "-p", "offline", "--json"]
    process = started(*command, "--budget", 64, "--out", out, "--concurrency", 1)
    assert until(
        lambda: process.poll() is not None or (out.exists() and out.read_bytes().count(b"\n") > 1),
        300,
    )
    assert process.poll() is None, process.communicate()
    everyone = family(process)
    assert core_of(process)
    os.kill(process.pid, getattr(signal, name))
    table, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert_nothing_is_left(everyone)
    if code > 0:
        assert not json.loads(table)["complete"]
        assert err.splitlines()[-1] == "interrupted"
        assert "Traceback" not in err


GUARDED = """
import signal, sys, time

import typer
from deepconf._setup import guarded

@guarded
def command():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("closing", flush=True)
        time.sleep(float(sys.argv[1]))

if len(sys.argv) > 2:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    command()
except typer.Exit as end:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    sys.exit(end.exit_code)
"""


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, None, 143),
        (signal.SIGHUP, None, 129),
        (signal.SIGINT, None, 130),
        (signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGTERM, signal.SIGHUP, -signal.SIGHUP),
    ],
)
def test_a_second_signal_ends_at_once(
    first: signal.Signals, second: signal.Signals | None, code: int
) -> None:
    process = started(sys.executable, "-c", GUARDED, 60 if second else 0)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(first)
    assert process.stdout.readline() == "closing\n"
    if second is not None:
        process.send_signal(second)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err


def test_an_ignored_hang_up_stays_ignored() -> None:
    process = started(sys.executable, "-c", GUARDED, 0, "nohup")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    process.communicate()
