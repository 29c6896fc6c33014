"""Make rows that are too long fit: by smaller images and videos, or by whole turns less. Media tokens are never cut.

`shrink_media` lowers the pixel limits of the row's media, all alike, to the highest that fits: the largest media
shrink first. `drop_turns` leaves out whole turns from the end, and what is shown in them, so that the row ends with an
answer. A row that cannot be made to fit (too much text, or a first answer that is too far) stays over-long.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from vlmkit.conversation import Conversation
from vlmkit.data.columns import ColumnsWriter, UnusableFile, open_columns
from vlmkit.data.index import Index
from vlmkit.data.locks import locked
from vlmkit.data.manifest import Source, decode_row, processors_of
from vlmkit.data.measuring import MIN_ROWS_PER_PROCESS, Block, cut_blocks, measure_blocks
from vlmkit.errors import DataError, Origin
from vlmkit.processing.encode import Measure, measure_example
from vlmkit.processing.processor import Processor

Overlong = Literal["error", "drop", "shrink_media", "drop_turns"]
OVERLONG: tuple[Overlong, ...] = ("error", "drop", "shrink_media", "drop_turns")
SCHEMA = "vlmkit.fits/1"
WHOLE = 0
"""Of `Fits.num_turns` and `Fits.max_visual_tokens`: nothing is left out, nothing is shrunk."""
_COLUMNS = {
    name: "<i4"
    for name in (
        "row",
        "num_tokens",
        "num_supervised_tokens",
        "num_patches",
        "num_media",
        "num_turns",
        "max_visual_tokens",
    )
}


class Fits:
    """How the over-long rows of an index were made to fit, one entry each; mapped from a file.

    Attributes:
        row: (n,) rows of the index, ascending.
        num_tokens, num_supervised_tokens, num_patches, num_media: (n,) what each costs as it is trained; 0 where it
            could not be made to fit.
        num_turns: (n,) turns that are kept; `WHOLE`: all.
        max_visual_tokens: (n,) most visual tokens of an image (of a video: as its limit is to an image's); `WHOLE`: as
            the limits say.
    """

    def __init__(self, path: Path | None, key: str = "") -> None:
        self._path = path
        self._key = key
        columns = {name: np.empty(0, dtype=np.int32) for name in _COLUMNS}
        if path is not None:
            columns, _ = open_columns(path, schema=SCHEMA, key=key)
        self.row: NDArray[np.int32] = columns["row"]
        self.num_tokens: NDArray[np.int32] = columns["num_tokens"]
        self.num_supervised_tokens: NDArray[np.int32] = columns["num_supervised_tokens"]
        self.num_patches: NDArray[np.int32] = columns["num_patches"]
        self.num_media: NDArray[np.int32] = columns["num_media"]
        self.num_turns: NDArray[np.int32] = columns["num_turns"]
        self.max_visual_tokens: NDArray[np.int32] = columns["max_visual_tokens"]

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to a worker as a path."""
        return Fits, (self._path, self._key)

    def __len__(self) -> int:
        return len(self.row)

    def place(self, row: int) -> int | None:
        """Place of a row of the index; None where it is as the manifest has it."""
        place = int(np.searchsorted(self.row, row))
        return place if place < len(self.row) and self.row[place] == row and self.num_tokens[place] else None

    def apply(self, place: int, conversation: Conversation, processor: Processor) -> tuple[Conversation, Processor]:
        """The conversation and the processor that make the row fit."""
        if turns := int(self.num_turns[place]):
            conversation = replace(conversation, turns=conversation.turns[:turns])
        if tokens := int(self.max_visual_tokens[place]):
            processor = capped(processor, tokens)
        return conversation, processor


def fit_rows(
    index: Index,
    rows: NDArray[np.int64],
    processor: Processor,
    *,
    policy: Overlong,
    max_tokens: int,
    num_processes: int = 0,
) -> Fits:
    """Make rows fit, or take from the cache how they were made to.

    Args:
        index: Where the rows are.
        rows: Rows that can be used but for their length, ascending.
        processor: What they are counted with.
        policy: `shrink_media` or `drop_turns`; any other fits nothing.
        max_tokens: Longest row.
        num_processes: Processes to fit with, where there are rows enough for them.
    """
    if policy not in ("shrink_media", "drop_turns") or not len(rows):
        return Fits(None)
    media = xxhash.xxh3_64_hexdigest(index.media_stamp[rows].tobytes())
    key = f"{index.key} {policy} {max_tokens} {media}"
    path = index.path.parent / f"fits-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"
    with locked(path):
        try:
            found = Fits(path, key)
            if np.array_equal(found.row, rows):
                return found
        except UnusableFile:
            pass
        fitter = RowFitter(index, processor, policy=policy, max_tokens=max_tokens)
        processes = min(num_processes, len(rows) * 8 // MIN_ROWS_PER_PROCESS)  # a fit takes several counts
        writer = ColumnsWriter(path.with_suffix(".part"), _COLUMNS, schema=SCHEMA, key=key)
        fitted = measure_blocks(_blocks(index, rows), fitter, num_processes=processes)
        try:
            for counts in fitted:
                done = writer.num_rows
                chosen = rows[done : done + counts.shape[1]]
                writer.append(row=chosen, **dict(zip(list(_COLUMNS)[1:], counts, strict=True)))
            writer.finish(path, extra={})
        finally:
            writer.discard()
        return Fits(path, key)


def _blocks(index: Index, rows: NDArray[np.int64]) -> Iterator[Block]:
    """Rows of the index in blocks; rows ascend, and so do sources."""
    for source in range(len(index.sources)):
        chosen = rows[index.source[rows] == source]
        yield from cut_blocks(source, index.offset[chosen], index.length[chosen])


@dataclass(frozen=True, slots=True)
class _Fit:
    measure: Measure
    num_turns: int = WHOLE
    max_visual_tokens: int = WHOLE


class RowFitter:
    """Finds for rows how little has to go; a `BlockMeter` whose counts are the columns of `Fits`."""

    def __init__(self, index: Index, processor: Processor, *, policy: Overlong, max_tokens: int) -> None:
        self._sources: Sequence[Source] = index.sources
        self._processors = processors_of(index.sources, processor)
        self._allow_absolute_paths = index.allow_absolute_paths
        self._find = _shrink_media if policy == "shrink_media" else _drop_turns
        self._max_tokens = max_tokens

    def measure_block(self, block: Block) -> NDArray[np.int32]:
        """Fit the rows of a block: counts (6, num_rows), all 0 where a row cannot be made to fit."""
        counts = np.zeros((len(_COLUMNS) - 1, len(block.offsets)), dtype=np.int32)
        source = self._sources[block.source]
        with open(source.file, "rb", buffering=0) as file:
            for place, (offset, length) in enumerate(zip(block.offsets.tolist(), block.lengths.tolist(), strict=True)):
                fit = self._fit(os.pread(file.fileno(), length, offset), block.source)
                if fit is not None:
                    measure = fit.measure
                    counts[:, place] = (
                        measure.num_tokens,
                        measure.num_supervised_tokens,
                        measure.num_patches,
                        measure.num_media,
                        fit.num_turns,
                        fit.max_visual_tokens,
                    )
        return counts

    def _fit(self, text: bytes, number: int) -> _Fit | None:
        source = self._sources[number]
        try:
            conversation = decode_row(
                text,
                origin=Origin(str(source.path), 0),
                root=source.root,
                allow_absolute_paths=self._allow_absolute_paths,
            )
            return self._find(conversation, self._processors[number], self._max_tokens)
        except DataError:
            return None  # a medium that was there when the row was counted: loading the row will tell


def _drop_turns(conversation: Conversation, processor: Processor, max_tokens: int) -> _Fit | None:
    """The longest beginning that ends with an answer and fits."""
    ends = [number for number, turn in enumerate(conversation.turns, start=1) if turn.role == "assistant"]
    low, high, best = 0, len(ends), None
    while low < high:  # more turns are more tokens
        middle = (low + high) // 2
        measure = measure_example(replace(conversation, turns=conversation.turns[: ends[middle]]), processor)
        if measure.num_tokens <= max_tokens:
            best, low = _Fit(measure, num_turns=ends[middle]), middle + 1
        else:
            high = middle
    return best


def _shrink_media(conversation: Conversation, processor: Processor, max_tokens: int) -> _Fit | None:
    """The highest limit of visual tokens an image that fits."""
    if not conversation.media:
        return None
    area = processor.geometry.factor**2
    low, high, best = max(1, -(-processor.image_min_pixels // area)), processor.image_max_pixels // area, None
    while low <= high:
        middle = (low + high) // 2
        measure = measure_example(conversation, capped(processor, middle))
        if measure.num_tokens <= max_tokens:
            best, low = _Fit(measure, max_visual_tokens=middle), middle + 1
        else:
            high = middle - 1
    return best


def capped(processor: Processor, max_visual_tokens: int) -> Processor:
    """The processor with so many visual tokens at most for an image, and as much less than before for a video."""
    most = max_visual_tokens * processor.geometry.factor**2
    video = max(processor.video_min_pixels, processor.video_max_pixels * most // processor.image_max_pixels)
    return processor.with_limits(image_max_pixels=most, video_max_pixels=video)
