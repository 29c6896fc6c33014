"""Parameter groups per part, with and without decay, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlmkit.errors import ConfigError
from vlmkit.model.parts import PARTS, Part, part_of
from vlmkit.training.masters import NARROW, MasterOptimizer

Schedule = Literal["cosine", "linear", "constant"]
_BLOCK = re.compile(r"\.(?:blocks|layers)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class OptimizerPlan:
    """How parameters are updated.

    Attributes:
        lr: Learning rate at the top of the schedule.
        lr_vision_encoder, lr_merger, lr_language_model: The same for one part; None: `lr`.
        layer_decay: Factor of the rate from each block to the one below it, in vision encoder and language model; 1: all
            blocks alike. Embeddings lie below the first block, the last norm and an untied head above the last.
        weight_decay: Of matrices; vectors (norms, biases) are never decayed.
        beta1, beta2, eps: AdamW's.
        fp32_masters: Whether bf16 or fp16 weights are trained through fp32 copies; see `vlmkit.training.masters`.
        optimizer: Makes another optimiser, given the groups; None: AdamW, fused on CUDA.
        schedule: What follows the warm-up.
        warmup_ratio: Share of the steps in which the rate rises from zero.
        min_lr_ratio: Share of the rate that is left at the end.
    """

    lr: float
    lr_vision_encoder: float | None
    lr_merger: float | None
    lr_language_model: float | None
    layer_decay: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    fp32_masters: bool
    optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None
    schedule: Schedule
    warmup_ratio: float
    min_lr_ratio: float

    def __post_init__(self) -> None:
        for name in ("lr", "lr_vision_encoder", "lr_merger", "lr_language_model"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"optim.{name} must not be negative, got {value}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay must lie above 0 and not above 1, got {self.layer_decay}")
        for name in ("warmup_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in 0..1, got {getattr(self, name)}")
        if self.optimizer is not None and not callable(self.optimizer):
            raise ValueError(
                f"optim.optimizer must name what makes it, {{_target_: torch.optim.SGD, ...}}, got {self.optimizer}"
            )
        if self.schedule not in (known := ("cosine", "linear", "constant")):
            raise ValueError(f"optim.schedule must be one of {', '.join(known)}, got {self.schedule!r}")

    def lr_of(self, part: Part) -> float:
        """Learning rate of a part."""
        own: float | None = getattr(self, f"lr_{part}")
        return self.lr if own is None else own


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that share a learning rate and a decay.

    Attributes:
        name: `<part>`, with `/layer_NN` where layers differ and `/no_decay` where nothing is decayed.
        parameters: Name and tensor of each.
    """

    name: str
    part: Part
    lr: float
    weight_decay: float
    parameters: tuple[tuple[str, nn.Parameter], ...]

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors together."""
        return sum(tensor.numel() for _, tensor in self.parameters)


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], plan: OptimizerPlan) -> list[Group]:
    """Sort every trainable parameter into exactly one group.

    Args:
        named_parameters: Names as in the Hugging Face model; a tied tensor comes once.
        plan: Rates and decay.

    Raises:
        ConfigError: nothing is trainable.
        KeyError: a parameter belongs to no part.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trained:
        raise ConfigError("freeze: every part is frozen, so there is nothing to train. Unfreeze one: freeze=none.")
    layers = _layers([name for name, _ in trained]) if plan.layer_decay < 1 else dict.fromkeys(PARTS, {})
    sorted_in: dict[tuple[Part, int | None, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trained:
        part = part_of(name)
        sorted_in.setdefault((part, layers[part].get(name), parameter.ndim > 1), []).append((name, parameter))
    order = sorted(sorted_in, key=lambda key: (PARTS.index(key[0]), -(key[1] or 0), not key[2]))
    return [_group(key, tuple(sorted_in[key]), layers[key[0]], plan) for key in order]


def _group(
    key: tuple[Part, int | None, bool],
    parameters: tuple[tuple[str, nn.Parameter], ...],
    layers: dict[str, int],
    plan: OptimizerPlan,
) -> Group:
    part, layer, decayed = key
    name = part if layer is None else f"{part}/layer_{layer:02d}"
    below_top = 0 if layer is None else max(layers.values()) - layer
    return Group(
        name=name if decayed else f"{name}/no_decay",
        part=part,
        lr=plan.lr_of(part) * plan.layer_decay**below_top,
        weight_decay=plan.weight_decay if decayed else 0.0,
        parameters=parameters,
    )


def _layers(names: list[str]) -> dict[Part, dict[str, int]]:
    """Layer of each parameter of the vision encoder and the language model: embeddings 0, blocks from 1, then the rest."""
    found: dict[Part, dict[str, int]] = {part: {} for part in PARTS}
    blocks = {name: int(match[1]) + 1 for name in names if (match := _BLOCK.search(name))}
    for name in names:
        if (part := part_of(name)) != "merger":
            top = 1 + max((layer for other, layer in blocks.items() if part_of(other) == part), default=0)
            found[part][name] = blocks.get(name, 0 if "embed" in name else top)
    return found


def make_optimizer(groups: list[Group], plan: OptimizerPlan, *, masters: list[list[Tensor]] | None = None) -> Optimizer:
    """The plan's optimiser over the groups: AdamW, fused on CUDA, unless it names another; over masters where needed.

    Args:
        groups: What it moves.
        plan: What it is.
        masters: fp32 copies of each group, where there are some already.

    Raises:
        ConfigError: the optimiser that the plan names refuses its settings.
    """
    settings: list[dict[str, Any]] = [
        {
            "name": group.name,
            "params": [p for _, p in group.parameters],
            "lr": group.lr,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    parameters = [p for group in groups for _, p in group.parameters]
    on_cuda = all(p.device.type == "cuda" for p in parameters)

    def adamw(given: list[dict[str, Any]]) -> Optimizer:
        return AdamW(given, lr=plan.lr, betas=(plan.beta1, plan.beta2), eps=plan.eps, fused=on_cuda or None)

    make = plan.optimizer or adamw
    try:
        if plan.fp32_masters and any(p.dtype in NARROW for p in parameters):
            return MasterOptimizer(settings, make, masters=masters)
        optimizer = make(settings)
    except (TypeError, ValueError) as error:
        if plan.optimizer is None:
            raise
        raise ConfigError(
            f"optim.optimizer: it refused its settings ({error}). Check them, or leave it null."
        ) from error
    # A fused optimiser says that it can unscale gradients by itself, and Lightning (2.6) then refuses to clip under any mixed
    # precision, bf16-mixed included, which scales nothing. Without the mark gradients are unscaled before they are clipped.
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]  # of fused ones
    return optimizer


def still_twin(optimizer: Optimizer, groups: list[Group], plan: OptimizerPlan) -> Optimizer:
    """Another optimiser of the same kind over the same weights and masters, at a rate of zero and without decay.

    Given gradients of zero, its step takes the memory and the time that a step of `optimizer` takes, and moves nothing.
    Its state is its own and goes with it.

    Args:
        optimizer: The run's.
        groups: What that moves.
        plan: What it was made by.
    """
    still = [replace(group, lr=0.0, weight_decay=0.0) for group in groups]
    return make_optimizer(still, plan, masters=optimizer.masters if isinstance(optimizer, MasterOptimizer) else None)


def make_schedule(optimizer: torch.optim.Optimizer, plan: OptimizerPlan, *, num_steps: int) -> LambdaLR:
    """The schedule over a run of `num_steps` optimiser steps, to be advanced once a step."""
    return LambdaLR(optimizer, lr_factor(plan, num_steps=num_steps))


def apply_settings(optimizer: Optimizer, schedule: LambdaLR, settings: list[dict[str, Any]]) -> None:
    """Give the groups of an optimiser whose state was restored other settings, its rate where the schedule stands now.

    Args:
        optimizer: Its moments stay.
        schedule: Of its rates, restored as well.
        settings: Of each group as it was made, with `initial_lr`, the rate at the top of the schedule.
    """
    step = schedule.last_epoch
    schedule.base_lrs = [group["initial_lr"] for group in settings]
    for group, made, factor in zip(optimizer.param_groups, settings, schedule.lr_lambdas, strict=True):
        group.update({**made, "lr": made["initial_lr"] * factor(step)})


def lr_factor(plan: OptimizerPlan, *, num_steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step, counted from 0: linear warm-up, then the schedule."""
    warmup = math.ceil(plan.warmup_ratio * num_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        shape = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[plan.schedule]
        return plan.min_lr_ratio + (1 - plan.min_lr_ratio) * shape

    return factor


def describe_groups(groups: list[Group], frozen: dict[Part, tuple[int, int]]) -> str:
    """The table printed before training: group, tensors, parameters, learning rate, decay.

    Args:
        groups: What is trained.
        frozen: Tensors and parameters of each part that are not.
    """
    rows = [("group", "tensors", "parameters", "lr", "decay")]
    for group in groups:
        tensors = str(len(group.parameters))
        rows.append((group.name, tensors, f"{group.num_parameters:,}", f"{group.lr:g}", f"{group.weight_decay:g}"))
    for part, (tensors, parameters) in frozen.items():
        if tensors:
            rows.append((f"{part} (frozen)", str(tensors), f"{parameters:,}", "-", "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
