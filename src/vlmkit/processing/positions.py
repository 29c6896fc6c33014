"""Position ids of one sample: its token count, and mRoPE's time, height and width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int, int]


def position_ids(
    num_tokens: int, runs: Sequence[tuple[int, Grid]], *, merge_size: int
) -> tuple[NDArray[np.int64], int]:
    """Positions of the tokens of one sample (Qwen3-VL technical report, "interleaved MRoPE" with text timestamps).

    Text advances all three axes by one per token. A run of visual tokens spans its height and width from where the
    text stood, at one moment in time, and the text goes on after the longer side. A video is one run per frame pair.

    Args:
        num_tokens: Tokens of the sample, visual ones included.
        runs: First token and grid (1, height, width in patches) of each run of visual tokens, in order.
        merge_size: Patches along each side of a visual token.

    Returns:
        (4, num_tokens) int64: row 0 counts tokens, rows 1 to 3 are time, height, width; and the position that the
        next token would take.
    """
    positions = np.empty((4, num_tokens), dtype=np.int64)
    positions[0] = np.arange(num_tokens)
    token = position = 0
    for start, (_, rows, columns) in runs:
        positions[1:, token:start] = np.arange(position, position + start - token)
        position += start - token
        high, wide = rows // merge_size, columns // merge_size
        end = start + high * wide
        positions[1, start:end] = position
        positions[2, start:end] = np.repeat(np.arange(position, position + high), wide)
        positions[3, start:end] = np.tile(np.arange(position, position + wide), high)
        token, position = end, position + max(high, wide)
    positions[1:, token:] = np.arange(position, position + num_tokens - token)
    return positions, position + num_tokens - token
