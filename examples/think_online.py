"""Think online with the tiny reasoner: `python examples/think_online.py [QUESTION]`.

Sixteen traces set the threshold; the others are stopped where they fall below it. From the
repository's root, with vLLM installed (`make demo` does that).
"""

from __future__ import annotations

import sys
from collections import Counter

import deepconf

MODEL = "examples/tiny-reasoner/model"
QUESTION = "169*4+347*6+745*6+307*3+800*7=?"  # 13749


def main() -> None:
    """Asks the question and prints what came of it."""
    question = sys.argv[1] if len(sys.argv) > 1 else QUESTION
    policy = deepconf.Policy.low(budget=64, warmup=16, window=32, tail=96, top_logprobs=10)
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 320}
    with deepconf.engines.VLLM(MODEL, sampling=sampling) as engine:
        result = deepconf.DeepThink(engine, policy).run(question)

    print(f"{question}  answer {result.answer}, ended by {result.reason}")
    for answer, weight in result.vote.ballots.items():
        print(f"  {answer:<10} {weight:8.2f}  {result.vote.voters[answer]} voters")
    print("traces   ", dict(Counter(trace.status for trace in result.traces)))
    print("threshold", result.threshold)
    saved = result.tokens.saved
    about = "" if saved is None else f", saved about {saved:.0f}"
    print(f"tokens    {result.tokens.generated} generated{about}")
    print("          compared with", result.tokens.compared_with)
    print("seconds  ", f"{result.timing.total:.1f}")
    for trace in result.traces[16:19]:
        lowest = trace.scores.lowest_group
        print(f"\ntrace {trace.trace}, {trace.status}, lowest group {lowest:.3f}\n{trace.text}")


if __name__ == "__main__":
    main()
