"""Score what vLLM's own `LLM.generate` gave: `python examples/offline_vllm.py [MODEL]`.

DeepConf takes no part in generating: it reads the outputs. From the repository's root, with vLLM
installed (`make demo` does that).
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import deepconf

MODEL = "examples/tiny-reasoner/model"
QUESTION = "974*9+767*5+169*7+185*6+755*4+808*3=?"  # 20338


def main() -> None:
    """Generates, scores and votes."""
    from vllm import LLM, SamplingParams

    model = sys.argv[1] if len(sys.argv) > 1 else MODEL
    llm = LLM(model, dtype="float32", enforce_eager=True)
    params = SamplingParams(n=64, temperature=1.0, max_tokens=320, logprobs=10, flat_logprobs=True)
    traces = deepconf.from_vllm(llm.generate(QUESTION, params))

    print(traces)
    scoring = {"window": 32, "tail": 96}
    print("majority            ", traces.vote(weight="majority", keep=1.0))
    for keep in (1.0, 0.9, 0.1):
        vote = traces.vote(
            measure="lowest_group", weight="lowest_group", keep=keep, min_ballots=1, **scoring
        )
        print(f"lowest group, {keep:>4.0%}  ", vote)


if __name__ == "__main__":
    main()
