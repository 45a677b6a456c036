"""Streams of events as bytes: however they are cut, and whatever is in them."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from deepconf.engines.base import Signal
from deepconf.engines.openai._channels import final_part
from deepconf.engines.openai._events import Events
from deepconf.engines.openai._tokens import Answer
from deepconf.errors import DeepConfError, EngineError
from hypothesis import example, given
from hypothesis import strategies as st

SIGNAL = Signal(top_logprobs=3)


def chunk(at: int, reason: str | None = None) -> dict[str, Any]:
    tops = [{"token": f"é{j}", "logprob": -0.5 - j - at / 8} for j in range(4)]
    token = {"token": f"é{at}", "logprob": tops[0]["logprob"], "top_logprobs": tops}
    delta = {"content": f"é{at}"}
    choice = {"index": 0, "delta": delta, "logprobs": {"content": [token]}}
    return {"choices": [{**choice, "finish_reason": reason}]}


CHUNKS = [chunk(at, "stop" if at == 5 else None) for at in range(6)]
CHUNKS.append({"choices": [], "usage": {"completion_tokens": 6}})
STREAM = b": hello\n\n" + b"".join(
    b"event: x\r\ndata: " + json.dumps(each, ensure_ascii=at % 2 == 0).encode() + end
    for at, (each, end) in enumerate(zip(CHUNKS, [b"\n\n", b"\r\n\r\n"] * 4, strict=False))
)
STREAM += b"data: [DONE]\n\n"


def answer() -> Answer:
    return Answer("http://x", SIGNAL, 4, 100)


def read(pieces: list[bytes]) -> tuple[list[list[float]], Answer, Events]:
    events, found = Events("http://x"), answer()
    rows: list[list[float]] = []
    for piece in pieces:
        for each in events.feed(piece):
            found.take(each, rows)
    return rows, found, events


EXPECTED = [[-0.5 - at / 8, -1.5 - at / 8, -2.5 - at / 8] for at in range(6)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
@example([])
@example(list(range(len(STREAM))))
def test_a_stream_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(places)]
    rows, found, events = read(pieces)
    assert rows == EXPECTED
    text, final = found.channels.read()
    assert text == "é0é1é2é3é4é5"
    assert final is text  # And takes no memory of its own.
    assert (found.count, found.usage, found.finish, events.done) == (6, 6, "finished", True)
    found.check_whole()


@given(
    st.lists(st.tuples(st.integers(0, len(STREAM) - 1), st.binary(max_size=3)), max_size=4),
    st.integers(1, 200),
)
def test_damage_is_an_error_of_ours_or_does_no_harm(
    damage: list[tuple[int, bytes]], size: int
) -> None:
    stream = STREAM
    for place, new in damage:
        stream = stream[:place] + new + stream[place + len(new) or 1 :]
    with contextlib.suppress(DeepConfError):
        rows, found, _ = read([stream[at : at + size] for at in range(0, len(stream), size)])
        found.check_whole()
        assert len(rows) == found.count
        assert all(len(row) == 3 and row == sorted(row, reverse=True) for row in rows)
        assert all(row[-1] > -9999 and row[0] <= 1e-3 for row in rows)


FIELDS = """
choices delta content logprobs top_logprobs token logprob index usage error finish_reason text
tokens token_logprobs token_ids completion_tokens reasoning_content
""".split()  # noqa: SIM905 (a list of them would be a line each)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_chunk_or_an_error_of_ours(value: Any) -> None:
    with contextlib.suppress(DeepConfError):
        read([b"data: " + json.dumps(value).encode() + b"\n\n"])


@given(
    st.text(alphabet="<think>/|analysis|channel|>final<|message|>assistantfinal 4\n", max_size=80)
)
def test_a_final_part_is_an_end_of_its_text(text: str) -> None:
    part = final_part(text)
    assert part in text
    assert text.removesuffix("<|return|>").removesuffix("<|end|>").endswith(part) or not part


def test_the_rest_of_a_stream_is_no_event() -> None:
    rows, found, events = read([STREAM[: STREAM.index(b"[DONE]") - 40]])
    assert len(rows) == 6
    assert (found.usage, events.done) == (None, False)


def test_without_counts_a_text_that_is_too_long_tells() -> None:
    found = answer()
    events = Events("http://x")
    longer = chunk(0, "stop")
    longer["choices"][0]["delta"]["content"] = "many words of which one has log-probabilities"
    for each in events.feed(b"data: " + json.dumps(longer).encode() + b"\n\n"):
        found.take(each, [])
    with pytest.raises(EngineError, match="has 3 bytes in its tokens and the text 39"):
        found.check_whole()
