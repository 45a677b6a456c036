"""Chaos: an evaluation on a real vLLM that is killed, starved and damaged, again and again.

`python tests/chaos.py --minutes 60 --seed 0` (`make soak`) goes on for an hour; `test_chaos.py`
plays a few rounds. A round starts `deepconf eval` on a run file, strikes at a random moment, and
looks at what is left: no process, a file in which every line but the last is whole, and the traces
of each finished question. Between rounds the files' ends may be damaged as a crash would. At last
one run goes to its end, and every figure of the report is reckoned anew from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from deepconf.traces import read_traces

TINY = Path(__file__).parent.parent / "examples" / "tiny-reasoner"
STRIKES = ("kill", "term", "hup", "int", "engine", "worker", "disk", "none")
EXITS = {"term": {143}, "hup": {129}, "int": {130}, "kill": {-signal.SIGKILL}}
QUESTIONS, BUDGET = 6, 12
POLICIES = ("low", "offline")
WAIT = 300


class Broken(AssertionError):
    """What must never be, was."""


def command(out: Path) -> list[str]:
    options = ["--limit", str(QUESTIONS), "--concurrency", "2", "--budget", str(BUDGET)]
    policies = [word for policy in POLICIES for word in ("--policy", policy)]
    model = ["--model", str(TINY / "model"), "--warmup", "4", "--out", str(out), "--json"]
    model += ["--record", str(recorded(out))]
    questions = str(TINY / "questions.jsonl")
    return [sys.executable, "-m", "deepconf.cli", "eval", questions, *model, *policies, *options]


def recorded(out: Path) -> Path:
    return out.with_suffix(".parquet")


def journal(out: Path) -> Path:
    return out.with_suffix(".parquet.part")


def rows_of(out: Path) -> list[dict[str, Any]]:
    """What is recorded: in the journal, and where there is none, in the trace file."""
    path = journal(out) if journal(out).exists() else recorded(out)
    if not path.exists() or not lines_of(out)[1:]:
        return []
    try:
        return pa.Table.from_batches(list(read_traces(path))).to_pylist()
    except OSError as error:
        if "there are no traces" in str(error) or "is an empty file" in str(error):
            return []
        raise


def check_rows(out: Path) -> None:
    """Every trace of each finished question is recorded once, as the run file has it."""
    found = rows_of(out)
    rows = {(row["question_id"], row["trace"]): row for row in found}
    if len(rows) != len(found):
        raise Broken("traces are recorded twice")
    names = ("status", "answer", "num_tokens", "correct", "voted", "seed")
    for record in map(json.loads, lines_of(out)[1:]):
        for trace in record["result"]["traces"] if record["policy"] == "offline" else ():
            row = rows.get((record["id"], trace["trace"]))
            if row is None or any(row[name] != trace[name] for name in names):
                raise Broken(f"{record['id']}: {trace} is recorded as {row}")
            if len(row["confidence"]) != row["num_tokens"]:
                raise Broken(f"{record['id']}: {len(row['confidence'])} confidences of {trace}")


def lines_of(out: Path) -> list[bytes]:
    """Whole lines."""
    content = out.read_bytes() if out.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def engines(children: list[psutil.Process], name: str) -> list[psutil.Process]:
    found = []
    for child in children:
        try:
            title = " ".join([child.name(), *child.cmdline()])
        except psutil.Error:
            continue
        if name in title:
            found.append(child)
    return found


def play(out: Path, strike: str, dice: random.Random) -> None:
    """One round."""
    before = len(lines_of(out))

    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen(
            command(out),
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        process = psutil.Process(started.pid)
        known: set[psutil.Process] = set()
        # While it starts, or when so many questions are finished.
        early = dice.random() < 0.2 and strike != "disk"
        wanted = before + dice.randint(1, 4)
        deadline = time.monotonic() + (dice.uniform(0.5, 20.0) if early else WAIT)
        while started.poll() is None and time.monotonic() < deadline:
            known.update(family(process))
            if not early and strike != "none" and len(lines_of(out)) >= wanted:
                break
            time.sleep(0.05)
        known.update(family(process))
        struck = started.poll() is None and hit(strike, process, list(known), out)
        if strike != "none" and not struck and started.poll() is None:
            os.kill(started.pid, signal.SIGKILL)
        try:
            code = started.wait(WAIT)
        except subprocess.TimeoutExpired:
            known.update(family(process))
            os.killpg(started.pid, signal.SIGKILL)
            raise Broken(f"{strike}: it hangs") from None
        said.seek(0)
        complain = f"{strike} (early: {early}), exit {code}:\n{said.read()[-3000:]}"
    end = time.monotonic() + 20
    while any(alive(child) for child in known) and time.monotonic() < end:
        time.sleep(0.1)
    left = [child for child in known if alive(child)]
    for child in left:
        child.kill()
    if left:
        raise Broken(f"left behind: {left}; {complain}")
    if re.search(r'File ".*[/\\]deepconf[/\\]', complain):  # A traceback through our code.
        raise Broken(complain)
    if struck and strike in EXITS and code not in EXITS[strike] | {0}:
        raise Broken(complain)
    if struck and strike in ("engine", "worker") and code == 0:
        whole = len(lines_of(out)) == 1 + len(POLICIES) * QUESTIONS
        if not whole:
            raise Broken(f"a dead engine went unnoticed; {complain}")
    for line in lines_of(out):
        json.loads(line)
    if len(lines_of(out)) < before:
        raise Broken(f"finished questions are lost; {complain}")
    check_rows(out)


def hit(strike: str, process: psutil.Process, children: list[psutil.Process], out: Path) -> bool:
    """Whether there was something to strike."""
    if strike == "disk":
        size = out.stat().st_size if out.exists() else 0
        process.rlimit(psutil.RLIMIT_FSIZE, (size + 100, size + 100))
        return True
    signals = {
        "kill": signal.SIGKILL,
        "term": signal.SIGTERM,
        "hup": signal.SIGHUP,
        "int": signal.SIGINT,
    }
    if strike in signals:
        process.send_signal(signals[strike])
        return True
    names = {"engine": "EngineCore", "worker": "Worker"}
    targets = engines(children, names.get(strike, "nothing"))
    for target in targets:
        try:
            target.kill()
        except psutil.NoSuchProcess:
            return False
    return bool(targets)


def damage(out: Path, dice: random.Random) -> None:
    """The ends of the files, as a crash may leave them."""
    if journal(out).exists() and dice.random() < 0.5:
        batch = journal(out).read_bytes()
        with journal(out).open("ab") as file:
            # The start of a stream is that of a message, too.
            file.write(batch[: dice.randrange(1, 200)])
    lines = lines_of(out)
    if len(lines) < 2:
        return
    with out.open("ab") as file:
        if dice.random() < 0.5:
            part = dice.choice(lines[1:])
            file.write(part[: dice.randrange(1, len(part))])


def check(out: Path, report: dict[str, Any]) -> None:
    """Every figure of the report, from the file."""
    _, *records = map(json.loads, lines_of(out))
    keys = Counter((record["policy"], record["id"]) for record in records)
    if set(keys.values()) != {1} or len(keys) != len(POLICIES) * QUESTIONS:
        raise Broken(f"not every question is there once: {keys}")
    rows = {row["method"]: row for row in report["rows"]}
    for policy in POLICIES:
        of = [record for record in records if record["policy"] == policy]
        tokens = 0
        for record in of:
            result = record["result"]
            each = sum(trace["num_tokens"] for trace in result["traces"])
            if each != result["tokens"]["generated"]:
                raise Broken(f"{record['id']}: {each} tokens in the traces")
            tokens += each
            ballots: dict[str, float] = {}
            weigh = "bottom_group" if policy == "offline" else "lowest_group"
            for trace in result["traces"]:
                if trace["voted"]:
                    answer = trace["answer"]
                    ballots[answer] = ballots.get(answer, 0.0) + trace[weigh]
            known = result["ballots"]
            if ballots.keys() != known.keys():
                raise Broken(f"{record['id']}: {ballots} are no {known}")
            if any(abs(ballots[a] - known[a]) > 1e-6 for a in known):
                raise Broken(f"{record['id']}: {ballots} are no {known}")
            best = max(ballots.values(), default=None)
            first = next((a for a, weight in known.items() if weight == best), None)
            if known and result["answer"] not in {first, *(a for a in known if known[a] == best)}:
                raise Broken(f"{record['id']}: {result['answer']} did not win {known}")
        right = sum(record["correct"] for record in of) / len(of)
        if rows[policy]["tokens"] != tokens or abs(rows[policy]["accuracy"] - right) > 1e-12:
            raise Broken(f"{policy}: {rows[policy]}, but {tokens} tokens and {right}")


def finish(out: Path) -> None:
    """The rest, undisturbed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command(out), capture_output=True, env=environment, timeout=900)
    if done.returncode != 0:
        raise Broken(done.stderr.decode()[-3000:])
    check(out, json.loads(done.stdout))
    if journal(out).exists() or len(rows_of(out)) != QUESTIONS * BUDGET:
        raise Broken(f"{recorded(out)} is not whole")
    check_rows(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    dice = random.Random(options.seed)
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        number = 0
        while time.monotonic() < end:
            out = Path(folder) / f"run-{number}.jsonl"
            number += 1
            whole = 1 + len(POLICIES) * QUESTIONS
            while len(lines_of(out)) < whole and time.monotonic() < end:
                strike = dice.choice(STRIKES)
                print(f"{strike}: {len(lines_of(out))} of {whole} lines", flush=True)
                play(out, strike, dice)
                damage(out, dice)
                count[strike] += 1
            finish(out)
    print(f"{sum(count.values())} rounds in {number} runs, all sound: {dict(count)}")


if __name__ == "__main__":
    main()
