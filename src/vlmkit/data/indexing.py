"""Build an index, or find it in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vlmkit.data.columns import Columns, ColumnsWriter, UnusableFile, open_columns
from vlmkit.data.contents import content_hash, locked
from vlmkit.data.index import COLUMNS, OK, SCHEMA, Fault, Index
from vlmkit.data.manifest import Source
from vlmkit.data.measuring import (
    MIN_ROWS_PER_PROCESS,
    Block,
    BlockFault,
    Outcome,
    RowMeter,
    cut_blocks,
    measure_blocks,
)
from vlmkit.data.plain import plain_manifest
from vlmkit.data.spans import Extent, LayoutError, find_extent, scan_rows
from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.processing.processor import Processor

SPANS_SCHEMA = "vlmkit.spans/1"
FIRST_FAULTS = 5
"""Faults that are kept word by word, of each reason."""
_SPAN_COLUMNS = {"offset": "<i8", "length": "<i4"}
_CHECKPOINT_SECONDS = 10.0
_MIN_ROWS_SHOWN = 5_000
_MIN_BYTES_SHOWN = 1 << 28
_log = logging.getLogger(__name__)


def build_index(
    sources: Sequence[Source],
    processor: Processor,
    *,
    cache_dir: Path,
    limit: int | None = None,
    limit_each: int | None = None,
    allow_absolute_paths: bool = False,
    num_processes: int = 0,
) -> Index:
    """Count every row of the sources, or take the counts from the cache if nothing they depend on has changed.

    An interrupted build goes on where it stopped. A damaged file in the cache is told and built anew.

    Args:
        sources: The manifests.
        processor: What the rows are counted with.
        cache_dir: Directory of the cache; made where it is not there.
        limit: Only the first so many rows, of all sources together and in their order.
        limit_each: Only the first so many rows of each source.
        allow_absolute_paths: Whether media may lie outside the roots.
        num_processes: Processes to count with, where there are rows enough for them.

    Raises:
        DataError: a manifest that is empty or broken as a whole (`empty_file`, `bad_json`). Single bad rows raise
            nothing here: they have a verdict.
        ConfigError: the cache cannot be written.
    """
    _make_directory(cache_dir)
    sources = [_localised(source, cache_dir) for source in sources]
    contents = tuple(content_hash(source.file, cache_dir) for source in sources)
    key = _index_key(sources, contents, processor, (limit, limit_each), allow_absolute_paths)
    path = cache_dir / f"index-{key[:32]}.bin"
    builder = _Builder(
        path=path,
        key=key,
        sources=tuple(sources),
        contents=contents,
        meter=RowMeter(sources, processor, allow_absolute_paths=allow_absolute_paths),
        cache_dir=cache_dir,
        limit=limit,
        limit_each=limit_each,
        num_processes=num_processes,
    )

    def opened() -> Index:
        return Index(path, sources, key=key, allow_absolute_paths=allow_absolute_paths)

    with locked(path):
        try:
            index = opened()
        except UnusableFile as error:
            if path.exists():
                _log.warning("The index %s cannot be used: %s. It is built anew.", path, error)
            builder.build()
            return opened()
        return opened() if builder.look_again(index) else index


def bad_rows(index: Index, processor: Processor) -> Iterator[Fault]:
    """Every row that cannot be used, source by source; an index keeps the words of the first few of each reason only.

    Args:
        index: The rows.
        processor: What they were counted with.
    """
    meter = RowMeter(index.sources, processor, allow_absolute_paths=index.allow_absolute_paths)
    for block, rows in _blocks_of(index, np.flatnonzero(index.verdict != OK)):
        for fault in meter.measure_block(block).faults:
            yield Fault(row=int(rows[fault.place]), reason=fault.reason, finding=fault.finding)


@dataclass(frozen=True, kw_only=True)
class RowSpans:
    """Where the rows of a manifest lie.

    Attributes:
        offset, length: First byte and number of bytes of each row.
        by_line: The manifest is an array, scanned by its line breaks: a row that spans lines would be torn.
    """

    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    by_line: bool


class _TornRow(Exception):
    """An array scanned by its line breaks has rows that span lines."""

    def __init__(self, source: int) -> None:
        super().__init__(source)
        self.source = source


@dataclass(frozen=True, kw_only=True)
class _Builder:
    """Makes the file of an index."""

    path: Path
    key: str
    sources: tuple[Source, ...]
    contents: tuple[str, ...]
    meter: RowMeter
    cache_dir: Path
    limit: int | None
    limit_each: int | None
    num_processes: int

    def build(self) -> None:
        """Find and measure all rows, and write the file."""
        by_structure: set[int] = set()
        while True:
            try:
                self._measure(self._all_spans(by_structure))
                return
            except _TornRow as torn:
                by_structure.add(torn.source)

    def _all_spans(self, by_structure: set[int]) -> list[RowSpans]:
        spans: list[RowSpans] = []
        left = self.limit
        for number, source in enumerate(self.sources):
            with _named(source):
                found = row_spans(
                    source.file,
                    content=self.contents[number],
                    cache_dir=self.cache_dir,
                    limit=min((most for most in (left, self.limit_each) if most is not None), default=None),
                    by_structure=number in by_structure,
                )
            spans.append(found)
            left = None if left is None else left - len(found.offset)
        return spans

    def _measure(self, spans: list[RowSpans]) -> None:
        """Measure the rows that an interrupted build left, and write the file.

        Raises:
            _TornRow: a line of an array is no whole object.
        """
        layouts = "".join("l" if found.by_line else "s" for found in spans)
        writer = ColumnsWriter(self.path.with_suffix(".part"), COLUMNS, schema=SCHEMA, key=f"{self.key} {layouts}")
        tally = _Tally.from_state(writer.state)
        total = sum(len(found.offset) for found in spans)
        processes = min(self.num_processes, total // MIN_ROWS_PER_PROCESS)
        outcomes = measure_blocks(_blocks(spans, writer.num_rows), self.meter, num_processes=processes)
        saved = time.monotonic()
        try:
            with tqdm(
                total=total,
                initial=writer.num_rows,
                desc="index: counting tokens and patches",
                unit=" rows",
                disable=None if total >= _MIN_ROWS_SHOWN else True,
            ) as bar:
                for outcome in outcomes:
                    self._check_lines(outcome, spans[outcome.block.source])
                    writer.append(**_columns_of(outcome, tally, rows=range(writer.num_rows, total)))
                    bar.update(len(outcome.block.offsets))
                    if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                        writer.checkpoint(tally.state())
                        saved = time.monotonic()
        finally:
            writer.close()
        writer.finish(self.path, key=self.key, extra=tally.state() | {"contents": self.contents})

    def _check_lines(self, outcome: Outcome, spans: RowSpans) -> None:
        """A line of an array that is no JSON is a bad row, or part of one that spans lines: see if the array is whole."""
        if not spans.by_line or all(fault.reason != "bad_json" for fault in outcome.faults):
            return
        source = outcome.block.source
        if _is_whole_array(self.sources[source].file):
            raise _TornRow(source)

    def look_again(self, index: Index) -> bool:
        """Measure again the rows that failed on a medium; whether the file was written anew since some changed."""
        codes = [index.reasons.index(reason) + 1 for reason in index.media_reasons]
        rows = np.flatnonzero(np.isin(index.verdict, codes))
        if not len(rows):
            return False
        columns = {name: np.array(getattr(index, name)) for name in COLUMNS}
        tally = _Tally.from_state(
            {
                "reasons": index.reasons,
                "media_reasons": sorted(index.media_reasons),
                "faults": [asdict(fault) for fault in index.faults if not np.any(rows == fault.row)],
            }
        )
        for block, chosen in _blocks_of(index, rows):
            outcome = self.meter.measure_block(block)
            for name, values in _columns_of(outcome, tally, rows=chosen).items():
                columns[name][chosen] = values
        if all(np.array_equal(values, getattr(index, name)) for name, values in columns.items()):
            return False
        writer = ColumnsWriter(self.path.with_suffix(".again"), COLUMNS, schema=SCHEMA, key=self.key)
        writer.append(**columns)
        writer.finish(self.path, key=self.key, extra=tally.state() | {"contents": self.contents})
        return True


@dataclass(kw_only=True)
class _Tally:
    """Reasons seen so far, numbered as they came, and the first faults of each."""

    reasons: list[str]
    media_reasons: set[str]
    faults: list[Fault]
    counts: Counter[str]

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Tally:
        """What an interrupted build had seen."""
        faults = [Fault(**told) for told in state.get("faults", [])]
        return cls(
            reasons=list(state.get("reasons", [])),
            media_reasons=set(state.get("media_reasons", [])),
            faults=faults,
            counts=Counter(fault.reason for fault in faults),
        )

    def state(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "reasons": self.reasons,
            "media_reasons": sorted(self.media_reasons),
            "faults": [asdict(fault) for fault in self.faults],
        }

    def verdict(self, fault: BlockFault, row: int) -> int:
        """Number of the fault's reason; its words are kept where they are among the first."""
        if fault.reason not in self.reasons:
            self.reasons.append(fault.reason)
        if fault.in_media:
            self.media_reasons.add(fault.reason)
        if self.counts[fault.reason] < FIRST_FAULTS:
            self.counts[fault.reason] += 1
            self.faults.append(Fault(row=row, reason=fault.reason, finding=fault.finding))
        return self.reasons.index(fault.reason) + 1


def _columns_of(outcome: Outcome, tally: _Tally, *, rows: range | NDArray[np.int64]) -> Columns:
    """The columns of a block, for the file; `rows` are its rows in the index."""
    block = outcome.block
    verdict = np.full(len(block.offsets), OK, dtype=np.uint8)
    for fault in outcome.faults:
        verdict[fault.place] = tally.verdict(fault, int(rows[fault.place]))
    tokens, supervised, patches, media = outcome.counts
    return {
        "source": np.full(len(verdict), block.source, dtype=np.uint16),
        "offset": block.offsets,
        "length": block.lengths,
        "num_tokens": tokens,
        "num_supervised_tokens": supervised,
        "num_patches": patches,
        "num_media": media,
        "verdict": verdict,
    }


def _blocks(spans: Sequence[RowSpans], skip: int) -> Iterator[Block]:
    """All rows but the first `skip`, in blocks."""
    for source, found in enumerate(spans):
        yield from cut_blocks(source, found.offset[skip:], found.length[skip:])
        skip = max(0, skip - len(found.offset))


def _blocks_of(index: Index, rows: NDArray[np.int64]) -> Iterator[tuple[Block, NDArray[np.int64]]]:
    """Some rows of an index as blocks, each with its rows."""
    for source in range(len(index.sources)):
        chosen = rows[index.source[rows] == source]
        yield Block(source=source, offsets=index.offset[chosen], lengths=index.length[chosen]), chosen


def row_spans(
    path: Path, *, content: str, cache_dir: Path, limit: int | None = None, by_structure: bool = False
) -> RowSpans:
    """Where the rows of a manifest lie, from the cache or by a scan.

    Args:
        path: The manifest.
        content: Its `content_hash`.
        cache_dir: Directory of the cache.
        limit: Only so many rows; the scan stops after them.
        by_structure: Do not trust the line breaks of an array.

    Raises:
        DataError: the manifest is empty, or an array that is broken as a whole.
    """
    key = f"{content} limit={limit} by_structure={by_structure}"
    file = cache_dir / f"spans-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"
    try:
        columns, extra = open_columns(file, schema=SPANS_SCHEMA, key=key)
    except UnusableFile as error:
        if file.exists():
            _log.warning("The row offsets %s cannot be used: %s. They are found anew.", file, error)
        _scan(path, file, key=key, limit=limit, by_structure=by_structure)
        columns, extra = open_columns(file, schema=SPANS_SCHEMA, key=key)
    return RowSpans(offset=columns["offset"], length=columns["length"], by_line=extra["by_line"])


def _scan(path: Path, file: Path, *, key: str, limit: int | None, by_structure: bool) -> None:
    extent = find_extent(path)
    structured = Extent(layout="array", start=extent.start, end=extent.end)
    if by_structure:
        extent = structured
    try:
        _scan_extent(path, extent, file, key=key, limit=limit)
    except LayoutError:
        _scan_extent(path, structured, file, key=key, limit=limit)


def _scan_extent(path: Path, extent: Extent, file: Path, *, key: str, limit: int | None) -> None:
    writer = ColumnsWriter(file.with_suffix(f".part-{os.getpid()}"), _SPAN_COLUMNS, schema=SPANS_SCHEMA, key=key)
    total = extent.end - extent.start
    with tqdm(
        total=total,
        desc=f"index: finding the rows of {path.name}",
        unit="B",
        unit_scale=True,
        disable=None if total >= _MIN_BYTES_SHOWN else True,
    ) as bar:

        def seen(done: int) -> None:
            bar.update(done - bar.n)

        try:
            for offsets, lengths in scan_rows(path, extent, seen=seen):
                left = None if limit is None else limit - writer.num_rows
                if left is not None and left <= 0:
                    break
                writer.append(offset=offsets[:left], length=lengths[:left])
            writer.finish(file, extra={"by_line": extent.layout == "array_lines"})
        finally:
            writer.discard()


def _is_whole_array(path: Path) -> bool:
    """Whether brackets, quotes and commas of an array agree from its beginning to its end."""
    extent = find_extent(path)
    try:
        for _ in scan_rows(path, Extent(layout="array", start=extent.start, end=extent.end)):
            pass
    except DataError:
        return False
    return True


def _localised(source: Source, cache_dir: Path) -> Source:
    """The source with a plain local file to read rows from."""
    return replace(source, plain=plain_manifest(source.path, cache_dir))


@contextmanager
def _named(source: Source) -> Generator[None]:
    """Errors about the file name the manifest as the user gave it, not its copy in the cache."""
    try:
        yield
    except DataError as error:
        row = error.origin.row if error.origin else 1
        raise DataError(error.finding, reason=error.reason, origin=Origin(str(source.path), row)) from error


def _index_key(
    sources: Sequence[Source],
    contents: Sequence[str],
    processor: Processor,
    limits: tuple[int | None, int | None],
    allow_absolute_paths: bool,
) -> str:
    limit, limit_each = limits
    told: dict[str, object] = {
        "schema": SCHEMA,
        "contents": contents,
        "roots": [str(source.root.resolve()) for source in sources],
        "limits": [dict(source.limits) for source in sources],
        "processor": processor.fingerprint,
        "limit": limit,
        "allow_absolute_paths": allow_absolute_paths,
    }
    if limit_each is not None:
        told["limit_each"] = limit_each
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _make_directory(cache_dir: Path) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir: {cache_dir} cannot be made ({error.strerror}). Set it to a directory that can be written."
        ) from error
