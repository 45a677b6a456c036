"""Score recorded traces, filter them and vote: `python examples/score_recordings.py`.

Needs NumPy only. The recording is made up: each trace's confidence wanders around a level of its
own, and the traces with the wrong answer collapse somewhere. With real recordings only `record`
changes, to a function that reads them.
"""

from __future__ import annotations

import deepconf
import numpy as np
from numpy.typing import NDArray

TRACES, WINDOW = 64, 128


def record(seed: int = 0) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Token confidences, float32 `[n]` a trace, nats, and the answers."""
    rng = np.random.default_rng(seed)
    confidences, answers = [], []
    for _ in range(TRACES):
        n = int(rng.integers(800, 1600))
        trace = rng.normal(12.0, 1.0) + rng.gamma(2.0, 2.0, size=n)
        right = rng.random() < 0.4
        if not right:
            start = int(rng.integers(0, n - 200))
            trace[start : start + 200] *= rng.uniform(0.4, 0.9)
        confidences.append(trace.astype(np.float32))
        answers.append("204" if right else str(rng.choice(["198", "210"], p=[0.8, 0.2])))
    return confidences, answers


def main() -> None:
    """Scores, votes, and plays the traces again with stops."""
    confidences, answers = record()
    scores = deepconf.score(confidences, window=WINDOW, tail=WINDOW)
    print(f"{len(scores)} traces, {scores.num_tokens.sum():,} tokens; 204 is right\n")
    majority = deepconf.vote(answers)
    print(f"{'majority':<24} {majority.answer}  {dict(majority.ballots)}")
    for measure in ("mean", "lowest_group", "bottom_group", "tail"):
        for keep in (1.0, 0.5, 0.1):
            vote = deepconf.vote(answers, weights=getattr(scores, measure), keep=keep)
            method = f"{measure}, keep {keep:.0%}"
            print(f"{method:<24} {vote.answer}  share {vote.share:.2f} of {vote.num_voters} voters")

    print("\nthe same while they are generated, stopped below the median of the first 16 traces:")
    threshold = float(np.median(scores.lowest_group[:16]))
    scorer = deepconf.TraceScorer(window=WINDOW, bottom=None, threshold=threshold)
    tokens = 0
    for trace in confidences[16:]:
        scorer.reset()
        stop = scorer.extend(trace)
        tokens += len(trace) if stop is None else stop + 1
    whole = int(scores.num_tokens[16:].sum())
    print(f"{tokens:,} of {whole:,} tokens generated")


if __name__ == "__main__":
    main()
