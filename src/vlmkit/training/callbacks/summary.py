"""Prints what is trained and what is frozen, before the first step, and which attention kernels ran, after it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vlmkit.model.attention import Chosen, describe_attention
from vlmkit.model.parts import Part
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import describe_groups


class GroupTable(Callback):
    """The table of parameter groups: tensors, parameters, learning rate, decay, and what is frozen."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it, once."""
        if trainer.is_global_zero:
            assert isinstance(pl_module, TrainingModule)
            print(describe_groups(pl_module.groups, pl_module.frozen_counts()), flush=True)


class AttentionReport(Callback):
    """The attention kernels that have run in each part: counted where they are called, not predicted."""

    def __init__(self) -> None:
        self.module: TrainingModule | None = None
        self.printed = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the module that counts."""
        assert isinstance(pl_module, TrainingModule)
        self.module = pl_module

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print them, once."""
        if not self.printed and trainer.is_global_zero:
            assert self.module is not None
            print(f"Attention: {describe_attention(self.module.packed.attention)}.", flush=True)
        self.printed = True

    def report(self) -> dict[Part, dict[Chosen, int]]:
        """For `report.json`: calls of each kernel, by part; a call is one layer of one pack."""
        if self.module is None:
            return {}
        return {part: {**attention.ran} for part, attention in self.module.packed.attention.items()}
