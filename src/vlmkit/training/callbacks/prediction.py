"""Predicts a run before its first step: steps, peak memory, time; and keeps what followed beside it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, Strategy

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.training.forecast import Forecast, Ranks, Sharing, forecast
from vlmkit.training.memory import is_measured, mark_peak, peak_bytes
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import still_twin
from vlmkit.training.rehearsal import Parts
from vlmkit.training.strategy import ShardedStrategy


class StartForecast(Callback):
    """Rehearses the heaviest steps that are left and times a few packs before the first step, and prints what to expect.

    Every rank runs the same packs. Weights, optimiser and random states stay as they are.

    Args:
        packs: How many packs to time, the heaviest and the lightest among them.
        rounds: How often each is run after warming up.
        data: What is trained on; None: the Trainer's datamodule.
        ranks: Who will train, where that is not who is here; see `Ranks`.
    """

    def __init__(
        self, *, packs: int, rounds: int, data: PackedDataModule | None = None, ranks: Ranks | None = None
    ) -> None:
        for name, value in (("packs", packs), ("rounds", rounds)):
            if value < 1:
                raise ValueError(
                    f"callbacks.forecast.{name} must be at least 1, got {value}; callbacks.forecast=null has no forecast"
                )
        self.packs = packs
        self.rounds = rounds
        self.data = data
        self.ranks = ranks
        self.made: Forecast | None = None
        self.followed: dict[str, float | None] = {}
        self.paused_seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rehearse, predict, print."""
        assert isinstance(pl_module, TrainingModule)
        self.made = self._predict(trainer, pl_module)
        if trainer.is_global_zero:
            print(self.made.to_text(), flush=True)
        self.first_step = trainer.global_step
        mark_peak(pl_module.device)
        self.started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what it came to."""
        if self.made is None:
            return
        seconds = time.perf_counter() - self.started - self.paused_seconds
        steps = trainer.global_step - self.first_step
        predicted = self.made.seconds * steps / max(1, self.made.num_steps)
        self.followed = {
            "steps": steps,
            "seconds": seconds,
            "epoch_seconds": self.made.epoch_seconds * seconds / predicted if predicted else None,
            "peak_bytes": peak_bytes(pl_module.device) if is_measured(pl_module.device) else None,
        }

    def pause(self, seconds: float) -> None:
        """Leave time out of what followed that is not forecast: validation, checkpoints."""
        self.paused_seconds += seconds

    def report(self) -> dict[str, Any]:
        """For `report.json`: what was predicted, and what followed."""
        return {"predicted": self.made.to_json() if self.made else None, "followed": self.followed}

    def _predict(self, trainer: L.Trainer, module: TrainingModule) -> Forecast:
        data = self.data or cast(PackedDataModule, cast(Any, trainer).datamodule)
        ranks = self.ranks or Ranks(
            number=trainer.world_size, measured=trainer.world_size, sharing=sharing_of(trainer.strategy)
        )
        fresh = not any(optimizer.state for optimizer in trainer.optimizers)
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            parts = Parts(
                packed=module.packed,
                optimizer=still_twin(trainer.optimizers[0], module.groups, module.optimizer_plan) if fresh else None,
                accumulate=trainer.accumulate_grad_batches,
                load=data.pack_batch,
                forward_context=trainer.precision_plugin.forward_context,
                unsynced=getattr(trainer.strategy, "block_backward_sync", nullcontext),
            )
            return forecast(
                parts=parts,
                steps=data.steps(ranks.number, trainer.accumulate_grad_batches),
                epoch=data.epoch_counts(),
                ranks=ranks,
                packs=self.packs,
                rounds=self.rounds,
                workers=data.num_workers,
            )


def sharing_of(strategy: Strategy) -> Sharing:
    """What ranks have in common under a strategy."""
    if isinstance(strategy, ShardedStrategy):
        return "model"
    return "gradients" if isinstance(strategy, DDPStrategy) else "nothing"
