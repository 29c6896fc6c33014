"""Bytes of weights, gradients and optimiser that a rank holds, and that a checkpoint takes: counted, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.model.parts import blocks_of
from vlmkit.training.forecast import Ranks
from vlmkit.training.masters import MasterOptimizer
from vlmkit.training.optim import OptimizerPlan, make_optimizer, parameter_groups

_STAND_IN_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes; activations are in none of them.

    Attributes:
        resting: Between steps, of a rank: weights, fp32 masters, moments, running average.
        backward: The same with gradients, and with the copy of them that DDP exchanges.
        update: The same with fp32 copies of the gradients, where there are masters: the most that a rank holds.
        gathered: On top under FSDP, while the model runs: what belongs to no block, and two blocks, whole.
        checkpoint: Of one, all ranks together.
        export: Of `hf/`.
        per_trained: Of a trained parameter, on whatever ranks: in the backward pass, in the update, in a checkpoint.
    """

    resting: int
    backward: int
    update: int
    gathered: int
    checkpoint: int
    export: int
    per_trained: tuple[float, float, float]


def count_footprint(
    hf: Any,
    plan: OptimizerPlan,
    *,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    ranks: Ranks,
    averaged: bool,
    whole_gradients: bool,
) -> Footprint:
    """Count what a run holds.

    Args:
        hf: The model, adapted and frozen as it is trained; it needs no memory (meta device).
        plan: Of the optimiser; one of its kind is made over stand-ins to see what it keeps.
        dtype: Of the weights.
        compute_dtype: Of weights while they are gathered.
        ranks: Who trains.
        averaged: Whether a running average is kept.
        whole_gradients: Whether ranks that share the model keep gradients whole between micro-batches.
    """
    width = dtype.itemsize
    total = sum(parameter.numel() for parameter in hf.parameters())
    trained = sum(parameter.numel() for parameter in hf.parameters() if parameter.requires_grad)
    state, has_masters = _optimizer_bytes(hf, plan, dtype)
    average = trained * max(width, 4) if averaged else 0
    share = ranks.number if ranks.sharing == "model" else 1
    gradients = trained * width
    exchanged = gradients if ranks.sharing == "gradients" else 0
    copies = 4 * trained if has_masters else 0
    resting = (total * width + state + average) // share
    accumulated = 4 * trained if whole_gradients and share > 1 else gradients // share  # whole ones are in fp32
    backward = resting + accumulated + exchanged
    held = (width * trained + state + average + gradients) / max(trained, 1)
    return Footprint(
        resting=resting,
        backward=backward,
        update=backward + copies // share,
        gathered=_gathered(hf) * compute_dtype.itemsize if share > 1 else 0,
        checkpoint=trained * width + state + average,
        export=total * width,
        per_trained=(held, held + copies / max(trained, 1), (trained * width + state + average) / max(trained, 1)),
    )


def _optimizer_bytes(hf: nn.Module, plan: OptimizerPlan, dtype: torch.dtype) -> tuple[int, bool]:
    """What the optimiser keeps of all that is trained, and whether it moves fp32 masters.

    A step of the same optimiser is run on small tensors, one for each parameter: what it keeps of each, per number.
    """
    real = {name: parameter for name, parameter in hf.named_parameters() if parameter.requires_grad}
    stand_ins = [
        (name, nn.Parameter(torch.zeros((_STAND_IN_ROWS,) * parameter.ndim, dtype=dtype)))
        for name, parameter in real.items()
    ]
    optimizer = make_optimizer(parameter_groups(stand_ins, plan), plan)
    for _, stand_in in stand_ins:
        stand_in.grad = torch.zeros_like(stand_in)
    optimizer.step()
    kept = 0
    for name, stand_in in stand_ins:
        tensors = [value for value in optimizer.state[stand_in].values() if isinstance(value, Tensor)]
        beside = sum(tensor.nbytes for tensor in tensors if tensor.shape == stand_in.shape)  # not the count of steps
        kept += beside * real[name].numel() // stand_in.numel()
    return kept, isinstance(optimizer, MasterOptimizer)


def _gathered(hf: Any) -> int:
    """Parameters that a rank of FSDP2 has whole at once.

    The root's until the end of the backward pass, and those of a block and of the block that is fetched ahead.
    """
    blocks = [
        sum(parameter.numel() for parameter in block.parameters())
        for part in ("vision_encoder", "language_model")
        for block in blocks_of(hf, part)
    ]
    root = sum(parameter.numel() for parameter in hf.parameters()) - sum(blocks)
    return root + sum(sorted(blocks)[-2:])
