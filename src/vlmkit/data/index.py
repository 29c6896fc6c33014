"""What every row of the manifests costs, and whether it can be used: known before training, kept in a cache.

One pass finds where each row lies (`spans.py`), a second counts its tokens and patches exactly, from the text and the
headers of its media; no pixel is decoded. Both end in files of mapped columns under the cache directory, named by what
they depend on: contents of the manifests, media roots, processor, first rows only. Rows are read by offset afterwards,
so no process ever holds a manifest.

Media are not part of the key. Rows that failed on a medium are looked at again whenever the index is opened; a medium
that changed after it was counted is noticed when its row is loaded, since the counts no longer agree.
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlmkit.conversation import Conversation
from vlmkit.data.columns import open_columns
from vlmkit.data.manifest import Source, decode_row
from vlmkit.errors import Origin

SCHEMA = "vlmkit.index/2"
OK = 0
"""Verdict of a row that can be used; any other number stands for a reason, see `Index.reasons`."""
COLUMNS = {
    "source": "<u2",
    "offset": "<i8",
    "length": "<i4",
    "num_tokens": "<i4",
    "num_supervised_tokens": "<i4",
    "num_patches": "<i4",
    "num_media": "<i4",
    "verdict": "u1",
}
"""Columns of the file, and their types."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row that cannot be used, and why.

    Attributes:
        row: Row of the index, counted from 0 through all sources.
        reason: See `DataError.reason`.
        finding: What was found and what to do, without file and row.
    """

    row: int
    reason: str
    finding: str


class Index:
    """Rows of one or more manifests, counted from 0 through all of them; mapped from a file, cheap to hand to workers.

    Attributes:
        sources: The manifests, in order.
        path: The file it is mapped from.
        key: Hash of everything it depends on.
        allow_absolute_paths: Whether media may lie outside the roots.
        contents: Hash of each manifest's contents.
        source, offset, length: Which manifest each row is in, where it begins, and its bytes.
        num_tokens, num_supervised_tokens, num_patches, num_media: What it costs; 0 where it cannot be used.
        verdict: `OK`, or one more than the place of the reason in `reasons`.
        reasons: Words of `DataError.reason`.
        media_reasons: Those among `reasons` that were found on a medium rather than in the row.
        faults: The first few of each reason, by row.
    """

    def __init__(self, path: Path, sources: Sequence[Source], *, key: str, allow_absolute_paths: bool) -> None:
        columns, extra = open_columns(path, schema=SCHEMA, key=key)
        self.path = path
        self.key = key
        self.allow_absolute_paths = allow_absolute_paths
        self.sources = tuple(sources)
        self.contents: tuple[str, ...] = tuple(extra["contents"])
        self.reasons: tuple[str, ...] = tuple(extra["reasons"])
        self.media_reasons = frozenset[str](extra["media_reasons"])
        self.faults = tuple(sorted((Fault(**told) for told in extra["faults"]), key=lambda fault: fault.row))
        self.source: NDArray[np.uint16] = columns["source"]
        self.offset: NDArray[np.int64] = columns["offset"]
        self.length: NDArray[np.int32] = columns["length"]
        self.num_tokens: NDArray[np.int32] = columns["num_tokens"]
        self.num_supervised_tokens: NDArray[np.int32] = columns["num_supervised_tokens"]
        self.num_patches: NDArray[np.int32] = columns["num_patches"]
        self.num_media: NDArray[np.int32] = columns["num_media"]
        self.verdict: NDArray[np.uint8] = columns["verdict"]
        self._starts: list[int] = np.searchsorted(self.source, np.arange(len(self.sources))).tolist()
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close_all, self._files)

    def __len__(self) -> int:
        return len(self.verdict)

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to a worker as a path: it maps the same file."""
        return _open_index, (self.path, self.sources, self.key, self.allow_absolute_paths)

    def origin(self, row: int) -> Origin:
        """File and row (counted from 1) of a row."""
        source = int(self.source[row])
        return Origin(str(self.sources[source].path), row - self._starts[source] + 1)

    def reason(self, row: int) -> str | None:
        """Why a row cannot be used; None where it can."""
        verdict = int(self.verdict[row])
        return None if verdict == OK else self.reasons[verdict - 1]

    def read(self, row: int) -> bytes:
        """The text of a row, from its manifest."""
        source = bisect_right(self._starts, row) - 1
        file = self._files.get(source)
        if file is None:
            file = self._files[source] = os.open(self.sources[source].file, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(file, self.length.item(row), self.offset.item(row))

    def conversation(self, row: int) -> Conversation:
        """Parse and check a row.

        Raises:
            DataError: it is no row in the LLaVA format.
        """
        return decode_row(
            self.read(row),
            origin=self.origin(row),
            root=self.sources[int(self.source[row])].root,
            allow_absolute_paths=self.allow_absolute_paths,
        )

    def counts_by_reason(self, rows: NDArray[np.int64] | None = None) -> dict[str, int]:
        """How many rows (of all, or of some) cannot be used, by reason, most frequent first."""
        verdicts = self.verdict if rows is None else self.verdict[rows]
        counts = np.bincount(verdicts, minlength=len(self.reasons) + 1)[1:]
        return dict(
            Counter({reason: int(n) for reason, n in zip(self.reasons, counts, strict=True) if n}).most_common()
        )


def _open_index(path: Path, sources: Sequence[Source], key: str, allow_absolute_paths: bool) -> Index:
    return Index(path, sources, key=key, allow_absolute_paths=allow_absolute_paths)


def _close_all(files: dict[int, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
    files.clear()
