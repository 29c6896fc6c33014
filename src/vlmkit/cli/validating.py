"""Wires what is looked at while a run trains: held-out data and benchmarks, where training and evaluation do not meet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig, open_dict

from vlmkit.config import benchmark_nodes, build
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.errors import ConfigError
from vlmkit.processing.processor import Processor
from vlmkit.training.callbacks.validator import LOSS, Measures, Validator

if TYPE_CHECKING:
    from vlmkit.training.module import TrainingModule


def make_data(node: DictConfig) -> PackedDataModule:
    """The datamodule of `data`, told what share it is to hold out."""
    data = build(_without_validation(node), PackedDataModule, "data")
    wanted = node.get("validation")
    if isinstance(wanted, float):
        if not 0 < wanted < 1:
            raise ConfigError(f"data.validation={wanted}: a share must lie between 0 and 1, such as 0.01.")
        data.held_out_share = wanted
    elif wanted is not None and not isinstance(wanted, str):
        raise ConfigError(f"data.validation={wanted}: wanted a share such as 0.01, the path of a manifest, or null.")
    return data


def held_out_data(config: DictConfig, data: PackedDataModule, processor: Processor) -> PackedDataModule | None:
    """What validation reads: the rows that `data` holds out, or those of a manifest; None where nothing is.

    Raises:
        ConfigError: a manifest beside data that has no `sources`.
        DataError: as for training data.
    """
    wanted = config.data.get("validation")
    if wanted is None:
        return None
    if isinstance(wanted, float):
        return data
    if "sources" not in config.data:
        raise ConfigError("data.validation: a manifest needs data=llava; here a share can be held out, such as 0.1.")
    other = build(_without_validation(config.data, sources=[wanted], limit=None), PackedDataModule, "data")
    other.order, other.heaviest_first = "sequential", False
    other.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    other.held_out_plan = other.plan
    return other


def make_validator(
    config: DictConfig,
    run_dir: Path,
    *,
    trainer: L.Trainer,
    module: TrainingModule,
    processor: Processor,
    data: PackedDataModule,
    held_out: PackedDataModule | None,
    save: Callable[[L.Trainer], object],
    paused: Callable[[float], None],
) -> Validator | None:
    """The callback that validates; None where there is nothing to measure.

    Raises:
        ConfigError: as `check_validation`.
    """
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    if not check_validation(config, run_dir, trainer):
        return None
    benchmarks = _benchmarks(config, run_dir, lambda: module.packed.hf, lambda: processor)

    def measures() -> Measures:
        loader = None
        if held_out is not None:
            loader = held_out.held_out_loader(num_ranks=trainer.world_size, rank=trainer.global_rank)
        others: list[Callable[[int], dict[str, float]]] = [benchmarks] if benchmarks is not None else []
        if held_out is not None and config.validate.samples and not sharded:
            others.append(_previews(config, run_dir, trainer, module, processor, held_out))
        index = held_out.index if held_out is not None else data.index
        return Measures(loader=loader, others=others, where=lambda row: str(index.origin(row)))

    return Validator(
        run_dir=run_dir,
        every_n_steps=config.validate.every_n_steps,
        measures=measures,
        best=config.save.best,
        stop_after=config.validate.stop_after,
        save=save,
        paused=paused,
    )


def check_validation(config: DictConfig, run_dir: Path, trainer: L.Trainer) -> list[str]:
    """Names of what a run measures while it trains, from its settings alone.

    Raises:
        ConfigError: `save.best` names what is not measured, early stopping has nothing to go by, or a benchmark cannot be
            asked.
    """
    if config.validate.benchmarks and isinstance(trainer.strategy, ModelParallelStrategy):
        raise ConfigError(
            "validate.benchmarks: no rank of trainer=fsdp holds the whole model, so none can answer. Use data.validation here, and "
            "vlmkit-eval on the exported model."
        )
    benchmarks = _benchmarks(config, run_dir, _not_yet, _not_yet)
    held_out = config.data.get("validation") is not None
    known = [*([LOSS] if held_out else []), *(benchmarks.metrics if benchmarks is not None else [])]
    if config.save.best is not None and config.save.best not in known:
        raise ConfigError(
            f"save.best={config.save.best}: not measured in this run. Measured: {', '.join(known) or 'nothing'}. Set "
            "data.validation or validate.benchmarks."
        )
    if config.validate.stop_after is not None and config.save.best is None:
        raise ConfigError("validate.stop_after: say which metric has to improve, save.best=val/loss.")
    return known


def _not_yet() -> Any:
    raise AssertionError("nothing is asked before the run has a model")


def _benchmarks(config: DictConfig, run_dir: Path, model: Callable[[], Any], processor: Callable[[], Processor]) -> Any:
    nodes = benchmark_nodes(config.validate.benchmarks, where="validate.benchmarks")
    if not nodes:
        return None
    from vlmkit.evaluation.benchmark import Benchmark
    from vlmkit.evaluation.callback import LiveBenchmarks
    from vlmkit.evaluation.runner import RunSettings
    from vlmkit.generation.backend import GenerationParams
    from vlmkit.generation.live import LiveBackend

    made = [build(node, cast(Any, Benchmark)) for node in nodes.values()]
    if stuck := [one.name for one in made if one.judge == "required"]:
        raise ConfigError(
            f"validate.benchmarks: {', '.join(stuck)} has no score without a judge, and none is asked while training. Leave it out."
        )
    params = GenerationParams(max_new_tokens=config.validate.max_new_tokens, batch_size=config.validate.batch_size)
    settings = RunSettings(
        output_dir=run_dir / "validation",
        max_samples=config.validate.max_samples,
        params=params,
        verbose=False,
        progress=False,
    )
    return LiveBenchmarks(
        benchmarks=made,
        make_backend=lambda step: LiveBackend(model=model(), processor=processor(), step=step),
        settings=settings,
    )


def _previews(
    config: DictConfig,
    run_dir: Path,
    trainer: L.Trainer,
    module: TrainingModule,
    processor: Processor,
    held_out: PackedDataModule,
) -> Callable[[int], dict[str, float]]:
    from vlmkit.generation.backend import GenerationParams
    from vlmkit.generation.live import LiveBackend
    from vlmkit.training.previews import Previews

    assert held_out.held_out_plan is not None
    rows = held_out.held_out_plan.rows[: config.validate.samples].tolist()
    return Previews(
        conversations=[held_out.index.conversation(row) for row in rows],
        make_backend=lambda step: LiveBackend(model=module.packed.hf, processor=processor, step=step),
        directory=run_dir / "validation",
        params=GenerationParams(max_new_tokens=config.validate.max_new_tokens, batch_size=config.validate.batch_size),
        loggers=trainer.loggers,
    )


def _without_validation(node: DictConfig, **changed: object) -> DictConfig:
    """What the datamodule itself takes; a copy that still hangs in the config, so that references resolve."""
    taken = copy.deepcopy(node)
    with open_dict(taken):
        taken.pop("validation", None)
        for name, value in changed.items():
            taken[name] = value
    return taken
