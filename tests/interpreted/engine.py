"""Scoring in a real engine with vLLM's Model Runner V2, its kernels interpreted.

Run by `test_inside_v2.py`, in a process of its own.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from deepconf import TraceScorer
from deepconf.engines import VLLM
from deepconf.engines.inside._watch import Watch
from deepconf.engines.vllm import confidences
from test_inside_vllm import MASKS, fetched, generated, known, preemptions

SETTINGS = json.loads((TINY / "deepconf.json").read_text())


def check(watch: Watch, output: Any, found: Any, lag: int) -> bool:
    """What was found against vLLM's own log-probabilities of that request; whether it stopped."""
    expected = confidences(output, k=watch.top_logprobs, logprob_floor=watch.logprob_floor)
    values, stop, generated = found.confidence, found.stop_token, len(output.token_ids)
    scorer = TraceScorer(window=watch.window, threshold=watch.threshold)
    assert (found.error, stop) == (None, scorer.extend(values))
    forced = len(values) < generated
    if forced:
        assert len(values) == generated - 1
        assert stop + 1 < generated <= stop + 1 + lag
        assert (output.finish_reason, output.token_ids[-1]) == ("stop", watch.stop_token)
    else:
        assert stop is None or generated <= stop + 1 + lag
        # A string is found when more is on its way.
        assert isinstance(output.stop_reason, str) or len(values) < generated + lag
    n = generated - forced
    # vLLM's kernel adds in another order.
    np.testing.assert_allclose(values[:n], expected[:n], rtol=0, atol=1e-4)
    return forced


@pytest.mark.parametrize("asynchronous", [False, True], ids=["in order", "steps overlap"])
def test_confidences_are_those_of_vllms_log_probabilities(asynchronous: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What vLLM imports warns of itself.
        engine = VLLM(
            TINY / "model",
            sampling={**SETTINGS["sampling"], "max_tokens": 60},
            scoring="engine",
            async_scheduling=asynchronous,
            # Prompts in parts, and a cache that does not hold all that are admitted.
            block_size=32,
            num_gpu_blocks_override=9,
            max_model_len=96,
            max_num_seqs=8,
            max_num_batched_tokens=16,
            enable_chunked_prefill=True,
            enable_prefix_caching=False,
            disable_log_stats=False,
        )
    with engine:
        settings = engine._llm.vllm_config
        assert settings.use_v2_model_runner
        assert settings.scheduler_config.async_scheduling == asynchronous
        eos = engine._tokenizer.eos_token_id
        requests: list[tuple[Watch | None, dict[str, Any]]] = []
        for number in range(24):
            k, window, threshold = [(20, 16, 14.7), (5, 8, 9.0), (10, 16, None)][number % 3]
            watch = Watch(f"w{number}", k, window, [None, -12.0][number % 2], threshold, eos)
            mask = {"min_tokens": 40} if number % 10 == 3 else MASKS[number % len(MASKS)]
            sampling = {"seed": number, "detokenize": False, **mask}
            requests.append((None if number % 11 == 10 else watch, sampling))
        outputs = generated(engine, requests)
        found = fetched(engine, [watch.trace for watch, _ in requests if watch is not None])
        stopped = [
            check(watch, output, found[watch.trace], 1 + asynchronous)
            for (watch, _), output in zip(requests, outputs, strict=True)
            if watch is not None
        ]
        assert 0 < sum(stopped) < len(stopped)
        assert preemptions(engine) > 0
        assert known(engine) == 0
