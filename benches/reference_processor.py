"""The authors' logits processor on this vLLM, as an engine argument: `logits_processors=[NAME]`.

Theirs is all that is computed. Their class is an adapter of vLLM's V1 interface, which vLLM 0.32
still has, and is taken as it is from where `tools/install_reference.py` puts their package: an
object for each request, and in each step, for one request after the other, `softmax`, `topk`, `log`
and `.item()` of its row, then a deque and a running sum of Python's floats. Ours are two things
about it. It refuses every device but CUDA, which nothing that it computes needs, and is told here
that this is one; and the line that it prints of each request goes nowhere.

It gives out no confidences: it ends traces, and by that it is checked (`engine.py`). Model Runner
V2 does not take it; with `VLLM_USE_V2_MODEL_RUNNER=0` vLLM uses the other.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import install_reference

_Theirs = install_reference.module("processors").WrappedPerReqLogitsProcessor


class Processor(_Theirs):
    """Theirs, on any device, and silent."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self.is_cuda = True

    def new_req_logits_processor(self, params: Any) -> Any:
        with contextlib.redirect_stdout(None):
            return super().new_req_logits_processor(params)
