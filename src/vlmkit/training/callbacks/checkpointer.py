"""Writes checkpoints at the end of optimiser steps: aside, synced, renamed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vlmkit.errors import CheckpointError
from vlmkit.training.shards import remove_checkpoint
from vlmkit.training.state import (
    KEY,
    RunState,
    checkpoint_name,
    newest_checkpoint,
    restore_rng,
    rewrite_loops,
    sync_to_disk,
)


class Checkpointer(Callback):
    """Saves every so many steps and at the end, and keeps the newest few.

    It saves only where an optimiser step has just ended: in the middle of accumulation partial gradients would be lost.

    Args:
        run_dir: Where `checkpoints/` lies.
        every_n_steps: None: at the end only.
        keep: How many to keep; older ones go once a newer one stands.
        state_at: Where the run stands after so many optimiser steps.
        done_batches: Micro-batches already done on each of today's ranks when resuming.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        every_n_steps: int | None,
        keep: int,
        state_at: Callable[[int], RunState],
        done_batches: Callable[[], int],
    ) -> None:
        self.directory = run_dir / "checkpoints"
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.state_at = state_at
        self.done_batches = done_batches
        self.saved_step = -1
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run starts."""
        self.step = self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a step has just ended and its turn has come."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last or (self.every_n_steps and self.step % self.every_n_steps == 0):
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> Path:
        """Write a checkpoint of this step; every rank must call.

        Raises:
            CheckpointError: the disk refuses it. Earlier checkpoints stay.
        """
        path = self.directory / checkpoint_name(self.step)
        aside = self.directory / f".{path.name}.writing"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(aside)
            if trainer.is_global_zero:
                sync_to_disk(aside)
                aside.rename(path)
                sync_to_disk(self.directory)
                self._prune()
        except OSError as error:
            remove_checkpoint(aside)
            left = newest_checkpoint(self.directory.parent)
            raise CheckpointError(
                f"{path}: could not be written ({error}). The newest good checkpoint is {left or 'none'}."
            ) from error
        trainer.strategy.barrier("checkpoint")
        self.saved_step = self.step
        return path

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add where the run stands."""
        checkpoint[KEY] = self.state_at(trainer.global_step).to_checkpoint()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count what is done on today's ranks, and take the random states back."""
        rewrite_loops(checkpoint, done_batches=self.done_batches())
        restore_rng(checkpoint)

    def _prune(self) -> None:
        found = sorted(self.directory.glob("step-*.ckpt"))
        for old in found[: -self.keep] if self.keep > 0 else []:
            remove_checkpoint(old)
