"""Nearness to a reference."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.scorers.anls import anls
from vlmkit.evaluation.scorers.edit_distance import edit_distance


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("25", "5", 1), ("flaw", "lawn", 2), ("abc", "abc", 0)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("University  of California", ["university of california"], 1 - 0 / 25),
        ("42.", ["42"], 2 / 3),
        ("25", ["5"], 0.5),  # exactly one half counts
        ("abc", ["xbz"], 0),
        ("Paul", ["Dr. Paul", "paul "], 1),
        ("", [""], 1),
        ("", ["0.28"], 0),
    ],
)
def test_anls(prediction: str, answers: list[str], value: float) -> None:
    assert anls(prediction=prediction, answers=answers).value == pytest.approx(value)


def test_a_trailing_space_raises_the_score_in_vlmevalkit() -> None:
    assert anls(prediction="abcd ", answers=["abxy"], protocol="vlmevalkit").value == pytest.approx(0.6)
    assert anls(prediction="abcd ", answers=["abxy"], protocol="lmms-eval").value == pytest.approx(0.5)


def test_outcomes() -> None:
    assert anls(prediction="42.", answers=["42"]).outcome == "partial"
    assert anls(prediction="", answers=["42"]).outcome == "unparsed"
    with pytest.raises(ValueError, match="no answers"):
        anls(prediction="42", answers=[])
