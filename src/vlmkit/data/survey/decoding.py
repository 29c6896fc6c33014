"""Really decode the media of rows, as a training would: a file that is cut short is found now, not at hour nine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vlmkit.conversation import Conversation, ImagePart
from vlmkit.data.index import Index
from vlmkit.data.manifest import processors_of
from vlmkit.data.overlong import Fits
from vlmkit.errors import DataError
from vlmkit.processing.encode import Pixels, encode_example
from vlmkit.processing.media import orientation
from vlmkit.processing.processor import Processor

_MIN_ROWS_FOR_WORKERS = 500
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
    """Map-style: place in, what came of its row out."""

    def __init__(
        self, *, index: Index, rows: NDArray[np.int64], processor: Processor, fits: Fits, pixels: Pixels
    ) -> None:
        self.index = index
        self.rows = rows
        self.processors = processors_of(index.sources, processor)
        self.fits = fits
        self.pixels: Pixels = pixels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Decoded:
        """Encode a row as it would be trained."""
        started = time.perf_counter()
        row = int(self.rows[place])
        try:
            conversation, counted, found = self._encode(row)
        except DataError as error:
            return Decoded(row=row, reason=error.reason, finding=error.finding)
        seconds = time.perf_counter() - started
        if found != counted:
            return Decoded(
                row=row,
                reason="changed_media",
                finding=f"has {found} tokens now and had {counted} when it was counted: one of its media has changed.",
            )
        media = conversation.media
        turned = sum(isinstance(part, ImagePart) and orientation(part) != 1 for part in media)
        return Decoded(row=row, num_media=len(media), turned=turned, seconds=seconds)

    def _encode(self, row: int) -> tuple[Conversation, int, int]:
        """The conversation, the tokens it was counted with, and those it has."""
        conversation, processor = self.index.conversation(row), self.processors[int(self.index.source[row])]
        counted = int(self.index.num_tokens[row])
        if (fit := self.fits.place(row)) is not None:
            conversation, processor = self.fits.apply(fit, conversation, processor)
            counted = int(self.fits.num_tokens[fit])
        return conversation, counted, len(encode_example(conversation, processor, pixels=self.pixels)["input_ids"])


def decode_rows(rows: DecodedRows, *, num_workers: int) -> Iterator[Decoded]:
    """Encode rows in their order, by worker processes where there are many.

    Args:
        rows: What to encode.
        num_workers: Processes; 0: the main one.
    """
    workers = num_workers if len(rows) >= _MIN_ROWS_FOR_WORKERS else 0
    loader = DataLoader(
        rows,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_one_thread if workers else None,
        multiprocessing_context="forkserver" if workers else None,
    )
    yield from loader


def draw(rows: NDArray[np.int64], wanted: int | None, *, seed: int) -> NDArray[np.int64]:
    """So many of the rows, ascending, drawn without replacement; None: all."""
    if wanted is None or wanted >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, wanted, replace=False))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
