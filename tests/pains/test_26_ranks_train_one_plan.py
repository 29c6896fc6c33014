"""Ranks train different plans: each rank indexed for itself, from another cache or another copy of the data, and nobody compared."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.training import forked
from tests.training.conftest import lines, small, write_manifest
from vlmkit.data.digest import DataDigest, find_difference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


class OwnDisk:
    """Each rank has a disk of its own, with a copy of the data and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        os.environ["OWN_DISK"] = str(self.folder / os.environ["LOCAL_RANK"])


@pytest.fixture
def disks(tmp_path) -> Path:
    """The same twelve rows for both ranks."""
    for rank in range(2):
        (tmp_path / "disks" / str(rank) / "data").mkdir(parents=True)
    write_manifest(tmp_path / "disks" / "0" / "data", 12)
    shutil.copytree(tmp_path / "disks" / "0" / "data", tmp_path / "disks" / "1" / "data", dirs_exist_ok=True)
    return tmp_path / "disks"


def settings(disks: Path, run_dir: Path, *more: str) -> list[str]:
    overrides = small(Path("${oc.env:OWN_DISK}/data/manifest.json"), run_dir, *more)
    return [*overrides, "data.cache_dir=${oc.env:OWN_DISK}/cache", "trainer.max_steps=2"]


def test_two_disks_that_hold_the_same_give_one_plan(disks, tmp_path):
    run_dir = tmp_path / "run"
    forked.run_ranks("ddp", *settings(disks, run_dir), output=tmp_path / "out", first=OwnDisk(disks))
    assert [line["step"] for line in lines(run_dir)] == [1, 2]
    for rank in range(2):
        assert list((disks / str(rank) / "cache").glob("index-*.bin")), "each counted its own copy"
    assert json.loads((run_dir / "report.json").read_text())["trained_on"]["samples"] == 8


def test_a_medium_that_one_disk_lacks_stops_both_before_the_first_step(disks, tmp_path):
    (disks / "1" / "data" / "7.png").unlink()
    run_dir = tmp_path / "run"
    both = "\n".join(
        forked.run_ranks(
            "ddp", *settings(disks, run_dir, "data.on_bad_row=skip", "data.max_bad_rows=1"), output=tmp_path / "out", first=OwnDisk(disks), status=1
        )
    )  # fmt: skip
    assert "rank 1 failed: data: rank 1 (" in both
    assert f"data.cache_dir={disks}/1/cache) and rank 0 (" in both
    assert f"data.cache_dir={disks}/0/cache) would train different data: " in both
    assert f"{disks}/1/data/manifest.json:8 is missing_media on rank 1 and trained on rank 0; 1 of 12 rows" in both
    assert "Give all machines the same manifests and media" in both
    assert "rank 0 stopped: rank 1 failed" in both
    assert "Traceback" not in both
    assert not (run_dir / "train.jsonl").exists()


@pytest.fixture
def digest(corpus, processor, datamodule):
    """Makes the digest of some rows on a disk of their own, and the index behind it."""

    def make(rows, name="rows.jsonl", start=(0, 0), **changed):
        data = datamodule(corpus.write(rows, name), on_bad_row="skip", batch_size=2, **changed)
        data.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
        data.start_step, data.start_pack = start
        return data.digest(), data.index

    return make


def difference(one, other) -> str | None:
    (mine, index), (theirs, _) = one, other
    sent = DataDigest.from_bytes(theirs.to_bytes())
    return find_difference(mine, sent, index, names=("rank 3", "rank 0"))


def test_what_differs_is_named_with_both(corpus, digest):
    rows = [corpus.rows[kind] for kind in ("text", "image", "three_images", "turns")]
    same, again = digest(rows), digest(rows)
    assert difference(again, same) is None
    assert "rank 3 begins after step 4 (8 packs) and rank 0 after step 0 (0 packs)" in difference(
        digest(rows, start=(4, 8)), same
    )
    longer = difference(digest([*rows, rows[0]]), same)
    assert "rows.jsonl has other contents on rank 3 (hash " in longer
    assert "5 rows in all) than on rank 0 (hash" in longer
    assert "the rows are the same, the packs are not" in difference(digest(rows, seed=7), same)
    assert "(tokenizer, template, pixel limits) of rank 3" in difference(
        (digest(rows)[0].__class__(**{**vars(same[0]), "processor": "another"}), same[1]), same
    )


def test_a_medium_of_another_size_is_named_with_what_it_costs(corpus, digest, tmp_path):
    rows = [corpus.rows[kind] for kind in ("text", "image", "turns")]
    same = digest(rows, cache_dir=tmp_path / "one")
    corpus.draw("wide.png", 192, 64)
    told = difference(digest(rows, cache_dir=tmp_path / "two"), same)
    assert "rows.jsonl:2 has " in told
    assert told.count("patches and 1 media on rank") == 2
    assert told.endswith("its media are not the same.")
    Image.open(corpus.root / "wide.png").verify()
