"""GQA (Hudson and Manning, 2019): short answers about scenes; questions and images lie in two configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from vlmkit.errors import DataError
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE, ask
from vlmkit.evaluation.benchmarks.dataset import DatasetBenchmark
from vlmkit.evaluation.loading import open_rows
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.exact_match import exact_match


class GQA(DatasetBenchmark):
    """The balanced test-dev questions, joined with the configuration of their images.

    lmms-eval ignores case and punctuation, VLMEvalKit case only.
    """

    name = "gqa"
    metric = "exact_match"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("id", "imageId", "question", "answer"),
        "tsv": ("index", "image", "question", "answer"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image_path", "category")}
    tsv_name = "GQA_TestDev_Balanced"
    id_column = "id"

    @cached_property
    def _images(self) -> dict[str, bytes]:
        """Encoded image by its id."""
        config = self.config.replace("_instructions", "_images") if self.config else None
        columns: Mapping[Layout, tuple[str, ...]] = {"hub": ("id", "image")}
        place = replace(self.place(), config=config, columns=columns, optional={}, tsv_name="")
        return {row.text("id"): row.image() for row in open_rows(place)}

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question with its image."""
        text = row.text("question") + self.instruction(
            lmms_eval=SINGLE_WORD_OR_PHRASE, vlmevalkit=SINGLE_WORD_OR_PHRASE
        )
        return ask(
            identifier,
            [row.image() if row.layout == "tsv" else self._image(row), text],
            row.text("answer"),
            origin=row.origin,
            category=row.optional("category"),
        )

    def _image(self, row: Row) -> bytes:
        if (image := self._images.get(row.text("imageId"))) is None:
            raise DataError(
                f"image {row.text('imageId')!r} is not among the {len(self._images)} images of its configuration. Download them anew.",
                reason="missing_media",
                origin=row.origin,
            )
        return image

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if it is the answer."""
        return exact_match(prediction=prediction, answer=case.expected, protocol=self.rule)
