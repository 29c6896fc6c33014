"""MMStar (Chen et al., 2024): multiple choice that cannot be answered without the image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.dataset import CHOICE_COLUMNS, ChoiceBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import mean_over_groups, score_extracted_choice

_OPTIONS = re.compile(r"\n?\s*Options:\s*", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|,\s*|\n)\(?([A-D])[:.)]\s*")


class MMStar(JudgedLetters, ChoiceBenchmark):
    """The val split. The headline figure is the mean over questions; `mean_over_l2_categories` stands beside it.

    On the hub the question holds its options, which are read from it for VLMEvalKit's form and rule.
    """

    name = "mmstar"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question", "image", "answer", "category", "l2_category"),
        "tsv": CHOICE_COLUMNS,
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("index",),
        "tsv": ChoiceBenchmark.optional["tsv"],
    }
    tsv_name = "MMStar"
    id_column = "index"
    lmms_eval_instruction = "\nAnswer with the option's letter from the given choices directly"

    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """The question with the options cut out of it."""
        whole = row.text("question").replace(" Please answer yes or no.", "").strip()
        question, options = split_options(whole)
        if not options:
            question, options = whole, dict.fromkeys("ABCD", "")
        return self.choice(
            row,
            identifier,
            question=whole if self.lmms_eval else question,
            options=options,
            answer=row.text("answer").strip(),
            images=[row.image()],
            category=row.text("category"),
            labels={"l2_category": row.text("l2_category")},
        )

    def put(self, question: str, options: Mapping[str, str], hint: str) -> str:
        """On the hub the options are part of the question already."""
        if "Options:" in question:
            return question + self.instruction(lmms_eval=self.lmms_eval_instruction)
        return super().put(question, options, hint)

    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """The best placed letter."""
        return score_extracted_choice(prediction=prediction, answer=case.expected)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mean of the l2 categories' means, in percent."""
        groups = [str(record.get("labels", {}).get("l2_category", "")) for record in records]
        values = [float(record["score"]) for record in records]
        return {"mean_over_l2_categories": 100 * mean_over_groups(values, groups)} if records else {}


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """The question, and the options after `Options:`; no options where they cannot be told apart."""
    parts = _OPTIONS.split(text, maxsplit=1)
    if len(parts) < 2:
        return text, {}
    pieces = _OPTION.split(parts[1])
    letters, texts = pieces[1::2], [piece.strip() for piece in pieces[2::2]]
    if letters != list("ABCD"[: len(letters)]):
        return text, {}
    return parts[0].strip(), dict(zip(letters, texts, strict=True))
