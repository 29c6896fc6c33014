"""Columns of numbers in one file: written aside and renamed, opened by mapping, checked to the last bit.

A file is a magic word, a JSON header (schema, key, where each column lies and its checksum, and what else the writer
wants to keep), and the columns as raw little-endian arrays. Mapped columns are shared by all processes and cost none
of them private memory.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

_MAGIC = b"VLMKITC1"
_ALIGNMENT = 64
_COPY_BYTES = 1 << 20
Columns = dict[str, NDArray[Any]]


class UnusableFile(Exception):
    """A file of columns that is missing, damaged, or of another schema or key; the text says which."""


class ColumnsWriter:
    """Appends blocks of rows to one scratch file per column; what was checkpointed survives a kill.

    Args:
        scratch: Directory of the scratch files; made if it is not there. One writer at a time.
        dtypes: Name and type of each column, in order.
        schema, key: What the finished file is and depends on; scratch files of another schema or key are thrown away.

    Attributes:
        num_rows: Rows appended so far.
        state: What the last `checkpoint` kept; empty where there was none.
    """

    def __init__(self, scratch: Path, dtypes: Mapping[str, str], *, schema: str, key: str) -> None:
        self._scratch = scratch
        self._dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self._identity = {"schema": schema, "key": key, "dtypes": dict(dtypes)}
        self.num_rows, self.state = self._take_over()
        self._files = {name: open(scratch / f"{name}.bin", "ab") for name in dtypes}

    def _take_over(self) -> tuple[int, dict[str, Any]]:
        """Rows and state of an interrupted writer; scratch files are cut back to them."""
        try:
            told: dict[str, Any] = json.loads((self._scratch / "state.json").read_text(encoding="utf-8"))
            fits = told["identity"] == self._identity
            for name, dtype in self._dtypes.items() if fits else ():
                size = told["num_rows"] * dtype.itemsize
                fits = fits and (self._scratch / f"{name}.bin").stat().st_size >= size
        except (OSError, ValueError, KeyError, TypeError):
            fits, told = False, {}
        if not fits:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir(parents=True)
            return 0, {}
        for name, dtype in self._dtypes.items():
            os.truncate(self._scratch / f"{name}.bin", told["num_rows"] * dtype.itemsize)
        return int(told["num_rows"]), told["state"]

    def append(self, **columns: NDArray[Any]) -> None:
        """Add a block of rows: every column, all of one length."""
        lengths = {len(values) for values in columns.values()}
        if columns.keys() != self._files.keys() or len(lengths) != 1:
            raise ValueError(f"a block needs {sorted(self._files)} of one length, got {sorted(columns)}, {lengths}")
        for name, values in columns.items():
            self._files[name].write(np.ascontiguousarray(values, dtype=self._dtypes[name]).data)
        self.num_rows += lengths.pop()

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Let everything up to here, and `state` (JSON), survive a kill."""
        for file in self._files.values():
            file.flush()
        told = {"identity": self._identity, "num_rows": self.num_rows, "state": dict(state)}
        _replace(self._scratch / "state.json", json.dumps(told).encode())

    def finish(self, path: Path, *, extra: Mapping[str, Any], key: str | None = None) -> None:
        """Put the columns and `extra` (JSON) into one file at `path`, and remove the scratch files.

        Args:
            path: The file; an older one is replaced at once.
            extra: Kept in the header.
            key: Key of the file, where it is not that of the scratch files.
        """
        self.close()
        header = dict(self._identity) | {
            "key": key or self._identity["key"],
            "num_rows": self.num_rows,
            "extra": dict(extra),
        }
        header["checksums"] = {name: _checksum(self._scratch / f"{name}.bin") for name in self._dtypes}
        with written_aside(path) as aside, open(aside, "wb") as out:
            out.write(_framed(header))
            for name in self._dtypes:
                with open(self._scratch / f"{name}.bin", "rb") as column:
                    shutil.copyfileobj(column, out, _COPY_BYTES)
                out.write(b"\0" * (-out.tell() % _ALIGNMENT))
            out.flush()
            os.fsync(out.fileno())
        self.discard()

    def close(self) -> None:
        """Close the scratch files; they stay for the next writer."""
        for file in self._files.values():
            file.close()

    def discard(self) -> None:
        """Close and remove the scratch files."""
        self.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


def open_columns(path: Path, *, schema: str, key: str | None = None) -> tuple[Columns, dict[str, Any]]:
    """Map a file of columns and check all of it.

    Returns:
        The columns by name, read-only, and what the writer kept beside them.

    Raises:
        UnusableFile: missing, cut short, changed in any bit, or of another schema or key.
    """
    try:
        with open(path, "rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UnusableFile("it is not there") from error
    except (OSError, ValueError) as error:
        raise UnusableFile(f"it cannot be read ({error})") from error
    header, position = _unframed(view)
    if header.get("schema") != schema:
        raise UnusableFile(f"its schema is {header.get('schema')!r}; this version reads {schema!r}")
    if key is not None and header.get("key") != key:
        raise UnusableFile("its key is another one")
    columns: Columns = {}
    for name, dtype in header["dtypes"].items():
        size = header["num_rows"] * np.dtype(dtype).itemsize
        if position + size > len(view):
            raise UnusableFile(f"it is cut short in column {name!r}")
        columns[name] = np.frombuffer(view, dtype=dtype, count=header["num_rows"], offset=position)
        if xxhash.xxh3_128_hexdigest(columns[name].data) != header["checksums"][name]:
            raise UnusableFile(f"its column {name!r} is damaged (checksum)")
        position += size + -(position + size) % _ALIGNMENT
    return columns, header["extra"]


def _framed(header: Mapping[str, Any]) -> bytes:
    """Magic word, length and checksum of the header, header, zeros up to the alignment."""
    text = json.dumps(header).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + xxhash.xxh3_64_digest(text)
    return head + text + b"\0" * (-(len(head) + len(text)) % _ALIGNMENT)


def _unframed(view: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header, and where the first column begins."""
    if view[:8] != _MAGIC:
        raise UnusableFile("it is no file of columns of this version")
    size = int.from_bytes(view[8:16], "little")
    text = view[24 : 24 + size]
    if len(text) != size or xxhash.xxh3_64_digest(text) != view[16:24]:
        raise UnusableFile("its header is damaged")
    return json.loads(text), 24 + size + -(24 + size) % _ALIGNMENT


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


class written_aside:
    """A temporary file beside `path`, renamed to it where the block ends well, removed where it does not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        os.close(handle)
        self._aside = Path(name)
        return self._aside

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._aside.chmod(0o644)
            self._aside.replace(self._path)
        else:
            self._aside.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    with written_aside(path) as aside:
        aside.write_bytes(content)


def write_aside(path: Path, content: bytes) -> None:
    """Write a small file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content)
