"""GQA, OCRBench, ScienceQA and RealWorldQA."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.scorers.exact_match import exact_match
from vlmkit.evaluation.scorers.ocrbench import ocrbench
from vlmkit.evaluation.scorers.realworldqa import realworldqa
from vlmkit.evaluation.scorers.science_qa import science_qa


@pytest.mark.parametrize(
    ("prediction", "answer", "lmms_eval", "vlmevalkit"),
    [
        ("No.", "no", 1, 0),
        (" left ", "left", 1, 1),
        ("tshirt", "t-shirt", 1, 0),
        ("t shirt", "t-shirt", 0, 0),
        ("25", "5", 0, 0),
        ("2", "two", 0, 0),
        ("the left", "left", 0, 0),
        ("fire  hydrant", "fire hydrant", 0, 0),
    ],
)
def test_exact_match(prediction: str, answer: str, lmms_eval: float, vlmevalkit: float) -> None:
    assert exact_match(prediction=prediction, answer=answer, protocol="lmms-eval").value == lmms_eval
    assert exact_match(prediction=prediction, answer=answer, protocol="vlmevalkit").value == vlmevalkit


@pytest.mark.parametrize(
    ("prediction", "answers", "is_formula", "value"),
    [
        ('The word is "Centre".', ["CENTRE"], False, 1),
        ("25", ["5"], False, 1),  # containment: the benchmark asks for no more
        ("5", ["25"], False, 0),
        ("COFFEE\nSHOP", ["coffee shop"], False, 1),
        ("\\frac { a } { b }", ["\\frac{a}{b}"], True, 1),
        ("\\frac{A}{B}", ["\\frac{a}{b}"], True, 0),
        ("cen tre", ["centre"], False, 0),
        ("x", [""], False, 1),
    ],
)
def test_ocrbench(prediction: str, answers: list[str], is_formula: bool, value: float) -> None:
    for protocol in ("lmms-eval", "vlmevalkit"):
        score = ocrbench(prediction=prediction, answers=answers, is_formula=is_formula, protocol=protocol)
        assert score.value == value


def test_full_width_letters_are_folded_by_lmms_eval_alone() -> None:
    arguments = {"prediction": "Ｃｏｋｅ", "answers": ["coke"], "is_formula": False}
    assert ocrbench(**arguments, protocol="lmms-eval").outcome == "right"
    assert ocrbench(**arguments, protocol="vlmevalkit").outcome == "wrong"


@pytest.mark.parametrize(
    ("prediction", "outcome"),
    [
        ("B", "right"),
        ("b", "right"),
        ("B. a dog", "right"),
        ("B.a dog", "right"),
        ("A. a cat", "wrong"),
        ("C", "wrong"),
        ("(B)", "unparsed"),
        ("B)", "unparsed"),
        ("b. a dog", "unparsed"),
        ("The answer is B.", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_science_qa(prediction: str, outcome: str) -> None:
    assert science_qa(prediction=prediction, answer="B").outcome == outcome


def test_realworldqa_asks_for_a_letter_or_a_word() -> None:
    assert realworldqa(prediction="downhill.", answer="Downhill").outcome == "right"
    assert realworldqa(prediction="going downhill", answer="Downhill").outcome == "wrong"
    assert realworldqa(prediction="zero", answer="0").outcome == "wrong"
    assert realworldqa(prediction="10", answer="0").outcome == "wrong"
    assert realworldqa(prediction="", answer="0").outcome == "unparsed"
    assert realworldqa(prediction="The answer is (B).", answer="B").outcome == "right"
    assert realworldqa(prediction="A", answer="a").outcome == "right"
    assert realworldqa(prediction="The answer is (B).", answer=" b").outcome == "right"
    assert realworldqa(prediction="a dog", answer="B").outcome == "unparsed"


def test_realworldqa_uses_the_text_of_options_where_there_are_some() -> None:
    options = {"A": "one car", "B": "two cars"}
    assert realworldqa(prediction="two cars", answer="B", options=options).outcome == "right"
    assert realworldqa(prediction="two cars", answer="B", options=options, protocol="lmms-eval").outcome == "unparsed"
