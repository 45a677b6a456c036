"""The command line, on recorded traces; once on a real engine that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import pydoc
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import pytest
from deepconf import Policy, _layers, _settings, _terminal
from deepconf.commands import app
from deepconf.errors import EngineDied, EngineError, InvalidInput, InvalidType
from deepconf.evaluate import evaluate
from deepconf.result import Timing, Tokens
from recorded_engine import RecordedEngine, recorded
from typer.testing import CliRunner, Result

HERE = Path(__file__).parent
TINY = HERE.parent / "examples" / "tiny-reasoner"
CALIBRATION = TINY / "calibration.parquet"
SMALL = ["--budget", "8", "--warmup", "4", "--window", "4", "--tail", "4"]


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def process(*arguments: object, code: str = "", **settings: Any) -> subprocess.Popen[str]:
    """`python -m deepconf.cli`, or a program that does something before."""
    what = (
        ["-c", f"{code}\nfrom deepconf.cli import main\nmain()"] if code else ["-m", "deepconf.cli"]
    )
    return subprocess.Popen(
        [sys.executable, *what, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE,
        **settings,
    )


def ended(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    # It starts vLLM, which takes over a minute on a slow machine.
    out, err = running.communicate(timeout=600)
    return running.returncode, out, err


# ---- recorded engines in the place of vLLM ------------------------------------------------------


class Stand:
    """Counts the engines that are started, and plays traces on them."""

    def __init__(self) -> None:
        self.engines: list[RecordedEngine] = []
        self.arguments: list[dict[str, Any]] = []
        self.kind = RecordedEngine
        self.traces: Any = [
            recorded(9.0 + i if i % 2 else 2.0, "4" if i % 2 else "5", tokens=24 + i)
            for i in range(8)
        ]

    def __call__(self, model: str, **arguments: Any) -> RecordedEngine:
        print("an engine is noisy")
        self.arguments.append({"model": model, **arguments})
        self.engines.append(self.kind(self.traces, max_logprobs=100))
        return self.engines[-1]


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    made = Stand()
    monkeypatch.setattr("deepconf.engines.VLLM", made)
    yield made
    assert all(not engine._thread.is_alive() for engine in made.engines), "an engine was left open"


# ---- what every command line has ----------------------------------------------------------------


def test_help_and_version() -> None:
    assert cli("--version").output == f"deepconf {deepconf.__version__}\n"
    for command, option in [((), "eval"), (("think",), "--engine-arg"), (("eval",), "--overwrite")]:
        result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "120"})
        assert result.exit_code == 0
        assert option in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'vllm', 'torch', 'transformers', 'pyarrow', 'asyncio', 'sympy'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
    )
    for option in ("--help", "--version"):
        status, out, err = ended(process(option, code=code))
        assert (status, err) == (0, "[]\n")
        assert out


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_is_one_line(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None"
    status, out, err = ended(process("--help", code=code))
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith(f"error: this needs the package {package}, which is not installed: pip")
    assert f"'{package}" in err  # What can be installed, by its own name.
    assert err.endswith("(the extra cli of deepconf-rs)\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "middling"], "middling"),
        (["--budget", "0"], "budget=0"),
        (["--budget", "8", "--warmup", "16"], "warmup is from --warmup"),
        (["--set", "warmup=600"], "budget is from the preset low, warmup is from --set"),
        (["--policy", "low,high"], "--policy low,high: there is no such policy, but low, high"),
        (["--stop", "never"], "stop="),
        (["--set", "keep"], "--set 'keep': must be NAME=VALUE"),
        (["--set", "budgte=3"], 'unknown setting "budgte"'),
        (["--set", "keep=much"], "keep='much' is a text: must be a number (keep is from --set)"),
        (["--set", "windw=2"], "did you mean window?"),
        (["--set", "window=two"], "window='two' is a text: must be a whole number"),
        (["--engine-arg", "=3"], "--engine-arg '=3'"),
        (["--answer", "regex:("], "no regular expression"),
        (["--answer", "last"], "answer='last'"),
        (["--save", "/no/such/folder/x.parquet"], ""),
        (["--engine-arg", "model=x"], "--engine-arg 'model': cannot be set there: it is --model"),
        (["--engine-arg", "chat=true"], "use --chat or --no-chat"),
        (["--engine-arg", "sampling={}"], "use --sampling"),
        (["--engine-arg", "self=1"], "'self': cannot be set there"),
        (["--engine-arg", "chat_template_kwargs={}"], "use --chat-template-kwargs"),
        (["--chat-template-kwargs", "{"], "--chat-template-kwargs '{': not JSON"),
        (["--chat-template-kwargs", "[1]"], "--chat-template-kwargs '[1]': must be a JSON object"),
    ],
)
def test_errors_are_one_line(stand: Stand, arguments: list[str], says: str) -> None:
    result = cli("think", "2+2=?", "--model", "m", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert not stand.engines


def test_a_model_that_is_not_there_is_one_line() -> None:
    status, out, err = ended(process("think", "2+2=?", "--model", "./nowhere"))
    assert (status, out) == (2, "")
    assert "error: model='./nowhere': there is no such folder" in err
    assert "Traceback" not in err


def test_python_m_deepconf_is_the_command_line() -> None:
    command = [sys.executable, "-m", "deepconf", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"deepconf {deepconf.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["diagnose", CALIBRATION, "--json"]])
def test_a_full_disk_is_one_line(arguments: list[Any]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    pytest.importorskip("pyarrow")
    command = [sys.executable, "-m", "deepconf", *map(str, arguments)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_modules_are_imported_is_one_line() -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    assert ended(process("--help", code=code)) == (130, "", "interrupted\n")


def test_progress_off_a_terminal_is_some_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = io.StringIO()
    with _terminal.Bars(_terminal.console(lines), "questions") as bars:
        for done in range(101):
            now[0] = done / 4
            bars.tell("low", done, 100, f"{done} finished")
        bars.tell("low", 100, 100, "one more")
    assert lines.getvalue().splitlines() == [
        "low: 0 of 100 questions, 0 finished",
        "low: 40 of 100 questions, 40 finished, about 15 s left",
        "low: 80 of 100 questions, 80 finished, about 5 s left",
        "low: 100 of 100 questions, 100 finished",
    ]


def test_the_fields_of_results_are_in_help() -> None:
    for kind in (deepconf.Trace, deepconf.Result, Tokens, Timing):
        text = pydoc.render_doc(kind)
        missing = [field.name for field in fields(kind) if f" {field.name}: " not in text]
        assert not missing, kind


def test_a_model_in_the_place_of_an_engine_is_told_what_to_write() -> None:
    with pytest.raises(InvalidType, match=r"such as deepconf\.engines\.VLLM\('Qwen/Qwen3-8B'\)"):
        deepconf.DeepThink("Qwen/Qwen3-8B", Policy.low())  # type: ignore[arg-type]


# ---- settings -----------------------------------------------------------------------------------


def model_folder(tmp_path: Path, settings: Any, *, beside: bool = True) -> Path:
    model = tmp_path / "reasoner" / "model"
    model.mkdir(parents=True)
    text = settings if isinstance(settings, str) else json.dumps(settings)
    ((model.parent if beside else model) / "deepconf.json").write_text(text)
    return model


@pytest.mark.parametrize("beside", [True, False])
def test_a_settings_file_is_found(tmp_path: Path, beside: bool) -> None:
    settings = {"window": 8, "sampling": {"top_p": 0.9}, "engine": {"max_model_len": 64}}
    found = _settings.find(str(model_folder(tmp_path, settings, beside=beside)))
    assert found.policy == {"window": 8}
    assert found.sampling == {"top_p": 0.9}
    assert found.engine == {"max_model_len": 64}
    assert found.origin.endswith("deepconf.json")
    assert _settings.find("Qwen/Qwen3-8B") == _settings.Defaults()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{", "cannot be read"),
        ([], "must be a JSON object"),
        (
            {"windows": 8},
            "unknown key 'windows': the keys are sampling, engine, policies, policy, mode",
        ),
        ({"sampling": 1.0}, "sampling is 1.0: must be an object"),
        ({"policies": ["low"]}, "policies is ['low']: must be an object"),
        ({"policies": {"low": {}}}, "policies: low: is the name of a preset"),
        ({"policies": {"mine": 1}}, "policies: mine is 1: must be an object of settings"),
        (
            {"policies": {"mine": {"kep": 1}}},
            "policies: mine: unknown key 'kep': the keys are pres",
        ),
        (
            {"policies": {"mine": {"preset": "lo"}}},
            "mine: preset is 'lo': must be one of low, high",
        ),
        ({"policy": "mine"}, "policy is 'mine': must be one of low, high"),
    ],
)
def test_a_broken_settings_file_is_named(tmp_path: Path, settings: Any, says: str) -> None:
    model = model_folder(tmp_path, settings)
    with pytest.raises(InvalidInput) as caught:
        _settings.find(str(model))
    assert str(caught.value).startswith(str(model.resolve().parent / "deepconf.json"))
    assert says in str(caught.value)


def test_pairs_are_read() -> None:
    given = [
        "a=1",
        "b=0.5",
        "c=true",
        "d=True",
        "e=null",
        "f=None",
        "g=text",
        "top-k=3",
        'h={"x": [1]}',
    ]
    assert _settings.pairs([*given, "i=a=b"], "--set") == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": True,
        "e": None,
        "f": None,
        "g": "text",
        "top_k": 3,
        "h": {"x": [1]},
        "i": "a=b",
    }


def test_a_policy_of_the_file_is_asked_for_by_its_name(tmp_path: Path) -> None:
    vote = {"preset": "offline", "keep": 1.0, "stop": "consensus", "warmup": 0, "budget": 12}
    settings = {
        "window": 8,
        "warmup": 4,
        "budget": 32,
        "policies": {"vote": vote},
        "policy": "vote",
    }
    found = _settings.find(str(model_folder(tmp_path, settings)))
    assert found.chosen == "vote"
    built = _layers.build(["vote", "high"], found.policy, {"seed": 7}, {}, found.policies)
    assert built["high"] == Policy.high(window=8, warmup=4, budget=32, seed=7)
    # What is its own holds, though it is offline; options win over it.
    expected = Policy.offline(window=8, keep=1.0, stop="consensus", budget=12, seed=7)
    assert built["vote"] == expected
    again = _layers.build(["vote"], found.policy, {"budget": 16}, {}, found.policies)
    assert again["vote"].budget == 16


@pytest.mark.parametrize("name", Policy.presets())
@pytest.mark.parametrize(
    "defaults", [{}, {"window": 8, "warmup": 3, "keep": 0.4, "stop": "budget"}]
)
def test_a_policy_is_described_so_that_it_is_built_again(name: str, defaults: Any) -> None:
    policy = Policy.preset(name, weight="majority", tail=5, budget=99, min_ballots=2)
    described = _settings.describe(policy, defaults)
    assert described["preset"] in Policy.presets()
    assert _layers.build(["it"], defaults, {}, {}, {"it": described}) == {"it": policy}
    if not defaults and not name.startswith("paper"):
        assert len(described) <= 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("keep", "must be NAME=VALUE,VALUE"),
        ("=1", "must be NAME=VALUE,VALUE"),
        ("keep=", "must be NAME=VALUE,VALUE"),
        ("keep=0.1,,0.2", "must be NAME=VALUE,VALUE"),
        ("keep=0.1,0.10", "has 0.1 twice"),
    ],
)
def test_a_grid_that_means_nothing_is_named(given: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"--grid '{given}': {says}"):
        _settings.axes([given], "--grid")


def test_what_wins_over_what() -> None:
    file = {"window": 8, "budget": 64, "warmup": 16, "seed": 1}
    options = {"budget": 32, "seed": 2, "stop": "certain"}
    built = _layers.build(["low", "offline"], file, options, {"seed": 3})
    # The warmup of the file is that of its budget, and the smaller one takes a quarter.
    assert built["low"] == Policy.low(window=8, budget=32, warmup=8, seed=3, stop="certain")
    # Warmup and stopping are nothing to an offline policy.
    assert built["offline"] == Policy.offline(window=8, budget=32, seed=3)
    explicit = _layers.build(["offline"], file, {}, {"stop": "consensus"})
    assert explicit["offline"].stop == "consensus"
    online = _layers.build(["offline"], file, {}, {"mode": "online"})
    assert online["offline"].warmup == 16
    with pytest.raises(InvalidInput, match="low and high are the same"):
        _layers.build(["low", "high"], {}, {"keep": 0.5}, {})
    with pytest.raises(InvalidInput, match="low and low are the same"):
        _layers.build(["low", "low"], {}, {}, {})
    with pytest.raises(InvalidInput, match="warmup=4"):
        _layers.build(["offline"], {}, {}, {"warmup": 4})
    with pytest.raises(InvalidType, match="budget"):
        _layers.build(["low"], {"budget": "many"}, {}, {})


@pytest.mark.parametrize(
    ("options", "explicit", "warmup", "origin"),
    [
        ({"budget": 8}, {}, 2, "a quarter of the budget"),
        ({"budget": 3}, {}, 1, "a quarter of the budget"),
        ({"budget": 128}, {}, 16, "deepconf.json"),
        ({"budget": 8, "warmup": 4}, {}, 4, "--warmup"),
        ({"budget": 8}, {"warmup": 8}, 8, "--set"),
        ({}, {"budget": 8}, 2, "a quarter of the budget"),
        ({}, {}, 16, "deepconf.json"),
        ({"warmup": 16}, {"budget": 16}, 16, "--warmup"),
    ],
)
def test_a_small_budget_takes_a_smaller_warmup_where_none_was_given(
    options: Any, explicit: Any, warmup: int, origin: str
) -> None:
    file = {"budget": 64, "warmup": 16}
    found = _layers.in_force(["low"], file, options, explicit)["low"]
    assert (found.policy.warmup, found.origins["warmup"]) == (warmup, origin)


def test_a_preset_takes_a_smaller_warmup_too() -> None:
    found = _layers.in_force(["low", "offline"], {}, {"budget": 8}, {})
    assert found["low"].policy == Policy.low(budget=8, warmup=2)
    assert found["offline"].policy == Policy.offline(budget=8)
    said = "budget=8 (--budget); warmup=2 in low (a quarter of the budget)"
    assert _layers.in_words(found) == said


def test_a_grid_takes_a_smaller_warmup_too() -> None:
    def warmup(grid: Any, options: Any = None, file: Any = None) -> int:
        file = file or {"budget": 64, "warmup": 16}
        return _layers.build(["low"], file, options or {}, {}, grid=grid)["low"].warmup

    assert [warmup({"budget": budget}) for budget in (8, 32, 64)] == [2, 8, 16]
    assert warmup({"budget": 8, "warmup": 8}) == 8
    assert warmup({"budget": 16}, {"warmup": 12}) == 12
    assert warmup({"budget": 16}, {"budget": 256}) == 4
    assert warmup({"keep": 0.5}, {"budget": 8}) == 2
    assert warmup({"budget": 16}, file={"budget": 16}) == 4


def test_an_empty_question_is_refused_before_an_engine_starts(stand: Stand) -> None:
    for question in ("", "  "):
        result = cli("think", question, "--model", "m")
        assert result.exit_code == 2
        assert "is empty: there is nothing to ask" in result.stderr
    assert not stand.engines


def test_a_warmup_that_a_policy_was_chosen_with_stays() -> None:
    own = {"tuned": {"preset": "low", "budget": 16, "warmup": 8}}
    assert _layers.build(["tuned"], {}, {"budget": 12}, {}, own)["tuned"].warmup == 8
    with pytest.raises(InvalidInput) as caught:
        _layers.build(["tuned"], {}, {"budget": 6}, {}, own)
    assert "budget is from --budget, warmup is from the policy tuned of" in str(caught.value)


def test_an_online_policy_made_offline_has_no_warmup() -> None:
    made = _layers.build(["low"], {}, {}, {"mode": "offline"})["low"]
    assert (made.mode, made.warmup, made.stop, made.keep) == ("offline", 0, "budget", 0.1)


# ---- think --------------------------------------------------------------------------------------


def test_think_shows_the_answer_and_the_ballots(stand: Stand) -> None:
    offline = ["--policy", "offline", "--budget", 8, "--window", 4]
    result = cli("think", "2+2=?", "--model", "m", *offline)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "Answer: 4"
    assert "answer   weight   voters   share" in result.stdout
    assert any(line.split() == ["4", "52.000", "4", "86.7%"] for line in lines)
    assert any(line.split() == ["5", "8.000", "4", "13.3%"] for line in lines)
    assert "8 (8 finished); 8 with an answer, 8 voted" in result.stdout
    assert "220 generated" in result.stdout
    assert "the filter left too few ballots" in result.stderr
    assert "an engine is noisy" in result.stderr
    assert "an engine is noisy" not in result.stdout


def test_think_stops_and_says_what_it_saved(stand: Stand) -> None:
    result = cli("think", "2+2=?", "--model", "m", *SMALL, "--stop", "budget")
    assert result.exit_code == 0, result.stderr
    assert "stopped" in result.stdout
    assert "saved" in result.stdout
    assert "the mean of the 4 warmup traces that ran to their end" in result.stdout
    assert "threshold 11.4000" in result.stdout


def test_think_prints_json_and_nothing_else(stand: Stand) -> None:
    result = cli("think", "2+2=?", "--model", "m", *SMALL, "--json")
    summary = json.loads(result.stdout)
    assert summary["answer"] == "4"
    assert summary["policy"]["budget"] == 8
    assert len(summary["traces"]) >= 4


def test_think_warns_when_nothing_could_have_been_stopped(stand: Stand) -> None:
    result = cli("think", "2+2=?", "--model", "m", *SMALL[:4], "--window", 2048)
    assert result.exit_code == 0
    assert "warning: the signal never armed: no trace reached the window" in result.stderr


def test_think_without_an_answer(stand: Stand) -> None:
    stand.traces = [recorded(3.0, None)] * 8
    result = cli("think", "2+2=?", "--model", "m", *SMALL)
    assert result.exit_code == 0
    assert "No answer" in result.stdout


def test_answers_are_no_markup(stand: Stand) -> None:
    stand.traces = [recorded(3.0, "[red]x[/red] :smile: \\frac[1]")] * 8
    result = cli("think", "2+2=?", "--model", "m", *SMALL)
    assert "Answer: [red]x[/red] :smile: \\frac[1]" in result.stdout


def test_options_reach_the_engine(stand: Stand, tmp_path: Path) -> None:
    settings = {
        "window": 4,
        "tail": 4,
        "budget": 8,
        "warmup": 4,
        "sampling": {"temperature": 1.0, "max_tokens": 99},
        "engine": {"max_model_len": 64},
    }
    model = model_folder(tmp_path, settings)
    more = ["--temperature", 0.6, "--sampling", "top_k=20", "--engine-arg", "max-num-seqs=8"]
    result = cli("think", "2+2=?", "-m", model, *more, "--top-logprobs", 40, "--no-chat", "--json")
    assert result.exit_code == 0, result.stderr
    settings = next(x for x in result.stderr.splitlines() if x.startswith("settings: "))
    assert "window=4, tail=4, budget=8, warmup=4, max_tokens=99, max_model_len=64 (" in settings
    assert "deepconf.json); top_logprobs=40 (--top-logprobs); temperature=0.6 (--temp" in settings
    assert "top_k=20 (--sampling); max_num_seqs=8 (--engine-arg)" in settings
    assert "temperature=1.0" not in settings  # Not in force.
    assert stand.arguments == [
        {
            "model": str(model),
            "sampling": {"temperature": 0.6, "max_tokens": 99, "top_k": 20},
            "chat": False,
            "chat_template_kwargs": {},
            "max_model_len": 64,
            "max_num_seqs": 8,
            "max_logprobs": 40,
        }
    ]
    assert json.loads(result.stdout)["policy"]["window"] == 4


def test_think_saves_traces(stand: Stand, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "traces.parquet"
    result = cli("think", "2+2=?", "--model", "m", "--policy", "offline", *SMALL, "--save", path)
    assert result.exit_code == 0, result.stderr
    table = pq.read_table(path)
    assert table.num_rows == 8
    assert np.allclose(table["confidence"][1].as_py(), 10.0)
    assert table.schema.metadata[b"format"] == b"deepconf-traces/1"
    assert json.loads(table.schema.metadata[b"sampling"]) == {}


@pytest.mark.parametrize("name", ["t.arrow", "t.feather", "t.PARQUET"])
def test_think_saves_what_read_traces_reads(stand: Stand, tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    result = cli("think", "2+2=?", "-m", "m", "-p", "low", *SMALL, "--save", tmp_path / name)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    traces = deepconf.read_traces(tmp_path / name)
    assert traces.settings["policy"]["mode"] == "online"
    assert sum(batch.num_rows for batch in traces) == 8


def test_think_saves_all_or_nothing(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.parquet"
    path.write_bytes(b"what was there")
    arguments = ["think", "2+2=?", "-m", "m", "-p", "low", *SMALL, "--save", path]

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        result = cli(*arguments)
    assert result.exit_code == 2
    assert "t.parquet: cannot be written: [Errno 28] No space left" in result.stderr
    assert "Answer" in result.stdout
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]
    assert cli(*arguments).exit_code == 0
    assert deepconf.read_traces(path).num_rows == 8


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("t.csv", "--save t.csv: the name must end in .parquet, .arrow, .feather"),
        ("t", "--save t: the name must end in"),
        ("none/t.parquet", "none/t.parquet: cannot be written: there is no folder none"),
        ("d.parquet", "d.parquet: cannot be written: it is a folder"),
    ],
)
def test_a_file_that_cannot_be_saved_to_is_refused_before_anything_is_asked(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("d.parquet").mkdir()
    result = cli("think", "2+2=?", "-m", "m", *SMALL, "--save", name)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not stand.engines


def test_what_is_put_round_a_question_reaches_the_engine(stand: Stand) -> None:
    box = r"Put your final answer within \boxed{}."
    asked = {f"2+2=?\n{box}": stand.traces}
    stand.traces = asked
    kwargs = ["--chat-template-kwargs", '{"enable_thinking": true}']
    common = ["--model", "m", *SMALL, "--suffix", box, "--system", "- Think.", *kwargs]
    result = cli("think", "2+2=?", *common, "--no-math", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["question"] == [
        {"role": "system", "content": "- Think."},
        {"role": "user", "content": f"2+2=?\n{box}"},
    ]
    assert stand.arguments[0]["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-3+5=?", "--model", "m"],
        ["--model", "m", "-3+5=?"],
        ["--model=m", "--", "-3+5=?"],
        ["--temperature", "-0", "-3+5=?", "-m", "m"],
    ],
)
def test_a_question_may_begin_with_a_minus(stand: Stand, arguments: list[str]) -> None:
    stand.traces = {"-3+5=?": stand.traces}
    result = cli("think", *SMALL, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "Answer: 4" in result.stdout


def test_an_option_that_does_not_exist_is_no_question() -> None:
    for wrong in ("--budgte", "-x"):
        result = cli("think", wrong, "3", "--model", "m")
        assert result.exit_code == 2
        assert f"No such option: {wrong}" in result.stderr


def test_think_says_what_to_add_when_no_trace_has_an_answer(stand: Stand) -> None:
    stand.traces = [recorded(3.0, None)] * 8
    result = cli("think", "2+2=?", "--model", "m", "--policy", "offline", *SMALL)
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: none of the")]
    assert len(lines) == 1
    assert r"looked for \boxed{...}" in lines[0]
    assert "ends with 'no idea'" in lines[0]
    assert r"hint: --suffix 'Put your final answer within \boxed{}.'" in result.stderr


def test_think_says_that_a_trace_failed_and_no_longer_what_was_saved(stand: Stand) -> None:
    stand.traces = [*stand.traces[:7], recorded(9.0, "4", reason="failed")]
    result = cli("think", "2+2=?", "--model", "m", "--policy", "offline", *SMALL)
    assert result.exit_code == 0
    assert "1 of 8 traces failed, the first with" in result.stderr
    assert "saved" not in result.stdout


class Dying(RecordedEngine):
    """Dies in the fifth trace of the last question."""

    questions = 1

    async def stream(self, prompt: Any, **options: Any) -> AsyncIterator[Any]:
        fifth = options["request_id"].endswith("-4")
        while fifth and self.running:
            await asyncio.sleep(0.001)
        if fifth and sum(self.started.values()) >= self.questions:
            raise EngineDied("the engine's process is gone")
        async with contextlib.aclosing(super().stream(prompt, **options)) as chunks:
            async for chunk in chunks:
                yield chunk


def test_think_shows_what_was_finished_when_the_engine_dies(stand: Stand, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    stand.kind = Dying
    path = tmp_path / "traces.parquet"
    arguments = ["--policy", "offline", *SMALL, "--save", path]
    result = cli("think", "2+2=?", "--model", "m", *arguments)
    assert result.exit_code == 2
    assert "Answer: 4" in result.stdout
    assert "ended by  engine_died" in result.stdout
    assert "saved" not in result.stdout
    assert "process is gone" in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert pq.read_table(path).num_rows == 8
    summary = json.loads(cli("think", "2+2=?", "-m", "m", *arguments, "--json").stdout)
    assert summary["reason"] == "engine_died"


HALF_WAY = """
import signal, threading, time
from recorded_engine import RecordedEngine, recorded
def interrupt(engine):
    while not (engine.most_running == 8 and engine.running == 4):
        time.sleep(0.01)
    time.sleep(0.5)  # For the ends of four traces to be told.
    os.kill(os.getpid(), signal.SIGINT)
def half_way(model, **arguments):
    delays = [0.01] * 4 + [600.0] * 4
    engine = RecordedEngine([recorded(3.0 + i, "4") for i in range(8)], delays=delays)
    threading.Thread(target=interrupt, args=(engine,), daemon=True).start()
    return engine
deepconf.engines.VLLM = half_way
"""


def test_ctrl_c_in_think_shows_what_is_finished() -> None:
    arguments = ["think", "2+2=?", "-m", "m", "-p", "offline", *SMALL]
    running = process(*arguments, code=NOISY.replace("DELAY", "0.0") + HALF_WAY)
    status, out, err = ended(running)
    assert status == 130, err
    assert "Answer: 4" in out
    assert "ended by  cancelled" in out
    assert "saved" not in out
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


NOISY = """
import os, sys
sys.path.insert(0, ".")
import deepconf.engines
from recorded_engine import RecordedEngine, recorded
def noisy(model, **arguments):
    print("a line from Python")
    os.write(1, b"a line from below\\n")
    os.system("echo a line from a process")
    return RecordedEngine([recorded(3.0 + i, "4") for i in range(64)], delays=DELAY)
deepconf.engines.VLLM = noisy
"""


def test_noise_below_python_stays_out_of_stdout() -> None:
    code = NOISY.replace("DELAY", "0.0")
    status, out, err = ended(process("think", "2+2=?", "-m", "m", *SMALL, "--json", code=code))
    assert status == 0, err
    assert json.loads(out)["answer"] == "4"
    assert all(f"a line from {where}" in err for where in ("Python", "below", "a process"))


# ---- eval ---------------------------------------------------------------------------------------


def test_eval_prints_a_table_once_and_again(stand: Stand, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    policies = ["--policy", "low", "--policy", "offline"]
    arguments = ["eval", questions, "--model", "m", *policies, *SMALL, "--out", out]
    first = cli(*arguments)
    assert first.exit_code == 0, first.stderr
    assert "m: 3 questions" in first.stdout
    rows = [line.split() for line in first.stdout.splitlines()]
    assert ["pass@1", "50.0%", "±", "0.0", "82", "-87.5%", "–", "–"] in rows
    assert ["majority", "0.0%", "±", "0.0", "660", "0.0%", "–", "–"] in rows  # 5 comes first
    mean = ["mean,", "all", "100.0%", "±", "0.0", "660", "0.0%", "–"]  # As the offline run.
    assert [*mean, "0", "lost,", "3", "won,", "p", "=", "0.25"] not in rows
    assert [row[:2] for row in rows if row[:1] == ["low"]] == [["low", "100.0%"]]
    assert "within questions: mean 1.000 and 1.000 [1.000, 1.000]" in first.stdout
    assert "right in the same questions as offline: mean, all; mean, top 90%; " in first.stdout
    said = "accuracy: low (the most accurate of 2) cannot be told apart here"  # By three questions.
    assert first.stdout.splitlines()[-1].startswith(said)
    assert "low: 3 of 3 questions" in first.stderr
    again = cli(*arguments)
    assert again.stdout == first.stdout
    assert "6 finished, 0 to do" in again.stderr
    assert len(stand.engines) == 1
    report = json.loads(cli(*arguments, "--json").stdout)
    assert report["complete"]
    policies = [row["method"] for row in report["rows"] if row["kind"] == "policy"]
    assert policies == ["low", "offline"]
    other = cli(*arguments, "--temperature", 0.3)
    assert other.exit_code == 2
    assert "settings.sampling.temperature is unset there and 0.3 here" in other.stderr
    assert cli(*arguments, "--temperature", 0.3, "--overwrite").exit_code == 0
    assert len(stand.engines) == 2


def test_eval_records_traces(stand: Stand, questions: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    record = tmp_path / "t.parquet"
    arguments = ["eval", questions, "-m", "m", "-p", "low", "-p", "offline", *SMALL]
    arguments += ["--out", tmp_path / "run.jsonl", "--record", record]
    first = cli(*arguments, "--limit", 2)
    assert first.exit_code == 0, first.stderr
    assert f"{record}: the traces of 2 questions" in first.stderr
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "writing t.parquet: 3 of 3 questions" in result.stderr
    assert result.stderr.splitlines()[-1] == f"{record}: the traces of 3 questions"
    assert "the traces of" not in result.stdout
    assert "Live, and replayed on the recorded traces" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if line.startswith(" low")][-1:]
    live, replayed = map(int, row.split()[3:5])  # Tokens a question.
    assert replayed <= live <= 1.2 * replayed  # This engine hands out several tokens at a time.
    assert "3 of 3" in row
    traces = deepconf.read_traces(record)
    assert traces.num_rows == 3 * 8
    assert traces.settings["model"] == "m"
    before = record.read_bytes()
    again = cli(*arguments)
    assert again.exit_code == 0
    assert again.stderr.splitlines()[-1] == f"{record}: the traces of 3 questions"
    assert record.read_bytes() == before
    assert len(stand.engines) == 2
    low = cli(*arguments[:6], *SMALL, *arguments[-4:])
    assert low.exit_code == 2
    assert "recorded_policy is 'offline' there and 'low' here" in low.stderr


def test_eval_says_where_the_traces_are_when_it_ends_early(
    stand: Stand, questions: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    record = tmp_path / "t.parquet"
    good, bad = recorded(9.0, "4"), recorded(9.0, "4", reason="failed")
    stand.traces = {"2+2=?": [good] * 8, "2+2=??": [bad] * 8, "2+2=???": [good] * 8}
    arguments = ["eval", questions, "-m", "m", "-p", "offline", *SMALL]
    arguments += ["--out", tmp_path / "run.jsonl", "--record", record]
    result = cli(*arguments)
    assert result.exit_code == 2
    assert f"{record}.part: the traces of 2 questions" in result.stderr
    assert sum(batch.num_rows for batch in deepconf.read_traces(f"{record}.part")) == 16
    stand.traces = [good] * 8
    assert cli(*arguments).exit_code == 0
    assert deepconf.read_traces(record).num_rows == 24


def test_eval_has_a_place_for_its_run(
    stand: Stand, questions: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--policy", "low", *SMALL, "--limit", 1]
    result = cli("eval", questions, "--model", "someone/a model:7b", *arguments)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "runs" / "a-model-7b-sums.jsonl").is_file()


def test_eval_errors(stand: Stand, questions: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "1+1=?", "answer": "2"}\n{"answer": "4"}\n')
    wrong = [
        ((broken,), f"{broken}, line 2: there is no 'question'"),
        ((tmp_path / "none.jsonl",), "cannot be read"),
        ((questions, "--concurrency", 0), "--concurrency 0"),
        ((questions, "--limit", 0), "limit=0"),
        ((questions, "--keep", 0.5), "low and high are the same"),
        ((questions, "--out", questions), "not a run file"),
        ((questions, "--out", tmp_path), "cannot be opened"),
    ]
    for arguments, says in wrong:
        result = cli("eval", *arguments, "--model", "m", *SMALL)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert says in result.stderr
        assert result.stderr.startswith("error: ")
    assert not stand.engines


def test_eval_answers_questions_whose_answers_nobody_knows(stand: Stand, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out, record = tmp_path / "r.jsonl", tmp_path / "t.parquet"
    arguments = ["-m", "m", "-p", "offline", "-p", "low", *SMALL, "--out", out, "--record", record]
    questions = '[{"question": "2+2=?"}, {"question": "2+2=??"}]'
    given = [str(argument) for argument in ("eval", "-", *arguments)]
    result = CliRunner().invoke(app, given, input=questions)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert [line["correct"] for line in lines] == [None] * 4
    assert {line["result"]["answer"] for line in lines} == {"4"}
    assert "without an answer to compare with: 2 questions" in result.stdout
    assert " 0.0%" not in result.stdout.splitlines()[3]
    assert "Live, and replayed" not in result.stdout
    assert deepconf.read_traces(record).num_rows == 16


def test_eval_says_what_was_looked_for_where_no_trace_has_an_answer(
    stand: Stand, questions: Path, tmp_path: Path
) -> None:
    stand.traces = [recorded(3.0, None)] * 8
    arguments = ["-m", "m", "-p", "offline", *SMALL, "--out", tmp_path / "r.jsonl"]
    result = cli("eval", questions, *arguments)
    assert "traces with an answer: offline 0 of 24" in result.stdout
    assert "offline: in 3 of 3 questions no trace had an answer" in result.stdout
    assert r"looked for \boxed{...}" in result.stdout
    assert "ends with 'no idea'" in result.stdout
    other = cli("think", "2+2=?", "-m", "m", "-p", "offline", *SMALL, "--answer", r"regex:is (\d)")
    assert r"looked for regex:is (\d), which must match what" in other.stderr


def test_eval_shows_what_it_has_when_the_engine_fails(
    stand: Stand, questions: Path, tmp_path: Path
) -> None:
    stand.traces = {"2+2=?": stand.traces}
    policies = ["--policy", "offline", "--concurrency", 1]
    result = cli("eval", questions, "-m", "m", *policies, *SMALL, "--out", tmp_path / "r.jsonl")
    assert result.exit_code == 2
    assert "offline: 1 of 3 questions finished" in result.stdout
    assert "error: question 'q1', policy offline: nothing was recorded" in result.stderr


def test_eval_says_where_it_stands_when_the_engine_dies(
    stand: Stand, questions: Path, tmp_path: Path
) -> None:
    stand.kind = type("DyingLater", (Dying,), {"questions": 3})
    out = tmp_path / "r.jsonl"
    arguments = ["-m", "m", "--policy", "offline", *SMALL, "--out", out, "--concurrency", 1]
    result = cli("eval", questions, *arguments)
    assert result.exit_code == 2
    assert "offline: 2 of 3 questions finished" in result.stdout
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: question 'q2', policy offline: ")
    assert f"2 of 3 questions are finished and in {out}: the same" in error
    stand.kind = RecordedEngine
    result = cli("eval", questions, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "2 finished, 1 to do" in result.stderr


def test_eval_goes_on_where_a_trace_fails(stand: Stand, questions: Path, tmp_path: Path) -> None:
    stand.traces = [*stand.traces[:7], recorded(9.0, "4", reason="failed")]
    arguments = ["-m", "m", "--policy", "offline", *SMALL, "--out", tmp_path / "r.jsonl"]
    result = cli("eval", questions, *arguments)
    assert result.exit_code == 2
    assert "1 of 8 traces failed, more than max_failed=0.1 allows" in result.stderr
    result = cli("eval", questions, *arguments, "--max-failed", 0.2)
    assert result.exit_code == 0, result.stderr
    assert "offline: 3 traces failed, in 3 of 3 questions" in result.stdout
    assert cli("eval", questions, *arguments, "--max-failed", 1).exit_code == 2


def test_eval_records_what_is_put_round_questions(
    stand: Stand, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ["-m", "m", "--policy", "offline", *SMALL, "--out", out, "--no-math"]
    result = cli("eval", questions, *arguments, "--suffix", "Box it.", "--system", "Think.")
    assert result.exit_code == 0, result.stderr
    header = json.loads(out.read_text().splitlines()[0])
    assert (header["suffix"], header["system"], header["math"]) == ("Box it.", "Think.", False)
    other = cli("eval", questions, *arguments)
    assert other.exit_code == 2
    assert "suffix is 'Box it.' there and unset here" in other.stderr


def test_overwriting_keeps_the_run_file_until_the_engine_has_started(
    stand: Stand, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ["-m", "m", "--policy", "offline", *SMALL, "--out", out]
    assert cli("eval", questions, *arguments).exit_code == 0
    before = out.read_bytes()

    def fails(model: str, **arguments: Any) -> RecordedEngine:
        raise EngineError("no memory")

    monkeypatch.setattr("deepconf.engines.VLLM", fails)
    result = cli("eval", questions, *arguments, "--overwrite")
    assert (result.exit_code, result.stdout) == (2, "")
    assert out.read_bytes() == before
    monkeypatch.setattr("deepconf.engines.VLLM", stand)
    assert cli("eval", questions, *arguments, "--overwrite").exit_code == 0
    assert out.read_bytes() != before  # Times differ.


def test_home_is_found(
    stand: Stand, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["-m", "m", "--policy", "offline", *SMALL]
    result = cli("eval", f"~/{questions.name}", *arguments, "--out=~/r.jsonl")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "r.jsonl").is_file()
    pytest.importorskip("pyarrow")
    assert cli("think", "2+2=?", *arguments, "--save=~/t.parquet").exit_code == 0
    assert (tmp_path / "t.parquet").is_file()


def test_the_command_line_and_python_share_a_run_file(
    tiny_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.jsonl"
    arguments = ["-p", "offline", "--budget", 2, "--limit", 1, "--out", out]

    @contextlib.contextmanager
    def borrowed() -> Iterator[Any]:
        yield tiny_engine

    monkeypatch.setattr("deepconf._setup.Setup.start", lambda self, err: borrowed())
    result = cli("eval", TINY / "questions.jsonl", "-m", TINY / "model", *arguments)
    assert result.exit_code == 0, result.stderr
    before = out.read_bytes()
    found = json.loads((TINY / "deepconf.json").read_text())
    common = {name: found[name] for name in ("window", "tail", "top_logprobs")}
    policies = {"offline": Policy.offline(budget=2, **common)}
    questions = TINY / "questions.jsonl"
    assert evaluate(tiny_engine, questions, policies, out, limit=1).complete
    assert out.read_bytes() == before


def test_ctrl_c_ends_an_evaluation_with_its_table(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    arguments = ["eval", questions, "-m", "m", "-p", "offline", *SMALL, "--out", out]
    code = NOISY.replace("DELAY", "0.1")
    running = process(*arguments, "--concurrency", 1, code=code)
    wait_for_lines(out, 2, running)
    running.send_signal(signal.SIGINT)
    status, table, err = ended(running)
    assert status == 130, err
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert "of 3 questions finished" in table
    assert 2 <= len(out.read_bytes().splitlines()) < 4


def wait_for_lines(path: Path, count: int, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_is_killed_carries_on(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    out = tmp_path / "run.jsonl"
    command = ["eval", TINY / "questions.jsonl", "--model", TINY / "model", "--limit", 6]
    options = ["--policy", "low", "--budget", 8, "--warmup", 4, "--concurrency", 1, "--json"]
    running = process(*command, *options, "--out", out)
    wait_for_lines(out, 2, running)
    running.kill()
    running.communicate()
    killed = out.read_bytes()
    before = [json.loads(line) for line in killed.splitlines()[1:] if line.endswith(b"}")]
    assert 1 <= len(before) < 6
    status, table, err = ended(process(*command, *options, "--out", out))
    assert status == 0, err
    after = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert after[: len(before)] == before
    assert sorted(record["id"] for record in after) == [f"test-00{i}" for i in range(6)]
    report = json.loads(table)
    assert report["complete"]
    assert f"{len(before)} finished, {6 - len(before)} to do" in err


@pytest.mark.parametrize(("given", "meant"), [("--n", "--budget"), ("--temp", "--temperature")])
def test_an_option_that_is_called_otherwise_here_is_named(given: str, meant: str) -> None:
    result = CliRunner().invoke(app, ["think", "1+1=?", given, "8"])
    assert result.exit_code == 2
    assert meant in result.stderr
