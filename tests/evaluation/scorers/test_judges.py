"""Replies of judges: read, or known to be unreadable."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.scorers.judges import (
    read_binary,
    read_correctness,
    read_score_pair,
    read_unit_score,
    score_ratio,
)
from vlmkit.evaluation.scorers.simplevqa import SimpleVQARates, read_verdict, simplevqa_rates


@pytest.mark.parametrize(
    ("reply", "lmms_eval", "vlmevalkit"),
    [
        ("8 9\nbecause", (8, 9), (8, 9)),
        ("7.5,8", (7.5, 8), (7.5, 8)),
        ("8, 7", (8, 7), None),
        ("8  9", (8, 9), None),
        ("8/10 9/10", (8, 10), None),  # the first two numbers
        ("Score: 8 9", (8, 9), None),
        ("8", None, None),
        ("I cannot rate these.", None, None),
    ],
)
def test_score_pairs(reply: str, lmms_eval: tuple[float, float] | None, vlmevalkit: tuple[float, float] | None) -> None:
    assert read_score_pair(reply, protocol="lmms-eval") == lmms_eval
    assert read_score_pair(reply, protocol="vlmevalkit") == vlmevalkit


def test_failed_reviews_are_left_out_of_the_ratio() -> None:
    assert score_ratio([(8, 6), None, (-1, -1), (-999, -999)]) == 75
    assert score_ratio([(8, 6), (-1, -1)], protocol="lmms-eval") == 71.4
    assert score_ratio([(8, 6), (-999, -999), (10, 5)], protocol="lmms-eval") == 61.1
    with pytest.raises(ValueError, match="no review"):
        score_ratio([None])


def test_a_verdict_is_one_or_zero() -> None:
    assert (read_binary("1"), read_binary(" 0\n"), read_binary("10")) == (True, False, None)
    assert (read_binary("10", protocol="lmms-eval"), read_binary("no", protocol="lmms-eval")) == (True, False)


def test_a_score_lies_between_0_and_1() -> None:
    assert (read_unit_score("0.5"), read_unit_score("0.5 because"), read_unit_score("7")) == (0.5, None, None)
    assert read_unit_score("0.5 because", protocol="lmms-eval") == 0.5


def test_incorrect_contains_correct() -> None:
    assert (read_correctness("Incorrect."), read_correctness("correct"), read_correctness("?")) == (False, True, None)


def test_simplevqa_verdicts() -> None:
    assert read_verdict("**正确**") == "correct"
    assert read_verdict("我不知道") == "not_attempted"
    assert read_verdict("好") is None
    rates = simplevqa_rates(["correct", "incorrect", "not_attempted", "correct"])
    assert rates == SimpleVQARates(
        correct=0.5,
        incorrect=0.25,
        not_attempted=0.25,
        accuracy_given_attempted=pytest.approx(2 / 3),
        f1=pytest.approx(4 / 7),
    )
    assert simplevqa_rates([None]).f1 == 0
    with pytest.raises(ValueError, match="no verdicts"):
        simplevqa_rates([])
