"""Prints what is trained and what is frozen, before the first step."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback

from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import describe_groups


class GroupTable(Callback):
    """The table of parameter groups: tensors, parameters, learning rate, decay, and what is frozen."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it, once."""
        if trainer.is_global_zero:
            assert isinstance(pl_module, TrainingModule)
            print(describe_groups(pl_module.groups, pl_module.frozen_counts()), flush=True)
