"""Keeps a running average of the trained weights (EMA), and exports it where asked to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vlmkit.training.module import TrainingModule
from vlmkit.training.shards import local_part, trained_parameters


class WeightAverage(Callback):
    """An exponential moving average of what is trained, in fp32 (fp64 for fp64 weights), updated after each step.

    It starts as the weights are, and forgets faster at first: after step n (from 1) it is kept * average + (1 - kept) *
    weights, where kept is the least of the decay and (1 + n) / (10 + n). Under `trainer=fsdp` each rank averages its
    part. It stands in checkpoints, so a resumed run goes on averaging.

    Args:
        decay: Share of the average that is kept at each step.
        export: Whether the average is what the run makes: `hf/` gets it instead of the last weights, and validations
            look at it. False: both take the last weights; checkpoints hold both.
    """

    def __init__(self, *, decay: float, export: bool) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"callbacks.average.decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.export = export
        self.step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before a checkpoint is read: its averages are wanted."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.averages, pl_module.exports_averages = {}, self.export

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the weights, or from what a checkpoint held."""
        assert isinstance(pl_module, TrainingModule)
        held = pl_module.averages or {}
        pl_module.averages = {}
        for name, parameter in trained_parameters(pl_module):
            exact = torch.promote_types(parameter.dtype, torch.float32)
            pl_module.averages[name] = held.get(name, parameter).to(parameter.device, exact, copy=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run starts."""
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a step's weights in."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        assert isinstance(pl_module, TrainingModule)
        kept = min(self.decay, (1 + self.step) / (10 + self.step))
        averages, weights = _pairs(pl_module)
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight.to(average.dtype), 1 - kept)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last checkpoint: put the average in the weights' place where it is to be exported."""
        assert isinstance(pl_module, TrainingModule)
        if self.export:
            put_averages(pl_module)


@contextmanager
def as_exported(module: TrainingModule) -> Generator[None]:
    """Inside, the weights are those that the run would export now; afterwards, bit for bit, those that are trained."""
    if not module.exports_averages:
        yield
        return
    _, weights = _pairs(module)
    kept = [weight.to("cpu", copy=True) for weight in weights]  # not on the device, whose memory training fills
    put_averages(module)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, was in zip(weights, kept, strict=True):
                weight.copy_(was)


def put_averages(module: TrainingModule) -> None:
    """Overwrite the trained weights by their averages."""
    with torch.no_grad():
        for average, weight in zip(*_pairs(module), strict=True):
            weight.copy_(average)


def _pairs(module: TrainingModule) -> tuple[list[Tensor], list[Tensor]]:
    """This rank's part of each average, and of the weight that it belongs to."""
    parameters, averages = dict(trained_parameters(module)), module.averages or {}
    return [local_part(average) for average in averages.values()], [local_part(parameters[name]) for name in averages]
