"""OCRBench (Liu et al., 2024): reading of five kinds, an answer that contains the text counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.dataset import DatasetBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.ocrbench import FORMULA_CATEGORY, TEXT_RECOGNITION, ocrbench

_WHOLE = 1000


class OCRBench(DatasetBenchmark):
    """The test split. The headline figure is the share of questions; of the whole set that is the final score / 10.

    `final_score` (0 to 1000) stands beside it where all 1000 questions were asked.
    """

    name = "ocrbench"
    metric = "containment"
    figure_units: ClassVar[Mapping[str, str]] = {"final_score": "points"}
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("dataset", "question", "question_type", "answer", "image"),
        "tsv": ("index", "question", "answer", "category", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image_path",)}
    tsv_name = "OCRBench"

    def read(self, row: Row, identifier: str) -> Case | None:
        """A case a row."""
        kind = row.text("category" if row.layout == "tsv" else "question_type")
        question = row.text("question")
        text = (question.strip() if self.lmms_eval else question) + self.instruction(lmms_eval="")
        by_data_set = self.lmms_eval and row.layout == "hub"
        return ask(
            identifier,
            [row.image(), text],
            row.texts("answer"),
            origin=row.origin,
            category=kind,
            labels={"group": "Text Recognition" if kind in TEXT_RECOGNITION else kind},
            extra={"is_formula": row.text("dataset") == "HME100k" if by_data_set else kind == FORMULA_CATEGORY},
        )

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if an answer is contained."""
        return ocrbench(
            prediction=prediction,
            answers=case.expected,
            is_formula=bool(case.extra["is_formula"]),
            protocol=self.rule,
        )

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The final score of the whole set."""
        return {"final_score": sum(record["score"] for record in records)} if len(records) == _WHOLE else {}
