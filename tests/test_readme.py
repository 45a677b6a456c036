"""The Python in README and DESIGN, and the example that needs no engine, run as they stand.

A block runs after those before it. Where an expression has a comment, the comment is its value.
"""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import deepconf
import pytest
from conftest import TINY
from deepconf.engines import VLLM
from false_server import FalseServer

ROOT = Path(__file__).parent.parent
# What a block needs that is not in it, and so which test runs it.
ENGINES = {
    "engines.VLLM(": "vllm",
    "engines.OpenAI(": "server",
    "from vllm import": "offline",
}


def blocks(page: str, kind: str = "alone") -> list[ast.Module]:
    """The Python blocks of a kind, with the page's line numbers."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        needs = {name for mark, name in ENGINES.items() if mark in match[1]} or {"alone"}
        if needs == {kind}:
            start = text.count("\n", 0, match.start(1))
            found.append(ast.increment_lineno(ast.parse(match[1]), start))
    return found


def run(block: ast.Module, page: Path, names: dict[str, Any]) -> int:
    """Runs a block, so that errors show the page's lines; how many values were checked."""
    lines = page.read_text(encoding="utf-8").splitlines()
    checked = 0
    for node in block.body:
        comment = re.search(r"  # (.*)$", lines[(node.end_lineno or 0) - 1])
        if isinstance(node, ast.Expr) and comment is not None:
            value = eval(compile(ast.Expression(node.value), page, "eval"), names)
            assert repr(value) == comment[1], f"{page.name}, line {node.lineno}"
            checked += 1
        else:
            exec(compile(ast.Module([node], []), page, "exec"), names)
    return checked


def test_the_readme_says_what_comes_out() -> None:
    names: dict[str, Any] = {}
    assert sum([run(block, ROOT / "README.md", names) for block in blocks("README.md")]) >= 20


def test_a_comment_that_is_not_the_value_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1 + 1  # 3\n")
    with pytest.raises(AssertionError, match=r"page\.md, line 1"):
        run(ast.parse(page.read_text()), page, {})


def test_the_controller_of_the_design_answers(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("DESIGN.md")
    run(block, ROOT / "DESIGN.md", {})
    assert capsys.readouterr().out == "42 consensus\n"


def test_thinking_on_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks("README.md", "server")
    with FalseServer(tokens=80) as server:
        start = deepconf.engines.OpenAI
        monkeypatch.setattr(
            deepconf.engines, "OpenAI", lambda _, **arguments: start(server.url, **arguments)
        )
        run(block, ROOT / "README.md", {})
        assert capsys.readouterr().out.startswith(f"tiny at {server.url}, chat completions, ")


def test_thinking_with_vllm(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    def start(model: str, *, sampling: dict[str, Any]) -> Any:
        started.append(ROOT / model)
        assert sampling.items() <= tiny_engine.sampling.items()
        return contextlib.nullcontext(tiny_engine)

    monkeypatch.setattr(deepconf.engines, "VLLM", start)
    (block,) = blocks("README.md", "vllm")
    names: dict[str, Any] = {"__name__": "__main__"}
    run(block, ROOT / "README.md", names)
    assert started == [TINY / "model"]
    result = names["result"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{result.answer} ")
    assert len(printed) == 2 + len(result.traces)
    assert len(result.traces) >= 16


def test_scoring_what_vllm_returned(tiny_engine: VLLM) -> None:
    class Blocking:
        """`vllm.LLM` on the engine that runs already."""

        def generate(self, prompt: str, params: Any) -> list[Any]:
            return [tiny_engine.submit(final(prompt, params)).result(120)]

    async def final(prompt: str, params: Any) -> Any:
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        outputs = tiny_engine._llm.generate(prompt, params, "readme")
        return [output async for output in outputs][-1]

    (block,) = blocks("README.md", "offline")
    names: dict[str, Any] = {"deepconf": deepconf, "llm": Blocking()}
    run(block, ROOT / "README.md", names)
    assert len(names["scores"]) == 8
    tokens = [len(output.token_ids) for output in names["outputs"][0].outputs]
    assert names["scores"].num_tokens.tolist() == tokens
    assert names["vote"].num_voters > 0


def test_every_file_and_heading_linked_to_exists() -> None:
    def anchor(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

    for page in ("README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
        assert links or page == "CHANGELOG.md"
        for path, heading in links:
            target = ROOT / (path or page)
            assert target.exists(), f"{page}: {path}"
            if heading:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
                assert heading in map(anchor, headings), f"{page}: {path}#{heading}"


def test_scoring_recordings_prints_the_votes() -> None:
    script = [sys.executable, ROOT / "examples" / "score_recordings.py"]
    run = subprocess.run(script, capture_output=True, text=True, check=True, timeout=120)
    lines = run.stdout.splitlines()
    assert lines[0].startswith("64 traces, ")
    assert any(re.match(r"majority +198 ", line) for line in lines)
    assert any(re.match(r"lowest_group, keep 10% +204 ", line) for line in lines)
    assert re.fullmatch(r"([\d,]+) of ([\d,]+) tokens generated", lines[-1])


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_an_example_names_only_what_there_is(script: Path) -> None:
    names = set(re.findall(r"\bdeepconf\.(\w+)", script.read_text(encoding="utf-8")))
    assert names
    assert all(hasattr(deepconf, name) for name in names), names
