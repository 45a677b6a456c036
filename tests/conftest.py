"""One vLLM engine on the tiny reasoner for every test that wants a real one."""

from __future__ import annotations

import gc
import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

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
        engine = VLLM(TINY / "model", sampling=settings["sampling"])
    yield engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        engine.close()
        gc.collect()  # vLLM leaves its ZeroMQ context to the garbage collector.
