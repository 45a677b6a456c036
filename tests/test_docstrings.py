"""The examples in docstrings are right."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "deepconf",
    "deepconf._settings",
    "deepconf._statistics",
    "deepconf.answers",
    "deepconf.lab._goal",
    "deepconf.lab.replay",
    "deepconf.responses",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert tried > 0
