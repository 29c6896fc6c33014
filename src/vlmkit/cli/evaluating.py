"""An evaluation wired and run: answers, scores, judgements, figures, reports. The composition root behind `vlmkit-eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlmkit.cli.judging import judged
from vlmkit.cli.presets import preset_of
from vlmkit.cli.sharing import Place, settle
from vlmkit.config import build
from vlmkit.errors import ConfigError
from vlmkit.evaluation import provenance
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.judge import Judge
from vlmkit.evaluation.metric import figures_of
from vlmkit.evaluation.records import Record
from vlmkit.evaluation.report import table, write_reports
from vlmkit.evaluation.runner import RunSettings, answer_benchmark, await_ranks, record_answers, score_records
from vlmkit.generation.backend import GenerationBackend, GenerationParams
from vlmkit.pages.report import write_report

Found = Mapping[str, Sequence[Record]]
"""The scored records of each benchmark."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated, and where.

    Attributes:
        config: As `vlmkit-eval` takes it.
        benchmarks: What is asked.
        directory: Hugging Face directory of the model; None where no model is loaded here.
        output_dir: Where records and reports go.
        judge: Who judges answers; None: rules alone.
        place: This process among those that share the questions.
    """

    config: DictConfig
    benchmarks: list[Benchmark]
    directory: Path | None
    output_dir: Path
    judge: Judge | None
    place: Place


def evaluate(evaluation: Evaluation) -> None:
    """Answer what is not answered yet, score, judge, report. Of several processes the first alone does more than answer.

    Raises:
        VlmkitError: a setting, the model or a server does not let it go on; what was answered is kept.
    """
    settings = _settings(evaluation)
    checkpoint = _checkpoint(evaluation)
    if evaluation.config.answers:
        checkpoint |= _take_answers(evaluation, settings)
    elif not evaluation.config.rescore:
        checkpoint |= _ask(evaluation, settings)
    if evaluation.place.share.rank:
        return
    found = {one.name: score_records(one, settings) for one in evaluation.benchmarks}
    benchmarks, found, told = judged(evaluation.benchmarks, found, judge=evaluation.judge, settings=settings)
    figures = {one.name: figures_of(one, found[one.name]) | told.get(one.name, {}) for one in benchmarks}
    for one in benchmarks:
        scored = provenance.scored_with(
            found[one.name], protocol=one.protocol, preset=preset_of(one, evaluation.config)
        )
        made = provenance.kept_asked(settings.path(one).parent) | scored
        figures[one.name] = made | figures[one.name]  # who judged, where somebody did, is among the figures
    _report(evaluation, benchmarks, found, figures, checkpoint)


def takes_directory(config: DictConfig) -> bool:
    """Whether the backend loads a model itself, and does not ask one that is served."""
    return "base_url" not in config.backend


def _settings(evaluation: Evaluation) -> RunSettings:
    config = evaluation.config
    try:
        params = GenerationParams(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return RunSettings(
        output_dir=evaluation.output_dir,
        max_samples=config.max_samples_per_benchmark,
        params=params,
        verbose=config.verbose,
        progress=config.progress,
        share=evaluation.place.share,
    )


def _checkpoint(evaluation: Evaluation) -> dict[str, str]:
    """What is evaluated, in words; of records that are scored again, what their summary says."""
    config, directory = evaluation.config, evaluation.directory
    summary = evaluation.output_dir / "summary.json"
    if config.rescore and not directory and summary.is_file():
        return dict(json.loads(summary.read_text(encoding="utf-8"))["checkpoint"])
    return {"path": str(directory or config.ckpt or config.answers)}


def _take_answers(evaluation: Evaluation, settings: RunSettings) -> dict[str, str]:
    """Record the answers of a file; what identifies them."""
    answers = FileAnswers(evaluation.config.answers)
    for one in evaluation.benchmarks:
        provenance.keep_asked(settings.path(one).parent, provenance.UNKNOWN)
        record_answers(one, answers, settings)
    return answers.identity


def _ask(evaluation: Evaluation, settings: RunSettings) -> dict[str, str]:
    """Ask the model what it has not answered yet, and wait for the other processes; what identifies the model."""
    config, place, directory = evaluation.config, evaluation.place, evaluation.directory
    if "device" in config.backend:
        config.backend.device = settle(place, config.backend.device)
    runtime = {"directory": directory} if takes_directory(config) else {}
    backend = build(config.backend, GenerationBackend, **runtime)
    for one in evaluation.benchmarks:
        if not place.share.rank:
            provenance.keep_asked(settings.path(one).parent, provenance.asked_with(backend, settings.params))
        answer_benchmark(one, backend, settings)
    if not place.share.rank:
        for one in evaluation.benchmarks:
            await_ranks(one, backend, settings)
    served = {} if directory else {"path": f"{config.backend.model} at {config.backend.base_url}"}
    return served | backend.identity


def _report(
    evaluation: Evaluation,
    benchmarks: list[Benchmark],
    found: Found,
    figures: dict[str, dict[str, Any]],
    checkpoint: dict[str, str],
) -> None:
    output_dir = evaluation.output_dir
    summary = write_reports(output_dir, checkpoint=checkpoint, benchmarks=figures)
    page = write_report(
        output_dir,
        checkpoint=checkpoint,
        figures=figures,
        records=found,
        benchmarks=benchmarks,
        max_pictures=evaluation.config.report_pictures,
    )
    print(table(figures))
    print(f"\nEvery answer: {page} and {output_dir}/<benchmark>/records.jsonl; figures: {summary}")
