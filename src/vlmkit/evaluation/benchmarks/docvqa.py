"""DocVQA (Mathew et al., 2021): short answers about scanned documents, by edit distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.anls import anls


class DocVQA(ShortAnswerBenchmark):
    """The validation split (the test split has no answers)."""

    name = "docvqa"
    metric = "anls"
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("questionId", "question_types"),
        "tsv": ("image_path",),
    }
    tsv_name = "DocVQA_VAL"
    id_column = "questionId"
    lmms_eval_instruction = SINGLE_WORD_OR_PHRASE
    vlmevalkit_instruction = SINGLE_WORD_OR_PHRASE

    def labels(self, row: Row) -> Mapping[str, str]:
        """The type of question; of several the first."""
        types = row.listed("question_types")
        return {"question_type": types[0] if types else ""}

    def grade(self, case: Case, prediction: str) -> Score:
        """Average normalised Levenshtein similarity."""
        return anls(prediction=prediction, answers=case.expected, protocol=self.rule)
