"""SimpleVQA (Cheng et al., 2025): facts about images, in Chinese and English, by a judge or by exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedScoring
from vlmkit.evaluation.judge_prompts import ATTEMPT
from vlmkit.evaluation.judging import Steps
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Outcome, Score
from vlmkit.evaluation.scorers.simplevqa import Verdict, read_attempt, simplevqa_rates
from vlmkit.evaluation.scorers.vqa import vqa_exact_match

_OUTCOMES: Mapping[Verdict, Outcome] = {"correct": "right", "incorrect": "wrong", "not_attempted": "unparsed"}


class SimpleVQA(JudgedScoring, ShortAnswerBenchmark):
    """The test split. A judge says correct, incorrect or not attempted, and the headline is f1 of what was attempted.

    Without a judge it is lmms-eval's exact match, which has nothing in common with the published numbers of a judge.
    `vlmevalkit` asks the bare question, and scores like `lmms-eval`.
    """

    name = "simplevqa"
    metric = "exact_match"
    prompts = (ATTEMPT,)
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("data_id", "image", "language", "question", "answer"),
        "tsv": ("index", "question", "answer", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("vqa_category",),
        "tsv": ("image_path", "category", "language"),
    }
    tsv_name = "SimpleVQA"
    id_column = "data_id"
    category_column = "vqa_category"
    lmms_eval_instruction = "\nAnswer the question using a short phrase."
    vlmevalkit_instruction = ""

    def put(self, question: str, row: Row) -> str:
        """Stripped, as lmms-eval does."""
        return question.strip() if self.lmms_eval else question

    def expected(self, row: Row) -> Any:
        """The one answer."""
        return row.text("answer")

    def labels(self, row: Row) -> Mapping[str, str]:
        """The language."""
        return {"language": row.optional("language")}

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if equal, as VQA answers are compared."""
        return vqa_exact_match(prediction=prediction, answer=case.expected, protocol="lmms-eval")

    @property
    def judged_metric(self) -> str:
        """Named apart: it is no exact match."""
        return "judged_f1"

    def judging(self, case: Case, answer: str) -> Steps:
        """One of three verdicts; what is not attempted counts as an answer in which nothing was found."""
        told = ATTEMPT.ask(
            read_attempt, question=str(case.extra["question"]), expected=str(case.expected), answer=answer
        )
        verdict = cast("Verdict", (yield told))
        return Score(float(verdict == "correct"), verdict, _OUTCOMES[verdict])

    def judged_figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The shares in percent, failed judgements in the denominator."""
        read = [record["extracted"] if record["outcome"] != "failed" else None for record in records]
        rates = simplevqa_rates(cast("list[Verdict | None]", read))
        return {
            "judged_f1": 100 * rates.f1,
            "correct": 100 * rates.correct,
            "incorrect": 100 * rates.incorrect,
            "not_attempted": 100 * rates.not_attempted,
            "accuracy_given_attempted": 100 * rates.accuracy_given_attempted,
        }
