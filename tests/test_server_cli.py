"""`deepconf think` and `eval` on a server: `--url` in the place of a model folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deepconf.commands import app
from false_server import KEY, MODEL, FalseServer
from typer.testing import CliRunner, Result

SMALL = ["--budget", "8", "--warmup", "4", "--window", "4", "--tail", "4", "--top-logprobs", "10"]


@pytest.fixture
def server() -> Iterator[FalseServer]:
    with FalseServer() as made:
        yield made


def cli(*arguments: object, **env: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def test_think_asks_a_server(server: FalseServer) -> None:
    asked = ["--temperature", "0.7", "--sampling", "top_k=9", "--engine-arg", "tries=5"]
    result = cli("think", "2+2=?", "--url", server.url, *SMALL, *asked)
    assert result.exit_code == 0, result.output
    assert f"server: {MODEL} at {server.url}, chat completions, 21 log-prob" in result.stderr
    assert (server.bodies[-1]["temperature"], server.bodies[-1]["top_k"]) == (0.7, 9)
    found = json.loads(cli("think", "?", "--url", server.url, "--json", *SMALL).stdout)
    assert (found["answer"], found["model"]) == ("4", MODEL)
    assert found["capabilities"]["server"] == server.url


def test_eval_asks_a_server_carries_on_and_keeps_the_key(
    server: FalseServer, questions: Path, tmp_path: Path
) -> None:
    async def guard(request: Any, body: Any, tries: int) -> Any:
        assert request.headers["Authorization"] == f"Bearer {KEY}"

    server.faults.before = guard
    out, record = tmp_path / "run.jsonl", tmp_path / "t.parquet"
    common = ["--url", server.url, "--out", out, "--record", record, *SMALL]
    key = ["--api-key-env", "THE_KEY"]
    first = cli(
        "eval", questions, *common, *key, "-p", "low", "-p", "offline", "--limit", 2, THE_KEY=KEY
    )
    assert first.exit_code == 0, first.output
    assert f"note: {MODEL} at {server.url}" in first.output
    header, *records = map(json.loads, out.read_text().splitlines())
    assert header["model"] == MODEL
    assert header["capabilities"]["top_logprobs"] == 21
    assert len(records) == 4
    # Another address of the same model carries on.
    with FalseServer() as other:
        common[1] = other.url
        again = cli(
            "eval",
            questions,
            *common,
            *key,
            "-p",
            "low",
            "-p",
            "offline",
            "--limit",
            2,
            THE_KEY=KEY,
        )
        assert again.exit_code == 0, again.output
        assert other.bodies == []
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()
    assert KEY not in first.output + again.output


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        ([], {}, "--model MODEL or --url http://HOST:PORT/v1 must be given"),
        (["--model", "m", "--api-key-env", "K"], {}, "is for --url, which is not given"),
        (["--url", "URL", "--api-key-env", "NO_SUCH"], {}, "NO_SUCH: there is no such environment"),
        (["--url", "URL", "--api-key-env", KEY], {KEY: "x"}, "must be the name of an environment"),
        (["--url", "URL", "--model", "other"], {}, "has 'tiny'"),
        (["--url", "URL", "--engine-arg", "max_model_len=9"], {}, "with --url there are"),
        (["--url", "nowhere"], {}, "must be an address such as"),
        (["--url", "http://127.0.0.1:9/v1"], {}, "127.0.0.1:9 cannot be reached"),
        (["--url", "URL", "--sampling", "n=3"], {}, "sampling['n'] cannot be set"),
        (["--url", "URL", "--set", "top_logprobs=99"], {}, "gives 21 a token"),
    ],
)
def test_what_cannot_be_is_one_line(
    server: FalseServer, arguments: list[str], env: dict[str, str], says: str
) -> None:
    given = [server.url if word == "URL" else word for word in arguments]
    result = cli("think", "?", *given, *SMALL, **env)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split()), result.stderr
    assert KEY not in result.output
    assert "Traceback" not in result.output


def test_a_server_that_is_gone_costs_no_finished_question(
    server: FalseServer, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.jsonl"
    common = ["eval", questions, "--url", server.url, "--out", out, "-p", "offline", *SMALL]
    common += ["--model", MODEL, "--concurrency", 1, "--engine-arg", "patience=0.3"]

    async def last(request: Any, body: Any, tries: int) -> Any:
        content = body.get("messages", [{}])[0].get("content")
        if content == "2+2=???":
            server.die()

    server.faults.before, server.delay = last, 0.03
    result = cli(*common)
    assert result.exit_code == 2
    assert "2 of 3 questions are finished" in result.output
    server.stop()
    server.faults.before, server.delay = None, 0.0
    server.restart()
    result = cli(*common)
    assert result.exit_code == 0, result.output
    assert len(out.read_text().splitlines()) == 4


def test_what_was_generated_in_vain_is_noted(
    server: FalseServer, questions: Path, tmp_path: Path
) -> None:
    def break_off(chunk: Any, number: int) -> Any:
        return b"data: [DONE]\n\n" if number == 6 and broken.pop(0) else chunk

    broken = [True] + [False] * 99
    server.faults.damage = break_off
    common = ["eval", questions, "--url", server.url, "--out", tmp_path / "run.jsonl", *SMALL]
    result = cli(*common, "-p", "offline", "--seed", 100)
    assert result.exit_code == 0, result.output
    said = "note: 1 traces broke off and began anew: the 6 tokens that were given up are in no"
    assert said in " ".join(result.output.split())
