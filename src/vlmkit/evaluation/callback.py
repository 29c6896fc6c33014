"""Benchmarks asked of a model while it is trained: what a training run calls at each validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.metric import figures_of
from vlmkit.evaluation.report import write_reports
from vlmkit.evaluation.runner import RunSettings, run_benchmark
from vlmkit.generation.backend import GenerationBackend


class LiveBenchmarks:
    """Asks benchmarks, a limited number of cases each; knows neither trainer nor model.

    Args:
        benchmarks: What is asked.
        make_backend: Makes what answers, as the model stands after so many steps.
        settings: Cases, decoding, and where the evaluation directory of each step goes: `<output_dir>/step-N`.
    """

    def __init__(
        self,
        *,
        benchmarks: Sequence[Benchmark],
        make_backend: Callable[[int], GenerationBackend],
        settings: RunSettings,
    ) -> None:
        self.benchmarks = benchmarks
        self.make_backend = make_backend
        self.settings = settings

    @property
    def metrics(self) -> list[str]:
        """Names of what it measures."""
        return [f"eval/{one.name}/{one.metric}" for one in self.benchmarks]

    def __call__(self, step: int) -> dict[str, float]:
        """Score in percent of each benchmark, by `eval/<benchmark>/<metric>`."""
        backend = self.make_backend(step)
        place: Path = self.settings.output_dir / f"step-{step:06d}"
        settings = replace(self.settings, output_dir=place)
        figures = {one.name: figures_of(one, run_benchmark(one, backend, settings)) for one in self.benchmarks}
        write_reports(place, checkpoint=backend.identity, benchmarks=figures)
        return {
            name: float(figures[one.name]["score"]) for name, one in zip(self.metrics, self.benchmarks, strict=True)
        }
