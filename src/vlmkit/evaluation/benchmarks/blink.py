"""BLINK (Fu et al., 2024): perception in 14 tasks, up to four images a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import Content
from vlmkit.evaluation.benchmarks.dataset import CHOICE_COLUMNS, ChoiceBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import blink_letter, mean_over_groups

_NOTE = "Note: You only need to respond with {letters} without providing any additional information.\n"


TASKS = (
    "Art_Style", "Counting", "Forensic_Detection", "Functional_Correspondence", "IQ_Test", "Jigsaw",
    "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Relative_Reflectance", "Semantic_Correspondence",
    "Spatial_Relation", "Visual_Correspondence", "Visual_Similarity",
)  # fmt: skip
"""The configurations of the data, a task each."""


class BLINK(JudgedLetters, ChoiceBenchmark):
    """The val split of all 14 tasks, or of those that `config` names.

    The headline figure is the mean over questions; `mean_over_tasks` stands beside it. lmms-eval looks at the first
    letter of the answer.
    """

    name = "blink"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("idx", "question", "sub_task", "image_1", "choices", "answer", "prompt"),
        "tsv": CHOICE_COLUMNS,
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("image_2", "image_3", "image_4"),
        "tsv": ChoiceBenchmark.optional["tsv"],
    }
    tsv_name = "BLINK"
    configs: ClassVar[tuple[str, ...]] = TASKS
    id_column = "idx"

    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """The complete question stands in `prompt`, the letter in brackets in `answer`."""
        images: list[Content] = [row.image(f"image_{n}") for n in range(1, 5) if row.has(f"image_{n}")]
        return self.choice(
            row,
            identifier,
            question=row.text("prompt" if self.lmms_eval else "question"),
            options=lettered(row.texts("choices")),
            answer=row.text("answer").strip().strip("()"),
            images=images,
            category=row.text("sub_task"),
        )

    def put(self, question: str, options: Mapping[str, str], hint: str) -> str:
        """lmms-eval's note, then the data's own prompt."""
        note = _NOTE.format(letters=", ".join(options)) if self.prompt_suffix is None else ""
        return note + question + (self.prompt_suffix or "")

    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """The first letter."""
        return blink_letter(prediction=prediction, answer=case.expected)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mean of the tasks' means, in percent."""
        tasks = [str(record.get("category", "")) for record in records]
        return {"mean_over_tasks": 100 * mean_over_groups([float(record["score"]) for record in records], tasks)}
