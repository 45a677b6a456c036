"""The fused kernel against log_softmax and topk, interpreted.

Run by `test_inside_v2.py`, in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from deepconf.engines.vllm.inside._kernel import top_logprobs


def same(logits: torch.Tensor, k: int) -> None:
    found = top_logprobs(logits, k)
    exact = torch.log_softmax(logits, -1, dtype=torch.float64).topk(k).values.float()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=2e-6, equal_nan=True)
    # Which adds in another order, and of many small numbers is further off.
    plain = torch.log_softmax(logits, -1, dtype=torch.float32).topk(k).values
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [26, 1_000, 32_000, 152_064])
@pytest.mark.parametrize("k", [2, 20])
def test_it_is_log_softmax_and_topk(dtype: torch.dtype, vocabulary: int, k: int) -> None:
    dice = torch.Generator().manual_seed(vocabulary)
    for spread in (0.01, 3.0, 30.0):
        same((spread * torch.randn(2, vocabulary, generator=dice)).to(dtype), k)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # The interpreter is NumPy.
@pytest.mark.parametrize("vocabulary", [26, 4_096, 4_097, 9_000])
def test_ties_masks_and_what_is_no_number(vocabulary: int) -> None:
    dice = torch.Generator().manual_seed(1)
    logits = torch.randn(9, vocabulary, generator=dice)
    logits[0] = 1.5
    logits[1] = logits[1].round()
    logits[2, 3:] = -torch.inf  # Fewer than k are left.
    logits[3] = -torch.inf
    logits[4, vocabulary // 2] = torch.nan
    logits[5, -1] = torch.inf
    logits[6, : vocabulary - 1] = -torch.inf
    logits[7] -= 3e4
    same(logits, 20)


def test_rows_may_lie_apart() -> None:
    dice = torch.Generator().manual_seed(2)
    same(torch.randn(5, 6_000, generator=dice)[:, :5_000], 20)
    same(torch.randn(5, 6_000, generator=dice)[::2], 20)
