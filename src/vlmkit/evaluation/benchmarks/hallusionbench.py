"""HallusionBench (Guan et al., 2024): yes or no, one question put to several figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.judged import JudgedScoring, yes_or_no
from vlmkit.evaluation.judge_prompts import CORRECTNESS, YES_OR_NO
from vlmkit.evaluation.judging import JudgePrompt, Steps
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.judges import read_three_words
from vlmkit.evaluation.scorers.yes_no import HallusionRow, hallusion_bench, hallusion_rates


class HallusionBench(JudgedScoring):
    """The image split. aAcc (questions), fAcc (figures) and qAcc (question over figures) are all reported.

    The ids end with set, figure and question. With lmms-eval a judge compares each answer with the reference's details;
    without one `lmms-eval` stands for the rule it ships but does not use. With vlmevalkit a judge is asked only about
    answers in which the rule finds neither yes nor no.
    """

    name = "hallusionbench"
    prompts = (CORRECTNESS, YES_OR_NO)
    metric = "aAcc"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("category", "subcategory", "set_id", "figure_id", "question_id", "question", "gt_answer", "image"),
        "tsv": ("index", "question", "answer", "category"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("gt_answer_details",),
        "tsv": ("image", "image_path", "l2-category", "gt_answer_details"),
    }
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
        return ask(
            identifier,
            [row.image(), text],
            answer,
            origin=row.origin,
            category=category,
            extra={"question": row.text("question"), "details": row.optional("gt_answer_details") or answer},
        )

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if the word is the expected one."""
        return hallusion_bench(prediction=prediction, answer=case.expected, protocol=self.rule)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The three accuracies in percent, and their mean."""
        return _accuracies([_row(record) for record in records], figures_of=lambda _: True)

    @property
    def judge_prompts(self) -> Sequence[JudgePrompt]:
        """The one that the protocol asks."""
        return (CORRECTNESS,) if self.lmms_eval else (YES_OR_NO,)

    def judging(self, case: Case, answer: str) -> Steps:
        """Whether the answer agrees with the reference (lmms-eval), or what an answer means that the rule cannot read."""
        question = str(case.extra["question"])
        if self.lmms_eval:
            details = str(case.extra["details"])
            told = CORRECTNESS.ask(
                read_three_words, question=question, expected=details, answer=remove_reasoning(answer) or "(no answer)"
            )
            verdict = cast("str", (yield told))
            right = verdict == "correct" or (verdict == "unclear" and _without_figure(case.id, case.category))
            return grade(float(right), extracted=verdict)
        score = self.grade(case, answer)
        if score.outcome != "unparsed" or not answer.strip():
            return score
        return (yield from yes_or_no(self, case, answer, question=question))

    def judged_figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The same; lmms-eval leaves questions without a figure out of fAcc."""
        rows = [_row(record) for record in records]
        told = _accuracies(
            rows,
            figures_of=lambda row: not self.lmms_eval or not (row.category.startswith("VS") and row.figure_id == "0"),
        )
        return {("judged_aAcc" if name == "aAcc" else name): value for name, value in told.items()}


def _accuracies(rows: Sequence[HallusionRow], *, figures_of: Callable[[HallusionRow], bool]) -> dict[str, float]:
    """In percent; fAcc over the rows that have figures."""
    rates, with_figure = hallusion_rates(rows), [row for row in rows if figures_of(row)]
    told = {
        "aAcc": 100 * rates.all_accuracy,
        "fAcc": 100 * hallusion_rates(with_figure).figure_accuracy if with_figure else 0.0,
        "qAcc": 100 * rates.question_accuracy,
    }
    return {**told, "mean_of_three": sum(told.values()) / 3}


def _without_figure(identifier: str, category: str) -> bool:
    """Whether a question is put without its picture: `VS`, figure 0."""
    return category.startswith("VS") and identifier.split("_")[-2] == "0"


def _row(record: Mapping[str, Any]) -> HallusionRow:
    set_id, figure_id, question_id = str(record["id"]).split("_")[-3:]
    return HallusionRow(
        category=str(record.get("category", "")),
        set_id=set_id,
        figure_id=figure_id,
        question_id=question_id,
        value=float(record["score"]),
    )
