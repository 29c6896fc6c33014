"""Cross-entropy at supervised positions, head included, in chunks: no logits of size tokens x vocabulary at any time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ weight.T`; gradients are made chunk by chunk in the forward pass.

    The weight's gradient is added up in fp32 at least, whatever the weight's type, and has that type in the end.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        cast_weight = weight.to(dtype)
        losses = torch.empty(len(targets), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Chunks are added in fp32: in bf16 each addition would round the sum so far, and the error grow with their number.
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight: Tensor | None = None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            rows, columns = hidden[part].to(dtype), targets[part]
            logits = (rows @ cast_weight.T).to(exact)
            normaliser = logits.logsumexp(-1, keepdim=True)
            losses[part] = (normaliser - logits.gather(1, columns[:, None]))[:, 0]
            if not (wants_hidden or wants_weight):
                continue
            grad = logits.sub_(normaliser).exp_()  # softmax, in the logits' own memory
            grad.scatter_add_(1, columns[:, None], -torch.ones_like(columns[:, None], dtype=exact))
            grad = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (grad @ cast_weight).to(hidden.dtype)
            if wants_weight:
                product = grad.T @ rows  # (vocabulary, width)
                grad_weight = product if grad_weight is None else grad_weight.to(wide).add_(product)
        if wants_weight:
            grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_sum.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_sum.to(grad_weight.dtype),
            None,
            None,
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the logits `hidden @ weight.T` against `targets`, `chunk` rows of logits at a time.

    Args:
        hidden: (positions, width) states where the logits are needed.
        weight: (vocabulary, width) of the head.
        targets: (positions,) int64.
        chunk: Rows of logits held at once.

    Returns:
        Sum over the positions (scalar, differentiable) and each position's loss (positions,), detached; fp32, or fp64
        for fp64 input. Under autocast the products run in its dtype.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, chunk, dtype)  # type: ignore[return-value]
