"""OCRBench: an answer is right if it contains one of the references.

Sources: lmms-eval `lmms_eval/tasks/ocrbench/utils.py`; VLMEvalKit `vlmeval/dataset/utils/ocrbench.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evaluation.score import ProtocolName, Score, grade

FORMULA_CATEGORY = "Handwritten Mathematical Expression Recognition"
TEXT_RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
"""The six categories that are reported together as Text Recognition."""

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def ocrbench(
    *, prediction: str, answers: Sequence[str], is_formula: bool, protocol: ProtocolName = "lmms-eval"
) -> Score:
    """1 if any reference is contained in the prediction.

    Args:
        prediction: The text of the model.
        answers: The references. An empty one is contained in everything.
        is_formula: Whether this is a handwritten formula (category `FORMULA_CATEGORY`; lmms-eval goes by the data set
            `HME100k`): then spaces are ignored and case counts; otherwise the reverse.
        protocol: `lmms-eval` reads full-width ASCII as its half-width form, except in formulas.

    Raises:
        ValueError: `answers` is empty.
    """
    if not answers:
        raise ValueError("no answers to compare with")
    fold_width = protocol == "lmms-eval" and not is_formula
    given = _fold(prediction, is_formula=is_formula, fold_width=fold_width)
    right = any(_fold(answer, is_formula=is_formula, fold_width=fold_width) in given for answer in answers)
    return grade(float(right), extracted=given)


def _fold(text: str, *, is_formula: bool, fold_width: bool) -> str:
    if fold_width:
        text = text.translate(_HALF_WIDTH)
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if is_formula else text.lower()
