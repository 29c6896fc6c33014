"""The figures of a benchmark as a torchmetrics metric: each rank adds its records, all get the figures of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.records import Record


def figures_of(benchmark: Benchmark, records: Sequence[Record]) -> dict[str, Any]:
    """The figures of a benchmark, as they stand in `summary.json`; over the records of this process alone.

    Args:
        benchmark: Gives the figures.
        records: Scored, in the order of the data.
    """
    metric = BenchmarkFigures(benchmark, sync_on_compute=False)
    metric.update(range(len(records)), records)
    return metric.compute()


class BenchmarkFigures(Metric):
    """`aggregate` over the records of all ranks.

    Records travel as bytes and are put into the order of the data again, so that the figures are the same number on any
    number of ranks, corpus figures included. A record that two ranks have counts once.

    Args:
        benchmark: Gives the figures.
        sync_on_compute: Whether the records of all ranks are joined where there are several.
    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self, benchmark: Benchmark, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.benchmark = benchmark
        self.add_state("lines", default=[], dist_reduce_fx="cat")

    def update(self, places: Sequence[int], records: Sequence[Record]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add scored records.

        Args:
            places: Place of each in the data.
            records: The records.
        """
        for place, record in zip(places, records, strict=True):
            told = {"place": place, "record": record}
            line = json.dumps(told, ensure_ascii=False, default=str) + "\n"
            self.lines.append(torch.frombuffer(bytearray(line.encode()), dtype=torch.uint8).clone())

    def compute(self) -> dict[str, Any]:
        """The figures, as they stand in `summary.json`."""
        state: Any = self.lines  # a list before ranks are joined, one tensor after
        joined = torch.cat(list(state)) if isinstance(state, list) and state else state
        text = joined.cpu().numpy().tobytes().decode() if isinstance(joined, Tensor) else ""
        rows = {row["place"]: row["record"] for row in map(json.loads, filter(None, text.split("\n")))}
        return aggregate(self.benchmark, [rows[place] for place in sorted(rows)])
