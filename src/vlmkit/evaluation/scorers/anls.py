"""ANLS: how near a short text is to the nearest reference (DocVQA, InfoVQA, ST-VQA).

Sources: Biten et al., 2019; lmms-eval `lmms_eval/api/metrics.py` (`anls`); VLMEvalKit
`vlmeval/dataset/utils/vqa_eval.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evaluation.score import ProtocolName, Score, grade
from vlmkit.evaluation.scorers.edit_distance import edit_distance

THRESHOLD = 0.5


def anls(*, prediction: str, answers: Sequence[str], protocol: ProtocolName = "lmms-eval") -> Score:
    """1 minus the smallest normalised edit distance to a reference; 0 if that is below one half.

    Case and runs of white space do not count as edits, punctuation does (`42.` for `42` scores 2/3). The distance is
    divided by the length of the longer text as it was *before* white space was collapsed, in upper case (`ß` counts 2);
    lmms-eval strips the prediction first, VLMEvalKit does not, so that there a trailing space raises the score.

    Raises:
        ValueError: `answers` is empty.
    """
    if not answers:
        raise ValueError("no answers to compare with")
    given = prediction.strip() if protocol == "lmms-eval" else prediction
    similarity = 1 - min(_normalised_distance(answer, given) for answer in answers)
    return grade(similarity if similarity >= THRESHOLD else 0.0, extracted=given.strip())


def _normalised_distance(reference: str, given: str) -> float:
    length = max(len(reference.upper()), len(given.upper()))
    return edit_distance(_fold(reference), _fold(given)) / length if length else 0.0


def _fold(text: str) -> str:
    return " ".join(text.lower().split())
