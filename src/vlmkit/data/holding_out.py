"""Rows kept out of training to validate on: which ones is a matter of each row alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.index import Index
from vlmkit.data.judging import TRAINED, Judgement
from vlmkit.data.plan import PlanRows

HELD_OUT = "held_out"
"""The verdict, and the reason in `report.json`, of a row that validation takes."""


def hold_out(judgement: Judgement, share: float) -> tuple[Judgement, PlanRows]:
    """Take about a share of the rows that could be trained on.

    A row's manifest and place decide by themselves, so a row held out in one stage is held out in the next, whatever
    else is trained on, in whatever order, with whatever seed. At least one row is taken.

    Args:
        judgement: Of all rows.
        share: Between 0 and 1.

    Returns:
        The judgement with those rows held out, and the rows.

    Raises:
        ValueError: the share is not between 0 and 1, or nothing would be left to train on.
    """
    if not 0 < share < 1:
        raise ValueError(f"data.validation={share}: a share must lie between 0 and 1")
    trainable = judgement.rows(TRAINED)
    drawn = _draws(judgement.index)[trainable]
    held = trainable[drawn < share * 2.0**64]
    if not len(held) and len(trainable):
        held = trainable[[int(drawn.argmin())]]
    if len(held) == len(trainable):
        raise ValueError(
            f"data.validation={share} holds out all {len(trainable)} rows, so nothing is left to train on; lower it"
        )
    words = (*judgement.words, HELD_OUT)
    verdict = np.array(judgement.verdict)
    verdict[trainable] = len(words) - 1
    only_held = np.array(verdict)
    only_held[held] = 0
    rows = replace(judgement, words=words, verdict=only_held).plan_rows()
    verdict[np.setdiff1d(trainable, held)] = 0
    return replace(judgement, words=words, verdict=verdict), rows


def _draws(index: Index) -> NDArray[np.uint64]:
    """A number for each row, from its manifest's contents and its place in it (Steele et al. 2014, SplitMix64)."""
    starts = np.searchsorted(index.source, np.arange(len(index.sources)))
    seeds = [int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "little") for told in index.contents]
    place = np.arange(len(index)) - starts[index.source]
    with np.errstate(over="ignore"):
        state = np.asarray(seeds, dtype=np.uint64)[index.source] + (place.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
