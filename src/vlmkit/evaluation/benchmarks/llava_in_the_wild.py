"""LLaVA-Bench in the wild (Liu et al., 2023): a judge compares each answer with a reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import Case, JudgeUse
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.judged import JudgedScoring
from vlmkit.evaluation.judge_prompts import REVIEW
from vlmkit.evaluation.judging import Steps
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score, failed, grade
from vlmkit.evaluation.scorers.judges import read_review, score_ratio

_Pair = tuple[float, float]


class LlavaInTheWild(JudgedScoring):
    """The 60 questions. The headline is mean(model) / mean(reference), of a judge's scores from 1 to 10, in percent.

    The score of a case is the model's, a tenth of it. Failed reviews are left out of the ratio, and counted. Both
    references ask the bare question.
    """

    name = "llava_in_the_wild"
    metric = "judged_ratio"
    judge: ClassVar[JudgeUse] = "required"
    prompts = (REVIEW,)
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question_id", "question", "caption", "gpt_answer", "category", "image"),
        "tsv": ("index", "question", "caption", "gpt4_ans", "category"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image", "image_path")}
    tsv_name = "LLaVABench"
    id_column = "question_id"
    figure_units: ClassVar[Mapping[str, str]] = {"failed_reviews": "in number"}

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question, with what the judge is told of the picture."""
        question = row.text("question")
        return ask(
            identifier,
            [row.image(), question + (self.prompt_suffix or "")],
            row.text("gpt_answer" if row.layout == "hub" else "gpt4_ans"),
            origin=row.origin,
            category=row.optional("category"),
            extra={"question": question, "captions": row.texts("caption")},
        )

    def grade(self, case: Case, prediction: str) -> Score:
        """No rule scores an open answer."""
        return failed()

    def judging(self, case: Case, answer: str) -> Steps:
        """Two scores on one scale; the reference is assistant 1."""
        answer = remove_reasoning(answer) if self.lmms_eval else answer
        told = REVIEW.ask(
            read_review,
            context="\n".join(case.extra["captions"]),
            question=str(case.extra["question"]),
            expected=str(case.expected),
            answer=answer or "(no answer)",
        )
        reference, model = cast("_Pair", (yield told))
        return grade(model / 10, extracted=f"{reference:g} {model:g}")

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The ratio, over all and by category, both means times ten, and how many reviews failed."""
        pairs = [(str(record.get("category", "")), _pair(record)) for record in records]
        read = [pair for _, pair in pairs if pair is not None]
        told = {"judged_ratio": _ratio(read), "failed_reviews": float(len(pairs) - len(read))}
        if read:
            told["reference_score"], told["model_score"] = (10 * sum(of) / len(read) for of in zip(*read, strict=True))
        for category in sorted({category for category, _ in pairs} - {""}):
            told[f"ratio_{category}"] = _ratio([pair for of, pair in pairs if of == category and pair is not None])
        return told


def _pair(record: Mapping[str, Any]) -> _Pair | None:
    if record["outcome"] == "failed" or not record["extracted"]:
        return None
    reference, model = str(record["extracted"]).split()
    return float(reference), float(model)


def _ratio(pairs: Sequence[_Pair]) -> float:
    """0 where every review failed: then there is no number, which the counts beside it say."""
    return score_ratio(pairs) if pairs else 0.0
