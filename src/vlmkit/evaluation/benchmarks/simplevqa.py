"""SimpleVQA (Cheng et al., 2025): facts about images, in Chinese and English, by exact match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.vqa import vqa_exact_match


class SimpleVQA(ShortAnswerBenchmark):
    """The test split by lmms-eval's exact match, which has nothing in common with the published numbers of a judge."""

    name = "simplevqa"
    metric = "exact_match"
    protocols: ClassVar[tuple[str, ...]] = ("lmms-eval",)
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
        """Stripped."""
        return question.strip()

    def expected(self, row: Row) -> Any:
        """The one answer."""
        return row.text("answer")

    def labels(self, row: Row) -> Mapping[str, str]:
        """The language."""
        return {"language": row.optional("language")}

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if equal, as VQA answers are compared."""
        return vqa_exact_match(prediction=prediction, answer=case.expected, protocol=self.rule)
