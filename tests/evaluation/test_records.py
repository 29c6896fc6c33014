"""Records survive a kill: whole lines are kept, a torn one is cut off; other keys are set aside."""

from __future__ import annotations

import json

from vlmkit.evaluation.records import append_records, read_records, record_key, replace_records, set_aside


def test_a_torn_end_is_cut_off_and_said(tmp_path, caplog):
    path = tmp_path / "records.jsonl"
    append_records(path, [{"id": "a", "key": "k"}, {"id": "b", "key": "k"}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "c", "ke')
    assert [record["id"] for record in read_records(path)] == ["a", "b"]
    assert "cut back to its last whole record (15 bytes" in caplog.text
    assert path.read_bytes() == whole


def test_a_whole_line_without_its_end_is_torn_too(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"id": "a", "key": "k"}))
    assert read_records(path) == []


def test_a_damaged_line_in_the_middle_costs_that_line_alone(tmp_path, caplog):
    path = tmp_path / "records.jsonl"
    append_records(path, [{"id": name, "key": "k"} for name in "abc"])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00\xff{" + lines[1][5:] + lines[2])
    assert [record["id"] for record in read_records(path)] == ["a", "c"]
    assert "1 damaged lines taken out; their cases are answered again" in caplog.text
    assert path.read_bytes() == lines[0] + lines[2]


def test_appending_goes_on_where_it_stood(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    append_records(path, [{"id": "a", "key": "k"}])
    append_records(path, [{"id": "é", "key": "k"}])
    assert [record["id"] for record in read_records(path)] == ["a", "é"]
    replace_records(path, [{"id": "b", "key": "k"}])
    assert [record["id"] for record in read_records(path)] == ["b"]


def test_records_of_another_key_are_kept_aside(tmp_path):
    path = tmp_path / "records.jsonl"
    for _ in range(2):
        append_records(path, [{"id": "a", "key": "k"}])
        set_aside(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["records.old-1.jsonl", "records.old-2.jsonl"]


def test_the_key_follows_weights_task_and_decoding():
    base = {"identity": {"weights": "w"}, "benchmark": {"suffix": "s"}, "decoding": {"max_new_tokens": 4}}
    key = record_key(**base)
    assert key == record_key(**base)
    for name, changed in (
        ("identity", {"weights": "v"}),
        ("benchmark", {"suffix": "t"}),
        ("decoding", {"max_new_tokens": 5}),
    ):
        assert record_key(**base | {name: changed}) != key
