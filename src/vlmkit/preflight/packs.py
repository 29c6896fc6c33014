"""Sizes of packs for a simulation: those of a plan, or an assumed one where there is no plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vlmkit.data.index import Index
from vlmkit.data.plan import Plan, pack_weights
from vlmkit.preflight.simulation import PackShape, SampleShape

ASSUMED_SAMPLE_TOKENS = 1024
"""Tokens of each sample of an assumed pack: an image of half of them, an answer of an eighth."""


def heaviest_pack(plan: Plan) -> int:
    """Number of the pack of a plan that may take the most memory."""
    return int(np.argmax(pack_weights(plan.num_tokens, plan.num_patches)))


def median_pack(plan: Plan) -> int:
    """Number of the pack of a plan whose weight is in the middle."""
    weights = pack_weights(plan.num_tokens, plan.num_patches)
    return int(np.argsort(weights, kind="stable")[len(weights) // 2])


def pack_shape(plan: Plan, index: Index, number: int, *, merge_size: int) -> PackShape:
    """Sizes of a pack of a plan; the patches of a row are taken as images that are as square as can be.

    Args:
        plan: Of the run.
        index: Its rows.
        number: Of the pack.
        merge_size: Patches along each side of a visual token.
    """
    return tuple(
        SampleShape(
            num_tokens=int(index.num_tokens[row]),
            num_supervised=int(index.num_supervised_tokens[row]),
            grids=image_grids(int(index.num_patches[row]), int(index.num_media[row]), merge_size=merge_size),
        )
        for row in plan[number].rows
    )


def assumed_pack(num_tokens: int, *, merge_size: int) -> PackShape:
    """A pack of so many tokens, half of them visual."""
    sizes = [ASSUMED_SAMPLE_TOKENS] * (num_tokens // ASSUMED_SAMPLE_TOKENS)
    if rest := num_tokens - sum(sizes):
        sizes.append(rest)
    return tuple(
        SampleShape(
            num_tokens=size,
            num_supervised=size // 8,
            grids=image_grids(size // 2 * merge_size**2, 1, merge_size=merge_size),
        )
        for size in sizes
    )


def image_grids(num_patches: int, num_images: int, *, merge_size: int) -> tuple[tuple[int, int, int], ...]:
    """Patches along time, height and width of images that have so many patches together.

    Args:
        num_patches: A multiple of `merge_size**2`.
        num_images: At least 1 where there are patches.
        merge_size: Patches along each side of a visual token.
    """
    visual_tokens = num_patches // merge_size**2
    if not visual_tokens:
        return ()
    shares = [visual_tokens // num_images] * num_images
    shares[0] += visual_tokens - sum(shares)
    return tuple((1, merge_size * rows, merge_size * columns) for rows, columns in map(_squarest, shares) if rows)


def _squarest(area: int) -> Sequence[int]:
    side = next((side for side in range(math.isqrt(area), 0, -1) if area % side == 0), 0)
    return (side, area // side) if side else (0, 0)
