"""MME (Fu et al., 2023): two yes-or-no questions a picture, in 14 categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE, ask
from vlmkit.evaluation.benchmarks.judged import JudgedYesNo
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.yes_no import COGNITION, PERCEPTION, mme, mme_scores, mme_total

_ENDING = " Please answer yes or no."


class MME(JudgedYesNo):
    """The test split. The headline figure is perception plus cognition, at most 2800 points; both stand beside it."""

    name = "mme"
    metric = "total"
    unit = "points"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question_id", "image", "question", "answer", "category"),
        "tsv": ("index", "question", "answer", "category"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image", "image_path")}
    tsv_name = "MME"

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question; the two on one picture are one cluster."""
        question = row.text("question")
        if self.lmms_eval:
            question = question.replace(_ENDING, "")
        picture = row.optional("question_id" if row.layout == "hub" else "image_path")
        return ask(
            identifier,
            [row.image(), question + self.instruction(lmms_eval=SINGLE_WORD_OR_PHRASE)],
            row.text("answer"),
            origin=row.origin,
            category=row.text("category"),
            cluster=picture or None,
        )

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if the word is the expected one."""
        return mme(prediction=prediction, answer=case.expected, protocol=self.rule)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Points, at most 2000 of perception and 800 of cognition, and by category."""
        asked = [record for record in records if record.get("category")]
        scores = mme_scores(
            categories=[record["category"] for record in asked],
            images=[record.get("cluster") or record["id"] for record in asked],
            values=[float(record["score"]) for record in asked],
        )
        perception, cognition = (mme_total(scores, categories=group) for group in (PERCEPTION, COGNITION))
        return {"total": perception + cognition, "perception": perception, "cognition": cognition, **scores}
