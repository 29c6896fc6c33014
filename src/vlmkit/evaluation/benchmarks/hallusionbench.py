"""HallusionBench (Guan et al., 2024): yes or no, one question put to several figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.dataset import DatasetBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.yes_no import HallusionRow, hallusion_bench, hallusion_rates


class HallusionBench(DatasetBenchmark):
    """The image split, by rule. aAcc (questions), fAcc (figures) and qAcc (question over figures) are all reported.

    The ids end with set, figure and question. `lmms-eval` stands for the rule it ships but does not use: it asks a judge.
    """

    name = "hallusionbench"
    metric = "aAcc"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("category", "subcategory", "set_id", "figure_id", "question_id", "question", "gt_answer", "image"),
        "tsv": ("index", "question", "answer", "category"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image", "image_path", "l2-category")}
    tsv_name = "HallusionBench"

    def identifier(self, row: Row) -> str:
        """Category, subcategory, set, figure, question; of a TSV its index."""
        if row.layout == "tsv":
            return row.text("index")
        names = ("category", "subcategory", "set_id", "figure_id", "question_id")
        return "_".join(row.optional(name) for name in names)

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question about a figure."""
        if row.layout == "hub":
            category, answer = f"{row.text('category')}_{row.text('subcategory')}", row.text("gt_answer")
            answer = {"0": "No", "1": "Yes"}.get(answer.strip(), answer)
        else:
            category, answer = row.optional("l2-category") or row.text("category"), row.text("answer")
        if answer.strip().lower() not in ("yes", "no"):
            raise row.wrong("gt_answer" if row.layout == "hub" else "answer", "yes or no")
        text = row.text("question") + self.instruction(lmms_eval="")
        return ask(identifier, [row.image(), text], answer, origin=row.origin, category=category)

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if the word is the expected one."""
        return hallusion_bench(prediction=prediction, answer=case.expected, protocol=self.rule)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The three accuracies in percent, and their mean."""
        rows = [_row(record) for record in records]
        rates = hallusion_rates(rows)
        told = {
            "aAcc": 100 * rates.all_accuracy,
            "fAcc": 100 * rates.figure_accuracy,
            "qAcc": 100 * rates.question_accuracy,
        }
        return {**told, "mean_of_three": sum(told.values()) / 3}


def _row(record: Mapping[str, Any]) -> HallusionRow:
    set_id, figure_id, question_id = str(record["id"]).split("_")[-3:]
    return HallusionRow(
        category=str(record.get("category", "")),
        set_id=set_id,
        figure_id=figure_id,
        question_id=question_id,
        value=float(record["score"]),
    )
