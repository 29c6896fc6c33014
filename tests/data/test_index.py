"""The index: every row found, counted exactly, cached under what it depends on, rebuilt where it is damaged."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.data.columns import ColumnsWriter, UnusableFile, open_columns
from vlmkit.data.contents import content_hash
from vlmkit.data.index import COLUMNS, SCHEMA, Index
from vlmkit.data.indexing import build_index
from vlmkit.data.manifest import Source
from vlmkit.data.spans import Extent, LayoutError, find_extent, scan_rows
from vlmkit.errors import ConfigError, DataError
from vlmkit.processing.encode import encode_example
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.processor import Processor, load_processor

MakeSource = Callable[..., Source]
COUNTS = ("num_tokens", "num_supervised_tokens", "num_patches", "num_media")


def counts_of(index: Index) -> dict[str, list[int]]:
    return {name: getattr(index, name).tolist() for name in (*COUNTS, "verdict", "source")}


def spans_of(path: Path, **changed: Any) -> list[bytes]:
    text, extent = path.read_bytes(), find_extent(path)
    extent = Extent(**(vars(extent) | changed))
    pieces = [
        (int(offset), int(length))
        for offsets, lengths in scan_rows(path, extent)
        for offset, length in zip(offsets, lengths, strict=True)
    ]
    return [text[offset : offset + length] for offset, length in pieces]


def test_counts_equal_encoding(corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path) -> None:
    index = build_index([source(corpus.write(list(corpus.rows.values())))], processor, cache_dir=tmp_path / "cache")
    assert len(index) == len(corpus.rows)
    for row in range(len(index)):
        sample = encode_example(index.conversation(row), processor, pixels="uint8")
        counted = tuple(int(getattr(index, name)[row]) for name in COUNTS)
        assert counted == (
            len(sample["input_ids"]),
            int((sample["labels"] != -100).sum()),
            len(sample["still_patches"]) + len(sample["video_patches"]),
            len(sample["grid_thw"]),
        )
        assert index.reason(row) is None
        assert counted[1] > 0
    assert index.num_media.tolist() == [0, 1, 1, 3, 1, 2, 1]
    assert index.faults == ()


def test_an_array_and_lines_give_the_same_rows(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    rows = list(corpus.rows.values())
    layouts = {
        "lines.jsonl": "\r\n\n".join(json.dumps(row) for row in rows),
        "by_line.json": "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n",
        "compact.json": json.dumps(rows, separators=(",", ":")),
        "indented.json": json.dumps(rows, indent=4),
        "bom.jsonl": "\ufeff" + "\n".join(json.dumps(row) for row in rows),
    }
    indices: dict[str, Index] = {}
    for name, text in layouts.items():
        (corpus.root / name).write_text(text, encoding="utf-8")
        indices[name] = build_index([source(corpus.root / name)], processor, cache_dir=tmp_path / "cache")
    wanted = counts_of(indices["lines.jsonl"])
    assert len(wanted["verdict"]) == len(rows)
    for index in indices.values():
        assert counts_of(index) == wanted
        assert [json.loads(index.read(row)) for row in range(len(index))] == rows


def test_rows_that_begin_lines_but_span_them(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    """The first row stands on one line and the second spans several: only the structure tells them apart."""
    rows = [corpus.rows["text"], corpus.rows["turns"]]
    path = corpus.root / "mixed.json"
    path.write_text("[\n" + json.dumps(rows[0]) + ",\n" + json.dumps(rows[1], indent=1) + "\n]")
    index = build_index([source(path)], processor, cache_dir=tmp_path / "cache")
    assert [json.loads(index.read(row)) for row in range(len(index))] == rows
    assert not index.verdict.any()


def test_a_row_torn_into_lines_that_look_whole(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    """Lines that begin with { and end with }, and are no rows: found while counting, then scanned by structure."""
    path = corpus.root / "torn.json"
    row = json.dumps(corpus.rows["text"])
    turns = '{"conversations": [{"from": "human", "value": "two?"},\n{"from": "gpt", "value": "two"}], "id": {}},\n'
    path.write_text(f"[\n{row},\n{turns}{row}\n]")
    index = build_index([source(path)], processor, cache_dir=tmp_path / "cache")
    assert [json.loads(index.read(number)) for number in range(len(index))] == json.loads(path.read_text())
    assert not index.verdict.any()


def test_bad_rows_have_a_verdict_and_leave_the_others_whole(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    rows = corpus.rows
    lost = rows["image"] | {"image": "none.png"}
    path = corpus.write([rows["text"], b'{"conversations": [', lost, rows["image"], b"17", rows["turns"]])
    (corpus.root / "broken.png").write_bytes(b"no image")
    index = build_index([source(path)], processor, cache_dir=tmp_path / "cache")
    reasons = [None, "bad_json", "missing_media", None, "not_an_object", None]
    assert [index.reason(row) for row in range(len(index))] == reasons
    assert [(fault.row, fault.reason) for fault in index.faults] == [
        (1, "bad_json"),
        (2, "missing_media"),
        (4, "not_an_object"),
    ]
    assert "none.png" in index.faults[1].finding
    assert str(index.origin(2)) == f"{path}:3"
    assert index.counts_by_reason() == {"bad_json": 1, "missing_media": 1, "not_an_object": 1}
    assert index.media_reasons == {"missing_media"}
    assert index.num_tokens[[1, 2, 4]].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=rf"^{path}:2: the row is no valid JSON"):
        index.conversation(1)


def test_several_sources_are_one_sequence(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    rows = list(corpus.rows.values())
    sources = [source(corpus.write(rows[:3], "a.jsonl")), source(corpus.write(rows[3:], "b.json"))]
    index = build_index(sources, processor, cache_dir=tmp_path / "cache")
    assert [json.loads(index.read(row)) for row in range(len(index))] == rows
    assert index.source.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [str(index.origin(row)) for row in (2, 3)] == [f"{sources[0].path}:3", f"{sources[1].path}:1"]


@pytest.mark.parametrize(("limit", "counts"), [(2, [2, 0]), (3, [3, 0]), (5, [3, 2]), (99, [3, 4])])
def test_limit(
    limit: int, counts: list[int], corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    rows = list(corpus.rows.values())
    sources = [source(corpus.write(rows[:3], "a.jsonl")), source(corpus.write(rows[3:], "b.json"))]
    index = build_index(sources, processor, cache_dir=tmp_path / "cache", limit=limit)
    assert np.bincount(index.source, minlength=2).tolist() == counts
    assert [json.loads(index.read(row)) for row in range(len(index))] == rows[:limit]


def test_the_cache_is_used_and_a_change_gives_a_new_index(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    rows, cache = corpus.rows, tmp_path / "cache"
    path = corpus.write([rows["text"], rows["image"]])
    index = build_index([source(path)], processor, cache_dir=cache)
    written = index.path.stat().st_mtime_ns
    again = build_index([source(path)], processor, cache_dir=cache)
    assert (again.key, again.path.stat().st_mtime_ns) == (index.key, written)

    time_before = path.stat()
    text = path.read_text().replace("what is seven and two?", "what is seven and ten?")
    path.write_text(text)
    os.utime(path, ns=(time_before.st_atime_ns, time_before.st_mtime_ns))  # as long, and dated as before
    changed = build_index([source(path)], processor, cache_dir=cache)
    assert changed.key != index.key
    assert b"seven and ten" in changed.read(0)

    limited = load_processor(Path(processor.hf.tokenizer.name_or_path), budget=PixelBudget(image_max_pixels=2048))
    assert limited.fingerprint != processor.fingerprint
    smaller = build_index([source(path)], limited, cache_dir=cache)
    assert smaller.key not in (index.key, changed.key)
    assert smaller.num_patches[1] < changed.num_patches[1]
    moved = Source(path=path, root=tmp_path, name="rows")
    assert build_index([moved], processor, cache_dir=cache).counts_by_reason() == {"missing_media": 1}


@pytest.mark.parametrize("damage", ["truncate", "flip", "header", "empty", "magic"])
@pytest.mark.parametrize("kind", ["index", "spans"])
def test_a_damaged_cache_is_told_and_built_anew(
    damage: str,
    kind: str,
    corpus: Any,
    processor: Processor,
    source: MakeSource,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, cache = corpus.write([corpus.rows["text"], corpus.rows["turns"]]), tmp_path / "cache"
    index = build_index([source(path)], processor, cache_dir=cache)
    wanted = counts_of(index)
    (file,) = cache.glob(f"{kind}-*.bin")
    if kind == "spans":
        index.path.unlink()
    content = bytearray(file.read_bytes())
    place = {"flip": len(content) - 64, "header": 40, "magic": 2}.get(damage, 0)
    content[place] ^= 1
    cut = {"truncate": len(content) // 2, "empty": 0}.get(damage, len(content))
    shutil.copy(file, tmp_path / "old")
    file.unlink()  # what is mapped stays as it is
    file.write_bytes(content[:cut])
    with caplog.at_level(logging.WARNING):
        rebuilt = build_index([source(path)], processor, cache_dir=cache)
    assert counts_of(rebuilt) == wanted
    assert "cannot be used" in caplog.text
    assert file.name in caplog.text
    assert file.read_bytes() == (tmp_path / "old").read_bytes()


def test_media_that_come_and_go(corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path) -> None:
    rows = [corpus.rows["text"], corpus.rows["image"] | {"image": "late.png"}, corpus.rows["image"]]
    cache, path = tmp_path / "cache", corpus.write(rows)
    index = build_index([source(path)], processor, cache_dir=cache)
    assert index.counts_by_reason() == {"missing_media": 1}
    corpus.draw("late.png", 64, 64)
    mended = build_index([source(path)], processor, cache_dir=cache)
    assert mended.key == index.key
    assert mended.counts_by_reason() == {}
    assert mended.faults == ()
    assert mended.num_patches.tolist() == [0, 16, 24]
    assert build_index([source(path)], processor, cache_dir=cache).num_patches.tolist() == [0, 16, 24]


def test_it_travels_as_a_path(corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path) -> None:
    rows = [corpus.rows["text"]] * 3000
    index = build_index([source(corpus.write(rows))], processor, cache_dir=tmp_path / "cache")
    sent = pickle.dumps(index)
    assert len(sent) < 2000
    arrived: Index = pickle.loads(sent)
    assert counts_of(arrived) == counts_of(index)
    assert arrived.read(2999) == index.read(2999)
    assert not arrived.num_tokens.flags.writeable


@pytest.mark.slow
def test_processes_count_the_same(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmkit.data.indexing.MIN_ROWS_PER_PROCESS", 1)
    path = corpus.write(list(corpus.rows.values()) * 40 + [b"{"])
    one = build_index([source(path)], processor, cache_dir=tmp_path / "one")
    two = build_index([source(path)], processor, cache_dir=tmp_path / "two", num_processes=2)
    assert counts_of(one) == counts_of(two)
    assert one.faults == two.faults


def test_an_interrupted_build_goes_on(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [corpus.rows["text"]] * 600
    rows[5] = rows[300] = {}
    path, cache = corpus.write(rows), tmp_path / "cache"
    whole = build_index([source(path)], processor, cache_dir=tmp_path / "whole")
    from vlmkit.data import measuring

    measured: list[int] = []
    measure_block = measuring.RowMeter.measure_block

    def killed(self: measuring.RowMeter, block: measuring.Block) -> measuring.Outcome:
        measured.append(len(block.offsets))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure_block(self, block)

    monkeypatch.setattr("vlmkit.data.indexing._CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(measuring.RowMeter, "measure_block", killed)
    with pytest.raises(KeyboardInterrupt):
        build_index([source(path)], processor, cache_dir=cache)
    index = build_index([source(path)], processor, cache_dir=cache)
    assert measured == [256, 256, 88, 88]
    assert counts_of(index) == counts_of(whole)
    assert index.faults == whole.faults
    assert not list(cache.glob("*.part*"))


@pytest.mark.parametrize(
    ("text", "reason", "finding"),
    [
        ("", "empty_file", "the manifest is empty"),
        (" \n\t", "empty_file", "the manifest is empty"),
        ('[{"a": 1}', "bad_json", r"does not end with '\]'"),
        ('[{"a": 1} {"b": 2}]', "bad_json", "a comma is missing after the row"),
        ('[{"a": 1},]', "bad_json", "a comma follows the last row"),
        ('[{"a": [1}]', "bad_json", "is not closed"),
        ('[{"a": "1}]', "bad_json", "is not closed"),
        ('[{"a": 1}, oops, {}]', "bad_json", "'oops, ' follows the row"),
    ],
)
def test_manifests_broken_as_a_whole(
    text: str, reason: str, finding: str, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=finding) as caught:
        build_index([source(path)], processor, cache_dir=tmp_path / "cache")
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_with_the_command_that_converts_it(
    encoding: str, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"conversations": []}]', encoding=encoding)
    with pytest.raises(
        DataError, match=r"rows\.json:1: the manifest is UTF-16 text; .*iconv -f UTF-16 -t UTF-8"
    ) as caught:
        build_index([source(path)], processor, cache_dir=tmp_path / "cache")
    assert caught.value.reason == "encoding"


def test_an_empty_array_has_no_rows(processor: Processor, source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[ ]")
    assert len(build_index([source(tmp_path / "rows.json")], processor, cache_dir=tmp_path / "cache")) == 0


def test_a_cache_that_cannot_be_made(processor: Processor, source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[]")
    with pytest.raises(ConfigError, match=r"data\.cache_dir: .*file/cache cannot be made"):
        build_index([source(tmp_path / "file")], processor, cache_dir=tmp_path / "file" / "cache")


def test_content_hash_follows_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memo = tmp_path / "a", tmp_path / "manifests.json"
    path.write_bytes(b"one")
    first = content_hash(path, tmp_path)
    assert not memo.exists()  # a file this young may still change unseen
    monkeypatch.setattr("vlmkit.data.contents._MEMO_SECONDS", -1.0)
    assert content_hash(path, tmp_path) == first
    assert json.loads(memo.read_text())[str(path)]["hash"] == first
    dated = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(dated.st_atime_ns, dated.st_mtime_ns))
    second = content_hash(path, tmp_path)
    assert second != first
    memo.write_text("{")
    assert content_hash(path, tmp_path) == second


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(JSON, max_size=12),
    indent=st.sampled_from([None, 0, 1, 3]),
    ascii_only=st.booleans(),
    chunk=st.sampled_from([7, 16, 61, 1 << 22]),
)
def test_any_array_is_cut_into_its_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    """Whatever the layout and wherever a read ends: escapes, quotes and brackets in strings, scalars between objects."""
    path = tmp_path_factory.mktemp("array") / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmkit.data.spans._CHUNK_BYTES", chunk)
        assert [json.loads(text) for text in spans_of(path, layout="array")] == rows


@pytest.mark.parametrize("chunk", range(1, 12))
def test_an_escape_may_end_what_is_read_at_once(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": '"[\\"{' * 3}, {"b\\": ['"', "\\", "}]"]}, '\\"', {}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    monkeypatch.setattr("vlmkit.data.spans._CHUNK_BYTES", chunk)
    assert [json.loads(text) for text in spans_of(tmp_path / "rows.json", layout="array")] == rows


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), min_size=1, max_size=12),
    by_line=st.booleans(),
    chunk=st.sampled_from([7, 16, 61, 1 << 22]),
    ending=st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]),
)
def test_any_lines_are_cut_into_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], by_line: bool, chunk: int, ending: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.json"
    texts = [json.dumps(row) for row in rows]
    text = f"[{ending}  " + f",{ending}  ".join(texts) + f"{ending}]{ending}" if by_line else ending.join(texts)
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmkit.data.spans._CHUNK_BYTES", chunk)
        try:
            found = spans_of(path)
        except LayoutError:
            assert by_line
            found = spans_of(path, layout="array")
    assert [json.loads(text) for text in found] == rows


def test_columns_refuse_another_schema_key_or_block(tmp_path: Path) -> None:
    dtypes = {"a": "<i8", "b": "u1"}
    writer = ColumnsWriter(tmp_path / "part", dtypes, schema="s/1", key="k")
    with pytest.raises(ValueError, match=r"a block needs \['a', 'b'\] of one length"):
        writer.append(a=np.arange(3), b=np.arange(2))
    writer.append(a=np.arange(3), b=np.arange(3))
    writer.finish(tmp_path / "file", extra={"told": 1})
    columns, extra = open_columns(tmp_path / "file", schema="s/1", key="k")
    assert columns["a"].tolist() == columns["b"].tolist() == [0, 1, 2]
    assert extra == {"told": 1}
    with pytest.raises(UnusableFile, match=r"its schema is 's/1'; this version reads 's/2'"):
        open_columns(tmp_path / "file", schema="s/2", key="k")
    with pytest.raises(UnusableFile, match="its key is another one"):
        open_columns(tmp_path / "file", schema="s/1", key="other")
    with pytest.raises(UnusableFile, match="it is not there"):
        open_columns(tmp_path / "none", schema="s/1")


def test_the_file_is_what_the_contract_says(
    corpus: Any, processor: Processor, source: MakeSource, tmp_path: Path
) -> None:
    index = build_index([source(corpus.write([corpus.rows["text"]]))], processor, cache_dir=tmp_path / "cache")
    columns, extra = open_columns(index.path, schema=SCHEMA, key=index.key)
    assert {name: values.dtype.str for name, values in columns.items()} == {
        name: np.dtype(dtype).str for name, dtype in COLUMNS.items()
    }
    assert extra["contents"] == list(index.contents)
