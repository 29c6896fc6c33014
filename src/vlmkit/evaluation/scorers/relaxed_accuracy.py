"""Relaxed accuracy: equal text, or a number within five percent (ChartQA).

Sources: the ChartQA paper (Masry et al., 2022, section 5.1); lmms-eval `lmms_eval/tasks/chartqa/utils.py`; VLMEvalKit
`vlmeval/dataset/utils/vqa_eval.py`.
"""

from __future__ import annotations

from vlmkit.evaluation.answers import list_literal
from vlmkit.evaluation.score import ProtocolName, Score, grade

TOLERANCE = 0.05


def relaxed_accuracy(*, prediction: str, target: str, protocol: ProtocolName = "lmms-eval") -> Score:
    """1 if `prediction` is `target`, or a number within five percent of it.

    Shared by both protocols: a target of 0 is compared as text (`0.0` is wrong); years enjoy the tolerance too (`2019`
    passes for `2020`); thousands separators, units, currency signs and words are no numbers; `Yes.` is not `Yes`. With
    `vlmevalkit` a target that is the text of a Python list names several references, of which the best counts.
    """
    answer = prediction.strip()
    references = list_literal(target) if protocol == "vlmevalkit" else None
    right = any(_agrees(answer, reference) for reference in (references if references is not None else [target]))
    return grade(float(right), extracted=answer)


def _agrees(answer: str, target: str) -> bool:
    answered, wanted = _to_number(answer), _to_number(target)
    if answered is not None and wanted:
        return abs(answered - wanted) / abs(wanted) <= TOLERANCE
    return answer.lower() == target.lower()


def _to_number(text: str) -> float | None:
    """The number that is the whole text, in Python's syntax; a trailing percent sign divides by 100."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
