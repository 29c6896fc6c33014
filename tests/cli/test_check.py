"""`vlmkit-check` as its users run it: it says what a run would meet, and trains nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.training.conftest import environment


def ask(*arguments: str, cwd: Path):
    done = subprocess.run(
        [sys.executable, "-m", "vlmkit.cli.check", *arguments],
        env={**os.environ, **environment()},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def turns(question: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]


@pytest.fixture
def manifest(tmp_path):
    Image.new("RGB", (96, 96), "blue").save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 40])
    rows = [
        {"image": "good.png", "conversations": turns("<image>One?")},
        {"image": "missing.png", "conversations": turns("<image>Two?")},
        {"image": "good.png", "conversations": turns("Three?")},
        {"image": "good.png", "conversations": turns("<image>One?")},
        {"conversations": turns("word " * 300)},
        {"image": "good.png", "conversations": turns("<image>Six?")},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_everything_that_would_stop_a_run_is_told_at_once(manifest, tmp_path):
    status, printed, errors = ask(
        "data=llava", f"data.sources=[{manifest}]", "data.max_tokens=200", "data.num_workers=0", cwd=tmp_path
    )
    assert (status, errors) == (1, "")
    assert "6 rows read, 3 can be trained on" in printed
    assert f"{manifest}:2: image '{tmp_path}/missing.png' not found" in printed
    assert f"{manifest}:3: no turn has a <image> placeholder but the row lists 1 image" in printed
    assert f"{manifest}:5: " in printed
    assert "more than data.max_tokens=200" in printed
    assert (
        f"1 rows have the media and conversation of an earlier row\n          {manifest}:4 as {manifest}:1" in printed
    )
    assert printed.endswith("This run would fail: 3 errors. 1 warning to look at.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.png", "good.png", "rows.jsonl"]


def test_the_same_rows_pass_once_they_may_be_left_out_and_the_json_says_so(manifest, tmp_path):
    status, printed, _ = ask(
        "data=llava",
        f"data.sources=[{manifest}]",
        "data.max_tokens=200",
        "data.num_workers=0",
        "data.on_bad_row=skip",
        "data.overlong=drop",
        "data.batch_size=2",
        "trainer.max_epochs=2",
        "check.format=json",
        cwd=tmp_path,
    )
    assert status == 0
    told = json.loads(printed)
    assert told["schema"] == "vlmkit.check/1"
    assert told["ok"] is True
    facts = {section["name"]: section["facts"] for section in told["sections"]}
    assert facts["data"]["rows"] == {
        "read": 6,
        "trained": 3,
        "missing_media": 1,
        "placeholder_count": 1,
        "overlong": 1,
    }
    assert (facts["data"]["same"], facts["data"]["encoded"]) == (1, 3)
    assert (facts["plan"]["steps"], facts["plan"]["steps_per_epoch"], facts["plan"]["packs"]) == (4, 2, 4)
    assert facts["model"]["parameters"] > 1_000_000


def test_the_index_is_the_one_that_training_finds(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))
    rows = ["data=llava", f"data.sources=[{manifest}]", "data.on_bad_row=skip", "data.num_workers=0"]
    assert ask(*rows, "check.decode=0", cwd=tmp_path)[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "index").glob("index-*.bin")}
    assert len(before) == 1
    assert ask(*rows, "check.decode=0", cwd=tmp_path)[0] == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "index").glob("index-*.bin")}


def test_a_cut_image_is_found_here_and_not_at_hour_nine(manifest, tmp_path):
    lone = tmp_path / "cut.jsonl"
    lone.write_text(json.dumps({"image": "cut.png", "conversations": turns("<image>?")}) + "\n")
    status, printed, _ = ask("data=llava", f"data.sources=[{lone}]", "data.num_workers=0", cwd=tmp_path)
    assert status == 1
    assert "1 of 1 rows that were encoded as in training cannot be used" in printed
    assert f"{lone}:1: " in printed


def test_faults_of_config_model_and_run_directory_are_each_told(tmp_path):
    (tmp_path / "run" / "hf").mkdir(parents=True)
    (tmp_path / "run" / "hf" / "mine.txt").write_text("x")
    status, printed, _ = ask(f"run_dir={tmp_path / 'run'}", "optim.lr=abc", "trainer.max_steps=x", cwd=tmp_path)
    assert status == 1
    assert "ERROR   trainer.max_steps=x: wanted a whole number of at least 1, or null." in printed
    assert "ERROR   optim.lr=abc: wanted a number, got a text." in printed
    assert "not written by vlmkit" in printed
    status, printed, _ = ask("model=qwen3_vl", f"model.path={tmp_path / 'none'}", cwd=tmp_path)
    assert status == 1
    assert "there is no directory" in printed
