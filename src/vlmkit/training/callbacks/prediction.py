"""Predicts a run before its first step: steps, peak memory, time; and keeps what followed beside it."""

from __future__ import annotations

import time
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.training.forecast import Forecast, adamw_bytes, forecast, mark_peak, peak_bytes
from vlmkit.training.module import TrainingModule


class StartForecast(Callback):
    """Runs the heaviest pack that is left and a few lighter ones, forwards and backwards, and prints what to expect.

    Every rank runs the same packs. Weights, optimiser and random states stay as they are.

    Args:
        packs: How many packs to run, the heaviest among them.
    """

    def __init__(self, *, packs: int) -> None:
        if packs < 1:
            raise ValueError(
                f"callbacks.forecast.packs must be at least 1, got {packs}; callbacks.forecast=null has no forecast"
            )
        self.packs = packs
        self.made: Forecast | None = None
        self.followed: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, predict, print."""
        assert isinstance(pl_module, TrainingModule)
        data = cast(PackedDataModule, cast(Any, trainer).datamodule)
        stateless = not any(optimizer.state for optimizer in trainer.optimizers)
        parameters = list(pl_module.packed.parameters())
        coming = adamw_bytes(parameters, masters=pl_module.optimizer_plan.fp32_masters) if stateless else 0
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), trainer.precision_plugin.forward_context():
            self.made = forecast(
                packed=pl_module.packed,
                steps=data.steps(trainer.world_size, trainer.accumulate_grad_batches),
                load=data.pack_batch,
                optimizer_bytes=coming,
                num_calibrations=self.packs,
            )
        if trainer.is_global_zero:
            print(self.made.to_text(), flush=True)
            if devices and self.made.peak_bytes > (has := torch.cuda.get_device_properties(devices[0]).total_memory):
                print(
                    f"That is more than the device's {has / 2**30:.2f} GiB. Lower data.tokens_per_batch (or data.batch_size), "
                    "recompute (model.gradient_checkpointing), or share the model (trainer=fsdp).",
                    flush=True,
                )
        mark_peak(pl_module.device)
        self.started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what it came to."""
        self.followed = {
            "peak_bytes": peak_bytes(pl_module.device),
            "seconds": time.perf_counter() - self.started,
        }

    def report(self) -> dict[str, Any]:
        """For `report.json`: what was predicted, and what followed."""
        return {"predicted": self.made.to_json() if self.made else None, "followed": self.followed}
