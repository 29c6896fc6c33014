"""Parameter groups per part, with and without decay, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from vlmkit.errors import ConfigError
from vlmkit.model.parts import PARTS, Part, part_of

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimizerPlan:
    """How parameters are updated.

    Attributes:
        lr: Learning rate at the top of the schedule.
        lr_vision_encoder, lr_merger, lr_language_model: The same for one part; None: `lr`.
        weight_decay: Of matrices; vectors (norms, biases) are never decayed.
        beta1, beta2, eps: AdamW's.
        schedule: What follows the warm-up.
        warmup_ratio: Share of the steps in which the rate rises from zero.
        min_lr_ratio: Share of the rate that is left at the end.
    """

    lr: float
    lr_vision_encoder: float | None
    lr_merger: float | None
    lr_language_model: float | None
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    schedule: Schedule
    warmup_ratio: float
    min_lr_ratio: float

    def __post_init__(self) -> None:
        for name in ("lr", "lr_vision_encoder", "lr_merger", "lr_language_model"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"optim.{name} must not be negative, got {value}")
        for name in ("warmup_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in 0..1, got {getattr(self, name)}")
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
        name: `<part>` or `<part>/no_decay`.
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
    sorted_in: dict[tuple[Part, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            sorted_in.setdefault((part_of(name), parameter.ndim > 1), []).append((name, parameter))
    if not sorted_in:
        raise ConfigError("freeze: every part is frozen, so there is nothing to train. Unfreeze one: freeze=none.")
    return [
        Group(
            name=part if decayed else f"{part}/no_decay",
            part=part,
            lr=plan.lr_of(part),
            weight_decay=plan.weight_decay if decayed else 0.0,
            parameters=tuple(sorted_in[part, decayed]),
        )
        for part in PARTS
        for decayed in (True, False)
        if (part, decayed) in sorted_in
    ]


def make_optimizer(groups: list[Group], plan: OptimizerPlan) -> AdamW:
    """AdamW over the groups; fused on CUDA."""
    settings = [
        {
            "name": group.name,
            "params": [p for _, p in group.parameters],
            "lr": group.lr,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    on_cuda = all(p.device.type == "cuda" for group in groups for _, p in group.parameters)
    return AdamW(settings, lr=plan.lr, betas=(plan.beta1, plan.beta2), eps=plan.eps, fused=on_cuda or None)


def make_schedule(optimizer: torch.optim.Optimizer, plan: OptimizerPlan, *, num_steps: int) -> LambdaLR:
    """The schedule over a run of `num_steps` optimiser steps, to be advanced once a step."""
    return LambdaLR(optimizer, lr_factor(plan, num_steps=num_steps))


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
