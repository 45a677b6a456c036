"""Servers with OpenAI's interface: an engine that drives one, and responses that one has.

>>> from deepconf import DeepThink, Policy
>>> from deepconf.engines import OpenAI, settings_of
>>> engine = OpenAI("http://localhost:8000/v1", "Qwen/Qwen3-8B")   # doctest: +SKIP
>>> print(engine.capabilities)                                     # doctest: +SKIP
>>> DeepThink(engine, Policy.low(budget=64)).run("2+2=?").answer   # doctest: +SKIP
'4'

A request is a trace, with a seed of its own; a stop closes its connection. What comes within one
turn of the event loop is scored and told together: with twenty log-probabilities and hundreds of
streams a token costs 20 to 40 microseconds, and more where a turn brings few. What a server says is
believed only as far as it can be checked: `_probe` at the start, `_tokens` while traces run.
"""

from __future__ import annotations

from deepconf.engines.openai._capabilities import Capabilities
from deepconf.engines.openai._engine import OpenAI, settings_of
from deepconf.engines.openai._responses import confidences

__all__ = ["Capabilities", "OpenAI", "confidences", "settings_of"]
