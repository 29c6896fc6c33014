"""COCO captions (Chen et al., 2015): one sentence for a photograph, against five; scored over the whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.dataset import DatasetBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.captions import caption_scores

_INSTRUCTION = "Provide a one-sentence caption for the provided image."


class COCO(DatasetBenchmark):
    """The val split of 2014. The headline figure is CIDEr times 100; BLEU, ROUGE-L and METEOR stand beside it.

    CIDEr weighs words by how many of the asked images have them: over part of the set it is another number. The score of
    a single caption says only whether there is one. lmms-eval tokenises first, VLMEvalKit does not; the two are not
    comparable.
    """

    name = "coco"
    metric = "CIDEr"
    unit = "points"
    resampled = False
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question_id", "image", "answer"),
        "tsv": ("index", "image", "question", "answer"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image_path",)}
    tsv_name = "COCO_VAL"
    id_column = "question_id"

    def read(self, row: Row, identifier: str) -> Case | None:
        """A photograph and its captions."""
        asked = row.optional("question") if row.layout == "tsv" and not self.lmms_eval else _INSTRUCTION
        text = asked if self.prompt_suffix is None else self.prompt_suffix
        return ask(identifier, [row.image(), text], row.texts("answer"), origin=row.origin)

    def grade(self, case: Case, prediction: str) -> Score:
        """1 for a caption that is not empty."""
        caption = prediction.strip()
        return grade(float(bool(caption)), extracted=caption)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The captions of all records that have references, in points of 100."""
        told = [record for record in records if record["expected"]]
        if not told:
            return {}
        scores = caption_scores(
            predictions=[str(record["extracted"] or "") for record in told],
            references=[record["expected"] for record in told],
            protocol=self.rule,
        )
        return {name: 100 * value for name, value in scores.items()}
