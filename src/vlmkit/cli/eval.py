"""`vlmkit-eval`: ask a checkpoint the questions of benchmarks, score the answers, report."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vlmkit.cli.checkpoints import model_directory
from vlmkit.cli.settings import check_settings
from vlmkit.cli.sharing import all_ranks, find_place
from vlmkit.config import benchmark_nodes, build, run_command, this_job
from vlmkit.errors import ConfigError
from vlmkit.evaluation.parts import ALONE

if TYPE_CHECKING:
    from vlmkit.evaluation.benchmark import Benchmark


def main() -> None:
    """Entry point of the console script."""
    # The options of single benchmarks stand in their own files; Hydra wants a ++ for what is not composed yet.
    sys.argv[1:] = [re.sub(r"^benchmark_options\.", "++benchmark_options.", argument) for argument in sys.argv[1:]]
    run_command("vlmkit-eval", "eval", _task)


def _task(config: DictConfig) -> None:
    _check_settings(config)
    nodes = benchmark_nodes(config.benchmarks, config.benchmark_options)
    if not nodes:
        from vlmkit.cli.benchmarks import text

        print(text())
        return
    from vlmkit.cli.available import with_data
    from vlmkit.cli.evaluating import Evaluation, evaluate
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
        raise ConfigError(
            "ckpt=: processes started from outside would each assemble a model of their own. Add ckpt=..."
        )
    assembled = Path(config.output_dir or "runs/eval").expanduser() / "model"
    directory = model_directory(config, assembled=assembled) if asks else None
    output_dir = _output_dir(config, directory)
    evaluation = Evaluation(
        config=config, benchmarks=benchmarks, directory=directory, output_dir=output_dir, judge=judge, place=place
    )
    if place.share.num_ranks == 1:
        evaluate(evaluation)
        return
    settled = [
        f"{key}='{value}'" for key, value in (("ckpt", directory), ("output_dir", output_dir)) if value is not None
    ]
    with all_ranks(place, output_dir, [*this_job("eval", Path()), *settled]):
        evaluate(evaluation)


def _check_settings(config: DictConfig) -> None:
    """Refuse wrong settings, and a checkpoint that is none, before anything is loaded.

    Raises:
        ConfigError: naming the keys.
        CheckpointError: `ckpt` holds no model.
    """
    check_settings(config, "eval")
    if config.ckpt is not None and "base_url" not in config.backend and not (config.answers or config.rescore):
        model_directory(config, assembled=Path())


def _needs_model(config: DictConfig) -> bool:
    """Whether questions will be asked.

    Raises:
        ConfigError: the records of another evaluation are asked for without saying where.
    """
    if config.answers and config.rescore:
        raise ConfigError("answers= and rescore=true: answers of a file are scored anyway. Give one of the two.")
    if config.answers or (config.rescore and config.output_dir):
        return False
    from vlmkit.cli.evaluating import takes_directory

    if not takes_directory(config):
        if config.ckpt is not None:
            raise ConfigError(f"ckpt={config.ckpt}: the chosen backend= asks a served model. Leave ckpt= out.")
        return False
    return True


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
