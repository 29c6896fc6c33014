"""MMMU-Pro (Yue et al., 2024): MMMU with ten options, or with the question inside the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask, interleave, listed
from vlmkit.evaluation.benchmarks.dataset import CHOICE_OPTIONAL
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.benchmarks.mmmu import NUM_IMAGES
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.mmmu import mmmu_multiple_choice, mmmu_pro_vision_raw
from vlmkit.evaluation.scorers.multiple_choice import score_inferred_choice

_LMMS_EVAL = "Answer with the option letter from the given choices directly."
_VLMEVALKIT = "Answer directly with the option letter from the given choices. "
_IN_THE_IMAGE = "Answer the following multiple-choice question in the image. "


STANDARD, FOUR, VISION = "standard (10 options)", "standard (4 options)", "vision"


class MMMUPro(JudgedLetters):
    """The test split; the configurations are `standard (10 options)`, `vision` and `standard (4 options)`.

    `all` asks the first two. The headline figure is the mean of the means of the configurations asked, which is the usual
    one; the mean over questions, and each configuration's, stand beside it.
    """

    name = "mmmu_pro"
    metric = "mean_over_configs"
    configs: ClassVar[tuple[str, ...]] = (STANDARD, VISION, FOUR)
    default_configs: ClassVar[tuple[str, ...]] = (STANDARD, VISION)
    tsv_names: ClassVar[Mapping[str, str]] = {STANDARD: "MMMU_Pro_10c", VISION: "MMMU_Pro_V"}
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("id", "options", "answer", "subject"),
        "tsv": ("index", "answer", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question", "image", *(f"image_{n}" for n in range(1, NUM_IMAGES + 1)), "topic_difficulty"),
        "tsv": ("question", "A", "B", *CHOICE_OPTIONAL),
    }
    id_column = "id"

    def identifier(self, row: Row) -> str:
        """Configurations share ids, so each stands before its own where several are asked."""
        told = super().identifier(row)
        return f"{row.config}/{told}" if len(self._configs) > 1 else told

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question, or a picture of one."""
        tsv = row.layout == "tsv"
        options = row.options() if tsv else lettered(row.texts("options"))
        answer = row.text("answer")
        if answer not in options:
            raise row.wrong("answer", f"one of {', '.join(options)}")
        vision = not row.has("question")
        if vision or tsv:
            images = dict(enumerate(row.images(), start=1))
        else:
            images = {n: row.image(f"image_{n}") for n in range(1, NUM_IMAGES + 1) if row.has(f"image_{n}")}
        text = self.put(row.optional("question"), options)
        return ask(
            identifier,
            interleave(text, images),
            answer,
            origin=row.origin,
            category=row.optional("category" if tsv else "subject"),
            options=options,
            labels={"config": row.config, "difficulty": row.optional("topic_difficulty")},
            extra={"vision": vision},
        )

    def put(self, question: str, options: Mapping[str, str]) -> str:
        """The question as the protocol puts it; of a picture the instruction alone."""
        instruction = self.instruction(lmms_eval=_LMMS_EVAL, vlmevalkit=_VLMEVALKIT)
        if not question:
            return instruction if self.lmms_eval else _IN_THE_IMAGE + instruction
        if self.lmms_eval:
            return f"{question}\n{listed(options)}\n\n{instruction}"
        return f"Question: {question}\nOptions:\n{listed(options)}\n{instruction}"

    def grade(self, case: Case, prediction: str) -> Score:
        """lmms-eval wants the bare letter of a picture's question, and parses the others officially."""
        if not self.lmms_eval:
            return score_inferred_choice(prediction=prediction, answer=case.expected, options=case.options)
        if case.extra["vision"]:
            return mmmu_pro_vision_raw(prediction=prediction, answer=case.expected)
        return mmmu_multiple_choice(prediction=prediction, answer=case.expected, options=case.options)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mean of the configurations' means, and theirs, in percent."""
        scores: dict[str, list[float]] = {}
        for record in records:
            scores.setdefault(str((record.get("labels") or {}).get("config", "")), []).append(float(record["score"]))
        means = {name: 100 * sum(values) / len(values) for name, values in scores.items()}
        return {"mean_over_configs": sum(means.values()) / len(means), **(means if len(means) > 1 else {})}
