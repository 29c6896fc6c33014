"""The section `resources` of a check: devices, disk, memory of the weights, and a forecast of time and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, open_dict

from vlmkit.cli.checks import Checked
from vlmkit.cli.findings import Section
from vlmkit.cli.training import Run, make_bad_media, make_lora, make_module, make_trainer, weights_dtype
from vlmkit.config import build
from vlmkit.errors import is_out_of_memory
from vlmkit.training.callbacks.average import WeightAverage
from vlmkit.training.callbacks.prediction import StartForecast, sharing_of
from vlmkit.training.footprint import Footprint, count_footprint
from vlmkit.training.forecast import Ranks
from vlmkit.training.rehearsal import RehearsalError
from vlmkit.training.strategy import FirstOfRanks, ShardedStrategy

Forecast = Callable[[Run, Section], None]
"""Fills in what a run would take; `run.data` is planned, nothing is trained yet."""
_GIB = 1 << 30


def resources_section(checked: Checked, forecast: Forecast) -> Section:
    """What the run needs beside what is here."""
    section = Section(name="resources")
    with section.guarded():
        _tell_devices(checked, section)
    if checked.model is not None and checked.freeze is not None and checked.optim is not None:
        with section.guarded():
            _tell_weights(checked, section)
    _tell_loading(checked, section)
    wanted = checked.config.check.forecast
    if wanted is False or (wanted is None and not torch.cuda.is_available()):
        section.add("note", "no forecast of time and memory (check.forecast=true rehearses a few steps for one)")
        return section
    run = _as_run(checked)
    if run is None:
        section.add("note", "no forecast: the run is not known (see above)")
        return section
    with section.guarded():
        forecast(run, section)
    return section


def _tell_devices(checked: Checked, section: Section) -> None:
    trainer = checked.trainer
    gpus = [
        {"name": one.name, "gib": one.total_memory / _GIB}
        for one in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    section.figures |= {"cpus": os.cpu_count(), "gpus": gpus}
    here = ", ".join(f"{gpu['name']} ({gpu['gib']:.0f} GiB)" for gpu in gpus) or "no GPU"
    used = f"; the run would use {checked.num_ranks} x {trainer.strategy.root_device.type}" if trainer else ""
    section.add("ok", f"here: {os.cpu_count()} CPUs, {here}{used}")
    workers, cores = checked.data.num_workers if checked.data else 0, os.cpu_count() or 1
    if workers > cores:
        section.add("warning", f"data.num_workers={workers} exceeds the {cores} CPUs; they wait for each other")


def _tell_weights(checked: Checked, section: Section) -> None:
    """Memory of weights, gradients and optimiser of a rank, and the disk that checkpoints take."""
    ranks = _ranks(checked)
    found = _footprint(checked, ranks)
    section.figures |= {
        "weights_bytes": found.update,
        "resting_bytes": found.resting,
        "checkpoint_bytes": found.checkpoint,
    }
    backward, update, _ = found.per_trained
    each = f"{backward:.0f} bytes a trained parameter" + (f", {update:.0f} in the update" if update > backward else "")
    what = "weights, gradients and the optimiser's state"
    if ranks.sharing == "model" and ranks.number > 1:
        told = (
            f"each of the {ranks.number} ranks keeps 1/{ranks.number} of {what}: {_gib(found.update)} ({each}, shared); "
            f"it gathers {_gib(found.gathered)} at a time"
        )
    elif ranks.number > 1:
        told = f"each of the {ranks.number} ranks keeps all of {what}, and gradients once more for the exchange: {_gib(found.update)} ({each})"
    else:
        told = f"{what} take {_gib(found.update)} ({each})"
    section.add("ok", f"{told}; activations come on top")
    keep = checked.config.save.keep or 10
    disk = keep * found.checkpoint + found.export
    free = shutil.disk_usage(_existing(checked.run_dir)).free
    section.figures |= {"disk_needed_bytes": disk, "disk_free_bytes": free}
    told = (
        f"checkpoints ({_gib(found.checkpoint)} each) and hf/ take about {_gib(disk)} in run_dir, {_gib(free)} are free"
    )
    if disk > free:
        section.add("warning", f"{told}. Lower save.keep or choose another run_dir")
    else:
        section.add("ok", told)


def _ranks(checked: Checked) -> Ranks:
    """Who would train."""
    sharing = sharing_of(checked.trainer.strategy) if checked.trainer else "nothing"
    return Ranks(number=checked.num_ranks, measured=1, sharing=sharing)


def _footprint(checked: Checked, ranks: Ranks) -> Footprint:
    assert checked.optim is not None
    config = checked.config
    precision = str(config.trainer.precision)
    dtype = weights_dtype(precision)
    strategy = checked.trainer.strategy if checked.trainer else None
    return count_footprint(
        checked.model,
        checked.optim,
        dtype=dtype,
        compute_dtype=torch.bfloat16 if precision.startswith("bf16") else dtype,
        ranks=ranks,
        averaged=any(isinstance(one, WeightAverage) for one in _configured_callbacks(config)),
        whole_gradients=isinstance(strategy, ShardedStrategy)
        and not strategy.reduce_every_micro_batch
        and checked.accumulate > 1,
    )


def _configured_callbacks(config: DictConfig) -> list[Callback]:
    return [build(node, cast(Any, Callback)) for node in config.callbacks.values() if node]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(one for one in (path, *path.parents) if one.exists())


def _tell_loading(checked: Checked, section: Section) -> None:
    seconds = [one.seconds for one in checked.decoded if one.seconds]
    if not seconds:
        return
    mean = float(np.mean(seconds))
    section.figures["seconds_per_decoded_row"] = mean
    section.add("ok", f"a row with media is read, decoded and cut in {1000 * mean:.1f} ms by one process")


def _as_run(checked: Checked) -> Run | None:
    """The run as a training would wire it; None where a part of it is missing."""
    parts = (checked.source, checked.data, checked.processor, checked.freeze, checked.trainer)
    source, data, processor, freeze, trainer = parts
    if source is None or data is None or processor is None or freeze is None or trainer is None or not checked.planned:
        return None
    return Run(
        config=checked.config,
        run_dir=checked.run_dir,
        source=source,
        data=data,
        processor=processor,
        lora=make_lora(checked.config.model.lora),
        freeze=freeze,
        state=checked.state,
        checkpoint=checked.checkpoint,
        trainer=trainer,
        bad_media=make_bad_media(data),
    )


def forecast_by_rehearsal(run: Run, section: Section) -> None:
    """What the start of the run would forecast: the same callback, in a Trainer that stops before the first step.

    One process takes the place of the first rank and keeps what that would keep: under DDP the whole model, under FSDP2 its
    part. What that leaves open is said (`Forecast.notes`).

    Raises:
        RehearsalError: the model, its optimiser or a step does not fit into memory.
    """
    if run.config.callbacks.get("forecast") is None:
        section.add("note", "no forecast: callbacks.forecast=null leaves it out")
        return
    if not run.data.steps(run.trainer.world_size, run.accumulate).packs.size:
        section.add("note", "no forecast: nothing is left to train")
        return
    ranks = Ranks(number=run.trainer.world_size, measured=1, sharing=sharing_of(run.trainer.strategy))
    asked = build(run.config.callbacks.forecast, StartForecast, "callbacks.forecast", data=run.data, ranks=ranks)
    callbacks = _configured_callbacks(run.config)
    averages = [one for one in callbacks if isinstance(one, WeightAverage)]  # they take memory of their own
    trainer = _trainer_alone(run)
    cast(Any, trainer).callbacks.extend([*averages, asked, _StopBeforeTheFirstStep()])
    try:
        trainer.fit(make_module(run), train_dataloaders=range(1))  # it stops before it asks for a batch
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RehearsalError(
            f"The model and its optimiser do not fit into the memory of {trainer.strategy.root_device}: {_first_line(error)} "
            "Share the model among more devices (trainer=fsdp trainer.devices=8), train adapters (model.lora.rank=16) or "
            "fewer parts (freeze=), or use narrower weights (trainer.precision=bf16-true)."
        ) from error
    made = asked.made
    assert made is not None
    section.figures |= {
        "forecast_seconds": made.seconds,
        "peak_bytes": made.peak_bytes,
        "tried_packs": len(made.calibrations),
        "forecast": made.to_json(),
    }
    first, *rest = made.to_text().splitlines()
    section.add("ok", first, [line.strip() for line in rest])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."


class _StopBeforeTheFirstStep(Callback):
    """Ends a training that has only just begun."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = True


def _trainer_alone(run: Run) -> L.Trainer:
    """The run's Trainer, for this process alone and without loggers."""
    config = run.config.copy()
    with open_dict(config):
        config.logger = {}
        if run.trainer.world_size > 1:
            config.trainer.devices, config.trainer.num_nodes = 1, 1
            if sharing_of(run.trainer.strategy) == "model":
                config.trainer.strategy._target_ = f"{FirstOfRanks.__module__}.{FirstOfRanks.__qualname__}"
                config.trainer.strategy.num_ranks = run.trainer.world_size
            else:
                config.trainer.strategy = "auto"
    return make_trainer(config, run.run_dir)
