"""SimpleVQA: three verdicts of a judge, and what is made of them.

Source: VLMEvalKit `vlmeval/dataset/utils/simplevqa.py`. Without a judge lmms-eval uses `vqa_exact_match`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from vlmkit.evaluation.scorers.judges import read_word

Verdict = Literal["correct", "incorrect", "not_attempted"]
_LABELS: dict[str, Verdict] = {"正确": "correct", "错误": "incorrect", "未尝试": "not_attempted"}


def read_verdict(label: str) -> Verdict | None:
    """The verdict of a judge's Chinese label.

    `**` is dropped; a label longer than three characters counts as not attempted, as upstream; any other unknown label
    is None.
    """
    plain = label.replace("**", "")
    return "not_attempted" if len(plain) > 3 else _LABELS.get(plain)


_WORDS = {"correct": "correct", "incorrect": "incorrect", "not attempted": "not_attempted"}


def read_attempt(reply: str) -> Verdict | None:
    """The verdict in a reply to our own prompt: CORRECT, INCORRECT or NOT_ATTEMPTED, or a Chinese label; else None."""
    label = _LABELS.get(reply.replace("*", "").strip())
    return label or cast("Verdict | None", read_word(reply, _WORDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleVQARates:
    """Fractions of all questions, the accuracy over those attempted, and the harmonic mean of it and `correct`."""

    correct: float
    incorrect: float
    not_attempted: float
    accuracy_given_attempted: float
    f1: float


def simplevqa_rates(verdicts: Sequence[Verdict | None]) -> SimpleVQARates:
    """The rates over all verdicts; None (no verdict) counts in the denominator only.

    The three shares are rounded to four decimals before the rest is computed from them, as upstream.

    Raises:
        ValueError: `verdicts` is empty.
    """
    if not verdicts:
        raise ValueError("no verdicts to rate")
    correct = _share(verdicts, "correct")
    incorrect = _share(verdicts, "incorrect")
    attempted = round(correct + incorrect, 4)
    accuracy = correct / attempted if attempted else 0.0
    return SimpleVQARates(
        correct=correct,
        incorrect=incorrect,
        not_attempted=_share(verdicts, "not_attempted"),
        accuracy_given_attempted=accuracy,
        f1=2 * accuracy * correct / (accuracy + correct) if accuracy + correct else 0.0,
    )


def _share(verdicts: Sequence[Verdict | None], verdict: Verdict) -> float:
    return round(sum(given == verdict for given in verdicts) / len(verdicts), 4)
