"""How many tokens a group should have, where nobody says.

The paper's 2,048 are for traces of tens of thousands of tokens. In a window near a trace's whole
length nothing stands out, and where all are shorter than it nothing can be stopped.

>>> fitting([210, 230, 250]), fitting([30_000]), fitting([3])
(32, 2048, 1)
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from deepconf._core import Policy

__all__ = ["fitting"]

_PARTS = 8


def fitting(lengths: Collection[int]) -> int:
    """The power of two nearest to an eighth of the median length; at most the paper's 2,048.

    Args:
        lengths: tokens of each trace; those without any do not count.
    """
    most = Policy.low().window
    some = [length for length in lengths if length > 0]
    if not some:
        return most
    power = round(math.log2(float(np.median(some)) / _PARTS))
    return min(most, 1 << max(0, power))
