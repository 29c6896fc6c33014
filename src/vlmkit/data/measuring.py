"""Count the tokens and patches of rows, one by one or over several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from vlmkit.conversation import Conversation
from vlmkit.data.manifest import Source, decode_row, processors_of
from vlmkit.errors import DataError, Origin
from vlmkit.processing.encode import Measure, measure_example
from vlmkit.processing.processor import Processor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
ROWS_PER_BLOCK = 256
MIN_ROWS_PER_PROCESS = 10_000
"""A process takes seconds to start: fewer rows are counted sooner without it."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of one manifest.

    Attributes:
        source: Number of the manifest.
        offsets, lengths: Where each row lies.
    """

    source: int
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BlockFault:
    """A row of a block that cannot be used.

    Attributes:
        place: Its place in the block, from 0.
        reason, finding: As in `DataError`.
        in_media: Found on a medium, not in the row itself: it may be mended without a change of the manifest.
    """

    place: int
    reason: str
    finding: str
    in_media: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found out about a block.

    Attributes:
        counts: (4, num_rows) int32: tokens, supervised tokens, patches, media; 0 where a row cannot be used.
        stamps: (num_rows,) uint64: see `stamp_media`, taken before the media were read.
        faults: The rows that cannot be used.
    """

    block: Block
    counts: NDArray[np.int32]
    stamps: NDArray[np.uint64]
    faults: tuple[BlockFault, ...]


class BlockMeter(Protocol[T_co]):
    """What measures a block; travels to other processes."""

    def measure_block(self, block: Block) -> T_co:
        """Read and measure the rows of a block."""
        ...


class RowMeter:
    """Measures rows of some sources, each with its pixel limits."""

    def __init__(self, sources: Sequence[Source], processor: Processor, *, allow_absolute_paths: bool) -> None:
        self._sources = tuple(sources)
        self._processors = processors_of(sources, processor)
        self._allow_absolute_paths = allow_absolute_paths

    def measure_block(self, block: Block) -> Outcome:
        """Read and measure the rows of a block."""
        counts = np.zeros((4, len(block.offsets)), dtype=np.int32)
        stamps = np.zeros(len(block.offsets), dtype=np.uint64)
        faults: list[BlockFault] = []
        for place, text in enumerate(_texts(block, self._sources)):
            conversation = None
            try:
                conversation = _decode(text, self._sources[block.source], self._allow_absolute_paths)
                stamps[place] = stamp_media(conversation)
                measure = self._measure(conversation, block.source)
            except DataError as error:
                in_media = conversation is not None and bool(conversation.media)
                faults.append(BlockFault(place, error.reason, error.finding, in_media))
            else:
                counts[:, place] = (
                    measure.num_tokens,
                    measure.num_supervised_tokens,
                    measure.num_patches,
                    measure.num_media,
                )
        return Outcome(block=block, counts=counts, stamps=stamps, faults=tuple(faults))

    def _measure(self, conversation: Conversation, source: int) -> Measure:
        measure = measure_example(conversation, self._processors[source])
        if not measure.num_supervised_tokens:
            raise DataError("no token of the row is supervised. Drop the row.", reason="no_supervised_tokens")
        return measure


class MediaStamper:
    """Stamps the media of rows that were counted before; a `BlockMeter` that opens no medium."""

    def __init__(self, sources: Sequence[Source], *, allow_absolute_paths: bool) -> None:
        self._sources = tuple(sources)
        self._allow_absolute_paths = allow_absolute_paths

    def measure_block(self, block: Block) -> NDArray[np.uint64]:
        """The stamp of every row of a block."""
        stamps = map(self._stamp, _texts(block, self._sources), repeat(self._sources[block.source]))
        return np.fromiter(stamps, dtype=np.uint64, count=len(block.offsets))

    def _stamp(self, text: bytes, source: Source) -> int:
        try:
            return stamp_media(_decode(text, source, self._allow_absolute_paths))
        except DataError:
            return 0  # counted by rules that have changed since: no stamp of a row with media, so it is counted again


def stamp_media(conversation: Conversation) -> int:
    """Hash of size and modification time of every file that a row shows, in its order; 0 where it shows none."""
    paths = [
        path
        for part in conversation.media
        for path in (part.source if isinstance(part.source, tuple) else (part.source,))
        if isinstance(path, Path)
    ]
    if not paths:
        return 0
    told: list[int] = []
    for path in paths:
        try:
            stat = os.stat(path)
            told += stat.st_size, stat.st_mtime_ns
        except (OSError, ValueError):  # whoever counts the row says what is wrong
            told += -1, -1
    return xxhash.xxh3_64_intdigest(np.array(told, dtype=np.int64).tobytes())


def _texts(block: Block, sources: Sequence[Source]) -> Iterator[bytes]:
    """The text of each row of a block."""
    with open(sources[block.source].file, "rb", buffering=0) as file:
        for offset, length in zip(block.offsets.tolist(), block.lengths.tolist(), strict=True):
            yield os.pread(file.fileno(), length, offset)


def _decode(text: bytes, source: Source, allow_absolute_paths: bool) -> Conversation:
    origin = Origin(str(source.path), 0)  # whoever tells of a fault knows the row
    return decode_row(text, origin=origin, root=source.root, allow_absolute_paths=allow_absolute_paths)


def measure_blocks(blocks: Iterable[Block], meter: BlockMeter[T], *, num_processes: int) -> Iterator[T]:
    """Measure blocks, in their order.

    Args:
        blocks: Taken as they are needed.
        meter: Travels to every process once.
        num_processes: 0 or 1 measures in this process.
    """
    if num_processes < 2:
        yield from map(meter.measure_block, blocks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(num_processes, context, initializer=_start_process, initargs=(meter,)) as pool:
        source = iter(blocks)
        waiting: deque[Future[T]] = deque(
            pool.submit(_measure_in_process, block) for block in islice(source, 4 * num_processes)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_measure_in_process, block) for block in islice(source, 1))


_meter_of_process: list[BlockMeter[Any]] = []


def _start_process(meter: BlockMeter[Any]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _meter_of_process[:] = [meter]


def _measure_in_process(block: Block) -> Any:
    return _meter_of_process[0].measure_block(block)


def cut_blocks(source: int, offsets: NDArray[np.int64], lengths: NDArray[np.int32]) -> Iterator[Block]:
    """Rows of one manifest in blocks of `ROWS_PER_BLOCK`."""
    for start in range(0, len(offsets), ROWS_PER_BLOCK):
        chosen = slice(start, start + ROWS_PER_BLOCK)
        yield Block(source=source, offsets=offsets[chosen], lengths=lengths[chosen])
