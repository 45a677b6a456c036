"""What tests share: one vLLM engine on the tiny reasoner, and a file of questions."""

from __future__ import annotations

import gc
import json
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from deepconf.engines import VLLM

TINY = Path(__file__).parent.parent / "examples" / "tiny-reasoner"

os.environ["HF_HUB_OFFLINE"] = "1"
# What runs in the background may have been started with Ctrl-C ignored, and tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_engine() -> Iterator[VLLM]:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    settings = json.loads((TINY / "deepconf.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What vLLM imports warns of itself.
        engine = VLLM(TINY / "model", sampling=settings["sampling"], scoring="engine")
    INSIDE["place"], engine._inside, engine._wanted = engine._inside, None, "client"
    yield engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        engine.close()
        gc.collect()  # vLLM leaves its ZeroMQ context to the garbage collector.


INSIDE: dict[str, Any] = {}


@pytest.fixture
def inside_engine(tiny_engine: VLLM) -> Iterator[VLLM]:
    """The same engine, whose workers score."""
    tiny_engine._inside, tiny_engine._wanted = INSIDE["place"], "engine"
    yield tiny_engine
    tiny_engine._inside, tiny_engine._wanted = None, "client"


@pytest.fixture
def late_tokens(tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """By trace, the tokens that came after its abort, which are counted and not scored."""
    late: dict[int, int] = {}
    plain = tiny_engine.late_tokens

    async def noted(names: Sequence[str]) -> dict[str, int]:
        found = await plain(names)
        late.update({int(name.rpartition("-")[2]): count for name, count in found.items()})
        return found

    monkeypatch.setattr(tiny_engine, "late_tokens", noted)
    return late


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    lines = [{"id": f"q{i}", "question": f"2+2={'?' * (i + 1)}", "answer": "4"} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
