"""What a benchmark is: cases with an expected answer, and a rule that scores one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from vlmkit.conversation import Conversation
from vlmkit.evaluation.score import Score


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question.

    Attributes:
        id: Unique within the benchmark.
        conversation: What the model is shown; ends with a user turn.
        prompt: The text of that turn, for the record.
        expected: The right answer (or answers).
        category: For the table by category; "" where there is none.
        media: What is shown, in words, for the record.
        options: Text of each option by its letter, where the question has options.
    """

    id: str
    conversation: Conversation
    prompt: str
    expected: Any
    category: str = ""
    media: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class BadCase:
    """A row that makes no question; it is recorded as failed, and ends nothing."""

    id: str
    reason: str
    category: str = ""


@runtime_checkable
class Benchmark(Protocol):
    """Cases and their rule. Knows no model."""

    name: str
    protocol: str
    metric: str
    source: str

    def cases(self) -> Iterator[Case | BadCase]:
        """All cases, in the order of the data."""
        ...

    def score(self, case: Case, answer: str) -> Score:
        """Score an answer; pure."""
        ...

    def baselines(self) -> dict[str, float]:
        """Scores in percent that need no model, such as a guesser's, by name."""
        ...
