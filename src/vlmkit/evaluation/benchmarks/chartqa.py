"""ChartQA (Masry et al., 2022): short answers about charts, a number within five percent counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from vlmkit.errors import DataError
from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import BadCase, Case
from vlmkit.evaluation.benchmarks.asking import ask, check_protocol
from vlmkit.evaluation.loading import bad, image_bytes, load_rows
from vlmkit.evaluation.score import ProtocolName, Score
from vlmkit.evaluation.scorers.relaxed_accuracy import relaxed_accuracy

_SUFFIXES = {
    "lmms-eval": "\nAnswer the question with a single word.",
    "vlmevalkit": "\nAnswer the question using a single word or phrase.",
}


class ChartQA:
    """The test split; categories are its human and its augmented half.

    Args:
        protocol: `lmms-eval` or `vlmevalkit`: prompt and rule of that evaluator.
        prompt_suffix: Instead of the protocol's instruction after the question; None: the protocol's.
        hub_id: Where the data is on the hub.
        split: Its split.
        data_root: Local Parquet files; None: the hub.
    """

    name = "chartqa"
    metric = "relaxed_accuracy"

    def __init__(
        self, *, protocol: str, prompt_suffix: str | None, hub_id: str, split: str, data_root: str | Path | None
    ) -> None:
        self.protocol = check_protocol(self.name, protocol)
        self.suffix = _SUFFIXES[self.protocol] if prompt_suffix is None else prompt_suffix
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
            columns=("type", "question", "answer", "image"),
            data_root=self.data_root,
        )
        for number, (origin, row) in enumerate(rows):
            try:
                image = image_bytes(row["image"], origin=origin)
            except DataError as error:
                yield bad(str(number), error)
                continue
            category = str(row["type"]).removesuffix("_test")
            yield ask(
                str(number), image, f"{row['question']}{self.suffix}", row["answer"], origin=origin, category=category
            )

    def score(self, case: Case, answer: str) -> Score:
        """Relaxed accuracy."""
        prediction = remove_reasoning(answer) if self.protocol == "lmms-eval" else answer
        return relaxed_accuracy(prediction=prediction, target=case.expected, protocol=cast(ProtocolName, self.protocol))

    def baselines(self) -> dict[str, float]:
        """None."""
        return {}
