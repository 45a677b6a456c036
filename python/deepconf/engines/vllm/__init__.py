"""vLLM in process: one request a trace, raw log-probabilities, whole steps where it can be.

`_engine` is the engine, `_steps` takes tokens and log-probabilities where vLLM's output processor
begins, `inside` scores in vLLM's workers, `_guardian` ends its processes when this one dies.
"""

from __future__ import annotations

from deepconf.engines.vllm._arguments import settings_of
from deepconf.engines.vllm._engine import VLLM
from deepconf.engines.vllm._outputs import confidences

__all__ = ["VLLM", "confidences", "settings_of"]
