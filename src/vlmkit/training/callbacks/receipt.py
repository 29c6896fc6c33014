"""The gradient receipt: what should learn gets gradients, what is frozen does not move."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vlmkit.batch import Batch
from vlmkit.errors import VlmkitError
from vlmkit.training.callbacks.steplog import grad_norms
from vlmkit.training.module import TrainingModule
from vlmkit.training.shards import any_rank, fingerprint, local_part


class GradientError(VlmkitError):
    """A trainable tensor without a gradient, or a frozen one that moved. Names the tensor."""


class GradientReceipt(Callback):
    """Fails a run whose gradients are not what the freeze policy promises.

    After the first step every trainable tensor must have a finite gradient. *Non-zero* is asked once each had its
    chance: over the first steps that hold an image (a merger has none on a text-only step).

    Args:
        steps_with_media: Steps with an image or video in which each trainable tensor must see a gradient other than 0.
    """

    def __init__(self, *, steps_with_media: int) -> None:
        self.steps_with_media = steps_with_media
        self.norms: dict[str, float] = {}
        self.frozen: dict[str, int] = {}
        self.silent: set[str] = set()
        self.seen = 0
        self.has_media = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the fingerprints of what must not move."""
        assert isinstance(pl_module, TrainingModule)
        self.frozen = {
            name: fingerprint(p) for name, p in pl_module.packed.hf.named_parameters() if not p.requires_grad
        }
        self.silent = {name for group in pl_module.groups for name, _ in group.parameters}
        self.seen, self.has_media, self.step = 0, False, trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Forget the step's media once it is over."""
        if trainer.global_step != self.step:
            self.step, self.has_media = trainer.global_step, False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note whether the step holds media."""
        self.has_media = self.has_media or batch["num_media"] > 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Look at the gradients while there is still something to find out."""
        if not self.silent or self.seen >= self.steps_with_media:
            return
        assert isinstance(pl_module, TrainingModule)
        if pl_module.skip_step:
            return
        grads: dict[str, Tensor] = {}
        for group in pl_module.groups:
            for name, parameter in group.parameters:
                if parameter.grad is None:
                    raise GradientError(
                        f"{name} is trainable and got no gradient. It takes no part in the loss: freeze it."
                    )
                if name in self.silent:
                    grads[name] = parameter.grad
        flags = torch.stack([local_part(grad).count_nonzero() > 0 for grad in grads.values()])
        heard = any_rank(flags, list(grads.values())).tolist()
        self.silent -= {name for name, yes in zip(grads, heard, strict=True) if yes}
        if not self.norms:
            self.norms = {part: float(norm) for part, norm in grad_norms(pl_module.groups).items()}
            if broken := [part for part, norm in self.norms.items() if not torch.isfinite(torch.tensor(norm))]:
                raise GradientError(
                    f"The gradient of {broken[0]} is not finite in the first step. Lower optim.lr, or check the weights and the data."
                )
        self.seen += self.has_media
        if self.seen >= self.steps_with_media and self.silent:
            first = min(self.silent)
            raise GradientError(
                f"{len(self.silent)} trainable tensors had a gradient of exactly zero in {self.seen} steps with media "
                f"(first: {first}). They would never learn. Freeze them, or check the data."
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare what must not have moved."""
        assert isinstance(pl_module, TrainingModule)
        parameters = dict(pl_module.packed.hf.named_parameters())
        if moved := [name for name, before in self.frozen.items() if fingerprint(parameters[name]) != before]:
            raise GradientError(
                f"{len(moved)} frozen tensors moved (first: {moved[0]}). This is a fault of vlmkit: please report it."
            )

    def report(self) -> dict[str, Any]:
        """For `report.json`: gradient norm of each part in the first step, tensors frozen and unmoved, tensors silent."""
        return {
            "first_grad_norm": self.norms,
            "frozen_tensors_unmoved": len(self.frozen),
            "zero_gradient_so_far": sorted(self.silent),
        }
