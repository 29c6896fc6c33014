"""rows read = trained + skipped + masked + over-long in `report.json`, whatever ends or thins out a run, against what was really trained."""

from __future__ import annotations

import json

import pytest

from tests.training.conftest import REPOSITORY, lines, run, small, write_manifest
from tests.training.recorder import recorded

NUM_ROWS = 12


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twelve rows: one whose image is not there, one that is longer than 60 tokens."""
    path = write_manifest(tmp_path_factory.mktemp("rows"), NUM_ROWS, text_only=frozenset({1, 6}))
    told = json.loads(path.read_text())
    told[4]["image"] = "gone.png"
    told[7]["conversations"][1]["value"] = "again " * 80
    path.write_text(json.dumps(told))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "trained", "reasons", "overlong"),
    [
        ([], 10, {"missing_media": 1}, 1),
        (["data.limit=6"], 5, {"missing_media": 1}, 0),
        (["trainer.max_steps=2"], 4, {"missing_media": 1, "not_drawn": 6}, 1),
        (["+trainer.limit_train_batches=3"], 6, {"missing_media": 1, "not_reached": 4}, 1),
        (["stage=stage1", "trainer.max_epochs=2"], 8, {"missing_media": 1, "text_only": 2}, 1),
        (["weight=0.5"], 5, {"missing_media": 1, "not_drawn": 5}, 1),
        (["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=2"], 10, {"missing_media": 1}, 1),
    ],
    ids=["whole", "limit", "max_steps", "stopped early", "stage1", "weight", "two ranks"],
)  # fmt: skip
def test_every_row_has_one_fate(overrides, trained, reasons, overlong, rows, tmp_path):
    settings = small(
        rows,
        tmp_path / "run",
        "data.on_bad_row=skip",
        "data.max_bad_rows=null",
        "data.max_tokens=60",
        "data.overlong=drop",
    )
    if overrides == ["weight=0.5"]:
        overrides = [f"data.sources=[{{path: {rows}, weight: 0.5}}]"]
    record = f"+callbacks.rows={{_target_: tests.training.recorder.RowRecorder, directory: {tmp_path / 'seen'}}}"
    run("train", *settings, *overrides, record, cwd=REPOSITORY)
    told = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]
    source = told["sources"]["manifest"]
    assert source["read"] == source["trained"] + source["skipped"] + source["masked"] + source["overlong"]
    assert source["read"] == (6 if "data.limit=6" in overrides else NUM_ROWS)
    assert (source["trained"], source["skipped_by_reason"], source["overlong"]) == (trained, reasons, overlong)
    seen = [row for line in recorded(tmp_path / "seen") for row in line["rows"]]
    assert told["samples"] == len(seen)
    assert source["trained"] == len(set(seen))
    if "+trainer.limit_train_batches=3" not in overrides:
        assert sum(line["samples"] for line in lines(tmp_path / "run")) == len(seen)
