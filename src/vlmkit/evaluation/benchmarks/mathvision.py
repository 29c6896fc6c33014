"""MATH-Vision (Wang et al., 2024): competition problems with pictures, by rule, or by a judge that extracts answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask, listed
from vlmkit.evaluation.benchmarks.judged import JudgedScoring, chosen_option
from vlmkit.evaluation.judge_prompts import CHOSEN_OPTION, FINAL_ANSWER
from vlmkit.evaluation.judging import Steps
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.judges import NO_ANSWER, read_extraction
from vlmkit.evaluation.scorers.mathvision import mathvision, mathvision_no_judge

_BOXED = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'
_LETTER = "\nAnswer the question with the option's letter from the given choices directly."


class MathVision(JudgedScoring):
    """The testmini (304) or the test split (3,040). lmms-eval finds the final answer of a solution, by rule.

    VLMEvalKit asks a judge where no letter is inferred, or where an open answer is not the expected one as it stands.
    """

    name = "mathvision"
    prompts = (CHOSEN_OPTION, FINAL_ANSWER)
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
            extra={"question": row.text("question")},
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

    @property
    def uses_judge(self) -> bool:
        """With vlmevalkit; lmms-eval's rule needs none."""
        return not self.lmms_eval

    def judging(self, case: Case, answer: str) -> Steps:
        """The rule where it decides, else the answer that a judge finds, compared by the rule."""
        score = self.grade(case, answer)
        if not answer.strip() or score.outcome == "right" or (case.options and score.outcome == "wrong"):
            return score
        question = str(case.extra["question"])
        if case.options:
            return (yield from chosen_option(case, answer, question=question))
        told = FINAL_ANSWER.ask(
            read_extraction, form="a number or an expression, in LaTeX if need be", question=question, answer=answer
        )
        found = cast("str", (yield told))
        return grade(0.0, extracted=None) if found == NO_ANSWER else self.grade(case, found)
