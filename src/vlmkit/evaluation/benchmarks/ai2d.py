"""AI2D (Kembhavi et al., 2016): multiple choice about diagrams from school books."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.dataset import CHOICE_COLUMNS, ChoiceBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.benchmarks.science_qa import letter_at
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import ai2d_letter


class AI2D(JudgedLetters, ChoiceBenchmark):
    """The test split with the labels in the diagrams masked; say so beside the number.

    `hub_id` Efficient-Large-Model/ai2d-no-mask has them unmasked. lmms-eval takes a letter, or one with a full stop at
    the start.
    """

    name = "ai2d"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question", "options", "answer", "image"),
        "tsv": CHOICE_COLUMNS,
    }
    tsv_name = "AI2D_TEST"

    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """`answer` is the index of the right option."""
        options = lettered(row.texts("options"))
        return self.choice(
            row,
            identifier,
            question=row.text("question"),
            options=options,
            answer=letter_at(row, options),
            images=[row.image()],
        )

    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """The letter."""
        return ai2d_letter(prediction=prediction, answer=case.expected)
