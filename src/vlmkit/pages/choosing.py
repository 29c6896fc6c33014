"""Which rows of the manifests to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

import numpy as np

from vlmkit.data.index import Index
from vlmkit.errors import ConfigError

Pick = Literal["first", "random", "longest"]
PICKS: tuple[Pick, ...] = ("first", "random", "longest")


def pick_rows(index: Index, *, pick: Pick, num_samples: int, seed: int) -> list[int]:
    """Some rows of the index: the first, any (the same for the same seed), or those of most tokens.

    Rows that cannot be used are picked like the others (but have no tokens): the page shows why they are refused.

    Raises:
        ConfigError: an unknown way to pick, or no sample wanted.
    """
    if pick not in PICKS:
        raise ConfigError(f"inspect.pick={pick}: choose one of {', '.join(PICKS)}.")
    if num_samples < 1:
        raise ConfigError(f"inspect.num_samples={num_samples}: at least one sample is shown. Give 1 or more.")
    if pick == "first":
        chosen = np.arange(len(index))
    elif pick == "longest":
        chosen = np.argsort(-np.asarray(index.num_tokens), kind="stable")
    else:
        chosen = np.sort(np.argsort(np.random.PCG64(seed).random_raw(len(index)), kind="stable")[:num_samples])
    return [int(row) for row in chosen[:num_samples]]


def find_rows(index: Index, wanted: Sequence[int | str]) -> list[int]:
    """Rows of the index by their numbers as people count them.

    Args:
        index: The rows.
        wanted: `17` is the 17th row of all sources together; `train.json:17` the 17th of that manifest, which is named by
            its path, its file name or its name in reports.

    Raises:
        ConfigError: there is no such row or manifest.
    """
    return [_find(index, one) for one in wanted]


def _find(index: Index, wanted: int | str) -> int:
    if isinstance(wanted, int) or wanted.isdecimal():
        row = int(wanted)
        if not 1 <= row <= len(index):
            raise ConfigError(f"inspect.rows: there is no row {row}; rows are 1 to {len(index)}. Choose among these.")
        return row - 1
    match = re.fullmatch(r"(.+):(\d+)", wanted)
    if match is None:
        raise ConfigError(
            f"inspect.rows: {wanted!r} is neither a row number nor FILE:ROW. Give such as 17 or train.json:17."
        )
    numbers = [n for n, source in enumerate(index.sources) if match[1] in _names(source.path, source.name)]
    if len(numbers) != 1:
        told = ", ".join(str(source.path) for source in index.sources)
        problem = "more than one manifest is called" if numbers else "no manifest is called"
        raise ConfigError(f"inspect.rows: {problem} {match[1]!r}. There are: {told}.")
    rows = np.flatnonzero(index.source == numbers[0])
    row = int(match[2])
    if not 1 <= row <= len(rows):
        raise ConfigError(f"inspect.rows: {match[1]} has the rows 1 to {len(rows)}, not {row}. Choose among these.")
    return int(rows[row - 1])


def _names(path: object, name: str) -> tuple[str, str, str]:
    return str(path), PurePath(str(path)).name, name
