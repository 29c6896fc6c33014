"""Really decode the media of rows, as a training would: a file that is cut short is found now, not at hour nine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vlmkit.conversation import ImagePart
from vlmkit.data.dataset import PackDataset
from vlmkit.data.workers import settle_worker
from vlmkit.errors import DataError
from vlmkit.processing.media import image_orientation

MIN_ROWS_FOR_WORKERS = 500
"""A worker takes seconds to start: fewer rows are decoded sooner without it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What came of a row.

    Attributes:
        row: Row of the index.
        reason, finding: Why it cannot be encoded; empty where it can.
        num_media: Images and videos in it.
        turned: Images that EXIF says to turn or mirror.
        seconds: Time that reading, decoding and encoding took.
    """

    row: int
    reason: str = ""
    finding: str = ""
    num_media: int = 0
    turned: int = 0
    seconds: float = 0.0


class DecodedRows(Dataset[Decoded]):
    """Map-style: place in, what came of its row out.

    Args:
        dataset: Encodes a row and compares it with its counts, as a training does.
        rows: Which rows.
    """

    def __init__(self, dataset: PackDataset, rows: NDArray[np.int64]) -> None:
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Decoded:
        """Encode a row as it would be trained."""
        row = int(self.rows[place])
        started = time.perf_counter()
        try:
            self.dataset.sample(row)
        except DataError as error:
            return Decoded(row=row, reason=error.reason, finding=error.finding)
        seconds = time.perf_counter() - started
        media = self.dataset.index.conversation(row).media
        turned = sum(isinstance(part, ImagePart) and image_orientation(part) != 1 for part in media)
        return Decoded(row=row, num_media=len(media), turned=turned, seconds=seconds)


def decode_rows(rows: DecodedRows, *, num_workers: int) -> Iterator[Decoded]:
    """Encode rows in their order, by worker processes where there are many.

    Args:
        rows: What to encode.
        num_workers: Processes; 0: the main one.
    """
    workers = num_workers if len(rows) >= MIN_ROWS_FOR_WORKERS else 0
    loader = DataLoader(
        rows,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=settle_worker if workers else None,
        multiprocessing_context="forkserver" if workers else None,
    )
    yield from loader


def draw(rows: NDArray[np.int64], wanted: int | None, *, seed: int) -> NDArray[np.int64]:
    """So many of the rows, ascending, drawn without replacement; None: all."""
    if wanted is None or wanted >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, wanted, replace=False))
