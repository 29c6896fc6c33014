"""Compressed, Parquet and remote manifests: the same rows under the same numbers, copied once and mended."""

from __future__ import annotations

import gzip
import http.server
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmkit.data.index import COLUMNS, Index
from vlmkit.data.indexing import build_index
from vlmkit.data.manifest import Source, resolve_sources
from vlmkit.data.plain import plain_manifest
from vlmkit.errors import ConfigError, DataError
from vlmkit.processing.processor import Processor


def write_zst(path: Path, text: bytes) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as out:
        out.write(text)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


@pytest.fixture
def rows(corpus: Any) -> list[dict[str, Any]]:
    """Rows that have the same columns, as a Parquet file must, one of them wrong."""
    texts = [corpus.rows[kind] for kind in ("text", "image", "turns")]
    return [{"image": None} | row for row in texts] + [{"image": "gone.png"} | corpus.rows["text"]]


def same(index: Index, other: Index) -> bool:
    counted = [name for name in COLUMNS if name not in ("offset", "length")]
    return all(np.array_equal(getattr(index, name), getattr(other, name)) for name in counted)


def test_every_format_gives_the_same_rows(
    corpus: Any, rows: list[dict[str, Any]], processor: Processor, tmp_path: Path
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (corpus.root / "rows.jsonl").write_bytes(lines)
    (corpus.root / "lines.gz").write_bytes(gzip.compress(lines))
    (corpus.root / "array.json.gz").write_bytes(gzip.compress(json.dumps(rows, indent=2).encode()))
    write_zst(corpus.root / "lines.jsonl.zst", lines)
    write_parquet(corpus.root / "table.parquet", rows)
    with fsspec.open("memory://vlmkit-test/rows.jsonl.gz", "wb") as out:
        out.write(gzip.compress(lines))

    def indexed(path: object) -> Index:
        return build_index(resolve_sources([path], root=corpus.root), processor, cache_dir=tmp_path / "cache")

    plain = indexed(corpus.root / "rows.jsonl")
    assert plain.verdict.tolist() == [0, 0, 0, 1]
    named = [corpus.root / name for name in ("lines.gz", "array.json.gz", "lines.jsonl.zst", "table.parquet")]
    for path in [*named, "memory://vlmkit-test/rows.jsonl.gz"]:
        index = indexed(path)
        assert same(index, plain), path
        assert [index.conversation(row).turns for row in range(3)] == [
            plain.conversation(row).turns for row in range(3)
        ]
        assert str(index.origin(3)) == f"{path}:4"


def test_the_copy_follows_the_manifest_and_heals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, cache = tmp_path / "rows.gz", tmp_path / "cache"
    cache.mkdir()
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    copy = plain_manifest(path, cache)
    assert copy.read_bytes() == b'{"a": 1}\n'
    assert plain_manifest(path, cache) == copy
    copy.write_bytes(b'{"a": 2}\n')
    with caplog.at_level(logging.WARNING):
        assert plain_manifest(path, cache).read_bytes() == b'{"a": 1}\n'
    assert "is damaged. It is made anew." in caplog.text
    path.write_bytes(gzip.compress(b'{"b": 1}\n'))
    assert plain_manifest(path, cache).read_bytes() == b'{"b": 1}\n'


@pytest.mark.parametrize("name", ["rows.gz", "rows.zst", "rows.parquet"])
def test_a_file_cut_short_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path, whole = tmp_path / name, tmp_path / "whole"
    text = json.dumps([{"a": number} for number in range(5000)]).encode()
    if name.endswith("gz"):
        whole.write_bytes(gzip.compress(text))
    elif name.endswith("zst"):
        write_zst(whole, text)
    else:
        write_parquet(whole, json.loads(text))
    path.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name}:1: the manifest cannot be read to its end \(.+\)\. Check") as caught:
        plain_manifest(path, tmp_path)
    assert caught.value.reason == "unreadable_manifest"
    assert not list(tmp_path.glob("manifest-*.json"))


def test_a_parquet_column_of_bytes_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", [{"image": b"\x89PNG"}])
    with pytest.raises(DataError, match="not JSON serializable"):
        plain_manifest(tmp_path / "rows.parquet", tmp_path)


def test_a_broken_compressed_array_is_named_as_given(
    tmp_path: Path, processor: Processor, source: Callable[..., Source]
) -> None:
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(b'[{"a": 1} {"b": 2}]'))
    with pytest.raises(DataError, match=r"rows\.json\.gz:1: the manifest is no valid JSON array: a comma is missing"):
        build_index([source(path)], processor, cache_dir=tmp_path / "cache")


def test_remote_manifests_need_a_root_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is remote, its media are not. Set data.root"):
        resolve_sources(["memory://none/rows.jsonl"], root=None)
    (found,) = resolve_sources(["memory://none/rows.jsonl"], root=tmp_path)
    assert (found.name, found.path) == ("rows", "memory://none/rows.jsonl")
    with pytest.raises(DataError, match="memory://none/rows.jsonl:1: the manifest cannot be read"):
        plain_manifest(found.path, tmp_path)
    with pytest.raises(DataError, match="nosuch://x/rows.jsonl:1: the manifest cannot be read"):
        plain_manifest("nosuch://x/rows.jsonl", tmp_path)


class Served(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; `headers` say what the server tells of a file beside its length."""

    tells: str = ""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword.lower() != "last-modified" or self.tells == "Last-Modified":
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        if self.tells == "ETag":
            content = Path(self.translate_path(self.path)).read_bytes()
            super().send_header("ETag", f'"{zlib.crc32(content)}"')
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("tells", ["ETag", "Last-Modified", "length alone"])
def test_a_manifest_behind_http_is_fetched_again_when_it_changes(tells: str, tmp_path: Path) -> None:
    file = tmp_path / "www" / "rows.jsonl"
    file.parent.mkdir()
    (tmp_path / "cache").mkdir()
    file.write_text("one\n")
    handler = type("Handler", (Served,), {"tells": tells})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(file.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/rows.jsonl"
    try:
        first = plain_manifest(url, tmp_path / "cache")
        assert first.read_text() == "one\n"
        assert plain_manifest(url, tmp_path / "cache") == first
        file.write_text("more\n" if tells == "length alone" else "two\n")
        dated = file.stat().st_mtime + 60
        os.utime(file, (dated, dated))
        assert plain_manifest(url, tmp_path / "cache").read_text() == file.read_text()
    finally:
        server.shutdown()
        server.server_close()
