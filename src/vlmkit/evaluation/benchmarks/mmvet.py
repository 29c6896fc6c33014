"""MM-Vet (Yu et al., 2024): open questions that need several abilities at once; a judge gives each a share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import Case, JudgeUse
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.judged import JudgedScoring
from vlmkit.evaluation.judge_prompts import OPEN_ANSWER
from vlmkit.evaluation.judging import Steps
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score, failed, grade
from vlmkit.evaluation.scorers.judges import read_share

_REASON_FIRST = (
    "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"
)


class MMVet(JudgedScoring):
    """The 218 questions. A score is a judge's share of the ground truth, from 0 to 1; there is none without a judge.

    lmms-eval asks to reason first; VLMEvalKit asks the bare question. A question counts in each ability it needs.
    """

    name = "mmvet"
    metric = "judged_score"
    judge: ClassVar[JudgeUse] = "required"
    prompts = (OPEN_ANSWER,)
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question_id", "image", "question", "answer", "capability"),
        "tsv": ("index", "question", "answer", "category"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"hub": ("image_source",), "tsv": ("image", "image_path")}
    tsv_name = "MMVet"
    id_column = "question_id"

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question; its category is the combination of abilities."""
        question = row.text("question")
        asked = _REASON_FIRST + question if self.lmms_eval and self.prompt_suffix is None else question
        abilities = row.text("capability" if row.layout == "hub" else "category")
        return ask(
            identifier,
            [row.image(), asked + (self.prompt_suffix or "")],
            row.text("answer"),
            origin=row.origin,
            category=",".join(_abilities(abilities)),
            labels={"image_source": row.optional("image_source")},
            extra={"question": question},
        )

    def grade(self, case: Case, prediction: str) -> Score:
        """No rule scores an open answer."""
        return failed()

    def judging(self, case: Case, answer: str) -> Steps:
        """The share of the ground truth; an empty answer has none of it."""
        answer = remove_reasoning(answer) if self.lmms_eval else answer
        if not answer.strip():
            return grade(0.0, extracted=None)
        truth = str(case.expected).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        told = OPEN_ANSWER.ask(read_share, question=str(case.extra["question"]), expected=truth, answer=answer)
        share = cast("float", (yield told))
        return grade(share, extracted=f"{share:g}")

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Mean score of each ability, in percent."""
        scores: dict[str, list[float]] = {}
        for record in records:
            for ability in _abilities(str(record.get("category", ""))):
                scores.setdefault(ability, []).append(float(record["score"]))
        return {ability: 100 * sum(of) / len(of) for ability, of in sorted(scores.items())}


def _abilities(joined: str) -> list[str]:
    return [one.strip() for one in joined.split(",") if one.strip()]
