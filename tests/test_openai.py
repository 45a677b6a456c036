"""Log-probabilities of OpenAI-style responses."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deepconf.engines.openai import confidences
from deepconf.errors import InvalidInput, InvalidType

# Sampled token, then the three most likely.
ROWS = [
    (("a", -0.25), [("a", -0.25), ("b", -2.0), ("c", -3.0)]),
    (("z", -9.0), [("a", -0.5), ("b", -1.0), ("c", -4.0)]),
]
TOP3 = [1.75, 5.5 / 3]
TOP2 = [1.125, 0.75]
RETURNED = [1.75, 3.625]


def chat() -> dict[str, Any]:
    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": None}

    content = [
        entry(*sampled) | {"top_logprobs": [entry(*each) for each in top]} for sampled, top in ROWS
    ]
    message = {"role": "assistant", "content": "az"}
    return {"choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]}


def completion() -> dict[str, Any]:
    logprobs = {
        "tokens": [sampled[0] for sampled, _ in ROWS],
        "token_logprobs": [sampled[1] for sampled, _ in ROWS],
        "top_logprobs": [dict([*top, sampled]) for sampled, top in ROWS],
    }
    return {"choices": [{"index": 0, "text": "az", "logprobs": logprobs}]}


def as_objects(value: Any) -> Any:
    return json.loads(json.dumps(value), object_hook=lambda found: SimpleNamespace(**found))


FORMS = {
    "chat": chat(),
    "chat choice": chat()["choices"][0],
    "chat logprobs": chat()["choices"][0]["logprobs"],
    "chat objects": as_objects(chat()),
    "completion": completion(),
    "completion choice": completion()["choices"][0],
}


@pytest.mark.parametrize("response", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same(response: Any) -> None:
    found = confidences(response)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TOP3)
    np.testing.assert_allclose(confidences(response, k=2), TOP2)
    np.testing.assert_allclose(confidences(response, entries="returned"), RETURNED)


def test_a_sampled_token_among_the_likeliest_counts_once() -> None:
    response = chat()
    del response["choices"][0]["logprobs"]["content"][1]
    np.testing.assert_allclose(confidences(response, entries="returned"), RETURNED[:1])


def test_the_floor_raises_masked_tokens() -> None:
    response = chat()
    response["choices"][0]["logprobs"]["content"][0]["top_logprobs"][2]["logprob"] = -9999.0
    np.testing.assert_allclose(confidences(response, logprob_floor=-50.0)[0], 52.25 / 3)


def test_no_tokens() -> None:
    assert confidences({"choices": [{"logprobs": {"content": []}}]}).shape == (0,)


def broken(change: Any) -> Any:
    response = chat()
    change(response["choices"][0]["logprobs"]["content"])
    return response


@pytest.mark.parametrize(
    ("response", "error", "says"),
    [
        ({"choices": [{"logprobs": None}]}, InvalidInput, "neither content nor top_logprobs"),
        ({"choices": []}, InvalidInput, "has 0 choices"),
        ({}, InvalidInput, "neither content nor top_logprobs"),
        (broken(lambda c: c[1].pop("top_logprobs")), InvalidType, "position 1 has no top_logprobs"),
        (broken(lambda c: c[1]["top_logprobs"].pop()), InvalidInput, "position 1 has 2 entries"),
        (
            broken(lambda c: c[0]["top_logprobs"][0].update(logprob="x")),
            InvalidType,
            "position 0 has an entry without a number",
        ),
        (
            broken(lambda c: c[1]["top_logprobs"][0].update(logprob=float("nan"))),
            InvalidInput,
            "position 1 are not finite",
        ),
        ({"top_logprobs": [3]}, InvalidType, "position 0 is no dict"),
        ({"top_logprobs": [{"a": None}]}, InvalidType, "position 0 has a log-probability"),
    ],
)
def test_what_is_wrong_is_named(response: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        confidences(response, k=3)


@pytest.mark.parametrize("entries", ["topk", "returned"])
def test_one_entry_at_some_position_is_no_confidence(entries: Any) -> None:
    response = chat()["choices"][0]["logprobs"]
    response["content"][1]["top_logprobs"] = response["content"][1]["top_logprobs"][:1]
    response["content"][1]["token"] = "a"
    with pytest.raises(InvalidInput, match=r"position 1 has 1 entry, so k=1: .*lowest where"):
        confidences(response, entries=entries)


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidInput, match="k=4"):
        confidences(chat(), k=4)
    for k in (0, 1):
        with pytest.raises(InvalidInput, match=f"k={k}: must be at least 2"):
            confidences(chat(), k=k)
    with pytest.raises(InvalidInput, match="entries='top'"):
        confidences(chat(), entries="top")  # type: ignore[arg-type]
