"""ST-VQA (Biten et al., 2019): reading text in scenes, by edit distance; the public test split has no answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.rows import Layout
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.anls import anls


class STVQA(ShortAnswerBenchmark):
    """A split that has a column `answers`: name it and its data; the official test split can only be submitted."""

    name = "stvqa"
    metric = "anls"
    protocols: ClassVar[tuple[str, ...]] = ("lmms-eval",)
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"hub": ("question", "answers", "image")}
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"hub": ("question_id",)}
    id_column = "question_id"
    lmms_eval_instruction = SINGLE_WORD_OR_PHRASE
    vlmevalkit_instruction = ""

    def grade(self, case: Case, prediction: str) -> Score:
        """Average normalised Levenshtein similarity."""
        return anls(prediction=prediction, answers=case.expected)
