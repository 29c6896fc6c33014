"""What benchmarks out of a data set share that know a judge: in general, and about letters, and about yes and no."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from vlmkit.evaluation.benchmark import Case, JudgeUse
from vlmkit.evaluation.benchmarks.asking import listed
from vlmkit.evaluation.benchmarks.dataset import DatasetBenchmark
from vlmkit.evaluation.judge_prompts import CHOSEN_OPTION, YES_OR_NO
from vlmkit.evaluation.judging import JudgePrompt, Steps
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.judges import read_letter, read_word
from vlmkit.evaluation.scorers.multiple_choice import grade_letter

_WORDS = {"yes": "Yes", "no": "No", "unknown": "Unknown"}


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


class _AsksWhereTheRuleFindsNothing(JudgedScoring):
    """As VLMEvalKit does: the rule first, and a judge only about answers that it cannot read. lmms-eval asks none."""

    @property
    def uses_judge(self) -> bool:
        """With vlmevalkit."""
        return not self.lmms_eval

    def judging(self, case: Case, answer: str) -> Steps:
        """The rule's score, or what a judge makes of an answer that says something, but not in the rule's words."""
        score = self.grade(case, answer)
        if score.outcome != "unparsed" or not answer.strip():
            return score
        return (yield from self.unread(case, answer, question=str(case.extra.get("question") or case.prompt)))

    @abstractmethod
    def unread(self, case: Case, answer: str, *, question: str) -> Steps:
        """The judgement of an answer in which the rule finds nothing."""


class JudgedLetters(_AsksWhereTheRuleFindsNothing):
    """Multiple choice whose letter a judge finds where the rule does not."""

    prompts: ClassVar[tuple[JudgePrompt, ...]] = (CHOSEN_OPTION,)

    def unread(self, case: Case, answer: str, *, question: str) -> Steps:
        """Which option the answer means; open questions stay unread."""
        if not case.options:
            return grade(0.0, extracted=None)
        return (yield from chosen_option(case, answer, question=question))


class JudgedYesNo(_AsksWhereTheRuleFindsNothing):
    """Yes or no, which a judge finds where the rule does not."""

    prompts: ClassVar[tuple[JudgePrompt, ...]] = (YES_OR_NO,)

    def unread(self, case: Case, answer: str, *, question: str) -> Steps:
        """Whether the answer means yes or no."""
        return (yield from yes_or_no(self, case, answer, question=question))


def chosen_option(case: Case, answer: str, *, question: str) -> Steps:
    """Ask which option an answer means, and grade its letter."""

    def read(reply: str) -> str | None:
        return read_letter(reply, case.options)

    told = CHOSEN_OPTION.ask(read, question=question, options=listed(case.options), answer=answer)
    letter = cast("str", (yield told))
    return grade_letter(letter, answer=str(case.expected), options=case.options)


def yes_or_no(benchmark: DatasetBenchmark, case: Case, answer: str, *, question: str) -> Steps:
    """Ask whether an answer means yes or no, and let the benchmark grade the word; Unknown is no answer."""
    told = YES_OR_NO.ask(lambda reply: read_word(reply, _WORDS), question=question, answer=answer)
    word = cast("str", (yield told))
    score: Score = benchmark.grade(case, word) if word != "Unknown" else grade(0.0, extracted=None)
    return score
