"""Rows of log-probabilities, one a token, and the one way from them to token confidences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf._core import token_confidence
from deepconf._words import counted
from deepconf.errors import InvalidInput

__all__ = ["ASK", "Rows", "Scorer"]

ASK = (
    "the server must be asked for them: logprobs=True, top_logprobs=20 for chat completions, "
    "logprobs=20 for completions and for vLLM's SamplingParams"
)

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# What servers write for tokens that a mask has ruled out; nothing sampled is that unlikely.
_MASKED = -9999.0
# Log-probabilities in float32 or less may come out a rounding above 0.
_ROUNDING = 1e-3


@dataclass(slots=True)
class Rows:
    """The entries of a trace's tokens, one token after the other."""

    values: Floats
    """Float64 `[sum(widths)]`, nats."""
    widths: Counts
    """Int64 `[num_tokens]`, how many entries each token has; 0 where it has none."""
    likely: Counts
    """Int64 `[num_tokens]`, how many of them are the model's likeliest. The others are tokens that
    were sampled though less likely, and are lower than all of them."""
    exact: bool
    """Whether every token has as many of the likeliest. If not, one more is no surprise: the
    sampled token, of which nothing says whether it is among them."""
    unsure: Counts
    """Int64: the tokens whose last entry may be the sampled token in the place of a likelier."""

    @classmethod
    def of_chat(
        cls, tops: Sequence[Sequence[Any]], sampled: Sequence[float | None], returned: bool
    ) -> Rows:
        """Of chat completions: the likeliest, as objects with a `logprob`, and the sampled token.

        vLLM's server lists the sampled token first, then the likeliest until there are as many as
        were asked for. Where it is below all others, it may have taken the place of the last.
        """
        widths = np.fromiter(map(len, tops), np.int64, len(tops))
        values = np.array([entry.logprob for top in tops for entry in top], np.float64)
        lowest = _reduced(np.minimum, values, widths)
        first, second = _at(values, widths, 0), _at(values, widths, 1)
        behind = np.flatnonzero((first == lowest) & (first < second))
        rows = cls(values, widths, widths, True, behind)
        if returned:
            own = np.array([np.nan if p is None else p for p in sampled], np.float64)
            added = own < lowest
            places = np.cumsum(widths)[added]
            rows.values = np.insert(values, places, own[added])
            rows.widths = widths + added
        return rows

    @classmethod
    def of_completion(cls, tops: Sequence[Mapping[str, float] | None]) -> Rows:
        """Of completions: a dict a token, which has the sampled token too."""
        widths = np.array([len(top) if top else 0 for top in tops], np.int64)
        values = np.array([p for top in tops if top for p in top.values()], np.float64)
        return cls(values, widths, widths, False, _NONE)

    @classmethod
    def of_dicts(cls, rows: Sequence[Mapping[Any, Any] | None]) -> Rows:
        """Of vLLM: a dict a token, from its id to something with `logprob` and `rank`."""
        widths = np.array([len(row) if row else 0 for row in rows], np.int64)
        flat = list(chain.from_iterable(row.values() for row in rows if row))
        values = np.array([entry.logprob for entry in flat], np.float64)
        ranks = np.array([entry.rank or 0 for entry in flat], np.int64)
        return cls(values, widths, _likeliest(ranks, widths), False, _NONE)

    @classmethod
    def of_flat(
        cls, values: Sequence[float], ends: Sequence[int], ranks: Sequence[int | None]
    ) -> Rows:
        """Of vLLM's flat form: a token's entries are the sampled one, then the likeliest."""
        every, bounds = np.array(values, np.float64), np.array(ends, np.int64)
        numbers = np.array([rank or 0 for rank in ranks], np.int64)
        widths = np.diff(bounds, prepend=0)
        if len(numbers) != len(every) or widths.sum() != len(every) or (widths < 0).any():
            raise InvalidInput(
                f"{len(every)} logprobs and {len(numbers)} ranks in rows that end at "
                f"{bounds[-1:].tolist()}: there must be as many of each, and ends must not fall"
            )
        # A sampled token that is among the likeliest is there twice.
        first = bounds - widths
        own = np.repeat(_at(numbers, widths, 0, 0), widths)
        again = (numbers == own) & (own > 0)
        again[first[widths > 0]] = False
        twice = _reduced(np.maximum, again, widths, False)
        keep = np.ones(len(every), bool)
        keep[first[twice]] = False
        widths = widths - twice
        return cls(every[keep], widths, _likeliest(numbers[keep], widths), False, _NONE)


_NONE = np.empty(0, np.int64)


def _at(values: NDArray[Any], widths: Counts, place: int, default: Any = np.nan) -> NDArray[Any]:
    """An entry of each row, the default where it has none."""
    found = np.full(len(widths), default, values.dtype)
    there = widths > place
    found[there] = values[(np.cumsum(widths) - widths)[there] + place]
    return found


def _reduced(
    ufunc: np.ufunc, values: NDArray[Any], widths: Counts, default: Any = np.nan
) -> NDArray[Any]:
    """Each row reduced to one, the default where it is empty."""
    found = np.full(len(widths), default, values.dtype)
    there = widths > 0
    if there.any():
        found[there] = ufunc.reduceat(values, (np.cumsum(widths) - widths)[there])
    return found


def _likeliest(ranks: Counts, widths: Counts) -> Counts:
    """A rank beyond a row's length is that of a sampled token outside the likeliest."""
    beyond = ranks > np.repeat(widths, widths)
    found: Counts = widths - _reduced(np.maximum, beyond, widths, False)
    return found


class Scorer:
    """Turns rows into token confidences, with one k for all traces.

    Args:
        k: how many of the likeliest tokens count; None for as many as all have.
        entries: "topk", or "returned" to count every entry.
        logprob_floor: raises smaller log-probabilities to this, nats.
        missing: "error", or "skip" to leave out tokens without entries.

    Raises:
        InvalidInput: an argument that cannot be right.
    """

    def __init__(
        self,
        k: int | None,
        entries: Literal["topk", "returned"],
        logprob_floor: float | None,
        missing: Literal["error", "skip"],
    ) -> None:
        if entries not in ("topk", "returned"):
            raise InvalidInput(f"entries={entries!r}: must be 'topk' or 'returned'")
        if missing not in ("error", "skip"):
            raise InvalidInput(f"missing={missing!r}: must be 'error' or 'skip'")
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 2):
            raise InvalidInput(
                f"k={k!r}: must be a whole number of at least 2 (the paper takes 20), or None for "
                "as many as every token has"
            )
        token_confidence(np.zeros((1, 2)), logprob_floor=logprob_floor)  # Refuses a bad one.
        self.k = k
        self._given = k is not None
        self._first = ""  # The trace that k is from.
        self._returned = entries == "returned"
        self._floor = logprob_floor
        self.missing = missing
        self.dropped = 0
        """Tokens left out, since they have no entries."""
        self.unsure = 0
        """Tokens of which the k-th likeliest may be missing."""

    def __call__(self, rows: Rows, place: str) -> NDArray[np.float32]:
        """Token confidences, float32 `[num_tokens]`, nats.

        Raises:
            InvalidInput: a token has no entries, or too few; an entry is no log-probability. The
                message begins with the place and names the token.
        """
        at = np.flatnonzero(rows.widths)
        if len(at) < len(rows.widths):
            self._missing(rows, place)
        if not len(at):
            return np.empty(0, np.float32)
        k = self._checked_k(rows, at, place)
        self._check_values(rows, place)
        self.unsure += int((rows.likely[rows.unsure] == k).sum())
        starts = np.cumsum(rows.widths) - rows.widths
        found = np.empty(len(rows.widths), np.float32)
        for width in np.unique(rows.widths[at]):
            of = np.flatnonzero(rows.widths == width)
            table = rows.values[starts[of, None] + np.arange(width)]
            # Most likely first, whatever form they came in: one order of additions.
            table = -np.sort(-table, axis=1)
            if not self._returned:
                table = np.ascontiguousarray(table[:, :k])
            if self._floor is None and table[:, -1].min() <= _MASKED:
                token, value = of[table[:, -1].argmin()], table[:, -1].min()
                raise InvalidInput(
                    f"{place}: token {token} has the log-probability {value:g}, which is what "
                    "servers report of masked tokens: set logprob_floor, for instance to -100"
                )
            found[of] = token_confidence(table, logprob_floor=self._floor)
        return found[at]

    def _missing(self, rows: Rows, place: str) -> None:
        without = np.flatnonzero(rows.widths == 0)
        if self.missing == "error":
            every = len(without) == len(rows.widths)
            raise InvalidInput(
                f"{place}: token {without[0]} has no log-probabilities of the likeliest tokens "
                f"({len(without):,} of {counted(len(rows.widths), 'token')} have none): {ASK}"
                + ("" if every else "; missing='skip' leaves out tokens without them")
            )
        self.dropped += len(without)

    def _checked_k(self, rows: Rows, at: Counts, place: str) -> int:
        likely = rows.likely[at]
        fewest, most = int(likely.min()), int(likely.max())
        short = int(at[likely.argmin()])
        if self.k is None:
            if fewest < 2:
                raise InvalidInput(
                    f"{place}: token {short} has {_entries(fewest)} besides the sampled token or "
                    f"in all: at least 2 are needed, and the paper takes 20; {ASK}"
                )
            self.k, self._first = fewest, place
        if fewest < self.k:
            asked = f"k={self.k}" if self._given else f"and {self._first} has {self.k} a token"
            hint = (
                f"k can be at most {fewest}"
                if self._given
                else f"how many are to count, k={fewest} or less?"
            )
            raise InvalidInput(f"{place}: token {short} has {_entries(fewest)}, {asked}: {hint}")
        if not self._given and most > self.k + (not rows.exact):
            long = int(at[likely.argmax()])
            raise InvalidInput(
                f"{place}: token {long} has {_entries(most)}, and {self._first} has {self.k} a "
                f"token: how many are to count, k={self.k} or less?"
            )
        return self.k

    def _check_values(self, rows: Rows, place: str) -> None:
        if np.isnan(rows.values).any():
            token = _token(rows, np.isnan(rows.values))
            raise InvalidInput(f"{place}: token {token} has an entry that is no number (NaN)")
        if rows.values.max() > _ROUNDING:
            token = _token(rows, rows.values > _ROUNDING)
            raise InvalidInput(
                f"{place}: token {token} has the entry {rows.values.max():g}: log-probabilities "
                "are at most 0; these may be probabilities or logits, which no logprob_floor mends"
            )


def _token(rows: Rows, wrong: NDArray[np.bool_]) -> int:
    return int(np.searchsorted(np.cumsum(rows.widths), np.flatnonzero(wrong)[0], side="right"))


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")
