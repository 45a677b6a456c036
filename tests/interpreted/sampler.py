"""Scoring in the sampler of vLLM's Model Runner V2, its kernels interpreted, its requests made up.

Run by `test_inside_v2.py`, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401 (vLLM's own stand-ins for what a CPU has not.)
from deepconf import TraceScorer, token_confidence
from deepconf.engines.vllm.inside._v2 import Processor
from deepconf.engines.vllm.inside._watch import Watch
from vllm import SamplingParams
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.worker.gpu.input_batch import post_update
from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState

VOCABULARY, PLACES, LONGEST, END = 40, 6, 64, 7
CPU = torch.device("cpu")
PROMPT = [11, 12, 13]
MASKS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    {"min_tokens": 30, "stop_token_ids": [END]},
    {"bad": [[3], [4, 5]]},
    {"logit_bias": {3: 4.0, END: -100.0}},
    {"allowed_token_ids": [*range(END), *range(END + 1, 20)]},
    {"top_k": 3, "top_p": 0.8, "min_p": 0.01},
]


def config(asynchronous: bool = False, **changes: Any) -> SimpleNamespace:
    """What the parts that are used here read of a `VllmConfig`."""
    names = ("speculative_config", "diffusion_config", "reasoning_config", "additional_config")
    sharded = changes.pop("enable_batch_sharded_sampling", False)
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=asynchronous, max_num_seqs=PLACES),
        model_config=SimpleNamespace(max_model_len=LONGEST),
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=sharded),
        **{**dict.fromkeys(names), **changes},
    )


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    # One kernel calls a method of a program's number, which is an int when it is interpreted.
    monkeypatch.setattr(topk_topp_sampler, "HAS_TRITON", False)


def params(watch: Watch | None, seed: int, **mask: Any) -> SamplingParams:
    bad = mask.pop("bad", None)
    extra = None if watch is None else watch.as_extra_args()
    usual = {"temperature": 0.9, "seed": seed, "extra_args": extra, "max_tokens": LONGEST}
    made = SamplingParams(**{**usual, **mask})
    made._bad_words_token_ids = bad
    return made


class Runner:
    """What the model runner does with its sampler, in its order."""

    def __init__(
        self, asynchronous: bool = False, scoring: bool = True, kernel: str | None = None
    ) -> None:
        self.states = RequestState(PLACES, LONGEST, LONGEST, 0, VOCABULARY, CPU)
        names = ["deepconf.engines.vllm.inside._v2:Processor"] if scoring else []
        settings = config(asynchronous, additional_config={"deepconf_kernel": kernel})
        custom = build_custom_logits_processors(settings, self.states, False, names)
        self.sampler = Sampler(
            settings, PLACES, VOCABULARY, CPU, self.states, custom_logits_processors=custom
        )
        if scoring:
            found = Processor.find(self)
            assert found is not None
            found.watch(self)
            self.rows = found.rows

    def add(self, name: str, tokens: list[int], sampling: SamplingParams) -> None:
        self.states.add_request(name, len(PROMPT), PROMPT + tokens, 0, LONGEST)
        self.sampler.add_request(self.states.req_id_to_index[name], sampling)

    def step(
        self, names: Sequence[str], lengths: Sequence[int], logits: np.ndarray, padding: int = 0
    ) -> list[int]:
        """Samples for these requests, of which so many tokens are read then."""
        self.states.apply_staged_writes()
        self.sampler.apply_staged_writes()
        n = len(names)
        at = np.array([self.states.req_id_to_index[name] for name in names], np.intp)
        rows = torch.from_numpy(at)
        seen = torch.tensor(lengths, dtype=torch.int32)
        last = [int(self.states.last_sampled_tokens[place, 0]) for place in at]
        batch: Any = SimpleNamespace(
            num_reqs=n,
            idx_mapping=rows,
            idx_mapping_np=at,
            expanded_idx_mapping=rows,
            expanded_local_pos=torch.zeros(n, dtype=torch.int32),
            cu_num_logits=torch.arange(n + 1, dtype=torch.int32),
            cu_num_logits_np=np.arange(n + 1, dtype=np.int32),
            logits_indices=torch.arange(n),
            positions=seen.long() - 1,
            input_ids=torch.tensor(last, dtype=torch.int32),
            seq_lens=seen,
            seq_lens_cpu_upper_bound=torch.cat([seen, seen.new_zeros(padding)]),
        )
        output = self.sampler(torch.from_numpy(logits.copy()), batch)
        post_update(
            rows,
            self.states.num_computed_tokens.gpu,
            self.states.last_sampled_tokens,
            self.sampler.penalties_state.output_bin_counts,
            output.sampled_token_ids,
            output.num_sampled,
            output.num_rejected,
            None,
            self.states.all_token_ids.gpu,
            self.states.total_len.gpu,
        )
        sampled: list[int] = output.sampled_token_ids[:, 0].tolist()
        return sampled


def confidences(said: list[np.ndarray], watch: Watch) -> np.ndarray:
    values = torch.log_softmax(torch.from_numpy(np.array(said)), -1)
    top = values.topk(watch.top_logprobs).values.numpy()
    return token_confidence(top, logprob_floor=watch.logprob_floor)


class Trace:
    """A request: what its model says, and what must be found of it."""

    def __init__(self, number: int, seed: int) -> None:
        self.dice = np.random.default_rng([seed, number])
        k, window, floor = [(5, 3, None), (5, 8, -4.0), (12, 3, None)][number % 3]
        threshold = [None, 2.6, 2.9, 3.2][self.dice.integers(4)]
        self.watch = Watch(f"t{number}", k, window, floor, threshold, END)
        self.ours = number % 5 != 4
        mask = MASKS[self.dice.integers(len(MASKS))]
        self.params = params(self.watch if self.ours else None, 1000 * seed + number, **mask)
        self.length = int(self.dice.integers(1, 25))
        self.said: list[np.ndarray] = []
        self.tokens: list[int] = []
        self.ended = self.forced = False
        self.read = self.under_way = 0

    def logits(self) -> np.ndarray:
        row = self.dice.normal(0, self.dice.uniform(0.2, 3), VOCABULARY).astype(np.float32)
        row[END] = -30.0  # Sampled only when it is forced.
        return row

    def stop(self) -> int | None:
        scorer = TraceScorer(window=self.watch.window, threshold=self.watch.threshold)
        return scorer.extend(confidences(self.said, self.watch)) if self.said else None


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_found_is_what_was_said_whatever_happens_in_the_batch(asynchronous: bool) -> None:
    lag = 2 if asynchronous else 1
    exact = 0
    for seed in range(2):
        for trace, found in played(seed, asynchronous):
            end = len(trace.said)
            assert found.error is None
            np.testing.assert_array_equal(
                found.confidence[:end], confidences(trace.said, trace.watch)
            )
            stop = trace.stop()
            if stop is not None:
                assert found.stop_token == stop
            if trace.forced:
                assert stop is not None
                assert stop + 1 < len(trace.tokens) <= stop + 1 + lag
                assert len(found.confidence) == end
                if seed:  # Nobody comes back, for whom all is taken in that is under way.
                    assert len(trace.tokens) == stop + 1 + lag
                    exact += 1
            elif stop is not None:
                assert len(trace.tokens) <= stop + 1 + lag
    assert exact > 5


def played(seed: int, asynchronous: bool) -> list[tuple[Trace, Any]]:
    """Each trace of ours with what was found, by two ranks, beside a sampler that scores none."""
    dice = np.random.default_rng(seed)
    ranks = [Runner(asynchronous), Runner(asynchronous)]
    plain = Runner(asynchronous, scoring=False)
    everybody = [*ranks, plain]
    waiting = [Trace(number, seed) for number in range(20)]
    running: list[Trace] = []
    ended: dict[str, Trace] = {}
    while waiting or running:
        for trace in [trace for trace in running if trace.ended]:
            if trace.under_way < asynchronous:
                trace.under_way += 1  # Where steps overlap it is in one more.
                continue
            running.remove(trace)
            for runner in everybody:
                runner.states.remove_request(trace.watch.trace)
            if trace.ours:
                ended[trace.watch.trace] = trace
        going = [trace for trace in running if not trace.ended]
        if seed == 0 and going and dice.random() < 0.1:  # Preempted.
            trace = going[dice.integers(len(going))]
            running.remove(trace)
            waiting.append(trace)
            for runner in everybody:
                runner.states.remove_request(trace.watch.trace)
        while len(running) < PLACES and waiting and dice.random() < 0.7:
            trace = waiting.pop(0)
            trace.read = 0
            running.append(trace)
            for runner in everybody:
                runner.add(trace.watch.trace, trace.tokens, trace.params)
        if not running:
            continue
        order = [running[i] for i in dice.permutation(len(running))]
        lengths = []
        for trace in order:
            whole = len(PROMPT) + len(trace.tokens)
            # A prompt, and what had been generated, is read in parts.
            trace.read = min(whole, trace.read + int(dice.integers(1, 9)))
            lengths.append(trace.read)
        logits = np.array([trace.logits() for trace in order])
        names = [trace.watch.trace for trace in order]
        padding = int(dice.integers(3))
        one, other, without = (r.step(names, lengths, logits, padding) for r in everybody)
        assert one == other
        for trace, row, length, token, free in zip(
            order, logits, lengths, one, without, strict=True
        ):
            if trace.ended or length < len(PROMPT) + len(trace.tokens):
                continue  # What is sampled is nothing.
            assert token == free or (trace.ours and token == END)
            trace.tokens.append(token)
            trace.forced = token == END
            if not trace.forced:
                trace.said.append(row)
            trace.ended = trace.forced or len(trace.tokens) >= trace.length
    one, other = (runner.rows.fetch(list(ended)) for runner in ranks)
    assert {name: found.stop_token for name, found in one.items()} == {
        name: found.stop_token for name, found in other.items()
    }
    assert len(ranks[0].rows) == 0
    return [(trace, one[name]) for name, trace in ended.items()]


# ---- forcing, and what is not ours ---------------------------------------------------------------


def alone(
    watch: Watch | None, mask: dict[str, Any], steps: int, kernel: str | None = None
) -> tuple[list[int], Runner]:
    """What a request generates by itself."""
    runner = Runner(kernel=kernel)
    runner.add("a", [], params(watch, 5, **mask))
    dice = np.random.default_rng(5)
    tokens: list[int] = []
    for step in range(steps):
        logits = dice.normal(0, 2, (1, VOCABULARY)).astype(np.float32)
        logits[:, END] = -30.0
        tokens += runner.step(["a"], [len(PROMPT) + step], logits)
    return tokens, runner


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_the_token_that_ends_a_trace_overcomes_every_mask(mask: dict[str, Any]) -> None:
    watch = Watch("a", 5, 2, None, 100.0, END)
    tokens, runner = alone(watch, dict(mask), 5)
    free, _ = alone(None, dict(mask), 5)
    assert tokens[:2] == free[:2]
    assert tokens[2:] == [END, END, END]  # Whoever does not take it gets it again.
    found = runner.rows.fetch(["a"])["a"]
    assert (found.stop_token, len(found.confidence)) == (1, 2)


def test_the_kernel_finds_the_same_where_it_is_asked_for() -> None:
    watch = Watch("a", 5, 2, None, 2.0, END)
    (tokens, plain), (same, fused) = (alone(watch, {}, 12, kernel) for kernel in (None, "triton"))
    assert tokens == same
    one, other = (runner.rows.fetch(["a"])["a"] for runner in (plain, fused))
    assert other.stop_token == one.stop_token
    np.testing.assert_allclose(other.confidence, one.confidence, rtol=0, atol=1e-5)


def test_a_rehearsal_is_not_scored() -> None:
    runner = Runner()
    places = np.arange(PLACES)
    for name in "abcdef":  # Requests of nobody, as of vLLM's own warm-up.
        runner.add(name, [], params(None, 0))
    runner.step("abcdef", [3] * len(places), np.zeros((PLACES, VOCABULARY), np.float32))
    assert len(runner.rows) == 0


# ---- what cannot be scored -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speculative_config": object()}, "speculative decoding: rows of tokens that are not acc"),
        ({"diffusion_config": object()}, "a diffusion model"),
        ({"enable_batch_sharded_sampling": True}, "no worker sees all traces"),
    ],
)
def test_engines_that_cannot_be_watched_are_refused(change: Any, message: str) -> None:
    states = RequestState(PLACES, LONGEST, LONGEST, 0, VOCABULARY, CPU)
    names = ["deepconf.engines.vllm.inside._v2:Processor"]
    with pytest.raises(ValueError, match=message):
        build_custom_logits_processors(config(**change), states, False, names)


def test_a_stage_that_does_not_sample_has_none() -> None:
    assert Processor.find(SimpleNamespace(sampler=None)) is None
