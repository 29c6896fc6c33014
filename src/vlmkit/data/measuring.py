"""Count the tokens and patches of rows, one by one or over several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.manifest import Source, decode_row, processors_of
from vlmkit.errors import DataError, Origin
from vlmkit.processing.encode import Measure, measure_example
from vlmkit.processing.processor import Processor

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
        faults: The rows that cannot be used.
    """

    block: Block
    counts: NDArray[np.int32]
    faults: tuple[BlockFault, ...]


class BlockMeter(Protocol):
    """What measures a block; travels to other processes."""

    def measure_block(self, block: Block) -> Outcome:
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
        faults: list[BlockFault] = []
        with open(self._sources[block.source].file, "rb", buffering=0) as file:
            for place, (offset, length) in enumerate(zip(block.offsets.tolist(), block.lengths.tolist(), strict=True)):
                text = os.pread(file.fileno(), length, offset)
                found = self._measure(text, block.source, place)
                if isinstance(found, BlockFault):
                    faults.append(found)
                else:
                    counts[:, place] = (
                        found.num_tokens,
                        found.num_supervised_tokens,
                        found.num_patches,
                        found.num_media,
                    )
        return Outcome(block=block, counts=counts, faults=tuple(faults))

    def _measure(self, text: bytes, source: int, place: int) -> Measure | BlockFault:
        origin = Origin(str(self._sources[source].path), 0)  # whoever tells of the fault knows the row
        root, in_media = self._sources[source].root, False
        try:
            conversation = decode_row(text, origin=origin, root=root, allow_absolute_paths=self._allow_absolute_paths)
            in_media = bool(conversation.media)
            measure = measure_example(conversation, self._processors[source])
            if not measure.num_supervised_tokens:
                raise DataError("no token of the row is supervised. Drop the row.", reason="no_supervised_tokens")
        except DataError as error:
            return BlockFault(place=place, reason=error.reason, finding=error.finding, in_media=in_media)
        return measure


def measure_blocks(blocks: Iterable[Block], meter: BlockMeter, *, num_processes: int) -> Iterator[Outcome]:
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
        waiting: deque[Future[Outcome]] = deque(
            pool.submit(_measure_in_process, block) for block in islice(source, 4 * num_processes)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_measure_in_process, block) for block in islice(source, 1))


_meter_of_process: list[BlockMeter] = []


def _start_process(meter: BlockMeter) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _meter_of_process[:] = [meter]


def _measure_in_process(block: Block) -> Outcome:
    return _meter_of_process[0].measure_block(block)


def cut_blocks(source: int, offsets: NDArray[np.int64], lengths: NDArray[np.int32]) -> Iterator[Block]:
    """Rows of one manifest in blocks of `ROWS_PER_BLOCK`."""
    for start in range(0, len(offsets), ROWS_PER_BLOCK):
        chosen = slice(start, start + ROWS_PER_BLOCK)
        yield Block(source=source, offsets=offsets[chosen], lengths=lengths[chosen])
