"""TextVQA (Singh et al., 2019): reading text in photographs; ten annotators each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import SINGLE_WORD_OR_PHRASE
from vlmkit.evaluation.benchmarks.dataset import ShortAnswerBenchmark
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.vqa import vqa_soft_accuracy


class TextVQA(ShortAnswerBenchmark):
    """The validation split (the test split has no answers), soft accuracy over ten annotators.

    Args:
        protocol: lmms-eval or vlmevalkit; they normalise answers differently.
        prompt_suffix: Instead of the instruction; None: the protocol's.
        hub_id: Dataset on the hub.
        config: Its configuration.
        split: Its split.
        data_root: Local data; None: the hub.
        lower_case: Put the question in lower case but for its first letter, as lmms-eval does (names and acronyms too).
        ocr: Tell the tokens that the data set's own OCR has found.
    """

    name = "textvqa"
    metric = "vqa_soft_accuracy"
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("ocr_tokens", "question_id"),
        "tsv": ("image_path",),
    }
    tsv_name = "TextVQA_VAL"
    asked_by: ClassVar[tuple[str, ...]] = ("lower_case", "ocr")
    id_column = "question_id"
    lmms_eval_instruction = SINGLE_WORD_OR_PHRASE
    vlmevalkit_instruction = SINGLE_WORD_OR_PHRASE

    def __init__(
        self,
        *,
        protocol: str,
        prompt_suffix: str | None,
        hub_id: str,
        config: str | None,
        split: str,
        data_root: str | Path | None,
        lower_case: bool,
        ocr: bool,
    ) -> None:
        super().__init__(
            protocol=protocol,
            prompt_suffix=prompt_suffix,
            hub_id=hub_id,
            config=config,
            split=split,
            data_root=data_root,
        )
        self.lower_case = lower_case
        self.ocr = ocr

    def put(self, question: str, row: Row) -> str:
        """The question, with what OCR has read where that is asked for."""
        told = question.capitalize() if self.lower_case and self.lmms_eval else question
        return f"{told}\nReference OCR token: {', '.join(row.listed('ocr_tokens'))}" if self.ocr else told

    def grade(self, case: Case, prediction: str) -> Score:
        """Soft accuracy."""
        return vqa_soft_accuracy(prediction=prediction, answers=case.expected, protocol=self.rule)
