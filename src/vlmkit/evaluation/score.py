"""What a scorer says about one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProtocolName = Literal["lmms-eval", "vlmevalkit"]
"""The reference evaluator whose rule a score follows."""

Outcome = Literal["right", "wrong", "partial", "unparsed", "failed"]


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one answer.

    Attributes:
        value: Between 0 and 1 for every scorer of single answers, in the unit of the scorer otherwise.
        extracted: What was understood as the answer; None where nothing was.
        outcome: `unparsed`: the text holds no answer the rule understands; `failed`: there is no text to score
            (generation or judge failed). Neither is ever replaced by a guess.
    """

    value: float
    extracted: str | None
    outcome: Outcome


def grade(value: float, *, extracted: str | None) -> Score:
    """A score whose outcome follows from its value.

    Without credit, an answer of which nothing (None or the empty text) was understood is `unparsed`, any other `wrong`.
    """
    if value >= 1:
        return Score(value, extracted, "right")
    if value > 0:
        return Score(value, extracted, "partial")
    return Score(value, extracted or None, "wrong" if extracted else "unparsed")


def failed() -> Score:
    """The score of a case that has no answer: generation or judgement failed."""
    return Score(0.0, None, "failed")
