"""The two cases beside each other: where majority is enough, and where confidence earns its keep.

python benches/cases.py docs/cases.svg

For the recording of each tiny reasoner: the rule of thumb, and what majority, filters and policies
get for their tokens. A replay of some seconds, without a model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import deepconf
from deepconf import Policy

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RECORDINGS = {
    "tiny-reasoner": "calibration.parquet",
    "tiny-equations": "questions.parquet",
}


def policies(reasoner: str) -> dict[str, Policy]:
    """`low`, `high` and filters over all traces, scored as the reasoner's settings say."""
    settings = json.loads((EXAMPLES / reasoner / "deepconf.json").read_text())
    scored = {name: settings[name] for name in ("window", "tail", "top_logprobs", "budget")}
    found = {
        name: Policy.preset(name, **scored, warmup=settings["warmup"]) for name in ("low", "high")
    }
    for measure in ("lowest_group", "mean"):
        for keep in (0.1, 0.3):
            label = f"top {keep:.0%} by {measure.replace('_', ' ')}"
            found[label] = Policy.offline(**scored, measure=measure, weight=measure, keep=keep)
    for name, chosen in settings.get("policies", {}).items():
        found[name] = Policy.preset(chosen.pop("preset"), **chosen)
    return found


def main() -> None:
    """Print both cases, and draw them where a file is named."""
    played = {}
    for reasoner, recording in RECORDINGS.items():
        traces = EXAMPLES / reasoner / recording
        played[reasoner] = deepconf.replay(traces, policies(reasoner), repeats=64)
        summary = played[reasoner].summary()
        print(f"{reasoner}, {recording}: {summary.questions} questions")
        print(deepconf.diagnose(traces).thumb)
        for row in summary.rows:
            equal = row.same_tokens["consensus"]
            found = equal.difference
            interval = f"[{100 * (found.low or 0):+.1f}, {100 * (found.high or 0):+.1f}]"
            print(
                f"  {row.label:26} {row.accuracy.value:6.1%} at {row.tokens.value:7,.0f} tokens;"
                f" early consensus there {equal.accuracy:6.1%},"
                f" {100 * found.value:+5.1f} {interval}"
            )
        for row in summary.frontier:
            if row.budget in (1, 4, 16, 64):
                tokens = f"{row.tokens.value:7,.0f}"
                print(f"  {row.kind} of {row.budget:<3} {row.accuracy.value:6.1%} at {tokens}")
    if len(sys.argv) > 1:
        import matplotlib as mpl
        import matplotlib.pyplot as plt

        mpl.rcParams.update({"svg.hashsalt": "deepconf", "font.size": 8})
        figure, axes = plt.subplots(1, len(played), figsize=(10, 4.5))
        for ax, (reasoner, replay) in zip(axes, played.items(), strict=True):
            replay.plot(ax)
            ax.set_title(f"{reasoner}: {len(replay.questions)} questions")
        figure.tight_layout()
        figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
