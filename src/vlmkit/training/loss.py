"""How a micro-batch's summed loss becomes the number that is back-propagated."""

from __future__ import annotations

from torch import Tensor


def scaled_loss(loss_sum: Tensor, *, step_supervised_tokens: int, accumulate: int, world_size: int) -> Tensor:
    """The micro-batch's share of the mean over the supervised tokens of the whole optimiser step.

    That mean weighs every supervised token alike, whatever the batching, accumulation or number of ranks. Lightning
    divides each loss by `accumulate` and DDP averages gradients over ranks, so both are multiplied in beforehand.

    Args:
        loss_sum: Scalar, summed over the micro-batch's supervised tokens.
        step_supervised_tokens: Supervised tokens of the whole step, over all ranks and micro-batches.
        accumulate: Micro-batches per step and rank.
        world_size: Ranks.
    """
    return loss_sum * (accumulate * world_size / step_supervised_tokens)
