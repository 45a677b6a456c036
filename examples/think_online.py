"""Think online with the tiny reasoner: `python examples/think_online.py [QUESTION]`.

Sixteen traces set the threshold; the others are stopped where they fall below it. From the
repository's root, with vLLM installed (`make demo` does that).
"""

from __future__ import annotations

import sys
from collections import Counter

import deepconf

MODEL = "examples/tiny-reasoner/model"
QUESTION = "974*9+767*5+169*7+185*6+755*4+808*3=?"  # 20338


def main() -> None:
    """Asks the question and prints what came of it."""
    question = sys.argv[1] if len(sys.argv) > 1 else QUESTION
    policy = deepconf.Policy.low(budget=64, warmup=16, window=32, tail=96, top_logprobs=10)
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 320}
    with deepconf.engines.VLLM(MODEL, sampling=sampling) as engine:
        result = deepconf.DeepThink(engine, policy).run(question)

    for trace in result.traces:
        print(f"trace {trace.trace:2}  {_story(trace, result)}")
    print(f"\n{question}  answer {result.answer}, ended by {result.reason}")
    for answer, weight in result.vote.ballots.items():
        print(f"  {answer:<10} {weight:8.2f}  {result.vote.voters[answer]} voters")
    print("traces   ", dict(Counter(trace.status for trace in result.traces)))
    print("threshold", result.threshold)
    saved = result.tokens.saved
    about = "" if saved is None else f", saved about {saved:.0f}"
    print(f"tokens    {result.tokens.generated} generated{about}")
    print("          compared with", result.tokens.compared_with)
    print("seconds  ", f"{result.timing.total:.1f}")
    stopped = next((trace for trace in result.traces if trace.status == "stopped"), None)
    if stopped is not None:
        print(f"\ntrace {stopped.trace} until it was stopped:\n{stopped.text}")


def _story(trace: deepconf.Trace, result: deepconf.Result) -> str:
    """What became of a trace, in words."""
    lowest = f"lowest group {trace.scores.lowest_group:.3f}"
    if trace.status == "stopped":
        return f"stopped after {trace.num_tokens} tokens: {lowest}, below the threshold"
    if trace.status == "aborted":
        return f"aborted after {trace.num_tokens} tokens: the answer was known"
    part = "warmup, " if trace.trace < result.policy.warmup else ""
    votes = "votes" if trace.voted else "does not vote"
    return f"{part}{trace.status}: {trace.answer}, {lowest}, {votes}"


if __name__ == "__main__":
    main()
