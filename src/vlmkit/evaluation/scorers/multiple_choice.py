"""Multiple choice: the two shared rules, and the letter rules that single benchmarks have of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vlmkit.evaluation.answers import REFUSED, extract_choice, infer_choice
from vlmkit.evaluation.score import Score, grade


def score_inferred_choice(*, prediction: str, answer: str, options: Mapping[str, str]) -> Score:
    """1 if `infer_choice` finds the expected letter; a refusal, or no letter, is unparsed.

    Source: VLMEvalKit `vlmeval/dataset/utils/multiple_choice.py` (`eval_vanilla`), without a judge.
    """
    return grade_letter(infer_choice(prediction, options=options), answer=answer, options=options)


def score_extracted_choice(*, prediction: str, answer: str, letters: Iterable[str] = "ABCD") -> Score:
    """1 if `extract_choice` finds the expected letter (MMStar, RealWorldQA, Video-MME, MLVU in lmms-eval)."""
    letter = extract_choice(prediction, letters=letters)
    return grade(float(letter == answer), extracted=letter)


def grade_letter(letter: str | None, *, answer: str, options: Mapping[str, str]) -> Score:
    """Grade an inferred letter; the mark of a refusal counts as no letter unless an option bears it."""
    if letter == REFUSED and REFUSED not in options:
        letter = None
    return grade(float(letter == answer), extracted=letter)
