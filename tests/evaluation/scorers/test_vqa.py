"""Answers of several annotators."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.scorers.vqa import (
    normalise_vqa_answer,
    vqa_exact_match,
    vqa_mean_exact,
    vqa_soft_accuracy,
)


@pytest.mark.parametrize(
    ("text", "lmms_eval", "vlmevalkit"),
    [
        ("The Stop Sign!", "stop sign", "stop sign"),
        ("None", "0", "0"),
        ("twenty two", "twenty 2", "twenty 2"),
        ("5.", "5", "5."),
        ("wendy's", "wendy 's", "wendy's"),
        ("who?s", "who's", "who s"),
        ("1,000", "1000", "1000"),
        ("dont", "don't", "don't"),
        ("shed've", "she'd've", "she'd've"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("a an the", "", ""),
        ("12:30 pm", "12:30 pm", "12:30 pm"),
        ("天坛。", "天坛。", "天坛。"),
    ],
)
def test_normalisation(text: str, lmms_eval: str, vlmevalkit: str) -> None:
    assert normalise_vqa_answer(text, protocol="lmms-eval") == lmms_eval
    assert normalise_vqa_answer(text, protocol="vlmevalkit") == vlmevalkit


@pytest.mark.parametrize(("agreeing", "value"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_by_number_in_agreement(agreeing: int, value: float) -> None:
    answers = ["5"] * agreeing + ["25"] * (10 - agreeing)
    assert vqa_soft_accuracy(prediction="five", answers=answers).value == pytest.approx(value)


def test_outcomes() -> None:
    answers = ["5"] * 3 + ["25"] * 7
    assert vqa_soft_accuracy(prediction="5", answers=answers).outcome == "partial"
    assert vqa_soft_accuracy(prediction="25", answers=answers).outcome == "right"
    assert vqa_soft_accuracy(prediction="2", answers=answers).outcome == "wrong"
    assert vqa_soft_accuracy(prediction="the", answers=answers).outcome == "unparsed"


def test_a_lone_annotator_has_nobody_to_agree_with() -> None:
    assert vqa_soft_accuracy(prediction="5", answers=["5"]).value == 0


def test_vizwiz_differs_between_the_protocols() -> None:
    answers = ["blue"] * 7 + ["red"] * 3
    assert vqa_mean_exact(prediction="Blue.", answers=answers).value == 0.7
    assert vqa_soft_accuracy(prediction="Blue.", answers=answers).value == 1


def test_exact_match_after_normalisation() -> None:
    assert vqa_exact_match(prediction="The Eiffel-Tower", answer="eiffel tower").outcome == "right"
    assert vqa_exact_match(prediction="It is the Eiffel Tower", answer="Eiffel Tower").outcome == "wrong"


def test_answers_are_needed() -> None:
    with pytest.raises(ValueError, match="no answers"):
        vqa_soft_accuracy(prediction="5", answers=[])
