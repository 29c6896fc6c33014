"""MathVista, MATH-Vision, and the expressions in their answers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from vlmkit.evaluation.scorers.expressions import value_of
from vlmkit.evaluation.scorers.mathvision import final_answer, mathvision, mathvision_no_judge
from vlmkit.evaluation.scorers.mathvista import (
    MathVistaQuestion,
    mathvista,
    mathvista_as_shipped,
    mathvista_extracted,
    quick_extract,
)

PARTS = {"A": "3/11", "B": "8/11", "C": "6/11", "D": "3/5"}
ANGLES = {"A": "60", "B": "75", "C": "90"}


def number(answer: str, kind: str = "integer", precision: int = 0) -> MathVistaQuestion:
    return MathVistaQuestion(
        answer=answer, question_type="free_form", answer_type=kind, precision=precision, options={}
    )


def choice(answer: str) -> MathVistaQuestion:
    return MathVistaQuestion(
        answer=answer, question_type="multi_choice", answer_type="text", precision=0, options=PARTS
    )


@pytest.mark.parametrize(
    ("prediction", "question", "outcome"),
    [
        ("14", number("14"), "right"),
        ("14.0", number("14"), "right"),
        ("114", number("14"), "wrong"),
        ("14.7", number("14"), "wrong"),
        ("nan", number("14"), "unparsed"),
        ("The number is 14.", number("14"), "unparsed"),
        ("inf", number("14"), "unparsed"),
        ("0", number("0"), "right"),
        ("0.64", number("0.6", "float", 1), "right"),
        ("0.66", number("0.6", "float", 1), "wrong"),
        ("1.4", number("1.40", "float", 2), "right"),
        ("[2007, 2008]", number("[2007, 2008]", "list"), "right"),
        ("[2008]", number("[2007, 2008]", "list"), "wrong"),
        ("2007 and 2008", number("[2007, 2008]", "list"), "unparsed"),
        ("B", choice("8/11"), "right"),
        ("8/11", choice("8/11"), "right"),
        ("The correct answer is (A) 3/11.", choice("8/11"), "wrong"),
        ("", choice("3/5"), "unparsed"),
    ],
)
def test_mathvista_without_a_judge(prediction: str, question: MathVistaQuestion, outcome: str) -> None:
    assert mathvista(prediction=prediction, question=question).outcome == outcome


def test_mathvista_as_shipped_credits_the_shortest_option_for_nothing() -> None:
    assert mathvista_as_shipped(prediction="no idea", question=choice("3/5"), protocol="lmms-eval").value == 1
    assert mathvista_as_shipped(prediction="B", question=choice("8/11"), protocol="lmms-eval").value == 0
    assert mathvista_as_shipped(prediction="B", question=choice("8/11"), protocol="vlmevalkit").value == 1


def test_mathvista_as_shipped_compares_numbers_each_in_its_way() -> None:
    question = number("0.6", "float", 1)
    assert mathvista_as_shipped(prediction="0.64", question=question, protocol="lmms-eval").value == 1
    assert mathvista_as_shipped(prediction="0.64", question=question, protocol="vlmevalkit").value == 0
    assert mathvista_as_shipped(prediction="0", question=number("0"), protocol="vlmevalkit").value == 0
    assert mathvista_as_shipped(prediction="[1]", question=number("[1]", "list"), protocol="vlmevalkit").value == 0


def test_mathvista_after_a_judge() -> None:
    assert mathvista_extracted(extraction="(b)", question=choice("8/11")).outcome == "right"
    assert mathvista_extracted(extraction="8 / 11", question=choice("8/11")).outcome == "right"
    assert mathvista_extracted(extraction="14.0", question=number("14")).outcome == "right"
    assert mathvista_extracted(extraction="1.4", question=number("1.40", "float", 2)).outcome == "wrong"
    assert mathvista_extracted(extraction="none", question=number("14")).outcome == "unparsed"
    assert quick_extract('The answer is "14".') == "14"
    assert quick_extract("The answer is 14.") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("1,200", 1200),
        ("-0.5", Fraction(-1, 2)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("\\frac12", Fraction(1, 2)),
        ("2(3+4)", 14),
        ("2^{3}^2", 512),
        ("2^3", 8),
        ("-2^2", -4),
        ("2**-1", Fraction(1, 2)),
        ("\\sqrt{16}", 4),
        ("\\sqrt[3]{27}", 3),
        ("\\sqrt{\\frac{1}{4}}", Fraction(1, 2)),
        ("\\sqrt2", math.sqrt(2)),
        ("2\\pi", 2 * math.pi),
        ("50\\%", Fraction(1, 2)),
        ("\\boxed{12}", 12),
        ("\\left(3\\right) \\times 2 \\div 4", Fraction(3, 2)),
        ("|3-5|", 2),
        ("1/0", None),
        ("9**9**9**9", None),
        ("x", None),
        ("12 cm", None),
        ("3 + ", None),
        ("(" * 500 + "1" + ")" * 500, None),
        ("__import__('os')", None),
        ("", None),
    ],
)
def test_expressions(text: str, value: float | None) -> None:
    assert value_of(text) == (value if value is None else pytest.approx(value))


def test_rational_values_stay_exact() -> None:
    assert isinstance(value_of("\\sqrt{4}/3"), Fraction)
    assert isinstance(value_of("\\sqrt{2}/3"), float)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is 12.", "12"),
        ("Some steps.\nThe final answer is $12^{\\circ}$. Done.", "12"),
        ("\\boxed{3} or rather \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("x = \\boxed{y = 5}", "5"),
        ("It must be (C).", "c"),
        ("(C)\nbecause", "c"),
        ("\\boxed{(B)}", "b"),
        ("1/2", "\\frac{1}{2}"),
        ("0.5", "\\frac{1}{2}"),
        ("\\boxed{\\sqrt2}", "\\sqrt{2}"),
        ("", ""),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("prediction", "answer", "two_decimals", "a_millionth"),
    [
        ("12", "12", 1, 1),
        ("112", "12", 0, 0),
        ("0.333", "1/3", 1, 0),
        ("1/2", "0.5", 1, 1),
        ("1+x", "x+1", 0, 0),
        ("\\sqrt{8}", "2\\sqrt{2}", 0, 0),
        ("\\sqrt{16}", "4", 1, 0),
        ("\\frac{\\sqrt{16}}{2}", "2", 1, 0),
        ("\\sqrt[3]{8}", "2", 0, 1),
        ("|-3|", "3", 1, 0),
        ("\\pi", "3.141592653589793", 0, 0),
        ("\\pi", "\\PI", 1, 1),
        ("50\\%", "0.5", 0, 1),
        ("(1, 2)", "(1,2)", 1, 0),
        ("(1, 3)", "(1,2)", 0, 0),
        ("$12$ cm", "12", 0, 0),
        ("", "12", 0, 0),
    ],
)
def test_mathvision_open(prediction: str, answer: str, two_decimals: float, a_millionth: float) -> None:
    assert mathvision(prediction=prediction, answer=answer).value == two_decimals
    assert mathvision_no_judge(prediction=prediction, answer=answer).value == a_millionth


def test_mathvision_takes_a_letter_or_the_text_of_its_option() -> None:
    for prediction in ("B", "The answer is (B).", "\\boxed{75}"):
        assert mathvision(prediction=prediction, answer="B", options=ANGLES).outcome == "right"
        assert mathvision_no_judge(prediction=prediction, answer="B", options=ANGLES).outcome == "right"
    assert mathvision(prediction="\\boxed{90}", answer="B", options=ANGLES).outcome == "wrong"
    assert mathvision(prediction="", answer="B", options=ANGLES).outcome == "unparsed"
