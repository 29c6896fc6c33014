"""MMBench (Liu et al., 2024), English and Chinese: multiple choice, each question in every rotation of its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import LETTER_DIRECTLY, listed
from vlmkit.evaluation.benchmarks.dataset import CHOICE_COLUMNS, ChoiceBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.circular import question_of
from vlmkit.evaluation.scorers.multiple_choice import mmbench_letter


class MMBenchEN(JudgedLetters, ChoiceBenchmark):
    """The dev split (the test split has no answers), version 1.0.

    The headline figure is circular: a question counts only if every rotation is right. `vanilla_accuracy`, over the
    first rotation alone, stands beside it.
    """

    name = "mmbench_en"
    metric = "circular_accuracy"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("index", "question", "hint", "answer", "A", "B", "C", "D", "category", "image", "L2-category"),
        "tsv": CHOICE_COLUMNS,
    }
    tsv_name = "MMBench_DEV_EN"
    id_column = "index"
    lmms_eval_instruction = "\n" + LETTER_DIRECTLY

    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """Missing hints and options are the text `nan`."""
        return self._clustered(
            self.choice(
                row,
                identifier,
                question=row.text("question"),
                options=row.options(),
                answer=row.text("answer"),
                images=[row.image()],
                hint=row.optional("hint"),
                category=row.optional("category"),
                labels={"l2_category": row.optional("L2-category")},
            )
        )

    def read_tsv(self, row: Row, identifier: str) -> Case | None:
        """As other multiple choice; all rotations of a question are one cluster."""
        case = super().read_tsv(row, identifier)
        return self._clustered(case, row.optional("g_index")) if case else None

    def _clustered(self, case: Case, question: str = "") -> Case:
        if not question and case.id.isdecimal():
            question = str(question_of(int(case.id)))
        return replace(case, cluster=f"question {question or case.id}")

    def put(self, question: str, options: Mapping[str, str], hint: str) -> str:
        """Hint and question on one line, as lmms-eval has it."""
        told = f"{hint} {question}" if hint else question
        instruction = self.instruction(lmms_eval=self.lmms_eval_instruction)
        return f"{told} There are several options:\n{listed(options)}{instruction}"

    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """Its own, older inference of a letter."""
        return mmbench_letter(prediction=prediction, answer=case.expected, options=case.options)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Percent of questions of which every rotation is right, and of first rotations that are."""
        questions: dict[str, float] = {}
        first: dict[str, float] = {}
        for record in records:
            name, score = str(record.get("cluster") or record["id"]), float(record["score"])
            questions[name] = min(questions.get(name, 1.0), score)
            first.setdefault(name, score)
        return {
            "circular_accuracy": 100 * sum(questions.values()) / len(questions),
            "vanilla_accuracy": 100 * sum(first.values()) / len(first),
        }


class MMBenchCN(MMBenchEN):
    """The Chinese questions."""

    name = "mmbench_cn"
    tsv_name = "MMBench_DEV_CN"
    lmms_eval_instruction = "\n\n请直接使用所提供的选项字母作为答案回答。"
