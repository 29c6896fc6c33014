"""Manifests that are compressed, Parquet or far away: written once as plain text into the cache, then read as any.

What a file is, its first bytes say, not its name. Rows keep their order and number, so messages name the manifest as
the user gave it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from vlmkit.data.columns import write_aside, written_aside
from vlmkit.data.contents import content_hash
from vlmkit.data.locks import locked
from vlmkit.data.manifest import is_remote
from vlmkit.errors import DataError, Origin

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_BLOCK_BYTES = 1 << 20
_HTTP_VERSION = ("ETag", "Last-Modified", "size")
_PARQUET_ROWS = 1024
_log = logging.getLogger(__name__)


def plain_manifest(path: str | Path, cache_dir: Path) -> Path:
    """A local file with the rows of a manifest as plain JSON: the manifest itself, or a copy in the cache.

    The copy is made anew whenever the manifest has changed or the copy was damaged.

    Raises:
        DataError: the manifest is not there, cannot be read to its end, or holds what is no JSON (`unreadable_manifest`).
    """
    local = _fetched(str(path), cache_dir) if is_remote(path) else Path(path)
    with open(local, "rb") as file:
        head = file.read(4)
    for magic, write in _WRITERS.items():
        if head.startswith(magic):
            key = content_hash(local, cache_dir)
            return _kept(cache_dir, key, lambda out, write=write: _run(write, local, out, path))
    return local


def _fetched(url: str, cache_dir: Path) -> Path:
    """A remote manifest in the cache, as it is."""
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(url)
        key = hashlib.sha256(f"{url} {_version(system, place)}".encode()).hexdigest()[:32]
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(url, error) from error

    def fetch(_: Path, out: BinaryIO) -> None:
        with cast(BinaryIO, system.open(place, "rb")) as file:
            shutil.copyfileobj(file, out, _BLOCK_BYTES)

    return _kept(cache_dir, key, lambda out: _run(fetch, Path(place), out, url))


def _version(system: Any, place: str) -> str:
    """What changes where a remote file does; over HTTP fsspec itself takes every file for unchanging."""
    info: dict[str, object] = system.info(place)
    told = [f"{name}={info[name]}" for name in _HTTP_VERSION if info.get(name)]
    return " ".join([system.ukey(place), *told])


def _kept(cache_dir: Path, key: str, write: Callable[[BinaryIO], None]) -> Path:
    """The file of this key in the cache, if it still is what was written; else it is written."""
    path = cache_dir / f"manifest-{key}.json"
    with locked(path):
        _write_unless_whole(path, path.with_suffix(".seal"), cache_dir, write)
    return path


def _write_unless_whole(path: Path, seal: Path, cache_dir: Path, write: Callable[[BinaryIO], None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        if json.loads(seal.read_bytes()) == content_hash(path, cache_dir):
            return
    if path.exists():
        _log.warning("The copy %s of a manifest is damaged. It is made anew.", path)
    with written_aside(path) as aside, open(aside, "wb") as out:
        write(out)
        out.flush()
        os.fsync(out.fileno())
    write_aside(seal, json.dumps(content_hash(path, cache_dir)).encode())


def _run(write: Callable[[Path, BinaryIO], None], source: Path, out: BinaryIO, path: str | Path) -> None:
    try:
        write(source, out)
    except (OSError, EOFError, ValueError, TypeError, ImportError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> DataError:
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"the manifest cannot be read to its end ({told}). Check the path, or write the file again.",
        reason="unreadable_manifest",
        origin=Origin(str(path), 1),
    )


def _decompressor(name: str) -> Callable[[Path, BinaryIO], None]:
    def write(source: Path, out: BinaryIO) -> None:
        import pyarrow as pa

        with pa.OSFile(str(source), "rb") as file, pa.CompressedInputStream(file, name) as stream:
            shutil.copyfileobj(cast(Any, stream), out, _BLOCK_BYTES)

    return write


def _write_parquet(source: Path, out: BinaryIO) -> None:
    """A row a line; a column whose value is null is left out, as nobody wrote it."""
    for row in parquet_rows(source):
        out.write(orjson.dumps(row) + b"\n")


def parquet_rows(source: Path) -> Iterator[dict[str, object]]:
    """The rows of a Parquet file, a thousand in memory at a time; null columns are left out."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            for row in cast("list[dict[str, object]]", batch.to_pylist()):
                yield {name: value for name, value in row.items() if value is not None}


_WRITERS: dict[bytes, Callable[[Path, BinaryIO], None]] = {
    _GZIP: _decompressor("gzip"),
    _ZSTD: _decompressor("zstd"),
    _PARQUET: _write_parquet,
}
