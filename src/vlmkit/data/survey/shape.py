"""Whether rows are well formed and their media there, where no processor can count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmkit.conversation import ImagePart
from vlmkit.data.contents import content_hash
from vlmkit.data.index import Fault
from vlmkit.data.indexing import FIRST_FAULTS, row_spans
from vlmkit.data.manifest import Source, decode_row
from vlmkit.data.plain import plain_manifest
from vlmkit.errors import DataError, Origin
from vlmkit.processing.media import image_size, video_header
from vlmkit.processing.video import VideoReading


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Rows that were looked at, and those that no processor could make usable.

    Attributes:
        num_rows: Rows.
        counts: Rows by reason, most frequent first.
        first: The first few of each reason, with their origin; `row` counts within the manifest, from 1.
        broken: What is wrong with manifests that cannot be read as a whole.
    """

    num_rows: int
    counts: dict[str, int]
    first: tuple[tuple[Origin, Fault], ...]
    broken: tuple[str, ...]


def check_shape(
    sources: Sequence[Source],
    *,
    cache_dir: Path,
    allow_absolute_paths: bool,
    reading: VideoReading,
    limit_each: int | None,
    report: Callable[[Origin, DataError], object] = lambda _origin, _error: None,
) -> Shape:
    """Parse every row and read the headers of its media; nothing is counted or kept.

    Args:
        sources: The manifests.
        cache_dir: Where the places of rows are kept.
        allow_absolute_paths: Whether media may lie outside the roots.
        reading: How videos are read.
        limit_each: Only the first so many rows of each source.
        report: Called with every bad row.
    """
    counts, first, broken = Counter[str](), list[tuple[Origin, Fault]](), list[str]()
    num_rows = 0
    cache_dir.mkdir(parents=True, exist_ok=True)
    for source in sources:
        try:
            path = plain_manifest(source.path, cache_dir)
            spans = row_spans(path, content=content_hash(path, cache_dir), cache_dir=cache_dir, limit=limit_each)
        except DataError as error:
            broken.append(f"{source.path}: {error.finding}")
            continue
        with open(path, "rb") as file:
            for number, (offset, length) in enumerate(zip(spans.offset, spans.length, strict=True), start=1):
                file.seek(int(offset))
                origin = Origin(str(source.path), number)
                error = _fault(file.read(int(length)), source, origin, allow_absolute_paths, reading)
                if error is None:
                    continue
                report(origin, error)
                counts[error.reason] += 1
                if counts[error.reason] <= FIRST_FAULTS:
                    first.append((origin, Fault(row=number, reason=error.reason, finding=error.finding)))
        num_rows += len(spans.offset)
    return Shape(num_rows=num_rows, counts=dict(counts.most_common()), first=tuple(first), broken=tuple(broken))


def _fault(
    text: bytes, source: Source, origin: Origin, allow_absolute_paths: bool, reading: VideoReading
) -> DataError | None:
    try:
        row = decode_row(text, origin=origin, root=source.root, allow_absolute_paths=allow_absolute_paths)
        for part in row.media:
            if isinstance(part, ImagePart):
                image_size(part)
            else:
                video_header(part, reading)
    except DataError as error:
        return error
    return None
