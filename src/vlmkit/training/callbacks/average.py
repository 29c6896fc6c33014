"""Keeps a running average of the trained weights (EMA), and exports it where asked to."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vlmkit.training.module import TrainingModule
from vlmkit.training.shards import local_part


class WeightAverage(Callback):
    """An exponential moving average of what is trained, in fp32 (fp64 for fp64 weights), updated after each step.

    It starts as the weights are, and forgets faster at first: the decay of step n is at most (1 + n) / (10 + n). Under
    `trainer=fsdp` each rank averages its part. It stands in checkpoints, so a resumed run goes on averaging.

    Args:
        decay: Share of the average that is kept at each step.
        export: Whether `hf/` gets the average instead of the last weights.
    """

    def __init__(self, *, decay: float, export: bool) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"callbacks.average.decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.export = export
        self.step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the weights, or from what a checkpoint held."""
        assert isinstance(pl_module, TrainingModule)
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                exact = torch.promote_types(parameter.dtype, torch.float32)
                start = pl_module.averages.get(name, parameter.detach())
                pl_module.averages[name] = start.to(parameter.device, exact, copy=True)

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
        if self.export:
            assert isinstance(pl_module, TrainingModule)
            put_averages(pl_module)


def put_averages(module: TrainingModule) -> None:
    """Overwrite the trained weights by their averages."""
    with torch.no_grad():
        for average, weight in zip(*_pairs(module), strict=True):
            weight.copy_(average)


def _pairs(module: TrainingModule) -> tuple[list[Tensor], list[Tensor]]:
    """This rank's part of each average, and of the weight that it belongs to."""
    parameters = dict(module.named_parameters())
    names = list(module.averages)
    averages = [local_part(module.averages[name]) for name in names]
    return averages, [local_part(parameters[name].detach()) for name in names]
