"""Exports the model as it stands every so many steps, so that an unfinished run leaves models behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vlmkit.training.callbacks.average import as_exported
from vlmkit.training.callbacks.validator import unnoticed
from vlmkit.training.module import TrainingModule


class Exporter(Callback):
    """Writes `checkpoints/hf_step-N/` every so many optimiser steps; the training does not notice.

    Args:
        run_dir: Where `checkpoints/` lies.
        every_n_steps: Steps between two exports.
        write: Writes the model to a directory and proves it; every rank calls.
        before: Called on every rank before anything is written; raises where the weights are not worth keeping.
        paused: Given the seconds that writing took.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        every_n_steps: int,
        write: Callable[[Path, int], None],
        before: Callable[[], None],
        paused: Callable[[float], None],
    ) -> None:
        self.directory = run_dir / "checkpoints"
        self.every_n_steps = every_n_steps
        self.write = write
        self.before = before
        self.paused = paused
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run starts."""
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Export if a step has just ended and its turn has come."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if self.step % self.every_n_steps:
            return
        assert isinstance(pl_module, TrainingModule)
        started = time.perf_counter()
        self.before()
        with unnoticed(pl_module), as_exported(pl_module):
            self.write(self.directory / f"hf_step-{self.step:06d}", self.step)
        self.paused(time.perf_counter() - started)
