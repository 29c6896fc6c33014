"""`records.jsonl`: one line per answered case, appended and synced before the next batch; nothing here needs a model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
Record = dict[str, Any]
SCHEMA = "vlmkit.record/1"
FIELDS = (
    "key", "id", "benchmark", "prompt", "media", "answer", "extracted", "expected", "score", "outcome", "tokens", "seconds",
)  # fmt: skip
"""Fields of a record; `category`, `labels` and `cluster` stand beside them, and `error` where a case failed.

`media` are paths of files, or hashes of images that come as bytes; `cluster` is what cases that are not independent share,
such as their image: a hash of the media unless the benchmark has a grouping of its own.
"""


def record_key(*, identity: Mapping[str, str], benchmark: Mapping[str, Any], decoding: Mapping[str, Any]) -> str:
    """Hash of all that decides the answers: weights, processor, template, task, decoding. Another key, another answer."""
    told = json.dumps({"identity": identity, "benchmark": benchmark, "decoding": decoding}, sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_records(path: Path) -> list[Record]:
    """The whole records of a file; lines that are none are taken out of it, and said.

    A kill in the middle of a write leaves half a line at the end; what stands before it is kept. So are the whole lines
    after a damaged one.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    kept, records = _parse(content)
    good = b"".join(kept)
    if good == content:
        return records
    if content.startswith(good):
        torn = len(content) - len(good)
        _log.warning("%s: cut back to its last whole record (%d bytes of a torn one dropped).", path, torn)
    else:
        damaged = len(content.splitlines()) - len(kept)
        _log.warning("%s: %d damaged lines taken out; their cases are answered again.", path, damaged)
    aside = path.with_suffix(".writing")
    _write(aside, good)
    aside.rename(path)
    return records


def whole_records(path: Path) -> list[Record]:
    """The whole records of a file that another process may be writing; nothing is mended."""
    try:
        return _parse(path.read_bytes())[1]
    except FileNotFoundError:
        return []


def _parse(content: bytes) -> tuple[list[bytes], list[Record]]:
    """The lines that are records, and these."""
    kept: list[bytes] = []
    records: list[Record] = []
    for line in content.splitlines(keepends=True):
        if (record := _whole(line)) is not None:
            records.append(record)
            kept.append(line)
    return kept, records


def _whole(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record: Any = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"id", "key"} <= record.keys() else None


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Write records to the end of the file and onto the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def replace_records(path: Path, records: Iterable[Record]) -> None:
    """Write the whole file anew, aside and renamed."""
    aside = path.with_suffix(".writing")
    aside.unlink(missing_ok=True)
    append_records(aside, records)
    aside.rename(path)


def set_aside(path: Path) -> Path:
    """Rename records of another key, so that they are neither lost nor used."""
    number = 1
    while (old := path.with_name(f"{path.stem}.old-{number}.jsonl")).exists():
        number += 1
    path.rename(old)
    return old
