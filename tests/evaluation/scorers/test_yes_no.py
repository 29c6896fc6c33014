"""POPE, MME and HallusionBench."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.scorers.yes_no import (
    COGNITION,
    PERCEPTION,
    HallusionRates,
    HallusionRow,
    YesNoRates,
    hallusion_bench,
    hallusion_rates,
    mme,
    mme_scores,
    mme_total,
    pope,
    yes_no_rates,
)


@pytest.mark.parametrize(
    ("prediction", "answer", "vlmevalkit", "pope_lmms_eval", "mme_lmms_eval", "hallusion_lmms_eval"),
    [
        ("Yes", "yes", "right", "right", "right", "right"),
        ("No.", "no", "right", "unparsed", "right", "right"),
        ("The answer is yes", "yes", "right", "unparsed", "unparsed", "right"),
        ("None", "no", "unparsed", "unparsed", "right", "right"),
        ("north", "yes", "unparsed", "unparsed", "wrong", "wrong"),
        ("yesterday", "no", "unparsed", "unparsed", "wrong", "wrong"),
        ("y", "yes", "unparsed", "unparsed", "right", "wrong"),
        ("", "no", "unparsed", "unparsed", "unparsed", "right"),
    ],
)
def test_answers(
    prediction: str,
    answer: str,
    vlmevalkit: str,
    pope_lmms_eval: str,
    mme_lmms_eval: str,
    hallusion_lmms_eval: str,
) -> None:
    arguments = {"prediction": prediction, "answer": answer}
    for score in (pope, mme, hallusion_bench):
        assert score(**arguments).outcome == vlmevalkit
    assert pope(**arguments, protocol="lmms-eval").outcome == pope_lmms_eval
    assert mme(**arguments, protocol="lmms-eval").outcome == mme_lmms_eval
    assert hallusion_bench(**arguments, protocol="lmms-eval").outcome == hallusion_lmms_eval


def test_pope_rates() -> None:
    extracted = ["Yes", "Yes", "No", None, "No"]
    answers = ["yes", "no", "yes", "yes", "no"]
    rates = yes_no_rates(extracted=extracted, answers=answers)
    assert rates == YesNoRates(accuracy=2 / 5, precision=1 / 2, recall=1 / 3, f1=pytest.approx(0.4), yes_ratio=2 / 5)
    shipped = yes_no_rates(extracted=extracted, answers=answers, protocol="lmms-eval")
    assert (shipped.recall, shipped.yes_ratio) == (1 / 2, 3 / 5)


def test_rates_without_a_denominator_are_0() -> None:
    rates = yes_no_rates(extracted=["No"], answers=["no"])
    assert (rates.accuracy, rates.precision, rates.recall, rates.f1) == (1, 0, 0, 0)
    with pytest.raises(ValueError, match="no rows"):
        yes_no_rates(extracted=[], answers=[])


def test_mme_counts_questions_and_pictures() -> None:
    scores = mme_scores(
        categories=["color", "color", "color", "color", "code_reasoning", "code_reasoning"],
        images=[1, 1, 2, 2, 1, 1],
        values=[1, 1, 1, 0, 1, 1],
    )
    assert scores == {"color": 75 + 50, "code_reasoning": 200}
    assert mme_total(scores, categories=PERCEPTION) == 125
    assert mme_total(scores, categories=COGNITION) == 200


def test_hallusion_rates() -> None:
    def row(figure: str, question: str, value: float) -> HallusionRow:
        return HallusionRow(category="VD_x", set_id="0", figure_id=figure, question_id=question, value=value)

    rates = hallusion_rates([row("0", "0", 1), row("0", "1", 1), row("1", "0", 0), row("1", "1", 1)])
    assert rates == HallusionRates(all_accuracy=0.75, figure_accuracy=0.5, question_accuracy=0.5)
    with pytest.raises(ValueError, match="no rows"):
        hallusion_rates([])
