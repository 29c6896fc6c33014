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
from omegaconf import open_dict

from vlmkit.cli.checks import Checked
from vlmkit.cli.findings import Section
from vlmkit.cli.training import Run, make_bad_media, make_lora, make_module, make_trainer
from vlmkit.config import build
from vlmkit.training.callbacks.average import WeightAverage
from vlmkit.training.callbacks.prediction import StartForecast, sharing_of
from vlmkit.training.forecast import Ranks

Forecast = Callable[[Run, Section], None]
"""Fills in what a run would take; `run.data` is planned, nothing is trained yet."""
_GIB = 1 << 30
_ADAM_STATES = 2


def resources_section(checked: Checked, forecast: Forecast) -> Section:
    """What the run needs beside what is here."""
    section = Section(name="resources")
    with section.guarded():
        _tell_devices(checked, section)
    if checked.sizes is not None:
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
    """Memory of weights, gradients and optimiser, and the disk that checkpoints take."""
    assert checked.sizes is not None
    total, trained = sum(checked.sizes.parameters.values()), sum(checked.sizes.trained.values())
    width = {"bf16-true": 2, "16-true": 2, "64-true": 8, "64": 8}.get(str(checked.config.trainer.precision), 4)
    memory = total * width + trained * width * (1 + _ADAM_STATES)
    section.figures["weights_bytes"] = memory
    section.add("ok", f"weights, gradients and AdamW's states take {memory / _GIB:.2f} GiB; activations come on top")
    keep = checked.config.save.keep or 10
    disk = keep * trained * width * (1 + _ADAM_STATES) + total * width
    free = shutil.disk_usage(_existing(checked.run_dir)).free
    section.figures |= {"disk_needed_bytes": disk, "disk_free_bytes": free}
    told = f"checkpoints and hf/ take about {disk / _GIB:.2f} GiB in run_dir, {free / _GIB:.0f} GiB are free"
    if disk > free:
        section.add("warning", f"{told}. Lower save.keep or choose another run_dir")
    else:
        section.add("ok", told)


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

    One process stands for all ranks; what that leaves open is said (`Forecast.notes`).
    """
    if run.config.callbacks.get("forecast") is None:
        section.add("note", "no forecast: callbacks.forecast=null leaves it out")
        return
    if not run.data.steps(run.trainer.world_size, run.accumulate).packs.size:
        section.add("note", "no forecast: nothing is left to train")
        return
    ranks = Ranks(number=run.trainer.world_size, measured=1, sharing=sharing_of(run.trainer.strategy))
    asked = build(run.config.callbacks.forecast, StartForecast, "callbacks.forecast", data=run.data, ranks=ranks)
    observers = [build(node, cast(Any, Callback)) for node in run.config.callbacks.values() if node]
    averages = [one for one in observers if isinstance(one, WeightAverage)]  # they take memory of their own
    trainer = _trainer_alone(run)
    cast(Any, trainer).callbacks.extend([*averages, asked, _StopBeforeTheFirstStep()])
    trainer.fit(make_module(run), train_dataloaders=range(1))  # it stops before it asks for a batch
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
            config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"
    return make_trainer(config, run.run_dir)
