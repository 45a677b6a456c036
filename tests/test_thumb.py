"""The rule of thumb, by its figures and on the recordings of both cases."""

import doctest

import deepconf
import pytest
from conftest import TINY
from deepconf.lab import _thumb
from deepconf.lab._thumb import rule_of_thumb


def test_its_examples_hold():
    assert doctest.testmod(_thumb).failed == 0


@pytest.mark.parametrize(
    ("missed", "shared", "told", "gains"),
    [
        (0.10, 0.20, 0.65, True),
        (0.09, 0.20, 0.65, False),
        (0.10, 0.19, 0.65, False),
        (0.10, 0.20, 0.64, False),
        (0.10, None, 0.65, False),
        (0.10, 0.20, None, False),
    ],
)
def test_all_three_figures_are_wanted(missed, shared, told, gains):
    said = rule_of_thumb(missed, shared, told)
    assert ("confidence may gain answers" in said) is gains
    assert ("majority is enough" in said) is not gains


def test_where_nothing_is_right_there_is_no_verdict():
    traces = deepconf.from_confidences([[9.0, 8.0], [2.0, 1.0]] * 4, ["4", "5"] * 4, gold={1: "6"})
    said = deepconf.diagnose(traces).thumb
    assert "Not one trace is right" in said
    assert "enough" not in said
    assert "majority is enough" in rule_of_thumb(0.0, None, None)


def test_only_what_speaks_against_it_is_named():
    said = rule_of_thumb(0.3, 0.1, 0.9)
    assert "Two wrong traces of a question agree in 10% of cases" in said
    assert "misses" not in said
    assert "AUROC" not in said


@pytest.mark.parametrize(
    ("reasoner", "said"),
    [("tiny-reasoner", "majority is enough"), ("tiny-equations", "confidence may gain answers")],
)
def test_it_tells_the_two_tiny_reasoners_apart(reasoner, said):
    found = deepconf.diagnose(TINY.parent / reasoner / "calibration.parquet")
    assert said in found.thumb
    assert said in " ".join(str(found).split())
    assert found.to_dict()["thumb"] == found.thumb


def test_without_known_answers_there_is_none():
    import pyarrow.parquet as pq

    table = pq.read_table(TINY / "calibration.parquet")
    blind = table.drop_columns([c for c in ("correct", "gold") if c in table.column_names])
    assert deepconf.diagnose(blind).thumb == ""
