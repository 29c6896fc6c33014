"""MATH-Vision (Wang et al., 2024): competition problems with pictures, by rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask, listed
from vlmkit.evaluation.benchmarks.dataset import DatasetBenchmark
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.mathvision import mathvision, mathvision_no_judge

_BOXED = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'
_LETTER = "\nAnswer the question with the option's letter from the given choices directly."


class MathVision(DatasetBenchmark):
    """The testmini (304) or the test split (3,040). lmms-eval finds the final answer of a solution, by rule."""

    name = "mathvision"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("id", "question", "options", "decoded_image", "answer", "level", "subject"),
        "tsv": ("index", "question", "answer", "choices", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image_path", "category")}
    tsv_name = "MathVision_MINI"
    id_column = "id"

    def read(self, row: Row, identifier: str) -> Case | None:
        """A problem with its picture."""
        options = lettered(row.listed("choices" if row.layout == "tsv" else "options"))
        return ask(
            identifier,
            [row.image("image" if row.layout == "tsv" else "decoded_image"), self.put(row.text("question"), options)],
            row.text("answer"),
            origin=row.origin,
            category=row.optional("category" if row.layout == "tsv" else "subject"),
            options=options,
            labels={"level": row.optional("level")},
        )

    def put(self, question: str, options: Mapping[str, str]) -> str:
        """The problem as the protocol puts it."""
        if not self.lmms_eval:
            return question + (self.prompt_suffix or "")
        text = _BOXED + question if self.prompt_suffix is None else question
        if options:
            text += f"\nChoices: {listed(options)}" + (_LETTER if self.prompt_suffix is None else "")
        return text + (self.prompt_suffix or "")

    def grade(self, case: Case, prediction: str) -> Score:
        """By the final answer."""
        rule = mathvision if self.lmms_eval else mathvision_no_judge
        return rule(prediction=prediction, answer=case.expected, options=case.options)
