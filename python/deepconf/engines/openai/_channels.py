"""Which part of a text is the answer, where a model thinks aloud before it."""

from __future__ import annotations

__all__ = ["Channels", "final_part"]

_THINK, _THOUGHT = "<think>", "</think>"
_END = _THOUGHT.encode()
# Harmony's, with its special tokens and as it looks without them.
_FINAL = "<|channel|>final<|message|>"
_ANALYSIS = ("<|channel|>analysis", "<|start|>assistant<|channel|>", "<|channel|>commentary")
_PLAIN_ANALYSIS, _PLAIN_FINAL = "analysis", "assistantfinal"


class Channels:
    """The text of a trace as it comes: 1 byte a character, mostly."""

    def __init__(self) -> None:
        self._reasoning = bytearray()
        self._content = bytearray()
        self._ends = False  # Whether thoughts have ended in the content.

    def add(self, reasoning: str | None, content: str | None) -> None:
        if reasoning:
            self._reasoning += reasoning.encode("utf-8", "surrogatepass")
        if content:
            new = content.encode("utf-8", "surrogatepass")
            self._content += new
            if ">" in content and not self._ends:  # The mark may come in parts: this is the last.
                self._ends = _END in self._content[-len(new) - len(_END) + 1 :]

    def read(self) -> tuple[str, str]:
        """All of it, and what of it answers: one string where both are the same.

        It is as the model wrote it: reasoning stands between think marks.
        """
        content = _text(self._content)
        if not self._reasoning:
            return content, final_part(content)
        return f"{_THINK}{_text(self._reasoning)}{_THOUGHT}{content}", content

    @property
    def ends_thoughts(self) -> bool:
        """Whether thoughts end in the content that did not begin there, but in the prompt."""
        if not self._ends:
            return False
        return not self._content[:64].lstrip().startswith(_THINK.encode())

    @property
    def all_thoughts(self) -> bool:
        """Whether all of it is thought, where the prompt begins the thoughts."""
        return not self._reasoning and not self._ends


def final_part(text: str) -> str:
    """What comes behind the reasoning; all of a text that has none.

    >>> final_part("<think>2 and 2 are 4</think>It is 4."), final_part("It is 4.")
    ('It is 4.', 'It is 4.')
    >>> final_part("<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>4<|return|>")
    '4'
    >>> final_part("<think>It may be 5")
    ''
    """
    if _FINAL in text:
        return text.rpartition(_FINAL)[2].removesuffix("<|return|>").removesuffix("<|end|>")
    if text.startswith(_ANALYSIS):
        return ""
    if text.startswith(_PLAIN_ANALYSIS) and _PLAIN_FINAL in text:
        return text.rpartition(_PLAIN_FINAL)[2]
    if _THOUGHT in text:
        return text.rpartition(_THOUGHT)[2]
    return "" if text.lstrip().startswith(_THINK) else text


def _text(content: bytearray) -> str:
    return content.decode("utf-8", "surrogatepass")
