"""Numbers within five percent, else the same text."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.scorers.relaxed_accuracy import relaxed_accuracy


@pytest.mark.parametrize(
    ("prediction", "target", "value"),
    [
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("105", "100", 1),
        ("1.05", "1", 0),  # rounding noise counts, as upstream
        ("2019", "2020", 1),
        ("25", "5", 0),
        ("-5", "5", 0),
        ("50", "50%", 0),
        ("0.5", "50%", 1),
        ("5 %", "0.05", 1),
        ("0.0", "0", 0),
        ("0", "0", 1),
        ("1,000", "1000", 0),
        ("$5", "5", 0),
        ("12.", "12", 1),
        ("1e3", "1000", 1),
        ("nan", "5", 0),
        ("Yes", "yes", 1),
        ("Yes.", "Yes", 0),
        ("yes", "yes ", 0),  # the target is not stripped
        ("The answer is 12", "12", 0),
    ],
)
def test_relaxed_accuracy(prediction: str, target: str, value: float) -> None:
    assert relaxed_accuracy(prediction=prediction, target=target).value == value


def test_a_list_names_several_references_in_vlmevalkit_only() -> None:
    assert relaxed_accuracy(prediction="2012", target="['x', 2012]", protocol="vlmevalkit").outcome == "right"
    assert relaxed_accuracy(prediction="2012", target="['x', 2012]", protocol="lmms-eval").outcome == "wrong"
    assert relaxed_accuracy(prediction="[2012]", target="[2012]", protocol="vlmevalkit").outcome == "wrong"
    assert relaxed_accuracy(prediction="[2012]", target="[2012]", protocol="lmms-eval").outcome == "right"


def test_no_answer_is_unparsed() -> None:
    assert relaxed_accuracy(prediction=" ", target="12").outcome == "unparsed"
