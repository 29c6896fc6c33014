"""MMMU: never a guess, unless asked for."""

from __future__ import annotations

import random

import pytest

from vlmkit.evaluation.scorers.mmmu import (
    last_answer_line,
    mmmu_as_choice,
    mmmu_multiple_choice,
    mmmu_open,
    mmmu_open_as_shipped,
    mmmu_pro_cot,
    mmmu_pro_vision_raw,
    parse_mmmu_open,
)

PRICES = {"A": "$6,000", "B": "$6,300", "C": "$8,000", "D": "$60,000"}


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("'B'", "B"),
        ("(A) is wrong, so (C)", "C"),
        ("A is tempting. But the right one is D.", "D"),
        ("After adding the bonus we get $6,300 in total.", "B"),
        ("$6,300", None),  # too short for the text of an option
        ("B)", None),
        ("**B**", None),
        ("b", None),
        ("", None),
        ("VITAMIN D helps", "D"),
    ],
)
def test_multiple_choice(prediction: str, letter: str | None) -> None:
    score = mmmu_multiple_choice(prediction=prediction, answer="B", options=PRICES)
    assert score.extracted == letter
    assert score.outcome == ("unparsed" if letter is None else "right" if letter == "B" else "wrong")


def test_the_guess_is_seeded_and_has_to_be_asked_for() -> None:
    guess = random.Random(7).choice("ABCD")
    assert mmmu_multiple_choice(prediction="?", answer=guess, options=PRICES, guess_seed=7).outcome == "right"
    assert mmmu_multiple_choice(prediction="?", answer=guess, options=PRICES).outcome == "unparsed"
    assert mmmu_multiple_choice(prediction="C", answer="C", options=PRICES, guess_seed=7).outcome == "right"


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("x = 12", "12", 1),
        ("The answer is 12.", "12.0", 1),
        ("112", "12", 0),
        ("25", "5", 0),
        ("0.333", "0.33", 1),
        ("1/3", "0.33", 0),
        ("1,200", "1200", 1),
        ("50%", "0.5", 0),
        ("the final answer is Paris, France", "paris", 1),
        ("comparison", "paris", 1),  # containment, as the official code has it
        ("the result is B", "b", 1),
        ("the result is Bob", "b", 0),
        ("It could be 7. So the answer is 8", "7", 0),
    ],
)
def test_open(prediction: str, answer: str, value: float) -> None:
    assert mmmu_open(prediction=prediction, answer=answer).value == value


def test_open_with_several_answers() -> None:
    assert mmmu_open(prediction="The ratio is 0.29", answer=["7/24", "0.29"]).outcome == "right"
    assert mmmu_open(prediction="", answer=["2", "3"]).outcome == "unparsed"
    assert mmmu_open(prediction="4", answer=["2", "3"]).outcome == "wrong"


def test_an_indicator_inside_a_word_counts() -> None:
    assert parse_mmmu_open("this 5 or 6") == ["5 or 6", 5.0, 6.0]


def test_as_shipped_open_questions_are_lost() -> None:
    assert mmmu_open_as_shipped(prediction="12", answer="12").value == 0


def test_vlmevalkit_makes_a_choice_of_an_open_question() -> None:
    assert mmmu_as_choice(prediction="x = 12", answer="12").outcome == "right"
    assert mmmu_as_choice(prediction="1,200", answer="1200").outcome == "unparsed"
    assert mmmu_as_choice(prediction="B", answer="B", options=PRICES).outcome == "right"


def test_the_last_answer_line_counts() -> None:
    assert last_answer_line("Answer: A\nNo.\nAnswer: **D**\nDone") == "D"
    assert last_answer_line("Answer: A or B") == " A or B"
    assert last_answer_line("It is C") == "It is C"
    assert mmmu_pro_cot(prediction="A or B?\nAnswer: (B)", answer="B", options=PRICES).outcome == "right"


def test_the_vision_rule_parses_nothing() -> None:
    assert mmmu_pro_vision_raw(prediction=" B ", answer="B").outcome == "right"
    assert mmmu_pro_vision_raw(prediction="B.", answer="B").outcome == "wrong"
