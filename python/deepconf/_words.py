"""How figures are said in sentences.

>>> counted(1, "question"), counted(3840, "trace"), counted(2, "policy", "policies")
('1 question', '3,840 traces', '2 policies')
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

__all__ = ["counted", "in_lines"]

_WIDTH = 100


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun, in the singular or the plural.

    Args:
        count: how many.
        one: what each is.
        many: what several are; by default with an s.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def in_lines(title: str, texts: Iterable[str]) -> str:
    """What a result shows of itself in several lines: its title, then texts, wrapped."""
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join([f"<{title}", *map(wrapper.fill, texts)]) + ">"
