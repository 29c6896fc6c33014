"""The letter rules of single benchmarks, and what is made of many scores."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.circular import circular, question_of
from vlmkit.evaluation.scorers.multiple_choice import (
    ai2d_letter,
    blink_letter,
    mean_over_groups,
    mlvu_letter,
    mmbench_letter,
    mmvp_letter,
    mvbench_letter,
    pair_accuracy,
    score_extracted_choice,
    score_inferred_choice,
    seed_letter,
    videomme_letter,
)

ANIMALS = {"A": "a cat", "B": "a dog", "C": "a bird", "D": "a fish"}
RIGHT, WRONG, UNPARSED = Score(1.0, "B", "right"), Score(0.0, "A", "wrong"), Score(0.0, None, "unparsed")


def test_a_refusal_is_no_answer() -> None:
    assert score_inferred_choice(prediction="Z", answer="B", options=ANIMALS).outcome == "unparsed"
    assert score_inferred_choice(prediction="no idea", answer="B", options=ANIMALS).outcome == "unparsed"
    letters = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", strict=True))
    assert score_inferred_choice(prediction="Z", answer="Z", options=letters).outcome == "right"


def test_the_two_shared_rules_differ() -> None:
    assert score_inferred_choice(prediction="a dog", answer="B", options=ANIMALS).outcome == "right"
    assert score_extracted_choice(prediction="a dog", answer="B").outcome == "unparsed"
    assert score_inferred_choice(prediction="A and B", answer="A", options=ANIMALS).outcome == "unparsed"
    assert score_extracted_choice(prediction="A and B", answer="A").outcome == "right"


@pytest.mark.parametrize(
    ("prediction", "seed", "ai2d", "blink"),
    [
        ("B", "right", "right", "right"),
        ("b", "right", "right", "right"),
        ("(B)", "unparsed", "right", "right"),
        ("B. a dog", "right", "right", "right"),
        ("B a dog", "right", "unparsed", "right"),
        ("The answer is (B)", "wrong", "unparsed", "wrong"),
        ("a dog", "wrong", "unparsed", "wrong"),
        ("C", "wrong", "wrong", "wrong"),
        ("120", "unparsed", "unparsed", "unparsed"),
        ("", "unparsed", "unparsed", "unparsed"),
    ],
)
def test_rules_that_look_at_the_start(prediction: str, seed: str, ai2d: str, blink: str) -> None:
    assert seed_letter(prediction=prediction, answer="B").outcome == seed
    assert ai2d_letter(prediction=prediction, answer="B").outcome == ai2d
    assert blink_letter(prediction=prediction, answer="(B)").outcome == blink


@pytest.mark.parametrize(
    ("prediction", "lmms_eval", "vlmevalkit"),
    [
        ("(B)", "right", "right"),
        ("B. a dog", "right", "right"),
        ("a dog", "wrong", "right"),  # the article reads as A
        ("It is the dog", "unparsed", "unparsed"),
        ("", "unparsed", "right"),  # as shipped: nothing is contained in everything
        ("(", "unparsed", "right"),
        ("C", "wrong", "wrong"),
    ],
)
def test_mvbench(prediction: str, lmms_eval: str, vlmevalkit: str) -> None:
    arguments = {"prediction": prediction, "answer": "B", "options": ANIMALS}
    assert mvbench_letter(**arguments, protocol="lmms-eval").outcome == lmms_eval
    assert mvbench_letter(**arguments, protocol="vlmevalkit").outcome == vlmevalkit


def test_mlvu_takes_the_character_before_the_bracket() -> None:
    assert mlvu_letter(prediction="(B) a dog", answer="B", options=ANIMALS).outcome == "right"
    assert mlvu_letter(prediction="a dog", answer="B", options=ANIMALS).outcome == "right"
    assert mlvu_letter(prediction="(C)", answer="B", options=ANIMALS).outcome == "wrong"
    assert mlvu_letter(prediction="b", answer="B", options=ANIMALS).outcome == "unparsed"


def test_videomme_takes_the_first_capital_and_trips_over_best_option() -> None:
    assert videomme_letter(prediction="The best answer is: C", answer="C").extracted == "C"
    assert videomme_letter(prediction="Best option: C", answer="C").extracted == "B"
    assert videomme_letter(prediction="a fish", answer="D").outcome == "unparsed"
    assert videomme_letter(prediction="a fish", answer="D", options=ANIMALS).outcome == "right"


@pytest.mark.parametrize(
    ("prediction", "outcome"),
    [
        ("B", "right"),
        ("(B).", "right"),
        ("the B,", "right"),
        ("It is a dog.", "right"),
        ("A dog", "wrong"),
        ("A dog is what one sees: B.", "right"),  # more than three words: A may be an article
        ("\\boxed{B}", "right"),  # by extract_choice
        ("b", "unparsed"),
    ],
)
def test_mmbench_in_lmms_eval(prediction: str, outcome: str) -> None:
    assert mmbench_letter(prediction=prediction, answer="B", options=ANIMALS).outcome == outcome


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [("(b)", "B"), ("A. Open", "A"), ("The answer is B", "B"), ("Open", None), ("Banana", "A"), ("option A!", "A")],
)
def test_mmvp_in_lmms_eval(prediction: str, letter: str | None) -> None:
    assert mmvp_letter(prediction=prediction, answer="A").extracted == letter


def test_every_rotation_must_be_right() -> None:
    assert circular([RIGHT, RIGHT]) == Score(1.0, "BB", "right")
    assert circular([RIGHT, UNPARSED]).outcome == "unparsed"
    assert circular([UNPARSED, WRONG, RIGHT]) == Score(0.0, "-AB", "wrong")
    assert question_of(3_000_017) == question_of(17) == 17
    with pytest.raises(ValueError, match="without rotations"):
        circular([])


def test_pairs() -> None:
    assert pair_accuracy([1, 1, 1, 0]) == 0.5
    with pytest.raises(ValueError, match="found 3 rows"):
        pair_accuracy([1, 1, 1])


def test_groups_weigh_the_same_whatever_their_size() -> None:
    assert mean_over_groups([1, 1, 1, 0], ["a", "a", "a", "b"]) == 0.5
    with pytest.raises(ValueError, match="no rows"):
        mean_over_groups([], [])
