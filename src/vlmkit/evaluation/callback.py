"""Benchmarks asked of a model while it is trained: what a training run calls at each validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.metric import figures_of
from vlmkit.evaluation.parts import ALONE, Share
from vlmkit.evaluation.records import Record, read_records, replace_records
from vlmkit.evaluation.report import write_reports
from vlmkit.evaluation.runner import RunSettings, answer_benchmark, score_records
from vlmkit.generation.backend import GenerationBackend

Gathered = Callable[[list[list[Record]]], list[list[list[Record]]]]
"""What a rank has, for each benchmark, to what all ranks have, by rank."""


class LiveBenchmarks:
    """Asks benchmarks, a limited number of cases each, on all ranks together; knows neither trainer nor model.

    Args:
        benchmarks: What is asked.
        make_backend: Makes what answers, as the model stands after so many steps.
        settings: Cases, decoding, and where the evaluation directory of each step goes: `<output_dir>/step-N`.
        share: Which cases this rank answers, asked at each validation.
        gather: Exchanges the records of the ranks; all must call.
    """

    def __init__(
        self,
        *,
        benchmarks: Sequence[Benchmark],
        make_backend: Callable[[int], GenerationBackend],
        settings: RunSettings,
        share: Callable[[], Share] = lambda: ALONE,
        gather: Gathered = lambda records: [records],
    ) -> None:
        self.benchmarks = benchmarks
        self.make_backend = make_backend
        self.settings = settings
        self.share = share
        self.gather = gather

    @property
    def metrics(self) -> list[str]:
        """Names of what it measures."""
        return [f"eval/{one.name}/{one.metric}" for one in self.benchmarks]

    def answer(self, step: int) -> None:
        """Answer this rank's share of the cases; answers are on the disk before the next are given."""
        self.backend = self.make_backend(step)
        for one in self.benchmarks:
            answer_benchmark(one, self.backend, self._settings(step))

    def figures(self, step: int) -> dict[str, float]:
        """Score in percent of each benchmark, by `eval/<benchmark>/<metric>`, on rank 0; all ranks must call.

        The answers come through the group of processes: the ranks need not see each other's files, nor wait for a network
        disk to show them.
        """
        settings = self._settings(step)
        parts = self.gather([read_records(settings.share.own(settings.path(one))) for one in self.benchmarks])
        if settings.share.rank:
            return {}
        for number, one in enumerate(self.benchmarks):
            path = settings.path(one)
            answered = [*read_records(path), *(record for part in parts for record in part[number])]
            replace_records(path, {record["id"]: record for record in answered}.values())
        figures = {one.name: figures_of(one, score_records(one, settings)) for one in self.benchmarks}
        write_reports(settings.output_dir, checkpoint=self.backend.identity, benchmarks=figures)
        return {
            name: float(figures[one.name]["score"]) for name, one in zip(self.metrics, self.benchmarks, strict=True)
        }

    def _settings(self, step: int) -> RunSettings:
        return replace(self.settings, output_dir=self.settings.output_dir / f"step-{step:06d}", share=self.share())
