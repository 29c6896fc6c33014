"""InfographicVQA (Mathew et al., 2022): short answers about infographics, by edit distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.evaluation.benchmarks.docvqa import DocVQA
from vlmkit.evaluation.rows import Layout, Row


class InfoVQA(DocVQA):
    """The validation split; asked and scored as DocVQA."""

    name = "infovqa"
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("questionId", "answer_type"),
        "tsv": ("image_path",),
    }
    tsv_name = "InfoVQA_VAL"

    def labels(self, row: Row) -> Mapping[str, str]:
        """The type of answer; of several the first."""
        types = row.listed("answer_type")
        return {"answer_type": types[0] if types else ""}
