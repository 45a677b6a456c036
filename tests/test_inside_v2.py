"""Scoring in vLLM's Model Runner V2, whose kernels are run by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="it is vLLM's model runner"
)

HERE = Path(__file__).parent
INTERPRETED = HERE / "interpreted"


@pytest.mark.parametrize("tests", ["kernel", "sampler", "engine"])
def test_in_tritons_interpreter(tests: str) -> None:
    installer = [sys.executable, HERE.parent / "tools" / "install_triton.py"]
    triton = subprocess.run(installer, check=True, capture_output=True, text=True).stdout.strip()
    folders = [str(INTERPRETED), triton, *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(folders),
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", INTERPRETED / f"{tests}.py"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
