"""Layers that carry a state along the row: in a packed row, each segment begins with an empty one.

The stock layer has no notion of segments on a CPU: told of them, it ignores them and says nothing, and a sample would
begin with what its neighbour left in the state and in the short convolution. So the stock layer runs segment by
segment; segments of one length share a call.
"""

from __future__ import annotations

from collections import defaultdict
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
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(seqlens):
        by_length[length].append(number)
    segments = hidden_states[0].split(list(seqlens))
    found: dict[int, Tensor] = {}
    for numbers in by_length.values():
        batch = stock(layer, torch.stack([segments[number] for number in numbers]))
        found.update(zip(numbers, batch.unbind(0), strict=True))
    return torch.cat([found[number] for number in range(len(seqlens))])[None]
