"""SEED-Bench (Li et al., 2023): multiple choice about images, the image part only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.dataset import CHOICE_COLUMNS, ChoiceBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import seed_letter

_TASKS = {
    "1": "Scene Understanding",
    "2": "Instance Identity",
    "3": "Instance Attributes",
    "4": "Instance Location",
    "5": "Instances Counting",
    "6": "Spatial Relation",
    "7": "Instance Interaction",
    "8": "Visual Reasoning",
    "9": "Text Understanding",
}


class SEED(JudgedLetters, ChoiceBenchmark):
    """The rows whose `data_type` is image. lmms-eval looks at the first character of the answer only."""

    name = "seed"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question", "question_id", "choice_a", "choice_b", "choice_c", "choice_d", "answer", "data_type", "image"),
        "tsv": CHOICE_COLUMNS,
    }  # fmt: skip
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question_type_id",),
        "tsv": ChoiceBenchmark.optional["tsv"],
    }
    tsv_name = "SEEDBench_IMG"
    id_column = "question_id"

    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """A question about an image; None for those about a video."""
        if row.text("data_type") != "image":
            return None
        task = row.optional("question_type_id")
        return self.choice(
            row,
            identifier,
            question=row.text("question"),
            options={letter: row.text(f"choice_{letter.lower()}") for letter in "ABCD"},
            answer=row.text("answer").upper(),
            images=row.images(),
            category=_TASKS.get(task, task),
        )

    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """The first character."""
        return seed_letter(prediction=prediction, answer=case.expected)
