"""What a benchmark is: cases with an expected answer, and a rule that scores one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from vlmkit.conversation import Conversation
from vlmkit.evaluation.score import Score

JudgeUse = Literal["no", "optional", "required"]
"""Whether a language model judges answers: never, if one is given, or there is no number without it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question.

    Attributes:
        id: Unique within the benchmark.
        conversation: What the model is shown; ends with a user turn.
        prompt: The text of that turn, for the record.
        expected: The right answer (or answers).
        category: For the table by category; "" where there is none.
        media: What is shown, for the record: the path of a file, or `sha256:<first 16 digits> (<n> bytes)` of an image
            that comes as bytes, so that equal media are told alike wherever they lie.
        options: Text of each option by its letter, where the question has options.
        labels: Further groups for tables, by name (`l2_category`, `task`, ...).
        cluster: Questions of one cluster share their image, so their scores are not independent; "" is a cluster of
            its own.
        extra: What else the scorer reads.
    """

    id: str
    conversation: Conversation
    prompt: str
    expected: Any
    category: str = ""
    media: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    cluster: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class BadCase:
    """A row that makes no question; it is recorded as failed, and ends nothing."""

    id: str
    reason: str
    category: str = ""


@runtime_checkable
class Benchmark(Protocol):
    """Cases and their rule. Knows no model.

    Attributes:
        name: What reports and directories call it.
        protocol: Whose prompt and rule are followed.
        metric: Name of the headline figure.
        source: Where the data is from.
        unit: Of the headline figure: `percent` or `points`.
        judge: Whether a language model judges.
        resampled: Whether the standard error of a headline figure of its own is had by leaving out cases in turn.
    """

    name: str
    protocol: str
    metric: str
    source: str
    unit: str
    judge: JudgeUse
    resampled: bool

    def __len__(self) -> int:
        """Rows of the data, which is at least the number of cases."""
        ...

    def cases(self) -> Iterator[Case | BadCase]:
        """All cases, in the order of the data."""
        ...

    def task(self) -> dict[str, Any]:
        """What decides its questions, for the key of its records: no path, no name of a place, no rule of the scorer.

        Data that is moved keeps its answers; another protocol, prompt, split, or other rows, do not.
        """
        ...

    def score(self, case: Case, answer: str) -> Score:
        """Score an answer; pure."""
        ...

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Figures beside the mean score, over scored records, in their own units.

        If one bears the name of `metric`, it is the headline figure instead of the mean score in percent.
        """
        ...

    def baselines(self) -> dict[str, float]:
        """Scores in percent that need no model, such as a guesser's, by name."""
        ...
