"""The section `resources` of a check: devices, disk, memory of the weights, and a forecast of time and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vlmkit.cli.checks import Checked
from vlmkit.cli.findings import Section
from vlmkit.cli.training import Run, make_bad_media, make_lora, make_module
from vlmkit.data.dealing import IDLE, Slot
from vlmkit.data.plan import pack_weights
from vlmkit.training.trial import try_packs

Forecast = Callable[[Run, Section], None]
"""Fills in what a run would take; `run.data` is planned, nothing is trained yet."""
_NUM_TRIED = 4
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
        section.add("note", "no forecast of time and memory (check.forecast=true trains a few packs for one)")
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


def forecast_by_trial(run: Run, section: Section) -> None:
    """Train a few packs, the heaviest among them, and scale their time up to the plan.

    A pack's time is taken to be proportional to its weight (tokens and patches, each in units of their mean), a step's
    to that of its heaviest rank.
    """
    plan = run.data.plan
    weights = pack_weights(plan.num_tokens, plan.num_patches)
    order = np.argsort(-weights, kind="stable")
    chosen = np.unique(order[np.linspace(0, len(order) - 1, min(_NUM_TRIED, len(order))).astype(int)])
    chosen = chosen[np.argsort(-weights[chosen], kind="stable")]  # the heaviest first: memory fails at once
    dataset = run.data.pack_dataset()
    slots = (
        Slot(pack=int(number), rows=plan[int(number)].rows, step=0, step_supervised_tokens=1, epoch=0)
        for number in chosen
    )
    device = run.trainer.strategy.root_device
    try:
        trials = try_packs(
            make_module(run),
            (dataset[slot] for slot in slots),
            device=device,
            precision=str(run.config.trainer.precision),
        )
    except torch.cuda.OutOfMemoryError:
        section.add(
            "error",
            f"the heaviest pack ({int(plan.num_tokens.max()):,} tokens) does not fit into the memory of {device}. Lower "
            "data.batch_size or data.tokens_per_batch, or set model.gradient_checkpointing.",
        )
        return
    rate = sum(trial.seconds for trial in trials) / float(weights[[trial.pack for trial in trials]].sum())
    packs = run.data.steps(run.trainer.world_size, run.accumulate).packs
    slowest = np.where(packs == IDLE, 0.0, weights[packs]).max(axis=1) if packs.size else np.zeros(0)
    seconds, peak = rate * float(slowest.sum()), max(trial.peak_bytes for trial in trials)
    section.figures |= {"forecast_seconds": seconds, "peak_bytes": peak, "tried_packs": len(trials)}
    place = "the device" if device.type == "cuda" else "the process"
    section.add(
        "ok",
        f"forecast from {len(trials)} packs trained on {device}: {_duration(seconds)} without evaluation, "
        f"{peak / _GIB:.2f} GiB of memory of {place} at most",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
