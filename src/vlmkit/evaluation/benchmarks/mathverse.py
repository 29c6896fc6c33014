"""MathVerse (Zhang et al., 2024): one problem in versions that move what is given from the text into the picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, cast

from vlmkit.evaluation.answers import infer_choice, remove_reasoning
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.judged import JudgedScoring
from vlmkit.evaluation.judge_prompts import FINAL_ANSWER, SAME_ANSWER
from vlmkit.evaluation.judging import JudgePrompt, Steps
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.judges import NO_ANSWER, read_digit, read_extraction
from vlmkit.evaluation.scorers.multiple_choice import grade_letter

_OPTION = re.compile(r"^\s*\(?([A-H])\)?\s*[:.)]\s*(.+?)\s*$", re.MULTILINE)


class MathVerse(JudgedScoring):
    """The testmini problems, by a judge; its accuracy is the benchmark's number.

    With lmms-eval a judge compares the whole response with the answer; with vlmevalkit it first copies out the final
    answer, and is asked again where that is not the answer's own text. Without a judge there is only an exact match,
    under that name: the letter of a multiple choice question, or the very text of an open answer; all else is unparsed.

    Args:
        protocol: lmms-eval or vlmevalkit.
        prompt_suffix: After each question; None: nothing.
        hub_id: Dataset on the hub.
        config: testmini, testmini_version_split or testmini_text_only.
        split: Of that configuration.
        data_root: Local data; None: the hub.
        reasoned: Ask the data's own prompt for step-by-step reasoning.
    """

    name = "mathverse"
    asked_by: ClassVar[tuple[str, ...]] = ("reasoned",)
    metric = "exact_match"
    prompts = (FINAL_ANSWER, SAME_ANSWER)
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type",
                "metadata", "query_wo", "query_cot", "question_for_eval"),
        "tsv": ("index", "question", "answer"),
    }  # fmt: skip
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "tsv": ("image", "image_path", "problem_index", "problem_version", "question_type", "metadata", "query_wo",
                "query_cot", "question_for_eval", "subject", "subfield"),
    }  # fmt: skip
    tsv_name = "MathVerse_MINI"
    id_column = "sample_index"

    def __init__(
        self,
        *,
        protocol: str,
        prompt_suffix: str | None,
        hub_id: str,
        config: str | None,
        split: str,
        data_root: str | Path | None,
        reasoned: bool,
    ) -> None:
        super().__init__(
            protocol=protocol,
            prompt_suffix=prompt_suffix,
            hub_id=hub_id,
            config=config,
            split=split,
            data_root=data_root,
        )
        self.reasoned = reasoned

    @property
    def judged_metric(self) -> str:
        """The benchmark's own."""
        return "judged_accuracy"

    @property
    def judge_prompts(self) -> Sequence[JudgePrompt]:
        """One question with lmms-eval, two with vlmevalkit."""
        return (SAME_ANSWER,) if self.lmms_eval else self.prompts

    def read(self, row: Row, identifier: str) -> Case | None:
        """A version of a problem; one that is all text has no picture."""
        told = row.optional("question_for_eval") or row.text("question")
        about = row.mapping("metadata") or row.values
        pictures = row.images() if row.has("image") or row.has("image_path") else []
        is_choice = (
            row.optional("question_type").startswith("multi") if row.has("question_type") else bool(_options(told))
        )
        return ask(
            identifier,
            [*pictures, self._asked(row) + (self.prompt_suffix or "")],
            row.text("answer"),
            origin=row.origin,
            category=row.optional("problem_version"),
            options=_options(told) if is_choice else {},
            labels={name: str(about.get(name) or "") for name in ("subject", "subfield")}
            | {"question_type": row.optional("question_type")},
            cluster=row.optional("problem_index") or None,
            extra={"question": told, "is_choice": is_choice},
        )

    def _asked(self, row: Row) -> str:
        if self.reasoned:
            return row.text("query_cot")
        return (self.lmms_eval and row.optional("query_wo")) or row.text("question")

    def grade(self, case: Case, prediction: str) -> Score:
        """The letter, or the very text; a letter is looked for among A to D where the options are in the picture."""
        if case.extra["is_choice"]:
            options = case.options or dict.fromkeys("ABCD", "\0")
            return grade_letter(infer_choice(prediction, options=options), answer=str(case.expected), options=options)
        same = prediction.strip() == str(case.expected).strip()
        return grade(float(same), extracted=prediction.strip() if same else None)

    def judging(self, case: Case, answer: str) -> Steps:
        """By one comparison, or by extraction and comparison."""
        answer = remove_reasoning(answer) if self.lmms_eval else answer
        question, expected = str(case.extra["question"]), str(case.expected)
        if not answer.strip():
            return grade(0.0, extracted=None)
        found = answer
        if not self.lmms_eval:
            told = FINAL_ANSWER.ask(
                read_extraction, form="as the question asks for it", question=question, answer=answer
            )
            found = cast("str", (yield told))
            if found == NO_ANSWER:
                return grade(0.0, extracted=None)
            if found.strip() == expected.strip():
                return grade(1.0, extracted=found)
        same = cast("bool", (yield SAME_ANSWER.ask(read_digit, question=question, expected=expected, answer=found)))
        return grade(float(same), extracted=("right" if same else "wrong") if self.lmms_eval else found)


def _options(text: str) -> dict[str, str]:
    """Options that stand in the question, one a line; empty unless they are A, B, ..."""
    found = dict(_OPTION.findall(text))
    return found if len(found) > 1 and list(found) == list("ABCDEFGH"[: len(found)]) else {}
