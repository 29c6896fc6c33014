"""MMVP (Tong et al., 2024): pairs of images that a vision encoder confuses; a pair counts if both are right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.dataset import CHOICE_COLUMNS, ChoiceBenchmark
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import mmvp_letter

_OPTION = re.compile(r"\([a-z]\)\s*([^(]+?)(?=\s*\([a-z]\)|$)")


class MMVP(JudgedLetters, ChoiceBenchmark):
    """The 150 pairs (the split is called train). The headline figure is over pairs; the mean is over questions."""

    name = "mmvp"
    metric = "pair_accuracy"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("Index", "Question", "Options", "Correct Answer", "image"),
        "tsv": CHOICE_COLUMNS,
    }
    tsv_name = "MMVP"
    id_column = "Index"

    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """`(a) .. (b) ..` are the options."""
        options = lettered(_OPTION.findall(row.text("Options")))
        answer = row.text("Correct Answer").strip().strip("()").upper()
        case = self.choice(
            row, identifier, question=row.text("Question"), options=options, answer=answer, images=[row.image()]
        )
        return replace(case, cluster=f"pair {row.number // 2}")

    def read_tsv(self, row: Row, identifier: str) -> Case | None:
        """Rows 2i and 2i + 1 are a pair."""
        case = super().read_tsv(row, identifier)
        return replace(case, cluster=f"pair {row.number // 2}") if case else None

    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """By its patterns."""
        return mmvp_letter(prediction=prediction, answer=case.expected)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Percent of whole pairs that are right; a pair of which only one was asked is left out."""
        pairs: dict[str, list[float]] = {}
        for record in records:
            pairs.setdefault(str(record.get("cluster") or record["id"]), []).append(float(record["score"]))
        whole = [min(pair) for pair in pairs.values() if len(pair) == 2]
        return {"pair_accuracy": 100 * sum(whole) / len(whole)} if whole else {}
