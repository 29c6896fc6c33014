"""Position ids of one sample: its token count, and mRoPE's time, height and width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int, int]
Run = tuple[int, Grid, float]
"""First token of a run of visual tokens, its grid in patches, and how far apart its moments are in the positions."""


def position_ids(num_tokens: int, runs: Sequence[Run], *, merge_size: int) -> tuple[NDArray[np.int64], int]:
    """Positions of the tokens of one sample (Qwen2.5-VL and Qwen3-VL technical reports).

    Text advances all three axes by one per token. A run of visual tokens spans its height and width from where the
    text stood, and its moments are apart in time; the text goes on after the longer side. A video whose frame pairs
    stand behind their times in the text (Qwen3-VL) is one run of one moment per pair.

    Args:
        num_tokens: Tokens of the sample, visual ones included.
        runs: Runs of visual tokens, in order.
        merge_size: Patches along each side of a visual token.

    Returns:
        (4, num_tokens) int64: row 0 counts tokens, rows 1 to 3 are time, height, width; and the position that the
        next token would take.
    """
    positions = np.empty((4, num_tokens), dtype=np.int64)
    positions[0] = np.arange(num_tokens)
    token = position = 0
    for start, (moments, rows, columns), apart in runs:
        positions[1:, token:start] = np.arange(position, position + start - token)
        position += start - token
        high, wide = rows // merge_size, columns // merge_size
        end = start + moments * high * wide
        times = (np.arange(moments, dtype=np.float32) * np.float32(apart)).astype(np.int64)  # in fp32, as transformers
        positions[1, start:end] = position + np.repeat(times, high * wide)
        positions[2, start:end] = np.tile(np.repeat(np.arange(position, position + high), wide), moments)
        positions[3, start:end] = np.tile(np.arange(position, position + wide), moments * high)
        token, position = end, position + max(high, wide)
    positions[1:, token:] = np.arange(position, position + num_tokens - token)
    return positions, position + num_tokens - token
