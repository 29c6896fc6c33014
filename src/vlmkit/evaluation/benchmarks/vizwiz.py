"""VizWiz-VQA (Gurari et al., 2018): questions and photographs by blind people; ten annotators each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.vqa import vqa_mean_exact, vqa_soft_accuracy


class VizWiz(ShortAnswerBenchmark):
    """The val split (the test split has no answers).

    lmms-eval scores by soft accuracy, VLMEvalKit by the share of annotators who agree: seven of ten are 1.0 and 0.7.
    """

    name = "vizwiz"
    metric = "vqa_soft_accuracy"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question_id", "question", "answers", "image"),
        "tsv": ("index", "question", "answers", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"hub": ("category",), "tsv": ("image_path", "category")}
    tsv_name = "VizWiz"
    id_column = "question_id"
    category_column = "category"
    answer_columns: ClassVar[Mapping[Layout, str]] = {"hub": "answers", "tsv": "answers"}
    lmms_eval_instruction = (
        "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SINGLE_WORD_OR_PHRASE
    )
    vlmevalkit_instruction = ""

    def put(self, question: str, row: Row) -> str:
        """In lower case but for the first letter, as lmms-eval has it."""
        return question.capitalize() if self.lmms_eval else question

    def grade(self, case: Case, prediction: str) -> Score:
        """Agreement with the annotators."""
        rule = vqa_soft_accuracy if self.lmms_eval else vqa_mean_exact
        return rule(prediction=prediction, answers=case.expected, protocol=self.rule)
