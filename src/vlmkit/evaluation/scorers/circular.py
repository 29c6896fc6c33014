"""Circular evaluation: a question is right only if every rotation of its options is (MMBench).

Sources: VLMEvalKit `vlmeval/dataset/utils/multiple_choice.py` (`prefetch_circular_group`); lmms-eval
`lmms_eval/tasks/mmbench/mmbench_evals.py`. They differ in how one rotation is read (`score_inferred_choice`,
`mmbench_letter`), not in how rotations are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evaluation.score import Score

ROTATION_STEP = 1_000_000
"""Row indices of one question differ by multiples of this; below it stands the original order."""


def question_of(index: int) -> int:
    """The question to which a row belongs, by its index."""
    return index % ROTATION_STEP


def circular(rotations: Sequence[Score]) -> Score:
    """1 if every rotation is right; without a wrong letter, one rotation that was not understood makes it unparsed.

    Raises:
        ValueError: `rotations` is empty.
    """
    if not rotations:
        raise ValueError("a question without rotations")
    outcomes = {rotation.outcome for rotation in rotations}
    letters = "".join(rotation.extracted or "-" for rotation in rotations)
    if outcomes == {"right"}:
        return Score(1.0, letters, "right")
    for outcome in ("wrong", "failed", "unparsed"):
        if outcome in outcomes:
            return Score(0.0, letters if outcome == "wrong" else None, outcome)
    return Score(0.0, letters, "wrong")
