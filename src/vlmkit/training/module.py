"""The LightningModule: batch to loss, and the optimiser. Files, data rules and devices are other rooms' business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlmkit.batch import Batch
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.lora import Lora
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import PARTS, Part, part_of, restore_rotary_buffers
from vlmkit.training.loss import scaled_loss
from vlmkit.training.optim import (
    Group,
    OptimizerPlan,
    apply_settings,
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from vlmkit.training.shards import AVERAGES, NAMED, in_order, whole
from vlmkit.training.strategy import ShardedStrategy

_HF = "model.hf."
"""What stands before the name of a parameter of the stock model."""


class TrainingModule(L.LightningModule):
    """Trains a `PackedVLM` made by a factory, once, before the strategy wraps it.

    Args:
        make_model: Makes the model, on the CPU.
        make_sketch: Makes the model without memory, and what fills rows of its parameters: for ranks that share it
            (`ShardedStrategy`). None: it cannot be shared.
        lora: Adapters that the factories have injected; None: there are none.
        freeze: Which parts are trained, and the modes of those that are not.
        optimizer_plan: Rates, decay and schedule.
        count_steps: Optimiser steps of the whole run, given ranks and micro-batches per step: the schedule's length.
            Never `trainer.estimated_stepping_batches`: reading that loses the state of the data on resume.
    """

    def __init__(
        self,
        *,
        make_model: Callable[[], PackedVLM],
        freeze: FreezePolicy,
        optimizer_plan: OptimizerPlan,
        count_steps: Callable[[int, int], int],
        make_sketch: Callable[[], tuple[PackedVLM, Callable[[str, int, int], Tensor]]] | None = None,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        self.make_model = make_model
        self.make_sketch = make_sketch
        self.lora = lora
        # Running averages of what is trained, and whether they are what the run makes; see callbacks/average.py.
        self.averages: dict[str, Tensor] | None = None
        self.exports_averages = False
        self.freeze_policy = freeze
        self.optimizer_plan = optimizer_plan
        self.count_steps = count_steps
        self.model: PackedVLM | None = None
        self.groups: list[Group] = []
        self.token_losses = torch.empty(0)
        self.grad_norm: Tensor | None = (
            None  # of the last step, over all that is trained, before clipping; on the device
        )
        self.skip_step = False
        # Whether a resumed run goes on with the rates and settings of the plan instead of those of its checkpoint.
        self.applies_plan = False
        self.strict_loading = False  # frozen tensors stand in no checkpoint; `on_load_checkpoint` checks the rest

    @property
    def packed(self) -> PackedVLM:
        """The model, once it is made."""
        assert self.model is not None, "configure_model has not run"
        return self.model

    def configure_model(self) -> None:
        """Make the model, freeze what is frozen, set the modes. Lightning may call it more than once."""
        if self.model is not None:
            return
        strategy = self.trainer.strategy if self._trainer is not None else None
        if isinstance(strategy, ShardedStrategy):
            assert self.make_sketch is not None, "this module was not told how to make a model that ranks share"
            self.model, read = self.make_sketch()
            self._freeze(self.model.hf)
            strategy.sharding().apply(self.model, read)
        else:
            self.model = self.make_model()
            self._freeze(self.model.hf)

    def on_fit_start(self) -> None:
        """After the strategy has cast and moved the model: frequencies back to fp32, and the modes."""
        restore_rotary_buffers(self.packed.hf)
        adapted = bool(self.lora and self.lora.vision_encoder)
        still = self.freeze_policy.vision_encoder and not adapted
        replace(self.freeze_policy, vision_encoder=still).set_modes(self.packed.hf)

    def on_train_start(self) -> None:
        """After a checkpoint was read: put the plan's settings in the place of the restored ones, where that is wanted."""
        if self.applies_plan:
            optimizer, schedule = (
                cast(Optimizer, self.optimizers(use_pl_optimizer=False)),
                cast(LambdaLR, self.lr_schedulers()),
            )
            apply_settings(optimizer, schedule, self._planned)

    def _freeze(self, hf: Any) -> None:
        if self.lora is None:
            self.freeze_policy.apply(hf)
        else:
            self.lora.choose(hf, self.freeze_policy)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch, scaled so that the step's gradient is that of the mean over its supervised tokens."""
        out = self.packed(batch)
        self.token_losses = out.token_losses
        return scaled_loss(
            out.loss_sum,
            step_supervised_tokens=batch["step_supervised_tokens"],
            accumulate=self.trainer.accumulate_grad_batches,
            world_size=self.trainer.world_size,
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take the gradients away from a step that a callback wants skipped: weights and moments stay as they are."""
        if self.skip_step:
            optimizer.zero_grad(set_to_none=True)
            self.skip_step = False

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer was told to, and keep the gradient's norm, which says whether the step was sound.

        Nothing here waits for the device. Where ranks share the parameters, every rank must call.
        """
        parameters = [parameter for group in self.groups for _, parameter in group.parameters]
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.grad_norm = whole(torch.nn.utils.get_total_norm(grads))
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.grad_norm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the parts' groups, with a schedule advanced once a step."""
        self.groups = parameter_groups(self.packed.hf.named_parameters(), self.optimizer_plan)
        optimizer = make_optimizer(self.groups, self.optimizer_plan)
        num_steps = self.count_steps(self.trainer.world_size, self.trainer.accumulate_grad_batches)
        schedule = make_schedule(optimizer, self.optimizer_plan, num_steps=num_steps)
        self._planned = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def frozen_counts(self) -> dict[Part, tuple[int, int]]:
        """Tensors and parameters of each part that are not trained."""
        counts: dict[Part, tuple[int, int]] = dict.fromkeys(PARTS, (0, 0))
        for name, parameter in self.packed.hf.named_parameters():
            if not parameter.requires_grad:
                tensors, numbers = counts[part_of(name)]
                counts[part_of(name)] = (tensors + 1, numbers + parameter.numel())
        return counts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen tensors out: they equal their source, which a resume assembles again."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            return  # it wrote no other names
        if self.averages:
            checkpoint[AVERAGES] = self.averages
        trained = self._trained_keys()
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint holds exactly what is trained.

        Raises:
            RuntimeError: it does not; another freeze policy or model wrote it.
        """
        if isinstance(self.trainer.strategy, ShardedStrategy):
            return  # it checked the names itself
        if NAMED in checkpoint:
            self._take_named(checkpoint)
        if self.averages is not None:
            self.averages = {name: average.to(self.device) for name, average in checkpoint.get(AVERAGES, {}).items()}
        found, wanted = set(checkpoint["state_dict"]), self._trained_keys()
        if found != wanted:
            raise RuntimeError(
                f"The checkpoint holds {len(found - wanted)} tensors that are not trained here "
                f"(first: {min(found - wanted, default='-')}) and lacks {len(wanted - found)} that are "
                f"(first: {min(wanted - found, default='-')})."
            )

    def _take_named(self, checkpoint: dict[str, Any]) -> None:
        """Make of what a sharded checkpoint held what a file would have held: tied names too, optimisers in order."""
        state = checkpoint["state_dict"]
        held = {id(parameter): state[name] for name, parameter in self.named_parameters() if name in state}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if id(parameter) in held:
                state[name] = held[id(parameter)]
        groups = parameter_groups(self.packed.hf.named_parameters(), self.optimizer_plan)
        names = [[f"{_HF}{name}" for name, _ in group.parameters] for group in groups]
        checkpoint["optimizer_states"] = [in_order(named, names) for named in checkpoint.pop(NAMED)]

    def _trained_keys(self) -> set[str]:
        """Names in the state dict of trained tensors; a tied head counts with the embeddings it shares."""
        trained = {id(parameter) for parameter in self.parameters() if parameter.requires_grad}
        return {name for name, parameter in self.named_parameters(remove_duplicate=False) if id(parameter) in trained}
