"""Choose the DeepConf settings on the calibration questions, or report on the shipped ones.

``choose.py choose`` samples calibration.jsonl, prints every setting tried and writes
deepconf.json. ``choose.py report`` samples questions.jsonl with the settings in deepconf.json.
Both sample with vLLM on the CPU.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import deepconf
import numpy as np
from numpy.typing import NDArray
from problems import FOLDER, Split, answer_of, load
from vllm import LLM, SamplingParams

Floats = NDArray[np.float64]

MODEL = FOLDER / "model"
SETTINGS = FOLDER / "deepconf.json"
SCORES = ("mean", "lowest_group", "bottom_group", "tail")
TEMPERATURE = 1.0
OTHER_TEMPERATURES = (0.8, 1.2)
TRIAL = 16
WINDOWS = (16, 24, 32, 48, 64)
TAILS = (16, 32, 64, 96)
TOP = (1, 2, 3, 5, 10, 20)
CLOSE = 0.01
WARMUP = 16
WARMUPS = (8, 16, 32)
BUDGET = 64
BUDGETS = (8, 16, 32, 64)
MAX_TOKENS = 320


@dataclasses.dataclass
class Traces:
    """All traces of one run: trace i answers question[i], of which truth[question[i]] is right.

    rows[i] holds the largest log-probabilities at each of its tokens.
    """

    truth: list[str]
    question: NDArray[np.int64]
    answer: list[str | None]
    right: NDArray[np.bool_]
    rows: list[NDArray[np.float32]]
    stopped: float
    tokens_per_second: float

    def confidences(self, k: int) -> list[NDArray[np.float32]]:
        """Token confidences: minus the mean of the k largest log-probabilities."""
        return [-row[:, :k].mean(axis=1, dtype=np.float32) for row in self.rows]

    def per_question(self) -> Iterator[tuple[NDArray[np.int64], str]]:
        """For each question, the indices of its traces and its correct answer."""
        for q, truth in enumerate(self.truth):
            yield np.flatnonzero(self.question == q), truth


def sample(llm: LLM, split: Split, sampling: dict[str, float], width: int, budget: int) -> Traces:
    """Sample ``budget`` traces for every question of a split."""
    questions = load(split)
    params = SamplingParams(
        **sampling,
        logprobs=width,
        flat_logprobs=True,
        detokenize=False,
    )
    prompts = [q["question"] for q in questions for _ in range(budget)]
    start = time.perf_counter()
    outputs = [request.outputs[0] for request in llm.generate(prompts, params, use_tqdm=False)]
    seconds = time.perf_counter() - start
    decode = llm.get_tokenizer().decode
    answers = [answer_of(decode(out.token_ids, skip_special_tokens=True)) for out in outputs]
    rows = [
        np.asarray(out.logprobs.logprobs, np.float32).reshape(len(out.token_ids), -1)[:, 1:]
        for out in outputs
    ]
    index = np.repeat(np.arange(len(questions)), budget)
    truth = [q["answer"] for q in questions]
    return Traces(
        truth=truth,
        question=index,
        answer=answers,
        right=np.array([a == truth[q] for a, q in zip(answers, index, strict=True)]),
        rows=rows,
        stopped=float(np.mean([out.finish_reason == "stop" for out in outputs])),
        tokens_per_second=sum(map(len, rows)) / seconds,
    )


def auroc(score: Floats, right: NDArray[np.bool_]) -> tuple[float, float]:
    """Won right-against-wrong pairs (ties count half) and the number of pairs."""
    good, bad = score[right], np.sort(score[~right])
    below = np.searchsorted(bad, good, side="left")
    upto = np.searchsorted(bad, good, side="right")
    return float((below + upto).sum() / 2), float(len(good) * len(bad))


def pooled_auroc(score: Floats, traces: Traces) -> float:
    """AUROC over all traces of all questions together."""
    won, pairs = auroc(score, traces.right)
    return won / pairs


def within_auroc(score: Floats, traces: Traces) -> float:
    """AUROC over the pairs of traces that answer the same question."""
    counts = [auroc(score[i], traces.right[i]) for i, _ in traces.per_question()]
    won, pairs = np.sum(counts, axis=0)
    return float(won / pairs)


def accuracy(
    traces: Traces, weights: Floats | None = None, keep: float = 1.0, budget: int = BUDGET
) -> float:
    """Share of questions voted right by their first ``budget`` traces."""
    hits = []
    for indices, truth in traces.per_question():
        i = indices[:budget]
        ballots = [traces.answer[j] for j in i]
        winner = deepconf.vote(ballots, None if weights is None else weights[i], keep).answer
        hits.append(winner == truth)
    return float(np.mean(hits))


def votes(traces: Traces, score: Floats, budget: int = BUDGET) -> list[float]:
    """Accuracy of the majority, the weighted vote, and the weighted vote of the best 0.9, 0.1."""
    return [
        accuracy(traces, budget=budget),
        *(accuracy(traces, score, keep, budget) for keep in (1.0, 0.9, 0.1)),
    ]


def online(
    traces: Traces, confidence: list[NDArray[np.float32]], window: int, warmup: int, keep: float
) -> tuple[float, float]:
    """Accuracy and share of tokens when traces stop at the warm-up threshold."""
    means = []
    for c in confidence:
        sums = np.concatenate(([0.0], np.cumsum(c, dtype=np.float64)))
        width = min(window, len(c))
        means.append((sums[width:] - sums[:-width]) / width)
    lowest = np.array([m.min() for m in means])
    spent = full = hits = 0
    for i, truth in traces.per_question():
        bar = np.quantile(lowest[i[:warmup]], 1 - keep)
        ballots = [traces.answer[j] if lowest[j] >= bar else None for j in i]
        hits += deepconf.vote(ballots, lowest[i]).answer == truth
        for place, j in enumerate(i):
            length = len(confidence[j])
            stop = place >= warmup and lowest[j] < bar
            spent += min(length, int(np.argmax(means[j] < bar)) + window) if stop else length
            full += length
    return hits / len(traces.truth), spent / full


def summary(traces: Traces) -> str:
    """One line about a run before any confidence is used."""
    lengths = np.array([len(row) for row in traces.rows])
    low, high = np.percentile(lengths, [5, 95])
    return (
        f"pass@1 {traces.right.mean():.3f}, majority@{len(traces.rows) // len(traces.truth)} "
        f"{accuracy(traces):.3f}, ended by EOS {traces.stopped:.4f}, "
        f"tokens a trace {lengths.mean():.0f} (5%..95%: {low:.0f}..{high:.0f}), "
        f"{traces.tokens_per_second:.0f} tokens/s"
    )


def choose(llm: LLM) -> None:
    """Try settings on the calibration questions, print the tables, write deepconf.json."""
    sampling = {"temperature": TEMPERATURE, "top_p": 1.0, "max_tokens": MAX_TOKENS}
    for other in OTHER_TEMPERATURES:
        trial = sample(llm, "calibration", sampling | {"temperature": other}, max(TOP), TRIAL)
        print(f"temperature {other}: {summary(trial)}")
    traces = sample(llm, "calibration", sampling, max(TOP), BUDGET)
    print(f"temperature {TEMPERATURE}: {summary(traces)}")

    print("\nlowest_group: AUROC pooled / within question / keep-0.1 accuracy")
    print("window   " + "".join(f"k={k:<20}" for k in TOP))
    tried: dict[tuple[int, int], tuple[float, float]] = {}
    for window in WINDOWS:
        cells = []
        for k in TOP:
            score = deepconf.score(traces.confidences(k), window=window, tail=max(TAILS))
            lowest = np.asarray(score.lowest_group)
            within, keep = within_auroc(lowest, traces), accuracy(traces, lowest, 0.1)
            tried[window, k] = within, keep
            cells.append(f"{pooled_auroc(lowest, traces):.3f} / {within:.3f} / {keep:.3f}")
        print(f"{window:<9}" + "".join(f"{cell:<22}" for cell in cells))
    bar = max(within for within, _ in tried.values()) - CLOSE
    close = [(keep, within, *at) for at, (within, keep) in tried.items() if within >= bar]
    _, _, window, top = max(close)

    print(f"\ntail at k={top}: AUROC pooled / within question")
    ends: dict[int, float] = {}
    for tail in TAILS:
        score = deepconf.score(traces.confidences(top), window=window, tail=tail)
        ends[tail] = within_auroc(np.asarray(score.tail), traces)
        print(f"{tail:<9}{pooled_auroc(np.asarray(score.tail), traces):.3f} / {ends[tail]:.3f}")
    tail = max(ends, key=ends.__getitem__)

    print("\nbudget: accuracy of majority, weighted, keep 0.9, keep 0.1, by lowest_group")
    score = deepconf.score(traces.confidences(top), window=window, tail=tail)
    lowest = np.asarray(score.lowest_group)
    for budget in BUDGETS:
        print(f"{budget:<9}" + "".join(f"{v:<9.3f}" for v in votes(traces, lowest, budget)))
    print("\nearly stopping: accuracy / share of tokens")
    for warmup in WARMUPS:
        for keep in (0.1, 0.9):
            hits, share = online(traces, traces.confidences(top), window, warmup, keep)
            print(f"warmup {warmup:<4} keep {keep}: {hits:.3f} / {share:.3f}")

    settings = {
        "window": window,
        "tail": tail,
        "top_logprobs": top,
        "sampling": sampling,
        "budget": BUDGET,
        "warmup": WARMUP,
    }
    SETTINGS.write_text(json.dumps(settings, indent=2) + "\n")
    print(f"\nwrote {SETTINGS.name}: {json.dumps(settings)}")
    evaluate(traces, settings)


def evaluate(traces: Traces, settings: dict) -> None:
    """Print AUROC and vote accuracy of every score."""
    confidence = traces.confidences(settings["top_logprobs"])
    score = deepconf.score(confidence, window=settings["window"], tail=settings["tail"])
    print(f"\n{'score':<14}{'AUROC pooled':<14}{'within':<9}majority weighted keep 0.9 keep 0.1")
    for name in SCORES:
        values = np.asarray(getattr(score, name), np.float64)
        row = "".join(f"{value:<9.3f}" for value in votes(traces, values))
        print(
            f"{name:<14}{pooled_auroc(values, traces):<14.3f}"
            f"{within_auroc(values, traces):<9.3f}{row}"
        )
    for keep in (0.1, 0.9):
        hits, share = online(traces, confidence, settings["window"], settings["warmup"], keep)
        print(f"early stopping, keep {keep}: accuracy {hits:.3f}, {share:.3f} of the tokens")


def report(llm: LLM) -> None:
    """Measure the shipped questions at the settings in deepconf.json."""
    settings = json.loads(SETTINGS.read_text())
    traces = sample(llm, "test", settings["sampling"], settings["top_logprobs"], settings["budget"])
    print(summary(traces))
    evaluate(traces, settings)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["choose", "report"])
    args = parser.parse_args()
    llm = LLM(
        model=str(MODEL),
        dtype="float32",
        enforce_eager=True,
        max_model_len=384,
        max_num_seqs=256,
        max_logprobs=max(TOP),
        seed=0,
    )
    {"choose": choose, "report": report}[args.command](llm)


if __name__ == "__main__":
    main()
