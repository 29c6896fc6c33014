"""RealWorldQA (xAI, 2024): questions about photographs, with letters or short answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from vlmkit.errors import DataError
from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import BadCase, Case
from vlmkit.evaluation.benchmarks.asking import ask, check_protocol
from vlmkit.evaluation.loading import bad, image_bytes, load_rows
from vlmkit.evaluation.score import ProtocolName, Score
from vlmkit.evaluation.scorers.realworldqa import realworldqa

_INSTRUCTION = "Please answer directly with only the letter of the correct option and nothing else."
_OPTION = re.compile(r"^\s*([A-Z])[.)]\s*(.+?)\s*$", re.MULTILINE)


class RealWorldQA:
    """The test split. The question holds its options, and the instruction to answer with a letter.

    Args:
        protocol: `lmms-eval`: the question as it is, and its rule. `vlmevalkit`: options are read from the question, and
            a letter is inferred from letter or option text; questions without options follow lmms-eval.
        prompt_suffix: Instead of the instruction in the question; None: as it is.
        hub_id: Where the data is on the hub.
        split: Its split.
        data_root: Local Parquet files; None: the hub.
    """

    name = "realworldqa"
    metric = "accuracy"

    def __init__(
        self, *, protocol: str, prompt_suffix: str | None, hub_id: str, split: str, data_root: str | Path | None
    ) -> None:
        self.protocol = check_protocol(self.name, protocol)
        self.suffix = prompt_suffix
        self.source = hub_id
        self.split = split
        self.data_root = data_root

    def cases(self) -> Iterator[Case | BadCase]:
        """A case a row; its id is the row's number."""
        rows = load_rows(
            name=self.name,
            hub_id=self.source,
            config=None,
            split=self.split,
            columns=("question", "answer", "image"),
            data_root=self.data_root,
        )
        for number, (origin, row) in enumerate(rows):
            question = str(row["question"]).strip()
            options = dict(_OPTION.findall(question))
            if self.suffix is not None:
                question = question.replace(_INSTRUCTION, self.suffix)
            try:
                image = image_bytes(row["image"], origin=origin)
            except DataError as error:
                yield bad(str(number), error)
                continue
            category = "options" if options else "open"
            yield ask(str(number), image, question, row["answer"], origin=origin, category=category, options=options)

    def score(self, case: Case, answer: str) -> Score:
        """1 if the letter, or the short answer, is the expected one."""
        prediction = remove_reasoning(answer) if self.protocol == "lmms-eval" else answer
        return realworldqa(
            prediction=prediction,
            answer=case.expected,
            options=case.options or None,
            protocol=cast(ProtocolName, self.protocol),
        )

    def baselines(self) -> dict[str, float]:
        """None."""
        return {}
