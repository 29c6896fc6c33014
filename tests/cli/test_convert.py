"""`vlmkit-convert` as its users run it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vlmkit.data.manifest import decode_row
from vlmkit.errors import Origin


def ask(*arguments: str):
    done = subprocess.run(
        [sys.executable, "-m", "vlmkit.cli.convert", *arguments], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def chats(tmp_path):
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({"messages": []}) + "\n")
    return path


def test_refused_rows_fail_the_command_and_nothing_is_written(chats, tmp_path):
    status, _, errors = ask(f"input={chats}", f"out={tmp_path / 'out.jsonl'}")
    assert status == 1
    assert f"{chats}:2: the row has no list of messages." in errors
    assert errors.endswith("Nothing was written. Mend these rows, or set on_bad_row=skip to write the other 1.\n")
    assert not (tmp_path / "out.jsonl").exists()


def test_skipped_rows_are_accounted_for_and_the_rest_trains(chats, tmp_path):
    out, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    status, printed, _ = ask(f"input={chats}", f"out={out}", "on_bad_row=skip", f"report={report}")
    assert status == 0
    assert printed.startswith("2 rows read as messages, 1 written, 1 refused\n")
    assert printed.endswith(f"Next: vlmkit-check data=llava data.sources=[{out}]\n")
    account = json.loads(report.read_text())
    assert account["schema"] == "vlmkit.convert/1"
    assert (account["read"], account["written"], account["refused"]) == (2, 1, {"no_conversations": 1})
    decode_row(out.read_bytes().splitlines()[0], origin=Origin("out", 1), root=tmp_path)


def test_what_is_missing_is_asked_for():
    assert ask("input=x.json")[2] == (
        "vlmkit-convert: out must be given: vlmkit-convert input=annotations.json out=manifest.jsonl\n"
    )


def test_a_wrong_setting_is_told_by_its_own_name(chats, tmp_path):
    errors = ask(f"input={chats}", f"out={tmp_path / 'out.jsonl'}", "limit=abc")[2]
    assert errors == "vlmkit-convert: limit=abc: wanted a whole number of at least 1, or null.\n"
    errors = ask(f"input={chats}", f"out={tmp_path / 'out.jsonl'}", "format=foo")[2]
    assert errors.startswith("vlmkit-convert: format=foo: choose one of auto, ")


def test_a_directory_is_no_file(chats, tmp_path):
    assert ask(f"input={tmp_path}", "out=x.jsonl")[::2] == (
        1, f"vlmkit-convert: input={tmp_path}: this is a directory. Name the file of annotations in it.\n"
    )  # fmt: skip
    (tmp_path / "photos").mkdir()
    status, _, errors = ask(f"input={chats}", f"out={tmp_path / 'photos'}")
    assert status == 1
    assert f"out={tmp_path / 'photos'}: this is a directory. Name a file, out={tmp_path / 'photos'}/train" in errors
    status, _, errors = ask(f"input={chats}", f"out={chats}/x.jsonl")  # met while writing
    assert (status, errors) == (1, f"vlmkit-convert: {chats}: File exists. Name another place.\n")


def test_where_every_row_is_refused_nothing_is_offered_to_be_skipped(tmp_path):
    (tmp_path / "t.csv").write_text("number,ask,reply\n1,What?,That\n")
    settings = [f"input={tmp_path / 't.csv'}", f"out={tmp_path / 'o.jsonl'}", "fields.question=ask"]
    errors = ask(*settings, "fields.answer=reply", "image='photos/{nr}.jpg'")[2]
    assert "image=photos/{nr}.jpg does not fit the row (no field 'nr'). It has: 'number', 'ask', 'reply'." in errors
    assert errors.endswith("Nothing was written. Mend these rows or the settings.\n")


def test_a_file_of_which_no_row_can_be_read_is_told(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{bad\n{worse\n")
    errors = ask(f"input={tmp_path / 'bad.jsonl'}", f"out={tmp_path / 'out.jsonl'}")[2]
    assert "none of the 2 rows" in errors
    assert "no valid JSON" in errors
