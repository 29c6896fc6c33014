"""RealWorldQA: letters where the question has options, a word or number where it has none.

Source: lmms-eval `lmms_eval/tasks/realworldqa/utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlmkit.evaluation.answers import extract_choice
from vlmkit.evaluation.score import ProtocolName, Score, grade
from vlmkit.evaluation.scorers.multiple_choice import score_inferred_choice


def realworldqa(
    *, prediction: str, answer: str, options: Mapping[str, str] | None = None, protocol: ProtocolName = "vlmevalkit"
) -> Score:
    """1 if the letter, or the short answer, is the expected one.

    Args:
        prediction: The text of the model.
        answer: The expected letter, or the expected word or number.
        options: Text of each option by its letter; needed for `vlmevalkit`. Without it the rule of lmms-eval is used.
        protocol: `vlmevalkit` infers the letter from letter or option text. `lmms-eval` looks for a letter wherever the
            answer is A to D, in either case of letter, and compares short texts otherwise (`zero` is not `0`).
    """
    if protocol == "vlmevalkit" and options:
        return score_inferred_choice(prediction=prediction, answer=answer, options=options)
    if answer.strip().upper() in {"A", "B", "C", "D"}:
        letter = extract_choice(prediction)
        return grade(float(letter == answer.strip().upper()), extracted=letter)
    short = prediction.strip().lower().rstrip(".")
    return grade(float(short == answer.strip().lower()), extracted=short)
