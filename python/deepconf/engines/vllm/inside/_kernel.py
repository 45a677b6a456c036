"""The k largest log-probabilities of each row in one read of the logits, in Triton.

`log_softmax` and `topk` read the logits several times, and keep a float32 copy of them. Here a
program takes a block of a row: its sum of exponentials, and its k largest, one after another out
of registers. What is left to merge is small: k + 1 numbers for each 4,096 logits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["top_logprobs"]

_BLOCK = 4_096


@triton.jit(do_not_specialize=["k", "vocabulary", "parts"])  # type: ignore[untyped-decorator]
def _summarise(
    logits: Any,
    stride: Any,
    largest: Any,
    total: Any,
    k: Any,
    vocabulary: Any,
    parts: Any,
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """`largest` `[rows, parts, k]`, descending; `total` `[rows, parts]`: sums of exp(x - max)."""
    row, part = tl.program_id(0), tl.program_id(1)
    lanes = tl.arange(0, BLOCK)
    at = part * BLOCK + lanes
    start = logits + tl.cast(row, tl.int64) * stride
    rest = tl.load(start + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
    most = tl.max(rest, axis=0)
    most = tl.where(most == float("-inf"), 0.0, most)
    place = row * parts + part
    tl.store(total + place, tl.sum(tl.exp(rest - most), axis=0))
    for i in range(k):
        value, lane = tl.max(rest, axis=0, return_indices=True)
        tl.store(largest + place * k + i, value)
        rest = tl.where(lanes == lane, float("-inf"), rest)


def top_logprobs(logits: torch.Tensor, k: int) -> torch.Tensor:
    """`[rows, vocabulary]` float32, float16 or bfloat16 -> `[rows, k]` float32, nats, descending.

    NaN in all of a row that has a NaN, a +inf, or nothing but -inf.
    """
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, _BLOCK)
    made = {"dtype": torch.float32, "device": logits.device}
    largest = torch.empty(rows, parts, k, **made)
    total = torch.empty(rows, parts, **made)
    _summarise[(rows, parts)](
        logits, logits.stride(0), largest, total, k, vocabulary, parts, BLOCK=_BLOCK
    )
    top = largest.view(rows, -1).topk(k).values
    most = top[:, :1]
    total *= torch.exp(largest[:, :, 0] - most)
    return (top - most) - total.sum(1, keepdim=True).log()
