"""`model.compile`: the blocks through `torch.compile`, at few shapes.

Packs differ in tokens and patches, and each new shape would be compiled anew. So both are rounded up to a bucket: the
filler is a segment of its own at the end of the row, which attention never mixes with the others, and is cut off again
before anything is read from it. Attention itself is not compiled: its kernels are whole already, and its segments are
host integers that differ in every pack.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vlmkit.model.attention import Segments
from vlmkit.model.parts import blocks_of

STEPS_PER_OCTAVE = 8
"""Buckets between a length and its double: at most an eighth of a bucket is filler."""
SMALLEST = 64
"""Shortest bucket; a multiple of the patches of a visual token, as all buckets are."""


def bucket(length: int) -> int:
    """The bucket of a length: the least of a coarse ladder of lengths that is not shorter."""
    size = SMALLEST
    while 2 * size <= length:
        size *= 2
    step = max(SMALLEST // STEPS_PER_OCTAVE, size // STEPS_PER_OCTAVE)
    return max(SMALLEST, -(-length // step) * step)


def filled(segments: Segments) -> tuple[int, Segments]:
    """Segments with filler up to the bucket as one more segment.

    Returns:
        How many rows of filler, and the segments with it.
    """
    total = sum(segments)
    filler = bucket(total) - total
    if not filler:
        return 0, segments
    starts = pad(segments.starts, (0, 1), value=total + filler)
    return filler, Segments(starts, [*segments, filler], segments.attention)


def fill_rows(tensor: Tensor, filler: int, dim: int) -> Tensor:
    """Zeros behind the rows of a dimension."""
    return pad(tensor, (*[0, 0] * (tensor.ndim - 1 - dim), 0, filler)) if filler else tensor


def fill_order(order: Tensor, filler: int) -> Tensor:
    """An order of rows, with filler that stays behind them."""
    return torch.cat([order, torch.arange(len(order), len(order) + filler, device=order.device)]) if filler else order


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> None:
    """Let each block of the vision encoder and of the language model be compiled when it first runs.

    Args:
        model: A stock model.
        backend: Of `torch.compile`.
    """
    for part in ("vision_encoder", "language_model"):
        for block in blocks_of(model, part):
            block.compile(backend=backend, dynamic=False)
