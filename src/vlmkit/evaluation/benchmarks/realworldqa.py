"""RealWorldQA (xAI, 2024): questions about photographs, with letters or short answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask, choose, listed
from vlmkit.evaluation.benchmarks.dataset import CHOICE_OPTIONAL
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.realworldqa import realworldqa

_INSTRUCTION = "Please answer directly with only the letter of the correct option and nothing else."
_OPTION = re.compile(r"^\s*([A-Z])[.)]\s*(.+?)\s*$", re.MULTILINE)


class RealWorldQA(JudgedLetters):
    """The test split. The question holds its options, and the instruction to answer with a letter.

    lmms-eval asks the question as it is, and has its own rule. `vlmevalkit` reads the options from the question, and
    infers a letter from letter or option text; questions without options follow lmms-eval. A `prompt_suffix` takes the
    place of the instruction in the question.
    """

    name = "realworldqa"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question", "answer", "image"),
        "tsv": ("index", "question", "answer", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("A", "B", *CHOICE_OPTIONAL)}
    tsv_name = "RealWorldQA"

    def read(self, row: Row, identifier: str) -> Case | None:
        """A case a row."""
        question, options = row.text("question").strip(), row.options() if row.layout == "tsv" else {}
        if row.layout == "tsv" and self.lmms_eval:
            text = f"{question}\n{listed(options)}\n{self.instruction(lmms_eval=_INSTRUCTION)}"
        elif row.layout == "tsv":
            text = choose(question, options, hint=row.optional("hint"), instruction=self.prompt_suffix)
        else:
            options = dict(_OPTION.findall(question))
            text = question if self.prompt_suffix is None else question.replace(_INSTRUCTION, self.prompt_suffix)
        return ask(
            identifier,
            [row.image(), text],
            row.text("answer"),
            origin=row.origin,
            category="options" if options else "open",
            options=options,
        )

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if the letter, or the short answer, is the expected one."""
        return realworldqa(
            prediction=prediction, answer=case.expected, options=case.options or None, protocol=self.rule
        )
