"""Values and outcomes."""

from __future__ import annotations

from vlmkit.evaluation.score import Score, failed, grade


def test_the_outcome_follows_from_value_and_extraction() -> None:
    assert grade(1.0, extracted="B") == Score(1.0, "B", "right")
    assert grade(0.6, extracted="B") == Score(0.6, "B", "partial")
    assert grade(0.0, extracted="B") == Score(0.0, "B", "wrong")
    assert grade(0.0, extracted=None) == Score(0.0, None, "unparsed")
    assert grade(0.0, extracted="") == Score(0.0, None, "unparsed")
    assert failed() == Score(0.0, None, "failed")


def test_nothing_can_be_the_right_answer() -> None:
    assert grade(1.0, extracted="").outcome == "right"
