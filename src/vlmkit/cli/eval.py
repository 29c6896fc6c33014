"""`vlmkit-eval`: ask a checkpoint the questions of benchmarks, score the answers, report."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vlmkit.cli.checkpoints import model_directory
from vlmkit.cli.sharing import Place, all_ranks, find_place, settle
from vlmkit.config import benchmark_nodes, build, run_command, this_job
from vlmkit.errors import ConfigError
from vlmkit.evaluation.parts import ALONE

if TYPE_CHECKING:
    from vlmkit.evaluation.benchmark import Benchmark
    from vlmkit.evaluation.judge import Judge


def main() -> None:
    """Entry point of the console script."""
    # The options of single benchmarks stand in their own files; Hydra wants a ++ for what is not composed yet.
    sys.argv[1:] = [re.sub(r"^benchmark_options\.", "++benchmark_options.", argument) for argument in sys.argv[1:]]
    run_command("vlmkit-eval", "eval", _task)


def _task(config: DictConfig) -> None:
    nodes = benchmark_nodes(config.benchmarks, config.benchmark_options)
    if not nodes:
        from vlmkit.cli.benchmarks import text

        print(text())
        return
    from vlmkit.cli.available import with_data
    from vlmkit.cli.judging import make_judge, without_unscorable
    from vlmkit.cli.quiet import hush

    hush()
    judge = make_judge(config)
    benchmarks = without_unscorable([_benchmark(name, node, config) for name, node in nodes.items()], config)
    benchmarks = with_data(benchmarks, asked_for_all=config.benchmarks == "all")
    asks = _needs_model(config)
    place = find_place(config.devices, os.environ)
    if config.answers or config.rescore:  # nothing is asked: the first one scores, all of it
        if place.share.rank:
            return
        place = replace(place, share=ALONE)
    if place.outside and asks and config.ckpt is None:
        raise ConfigError("ckpt=: processes started from outside would each assemble a model of their own. Add ckpt=...")
    assembled = Path(config.output_dir or "runs/eval").expanduser() / "model"
    directory = model_directory(config, assembled=assembled) if asks else None
    output_dir = _output_dir(config, directory)
    if place.share.num_ranks == 1:
        _evaluate(config, benchmarks, directory, output_dir, judge, place)
        return
    settled = [
        f"{key}='{value}'" for key, value in (("ckpt", directory), ("output_dir", output_dir)) if value is not None
    ]
    with all_ranks(place, output_dir, [*this_job("eval", Path()), *settled]):
        _evaluate(config, benchmarks, directory, output_dir, judge, place)


def _evaluate(
    config: DictConfig,
    benchmarks: list[Benchmark],
    directory: Path | None,
    output_dir: Path,
    judge: Judge | None,
    place: Place,
) -> None:
    from vlmkit.cli.judging import judged
    from vlmkit.cli.presets import preset_of
    from vlmkit.evaluation import provenance
    from vlmkit.evaluation.aggregate import aggregate
    from vlmkit.evaluation.answered import FileAnswers
    from vlmkit.evaluation.report import table, write_reports
    from vlmkit.evaluation.runner import RunSettings, answer_benchmark, await_ranks, run_answers, score_records
    from vlmkit.generation.backend import GenerationBackend, GenerationParams
    from vlmkit.pages.report import write_report

    try:
        params = GenerationParams(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    settings = RunSettings(
        output_dir=output_dir,
        max_samples=config.max_samples_per_benchmark,
        params=params,
        verbose=config.verbose,
        progress=config.progress,
        share=place.share,
    )
    checkpoint = _checkpoint(config, directory, output_dir)
    if config.answers:
        answers = FileAnswers(config.answers)
        checkpoint |= answers.identity
        for one in benchmarks:
            provenance.keep_asked(settings.path(one).parent, provenance.UNKNOWN)
        found = {one.name: run_answers(one, answers, settings) for one in benchmarks}
    elif config.rescore:
        found = {one.name: score_records(one, settings) for one in benchmarks}
    else:
        if "device" in config.backend:
            config.backend.device = settle(place, config.backend.device)
        runtime = {"directory": directory} if _takes_directory(config) else {}
        backend = build(config.backend, GenerationBackend, **runtime)
        if not directory:
            checkpoint["path"] = f"{config.backend.model} at {config.backend.base_url}"
        checkpoint |= backend.identity
        for one in benchmarks:
            if not place.share.rank:
                provenance.keep_asked(settings.path(one).parent, provenance.asked_with(backend, params))
            answer_benchmark(one, backend, settings)
        if place.share.rank:
            return
        for one in benchmarks:
            await_ranks(one, backend, settings)
        found = {one.name: score_records(one, settings) for one in benchmarks}
    benchmarks, found, told = judged(benchmarks, found, judge=judge, settings=settings)
    figures = {one.name: aggregate(one, found[one.name]) | told.get(one.name, {}) for one in benchmarks}
    for one in benchmarks:
        scored = provenance.scored_with(found[one.name], protocol=one.protocol, preset=preset_of(one, config))
        made = provenance.kept_asked(settings.path(one).parent) | scored
        figures[one.name] = made | figures[one.name]  # who judged, where somebody did, is among the figures
    summary = write_reports(output_dir, checkpoint=checkpoint, benchmarks=figures)
    page = write_report(
        output_dir,
        checkpoint=checkpoint,
        figures=figures,
        records=found,
        benchmarks=benchmarks,
        max_pictures=config.report_pictures,
    )
    print(table(figures))
    print(f"\nEvery answer: {page} and {output_dir}/<benchmark>/records.jsonl; figures: {summary}")


def _needs_model(config: DictConfig) -> bool:
    """Whether questions will be asked.

    Raises:
        ConfigError: the records of another evaluation are asked for without saying where.
    """
    if config.answers and config.rescore:
        raise ConfigError("answers= and rescore=true: answers of a file are scored anyway. Give one of the two.")
    if config.answers or (config.rescore and config.output_dir):
        return False
    if not _takes_directory(config):
        if config.ckpt is not None:
            raise ConfigError(f"ckpt={config.ckpt}: the chosen backend= asks a served model. Leave ckpt= out.")
        return False
    return True


def _takes_directory(config: DictConfig) -> bool:
    """Whether the backend loads a model itself, and does not ask one that is served."""
    return "base_url" not in config.backend


def _checkpoint(config: DictConfig, directory: Path | None, output_dir: Path) -> dict[str, str]:
    """What is evaluated, in words; of records that are scored again, what their summary says."""
    summary = output_dir / "summary.json"
    if config.rescore and not directory and summary.is_file():
        return dict(json.loads(summary.read_text(encoding="utf-8"))["checkpoint"])
    return {"path": str(directory or config.ckpt or config.answers)}


def _benchmark(name: str, node: DictConfig, config: DictConfig) -> Benchmark:
    """Make a benchmark; settings that concern all replace those of its file, its own options win."""
    from vlmkit.cli.presets import apply_protocol
    from vlmkit.evaluation.benchmark import Benchmark

    given = config.benchmark_options.get(name) or {}
    for key in ("prompt_suffix", "data_root", "seed"):
        if key in node and key not in given and config[key] is not None:
            node[key] = config[key]
    apply_protocol(node, config, given)
    return build(node, Benchmark, f"benchmark_options.{name}")


def _output_dir(config: DictConfig, directory: Path | None) -> Path:
    if config.output_dir:
        return Path(config.output_dir).expanduser()
    if config.ckpt is None or directory is None:
        return Path("runs/eval")
    place = Path(config.ckpt).expanduser()
    return place / "eval" if place != directory else place.with_name(f"{place.name}-eval")


if __name__ == "__main__":
    main()
