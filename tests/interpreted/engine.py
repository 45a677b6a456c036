"""Scoring in a real engine with vLLM's Model Runner V2, its kernels interpreted.

Run by `test_inside_v2.py`, in a process of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
from deepconf.engines.vllm.inside._watch import Watch
from test_inside_vllm import MASKS, check, crowded, fetched, generated, known, preemptions


@pytest.mark.parametrize("asynchronous", [False, True], ids=["in order", "steps overlap"])
def test_confidences_are_those_of_vllms_log_probabilities(asynchronous: bool) -> None:
    engine = crowded(
        60,
        async_scheduling=asynchronous,
        block_size=32,
        num_gpu_blocks_override=9,
        max_model_len=96,
        max_num_seqs=8,
        max_num_batched_tokens=16,
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
            # vLLM's kernel adds in another order.
            check(watch, output, found[watch.trace], lag=1 + asynchronous, atol=1e-4)
            for (watch, _), output in zip(requests, outputs, strict=True)
            if watch is not None
        ]
        assert 0 < sum(stopped) < len(stopped)
        assert preemptions(engine) > 0
        assert known(engine) == 0
