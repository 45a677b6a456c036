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
from deepconf.answers import AnswerBook, boxed
from deepconf.engines.vllm import confidences

MODEL = "examples/tiny-reasoner/model"
QUESTION = "974*9+767*5+169*7+185*6+755*4+808*3=?"  # 20338


def main() -> None:
    """Generates, scores and votes."""
    from vllm import LLM, SamplingParams

    model = sys.argv[1] if len(sys.argv) > 1 else MODEL
    llm = LLM(model, dtype="float32", enforce_eager=True)
    params = SamplingParams(n=64, temperature=1.0, max_tokens=320, logprobs=10, flat_logprobs=True)
    completions = llm.generate(QUESTION, params)[0].outputs

    traces = [confidences(completion) for completion in completions]
    scores = deepconf.score(traces, window=32, tail=96)
    book = AnswerBook()  # 0.5 and 1/2 are one answer
    answers = [book.canonical(boxed(completion.text)) for completion in completions]

    print(f"{len(scores)} traces, {scores.num_tokens.sum():,} tokens")
    print("majority            ", deepconf.vote(answers))
    for keep in (1.0, 0.9, 0.1):
        vote = deepconf.vote(answers, weights=scores.lowest_group, keep=keep)
        print(f"lowest group, {keep:>4.0%}  ", vote)


if __name__ == "__main__":
    main()
