"""MathVista (Lu et al., 2024): mathematics in pictures, multiple choice and free form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from vlmkit.errors import DataError
from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask, listed
from vlmkit.evaluation.benchmarks.judged import JudgedScoring
from vlmkit.evaluation.judge_prompts import FINAL_ANSWER
from vlmkit.evaluation.judging import Steps
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import ProtocolName, Score, grade
from vlmkit.evaluation.scorers.judges import NO_ANSWER, read_extraction
from vlmkit.evaluation.scorers.mathvista import (
    MathVistaQuestion,
    mathvista,
    mathvista_as_shipped,
    mathvista_exact,
    mathvista_extracted,
    needs_extraction,
)

FORMS = ("format-prompt", "solution", "step-by-step", "reason-first")
_SHORT = {
    "multi_choice": "Answer with the option's letter from the given choices directly.",
    "integer": "Answer the question using a single integer number.",
    "float1": "Answer the question using a single floating-point number with one decimal place.",
    "float2": "Answer the question using a single floating-point number with two decimal places.",
    "list": "Answer the question using a Python list.",
}
_HINTS = {
    "multi_choice": "Please answer the question and provide the correct option letter, e.g., A, B, C, D,",
    "integer": "Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3,",
    "float1": "Please answer the question requiring a floating-point number with one decimal place and provide the final "
    "value, e.g., 1.2, 1.3, 1.4,",
    "float2": "Please answer the question requiring a floating-point number with two decimal places and provide the final "
    "value, e.g., 1.23, 1.34, 1.45,",
    "list": "Please answer the question requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], "
    "[1.2, 1.3, 1.4],",
}
_TABLES = ("question_type", "answer_type")
_METADATA = ("language", "source", "category", "task", "context", "grade")


class MathVista(JudgedScoring):
    """The testmini split (the test split has no answers).

    A judge copies the final answer out of a response; whether it is right is decided by the protocol's rule. It is asked
    only where the rule finds no answer by itself.

    `vlmkit` scores by rule: the option as VLMEvalKit infers it, and numbers and lists that are the whole answer, rounded
    as lmms-eval does; whatever needs a judge is unparsed. The references' rules, as they are when every call of their
    judge fails, are for parity.

    Args:
        protocol: vlmkit, lmms-eval or vlmevalkit.
        prompt_suffix: Instead of the instruction (format-prompt) or the hint (the others); None: the form's.
        hub_id: Dataset on the hub.
        config: Its configuration.
        split: Its split.
        data_root: Local data; None: the hub.
        form: Of the prompt: format-prompt (short answers), solution, step-by-step or reason-first. VLMEvalKit always asks
            the data's own `query`.
    """

    name = "mathvista"
    prompts = (FINAL_ANSWER,)
    protocols: ClassVar[tuple[str, ...]] = ("vlmkit", "lmms-eval", "vlmevalkit")
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("pid", "question", "decoded_image", "choices", "unit", "precision", "answer", "question_type",
                "answer_type", "metadata", "query"),
        "tsv": ("index", "question", "answer", "image", "choices", "question_type", "answer_type"),
    }  # fmt: skip
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "tsv": ("image_path", "answer_option", "unit", "precision", "query", *_METADATA, "skills")
    }
    paper: ClassVar[Mapping[str, Any]] = {"protocol": "lmms-eval"}
    tsv_name = "MathVista_MINI"
    asked_by: ClassVar[tuple[str, ...]] = ("form",)
    id_column = "pid"

    def __init__(
        self,
        *,
        protocol: str,
        prompt_suffix: str | None,
        hub_id: str,
        config: str | None,
        split: str,
        data_root: str | Path | None,
        form: str,
    ) -> None:
        super().__init__(
            protocol=protocol,
            prompt_suffix=prompt_suffix,
            hub_id=hub_id,
            config=config,
            split=split,
            data_root=data_root,
        )
        if form not in FORMS:
            raise ValueError(f"benchmark_options.mathvista.form must be one of {', '.join(FORMS)}, got {form!r}")
        self.form = form

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question with what its scorer needs."""
        options = lettered(row.listed("choices"))
        question = _question(row, options)
        about = row.mapping("metadata") if row.layout == "hub" else row.values
        return ask(
            identifier,
            [row.image("decoded_image" if row.layout == "hub" else "image"), self._text(row, question)],
            question.answer,
            origin=row.origin,
            category=str(about.get("task") or ""),
            options=options,
            labels={
                **{name: row.optional(name) for name in _TABLES},
                **{name: str(about.get(name) or "") for name in _METADATA if name != "task"},
            },
            extra={"question": question, "asked": _asked(row, options)},
        )

    def _text(self, row: Row, question: MathVistaQuestion) -> str:
        if self.protocol == "vlmevalkit" or row.layout == "tsv":
            asked = row.optional("query") or row.text("question")
            return asked if self.prompt_suffix is None else f"{asked}{self.prompt_suffix}"
        return put(row.text("question"), row.optional("unit"), question, self.form, self.prompt_suffix)

    def grade(self, case: Case, prediction: str) -> Score:
        """By rule."""
        question = cast("MathVistaQuestion", case.extra["question"])
        if self.protocol == "vlmkit":
            return mathvista(prediction=prediction, question=question)
        return mathvista_as_shipped(
            prediction=prediction, question=question, protocol=cast("ProtocolName", self.protocol)
        )

    def judging(self, case: Case, answer: str) -> Steps:
        """The rule where it finds an answer, else what a judge copies out."""
        question = cast("MathVistaQuestion", case.extra["question"])
        answer = remove_reasoning(answer) if self.lmms_eval else answer
        score = self.grade(case, answer)
        if not answer.strip():
            return grade(0.0, extracted=None)
        if not needs_extraction(answer, score=score, question=question, protocol=self.protocol):
            return score
        form, asked = _FORMS_OF_ANSWERS[_kind(question)], str(case.extra["asked"])
        found = cast("str", (yield FINAL_ANSWER.ask(read_extraction, form=form, question=asked, answer=answer)))
        if found == NO_ANSWER:
            return grade(0.0, extracted=None)
        if self.protocol == "vlmkit":
            return mathvista(prediction=found, question=question)
        scorer = mathvista_extracted if self.lmms_eval else mathvista_exact
        return scorer(extraction=found, question=question)


_FORMS_OF_ANSWERS = {
    "multi_choice": "the letter of the chosen option in brackets, such as (B)",
    "integer": "a whole number",
    "float": "a number",
    "float0": "a number",
    "float1": "a number with 1 decimal place",
    "float2": "a number with 2 decimal places",
    "list": "a Python list, such as [1, 2, 3]",
    "text": "a word or a short phrase",
}


def _asked(row: Row, options: Mapping[str, str]) -> str:
    """The question as a judge is shown it."""
    unit = row.optional("unit")
    asked = row.text("question") + (f" (Unit: {unit})" if unit else "")
    return "\n".join([asked, *(f"({letter}) {text}" for letter, text in options.items())])


def put(question: str, unit: str, about: MathVistaQuestion, form: str, suffix: str | None) -> str:
    """The prompt in one of the official forms."""
    kind = _kind(about)
    asked = f"{question} (Unit: {unit})" if unit else question
    if form == "format-prompt":
        choices = listed(about.options)
        return _joined([asked, choices, _SHORT.get(kind, "") if suffix is None else suffix])
    choices = "Choices:\n" + "\n".join(f"({letter}) {text}" for letter, text in about.options.items())
    parts = [f"Question: {asked}", choices if about.options else ""]
    hint = _hint(kind, form) if suffix is None else suffix
    if form == "reason-first":
        return _joined([hint, *parts])
    return _joined([*parts, hint, "Solution:" if form == "solution" else ""])


def _hint(kind: str, form: str) -> str:
    if kind not in _HINTS:
        return ""
    end = "in the following format: Answer: xxx." if form == "reason-first" else "at the end."
    return f"Hint: {_HINTS[kind]} {end}"


def _joined(parts: Sequence[str]) -> str:
    return "\n".join(part for part in parts if part).strip()


def _kind(about: MathVistaQuestion) -> str:
    if about.question_type == "multi_choice":
        return "multi_choice"
    return f"float{about.precision}" if about.answer_type == "float" else about.answer_type


def _question(row: Row, options: Mapping[str, str]) -> MathVistaQuestion:
    question_type, answer_type = row.text("question_type"), row.text("answer_type")
    if question_type not in ("multi_choice", "free_form"):
        raise row.wrong("question_type", "multi_choice or free_form")
    if answer_type not in ("text", "integer", "float", "list"):
        raise row.wrong("answer_type", "text, integer, float or list")
    answer = row.text("answer")
    if question_type == "multi_choice" and answer not in options.values():
        raise DataError(
            f"answer {answer!r} is none of its {len(options)} choices. The row is not scored. Mend the data.",
            reason="bad_row",
            origin=row.origin,
        )
    kinds: dict[str, Any] = {"question_type": question_type, "answer_type": answer_type}
    return MathVistaQuestion(
        answer=answer, precision=int(float(row.optional("precision") or 0)), options=options, **kinds
    )
