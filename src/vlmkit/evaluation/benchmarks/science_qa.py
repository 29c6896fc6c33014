"""ScienceQA (Lu et al., 2022): school science, multiple choice, with or without a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.errors import DataError
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.dataset import CHOICE_COLUMNS, ChoiceBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.science_qa import science_qa


class ScienceQA(JudgedLetters, ChoiceBenchmark):
    """The test split; `config` ScienceQA-IMG has the questions with a picture, ScienceQA-FULL all of them.

    lmms-eval takes the bare letter, or a letter with a full stop at the start.
    """

    name = "science_qa"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("image", "question", "choices", "answer", "hint"),
        "tsv": CHOICE_COLUMNS,
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("subject", "topic", "grade"),
        "tsv": ChoiceBenchmark.optional["tsv"],
    }
    tsv_name = "ScienceQA_TEST"

    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """`answer` is the index of the right choice; a row without an image is asked without one."""
        options = lettered(row.texts("choices"))
        return self.choice(
            row,
            identifier,
            question=row.text("question"),
            options=options,
            answer=letter_at(row, options),
            images=row.images() if row.has("image") else [],
            hint=row.optional("hint"),
            category=row.optional("subject"),
            labels={"topic": row.optional("topic"), "grade": row.optional("grade")},
        )

    def put(self, question: str, options: Mapping[str, str], hint: str) -> str:
        """The hint stands before the question, as its context."""
        return (f"Context: {hint}\n" if hint else "") + super().put(question, options, hint)

    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """The bare letter."""
        return science_qa(prediction=prediction, answer=case.expected)


def letter_at(row: Row, options: Mapping[str, str], column: str = "answer") -> str:
    """The letter of the option whose index stands in a column.

    Raises:
        DataError: there is no such option.
    """
    letters, told = list(options), row.text(column)
    if not told.isdecimal() or int(told) >= len(letters):
        raise DataError(
            f"answer index {told} but {len(letters)} options (0..{len(letters) - 1}). The data is malformed; the row is "
            "not scored. Mend the data.",
            reason="bad_row",
            origin=row.origin,
        )
    return letters[int(told)]
