"""Rows out of an annotation file: JSON Lines, a JSON array, CSV, TSV, Parquet, and gzip or zstd around text."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson

from vlmkit.data.plain import parquet_rows, plain_manifest
from vlmkit.data.spans import Extent, find_extent, scan_rows
from vlmkit.errors import DataError, Origin

Rows = Iterator[tuple[int, object]]
"""Rows with their numbers, counted from 1; a row that is no JSON comes as the `DataError` that says so."""

_TABLES = {".csv": ",", ".tsv": "\t"}
_LONGEST_CELL_BYTES = 1 << 27
_GLIMPSE_BYTES = 1 << 16
_LISTS = ("annotations", "questions")


def read_rows(path: Path, *, cache_dir: Path) -> Rows:
    """Yield the rows of a file in its order. Rows are not held: any size may be read.

    Args:
        path: What it holds is seen from its first bytes, but for CSV and TSV, which go by their suffix.
        cache_dir: Where a compressed file is unpacked.

    Raises:
        DataError: the file is empty, or cannot be read to its end.
    """
    with open(path, "rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        return enumerate(parquet_rows(path), start=1)
    plain = plain_manifest(path, cache_dir)
    delimiter = _TABLES.get(Path(str(path).removesuffix(".gz").removesuffix(".zst")).suffix.lower())
    return _table_rows(plain, path, delimiter) if delimiter else _json_rows(plain, path)


def read_whole(path: Path, *, cache_dir: Path) -> dict[str, Any] | None:
    """The one JSON object that a file holds (COCO and VQA files are such); None where it holds rows.

    Raises:
        DataError: the object is no valid JSON.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return None
    plain = plain_manifest(path, cache_dir)
    with open(plain, "rb") as file:
        first = file.readline().removeprefix(b"\xef\xbb\xbf").lstrip()
        more = file.read(_GLIMPSE_BYTES).strip()
    if not first.startswith(b"{"):
        return None
    found = _object(first)
    if found is None or not more:
        found = found or _object(plain.read_bytes().removeprefix(b"\xef\xbb\xbf"))
        if found is not None:
            return found if any(isinstance(found.get(key), list) for key in _LISTS) else None
        if any(f'"{key}"'.encode() in first[:_GLIMPSE_BYTES] + more for key in _LISTS):
            raise DataError(
                "the file begins as one JSON object and is no valid JSON to its end. Write it again.",
                reason="bad_json",
                origin=Origin(str(path), 1),
            )
    return None


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None


def _json_rows(plain: Path, path: Path) -> Rows:
    try:
        extent = find_extent(plain)
        if extent.layout == "array_lines":  # any layout of an array is read as well by its structure
            extent = Extent(layout="array", start=extent.start, end=extent.end)
        number = 0
        descriptor = os.open(plain, os.O_RDONLY)
        try:
            for offsets, lengths in scan_rows(plain, extent):
                for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
                    number += 1
                    yield number, _parsed(os.pread(descriptor, length, offset))
        finally:
            os.close(descriptor)
    except DataError as error:
        raise DataError(
            error.finding, reason=error.reason, origin=Origin(str(path), error.origin.row if error.origin else 1)
        ) from None


def _parsed(text: bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return DataError(
            f"the row is no valid JSON ({error.msg}). Mend or drop the row.",
            reason="bad_json",
        )


def _table_rows(plain: Path, path: Path, delimiter: str) -> Rows:
    """Rows of a table whose first line names the columns; empty cells are left out, as nobody wrote them."""
    csv.field_size_limit(_LONGEST_CELL_BYTES)
    number = 0
    try:
        with open(plain, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = next(reader, [])
            if not names:
                raise DataError(
                    "the table is empty: it has no line of column names. Write one above the rows.", reason="empty_file"
                )
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(names):
                    yield (
                        number,
                        DataError(
                            f"the row has {len(cells)} cells, the table {len(names)} columns. Put quotes around cells with "
                            f"{'commas' if delimiter == ',' else 'tabs'} or line breaks.",
                            reason="bad_table_row",
                        ),
                    )
                    continue
                yield number, {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"the table cannot be read after row {number} ({error}). It must be UTF-8 text.",
            reason="unreadable_manifest",
            origin=Origin(str(path), number + 1),
        ) from None
    except DataError as error:
        raise error.at(Origin(str(path), 1)) from None


__all__ = ["Rows", "read_rows", "read_whole"]
