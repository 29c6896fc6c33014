"""One broken image kills a run, or alters it without a word: it is masked where asked for, counted, named, and bounded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.conftest import lines, run, small, write_manifest
from vlmkit.conversation import ImagePart
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.dataset import PackDataset
from vlmkit.errors import DataError, Origin
from vlmkit.processing.media import MAX_DECODED_PIXELS, image_size, load_image
from vlmkit.training.callbacks.bad_media import BadMedia

BROKEN = (3, 8, 14)
NUM_ROWS = 18


def cut(path: Path) -> None:
    """Keep the header, so that the index counts the image, and lose most of the pixels."""
    path.write_bytes(path.read_bytes()[:300])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    path = write_manifest(tmp_path_factory.mktemp("broken"), NUM_ROWS)
    for number in BROKEN:
        cut(path.parent / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def data(manifest, processor, tmp_path_factory) -> PackedDataModule:
    settings = dict.fromkeys(
        ("name", "root", "limit", "image_min_pixels", "image_max_pixels", "video_min_pixels", "video_max_pixels")
    )
    settings |= dict.fromkeys(("video_fps", "video_max_frames", "max_tokens", "tokens_per_batch", "patches_per_batch"))
    made = PackedDataModule(
        **settings, sources=[manifest], allow_absolute_paths=False, video_reader="auto", media_timeout_seconds=None, overlong="error", on_bad_row="error",
        on_bad_media="mask", max_bad_rows=None, max_bad_media=2, batch_size=6, order="sequential", heaviest_first=False, pixels="uint8",
        num_workers=0, cache_dir=tmp_path_factory.mktemp("cache"), seed=0,
    )  # fmt: skip
    made.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    return made


def test_a_masked_row_keeps_its_place_and_its_share_of_the_denominator(data, processor):
    slots = list(data.steps(1, 1).slots(0))
    dataset = PackDataset(index=data.index, processor=processor, pixels="uint8", on_bad_media="mask")
    batches = [dataset[slot] for slot in slots]
    assert [row for batch in batches for row in batch["rows"]] == list(range(NUM_ROWS)), "no row replaces another"
    for batch, slot in zip(batches, slots, strict=True):
        supervised = data.index.num_supervised_tokens[list(slot.rows)]
        assert batch["step_supervised_tokens"] == int(supervised.sum()), "the plan's, masked rows included"
        kept = [number for number, row in enumerate(slot.rows) if row not in BROKEN]
        assert batch["target_samples"].unique().tolist() == kept
        assert len(batch["targets"]) == int(supervised[kept].sum())
    masked = [entry for batch in batches for entry in batch["masked"]]
    assert [(row, reason) for row, reason, _ in masked] == [(row, "unreadable_media") for row in BROKEN]
    assert all(f"{row}.png" in finding for row, _, finding in masked)


def test_the_rows_beside_a_masked_one_are_as_they_were(data, processor):
    slot = next(slot for slot in data.steps(1, 1).slots(0) if 3 in slot.rows)
    dataset = PackDataset(index=data.index, processor=processor, pixels="uint8", on_bad_media="mask")
    batch = dataset[slot]
    starts = batch["cu_seqlens"].tolist()
    for number, row in enumerate(slot.rows):
        if row not in BROKEN:
            ids = batch["input_ids"][0, starts[number] : starts[number + 1]]
            assert torch.equal(ids, dataset.sample(row)["input_ids"])


def test_without_masking_the_error_names_row_and_file(data, processor, manifest):
    slot = next(slot for slot in data.steps(1, 1).slots(0) if 3 in slot.rows)
    with pytest.raises(DataError) as caught:
        PackDataset(index=data.index, processor=processor, pixels="uint8")[slot]
    assert str(caught.value).startswith(f"{manifest}:4: image '{manifest.parent / '3.png'}' cannot be decoded")


def test_a_fault_that_is_not_the_mediums_is_never_masked(data, processor, manifest, tmp_path, monkeypatch):
    dataset = PackDataset(index=data.index, processor=processor, pixels="uint8", on_bad_media="mask")

    def no_row(row: int) -> None:
        raise DataError("the row is no valid JSON.", reason="bad_json", origin=data.index.origin(row))

    monkeypatch.setattr(dataset, "sample", no_row)
    with pytest.raises(DataError, match=f"{manifest}:1: the row is no valid JSON"):
        dataset[next(iter(data.steps(1, 1).slots(0)))]


def test_every_row_has_one_fate(data):
    masked = [(row, "unreadable_media", f"image {row} cannot be decoded.") for row in BROKEN]
    told = data.accounting(masked=masked)
    (rows,) = told["sources"].values()
    assert rows["read"] == NUM_ROWS == rows["trained"] + rows["skipped"] + rows["masked"] + rows["overlong"]
    assert (rows["trained"], rows["masked"]) == (NUM_ROWS - 3, 3)
    assert told["masked"]["by_reason"] == {"unreadable_media": 3}
    assert [(row["where"].rsplit(":", 1)[1], row["id"]) for row in told["masked"]["rows"]] == [
        (str(row + 1), str(row)) for row in BROKEN
    ]
    assert data.accounting()["sources"]["manifest"]["trained"] == NUM_ROWS, "asking does not change the verdicts"


def test_the_list_survives_its_checkpoint():
    first, second = (BadMedia(masks=True, most=None, origin_of=lambda row: Origin("a", row + 1)) for _ in range(2))
    first.rows = {7: (7, "missing_media", "gone"), 2: (2, "media_timeout", "slow")}
    second.load_state_dict(first.state_dict())
    assert second.rows == first.rows


def test_a_run_stops_at_the_bound_and_goes_on_once_it_is_raised(manifest, tmp_path):
    settings = ["data.on_bad_media=mask", "data.num_workers=1", "data.batch_size=3", "save.every_n_steps=1"]
    settings += ["trainer.max_epochs=2", "data.order=sequential", "data.heaviest_first=false"]
    output = run("train", *small(manifest, tmp_path, *settings, "data.max_bad_media=2"), status=1)
    assert "The media of 3 rows could not be read by step 5, more than data.max_bad_media=2. The last ones:" in output
    assert all(
        f"{manifest}:{row + 1}: image '{manifest.parent / f'{row}.png'}' cannot be dec" in output for row in BROKEN
    )
    assert "Traceback" not in output
    run("train", *small(manifest, tmp_path, *settings, "data.max_bad_media=3", "resume_from=auto"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    counts = rows["sources"]["manifest"]
    assert {key: counts[key] for key in ("read", "trained", "skipped", "masked", "overlong")} == {
        "read": NUM_ROWS, "trained": NUM_ROWS - 3, "skipped": 0, "masked": 3, "overlong": 0,
    }  # fmt: skip
    assert [row["id"] for row in rows["masked"]["rows"]] == [str(row) for row in BROKEN], "once each, over two epochs"
    assert sum(line["samples"] for line in lines(tmp_path)) == 2 * (NUM_ROWS - 3)


@pytest.mark.slow
def test_two_ranks_with_workers_count_together(manifest, tmp_path):
    more = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=2", "data.num_workers=1"]
    more += ["data.on_bad_media=mask", "trainer.accumulate_grad_batches=2"]
    run("train", *small(manifest, tmp_path / "all", *more, "data.max_bad_media=null", "trainer.max_epochs=2"))
    rows = json.loads((tmp_path / "all" / "report.json").read_text())["rows"]
    assert rows["sources"]["manifest"]["masked"] == 3
    assert sorted(int(row["id"]) for row in rows["masked"]["rows"]) == list(BROKEN)
    output = run("train", *small(manifest, tmp_path / "few", *more, "data.max_bad_media=1"), status=1)
    assert "more than data.max_bad_media=1" in output


def image(folder: Path, width: int, height: int) -> ImagePart:
    Image.new("1", (width, height)).save(folder / "image.png")
    return ImagePart(folder / "image.png")


@pytest.mark.parametrize(
    ("size", "reason", "said"),
    [
        ((402, 2), "aspect_ratio", "is 402 x 2: its aspect ratio exceeds 200"),
        ((1, 201), "aspect_ratio", "is 1 x 201: its aspect ratio exceeds 200"),
        (
            (17_000, 11_000),
            "too_many_pixels",
            f"refused undecoded: Image size (187000000 pixels) exceeds limit of {MAX_DECODED_PIXELS}",
        ),
    ],
)
@pytest.mark.parametrize("ask", [image_size, load_image])
def test_extreme_shapes_are_refused_by_name_before_a_pixel_is_decoded(tmp_path, size, reason, said, ask):
    part = image(tmp_path, *size)
    with pytest.raises(DataError) as caught:
        ask(part)
    assert caught.value.reason == reason
    assert said in str(caught.value)
    assert os.fspath(tmp_path / "image.png") in str(caught.value)


def test_an_image_smaller_than_a_patch_is_scaled_up_as_the_processor_does(tmp_path, processor):
    part = image(tmp_path, 5, 3)
    rows, columns = processor.image_grid(*image_size(part))[1:]
    stock = processor.hf.image_processor(
        images=[Image.open(tmp_path / "image.png").convert("RGB")], return_tensors="pt"
    )
    assert stock["image_grid_thw"].tolist() == [[1, rows, columns]]
    assert rows * columns >= 4
