"""MathVista, without a judge and after one.

Sources: Lu et al., 2024; lmms-eval `lmms_eval/tasks/mathvista/mathvista_evals.py`; VLMEvalKit
`vlmeval/dataset/utils/mathvista.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlmkit.evaluation.answers import infer_choice, list_literal, parse_float, parse_int
from vlmkit.evaluation.score import ProtocolName, Score, grade
from vlmkit.evaluation.scorers.edit_distance import edit_distance
from vlmkit.evaluation.scorers.multiple_choice import grade_letter


@dataclass(frozen=True, slots=True, kw_only=True)
class MathVistaQuestion:
    """What the scorers need to know of a question.

    Attributes:
        answer: The expected answer; for multiple choice the *text* of the option.
        question_type: Multiple choice or free form.
        answer_type: `text` goes with multiple choice.
        precision: Decimals of a `float` answer.
        options: Text of each option by its letter; empty for free form.
    """

    answer: str
    question_type: Literal["multi_choice", "free_form"]
    answer_type: Literal["text", "integer", "float", "list"]
    precision: int
    options: Mapping[str, str]

    @property
    def letter(self) -> str | None:
        """The letter of the expected option; None for free form, or where no option has the expected text."""
        return next((letter for letter, text in self.options.items() if text == self.answer), None)


def mathvista(*, prediction: str, question: MathVistaQuestion) -> Score:
    """1 if the whole prediction is the expected value, or names the expected option: vlmkit's rule without a judge.

    A number must be all there is in the prediction and is rounded to the precision of the question; a list must be
    written as a Python list; the option is found by `infer_choice`. Everything else is unparsed, and is what a judge is
    for.
    """
    if question.question_type == "multi_choice":
        letter = infer_choice(prediction, options=question.options)
        return grade_letter(letter, answer=question.letter or "", options=question.options)
    if question.answer_type == "list":
        given = list_literal(prediction.strip())
        return grade(
            float(given == list_literal(question.answer.strip())), extracted=None if given is None else str(given)
        )
    found = _whole_value(prediction, question)
    return grade(float(found is not None and found == _whole_value(question.answer, question)), extracted=found)


def mathvista_extracted(*, extraction: str, question: MathVistaQuestion) -> Score:
    """Score what a judge (or `quick_extract`) took for the answer, as lmms-eval does.

    For multiple choice a letter in brackets counts; failing that, the option nearest by edit distance *is* the answer,
    whatever the text (nearest to nothing is the shortest). Both sides are compared as text: `1.4` is not `1.40`.
    """
    found = _nearest_option(extraction, question) if question.options else _normalise(extraction, question)
    right = found is not None and found.strip() == question.answer.strip()
    return grade(float(right), extracted=found)


def mathvista_as_shipped(*, prediction: str, question: MathVistaQuestion, protocol: ProtocolName) -> Score:
    """What the references make of a prediction when every call of the judge fails. For parity only.

    `lmms-eval` then extracts nothing, and a multiple choice question gets its shortest option. `vlmevalkit` compares
    numbers exactly, never credits a 0 it read itself, nor any list.
    """
    if protocol == "lmms-eval":
        extraction = quick_literal(prediction.strip(), question=question) or ""
        return mathvista_extracted(extraction=extraction, question=question)
    if question.question_type == "multi_choice":
        letter = infer_choice(prediction, options=question.options)
        return grade_letter(letter, answer=question.letter or "", options=question.options)
    parse = {"integer": parse_int, "float": parse_float}.get(question.answer_type)
    given = parse(prediction) if parse else None
    wanted = parse(question.answer) if parse else None
    return grade(float(bool(given) and given == wanted), extracted=None if given is None else str(given))


def mathvista_exact(*, extraction: str, question: MathVistaQuestion) -> Score:
    """Score what a judge took for the answer, as VLMEvalKit does: the letter, or the number, compared without rounding.

    Source: VLMEvalKit `vlmeval/dataset/utils/mathvista.py` (`post_check`).
    """
    if question.question_type == "multi_choice":
        letter = infer_choice(extraction, options=question.options)
        return grade_letter(letter, answer=question.letter or "", options=question.options)
    given, wanted = parse_float(extraction), parse_float(question.answer)
    return grade(float(given is not None and given == wanted), extracted=None if given is None else extraction.strip())


def needs_extraction(prediction: str, *, score: Score, question: MathVistaQuestion, protocol: str) -> bool:
    """Whether a judge is to say what the answer is.

    With lmms-eval, unless the prediction is an option's text or a number; with vlmevalkit, unless a letter is inferred
    or the number is right (its lists are never right, judged or not); with vlmkit, where its rule finds nothing.

    Args:
        prediction: The answer.
        score: By the protocol's rule without a judge.
        question: What was asked.
        protocol: vlmkit, lmms-eval or vlmevalkit.
    """
    if protocol == "lmms-eval":
        return quick_literal(prediction.strip(), question=question) is None
    if protocol == "vlmevalkit":
        if question.question_type == "multi_choice":
            return score.outcome == "unparsed"
        return question.answer_type in ("integer", "float") and score.outcome != "right"
    return score.outcome == "unparsed"


_QUOTED_ANSWER = re.compile(r'The answer is "(.*)"\.')


def quick_literal(prediction: str, *, question: MathVistaQuestion) -> str | None:
    """The prediction itself where it needs no judge: the text of an option, an integer or a float; else None."""
    if question.question_type == "multi_choice":
        return prediction if prediction in question.options.values() else None
    if question.answer_type == "integer":
        number: float | None = parse_int(prediction)
    else:
        number = parse_float(prediction) if question.answer_type == "float" else None
    return None if number is None else str(number)


def quick_extract(prediction: str) -> str | None:
    """The quoted text of `The answer is "..."`, or None: an option of lmms-eval, off by default."""
    found = _QUOTED_ANSWER.search(prediction)
    return found[1] if found else None


def _nearest_option(extraction: str, question: MathVistaQuestion) -> str:
    text = extraction.strip()
    if bracketed := re.search(r"\(([a-zA-Z])\)", text):
        text = bracketed[1].upper()
    if text in question.options:
        return question.options[text]
    return min(question.options.values(), key=lambda option: edit_distance(text, option))


def _whole_value(text: str, question: MathVistaQuestion) -> str | None:
    """As `_normalise`, but 14.7 is not cut down to the integer 14."""
    number = parse_float(text)
    if question.answer_type == "integer" and number is not None and not number.is_integer():
        return str(number) if abs(number) < float("inf") else None
    return _normalise(text, question)


def _normalise(text: str, question: MathVistaQuestion) -> str | None:
    """The value in the form in which lmms-eval compares it; None where a number is wanted and there is none."""
    if question.answer_type in ("integer", "float"):
        number = parse_float(text)
        if number is None:
            return None
        if question.answer_type == "float":
            return str(round(number, question.precision))
        return str(int(number)) if abs(number) < float("inf") else None
    return text
