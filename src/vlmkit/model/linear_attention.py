"""Layers that carry a state along the row: in a packed row, each segment begins with an empty one.

The stock layer keeps segments apart only where the kernels of flash-linear-attention are installed, and refuses to be
told of them elsewhere; not told, a sample would begin with what its neighbour left in the state and in the short
convolution. So the stock layer runs segment by segment, each in a call of its own: bit for bit what it computes of the
segment alone, with whatever kernels there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def keep_segments_apart(blocks: Iterable[nn.Module]) -> None:
    """Let the linear attention of these blocks, where they have one, begin anew at each segment.

    Parameters and their names stay; called without segments (by `generate`, say) a layer is the stock one.
    """
    for block in blocks:
        layer = getattr(block, "linear_attn", None)
        if layer is not None:
            layer.forward = MethodType(_forward, layer)


@torch.compiler.disable
def _forward(
    layer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    *,
    seqlens: Sequence[int] | None = None,
    **rest: Any,
) -> Tensor:
    """The stock layer's signature.

    Args:
        layer: The stock layer.
        hidden_states: (rows, tokens, width); one row where there are segments.
        cache_params, attention_mask: As the stock layer takes them.
        seqlens: Lengths of the segments, on the host.
        rest: What else the stock layer is told; in a packed row that is for attention kernels.

    Returns:
        The same shape.
    """
    stock = type(layer).forward
    if seqlens is None:
        return stock(layer, hidden_states, cache_params=cache_params, attention_mask=attention_mask, **rest)
    return torch.cat([stock(layer, segment) for segment in hidden_states.split(list(seqlens), dim=1)], dim=1)
