"""ChartQA (Masry et al., 2022): short answers about charts, a number within five percent counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from vlmkit.evaluation.answers import list_literal
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.relaxed_accuracy import relaxed_accuracy


class ChartQA(ShortAnswerBenchmark):
    """The test split; categories are its human and its augmented half."""

    name = "chartqa"
    metric = "relaxed_accuracy"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("type", "question", "answer", "image"),
        "tsv": ("index", "question", "answer", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image_path", "split")}
    tsv_name = "ChartQA_TEST"
    lmms_eval_instruction = "\nAnswer the question with a single word."
    vlmevalkit_instruction = SINGLE_WORD_OR_PHRASE

    def expected(self, row: Row) -> Any:
        """The one answer, as written; a list in VLMEvalKit's file is several right ones, whoever scores."""
        answer = row.text("answer")
        return (list_literal(answer) or answer) if row.layout == "tsv" and self.lmms_eval else answer

    def read(self, row: Row, identifier: str) -> Case | None:
        """A case a row, in its half."""
        half = row.optional("split" if row.layout == "tsv" else "type").removesuffix("_test").removeprefix("test_")
        values = {**row.values, "half": half, "category": half}
        return super().read(Row(values, row.origin, row.layout, row.number, row.root), identifier)

    category_column = "half"

    def grade(self, case: Case, prediction: str) -> Score:
        """Relaxed accuracy."""
        targets = cast("list[str]", case.expected) if isinstance(case.expected, list) else [str(case.expected)]
        scores = [relaxed_accuracy(prediction=prediction, target=one, protocol=self.rule) for one in targets]
        return max(scores, key=lambda score: score.value)
