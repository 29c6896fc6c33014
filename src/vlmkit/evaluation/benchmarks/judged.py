"""What benchmarks out of a data set share that know a judge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case, JudgeUse
from vlmkit.evaluation.benchmarks.dataset import DatasetBenchmark
from vlmkit.evaluation.judging import JudgePrompt, Steps


class JudgedScoring(DatasetBenchmark):
    """Questions whose answers a judge can score; a subclass says what it is asked."""

    judge: ClassVar[JudgeUse] = "optional"
    prompts: ClassVar[tuple[JudgePrompt, ...]]

    @property
    def uses_judge(self) -> bool:
        """Under every protocol."""
        return True

    @property
    def judge_prompts(self) -> Sequence[JudgePrompt]:
        """All of them."""
        return self.prompts

    @property
    def judged_metric(self) -> str:
        """The rule's, marked as judged; a benchmark that has none without a judge keeps its name."""
        return self.metric if self.judge == "required" else f"judged_{self.metric}"

    @abstractmethod
    def judging(self, case: Case, answer: str) -> Steps:
        """The judgement of an answer."""

    def judged_figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The same figures, the headline under its judged name."""
        renamed = {self.metric: self.judged_metric}
        return {renamed.get(name, name): value for name, value in self.figures(records).items()}
