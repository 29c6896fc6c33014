"""POPE (Li et al., 2023): is there such an object? Yes or no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedYesNo
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.yes_no import pope, yes_no_rates


class POPE(JudgedYesNo, ShortAnswerBenchmark):
    """The test split. The headline figure is F1; precision, recall, accuracy and the share of yes stand beside it.

    `vlmevalkit` understands sentences with one of the two words, lmms-eval the bare word only.
    """

    name = "pope"
    metric = "f1"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question_id", "question", "answer", "image", "category"),
        "tsv": ("index", "question", "answer", "image", "category"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"hub": ("id",), "tsv": ("image_path",)}
    tsv_name = "POPE"
    id_column = "id"
    category_column = "category"
    lmms_eval_instruction = SINGLE_WORD_OR_PHRASE
    vlmevalkit_instruction = ""

    def put(self, question: str, row: Row) -> str:
        """Stripped, as lmms-eval has it."""
        return question.strip() if self.lmms_eval else question

    def expected(self, row: Row) -> Any:
        """Yes or no."""
        return row.text("answer")

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if the word is the expected one."""
        return pope(prediction=prediction, answer=case.expected, protocol=self.rule)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """POPE's rates in percent; VLMEvalKit counts a row once in each of its categories."""
        rows = [
            (record["extracted"], str(record["expected"] or ""))
            for record in records
            for _ in range(1 if self.lmms_eval else len(str(record.get("category") or "").split(",")))
        ]
        rates = yes_no_rates(
            extracted=[word for word, _ in rows], answers=[answer for _, answer in rows], protocol=self.rule
        )
        return {name: 100 * value for name, value in asdict(rates).items()}
