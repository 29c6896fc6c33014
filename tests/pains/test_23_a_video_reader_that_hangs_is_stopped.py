"""A decoder that hangs in C stops neither the index nor the workers: the file is named, its row is bad, the rest goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from tests.data.conftest import said
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.dataset import PackDataset, PlanLoader, SlotSampler
from vlmkit.errors import DataError
from vlmkit.processing.processor import Processor, load_processor
from vlmkit.processing.reading import ReadingProcess, ReadTimeout
from vlmkit.processing.video import VideoReading, choose_reader

SECONDS = 2.0
HANGING = '''
"""Stands where decord is looked for: waits in C for a signal that never comes, where the file's name says so."""
import ctypes
import numpy as np

class DECORDError(Exception):
    pass

class VideoReader:
    def __init__(self, path, num_threads):
        self.path = path
        if "never-opens" in path:
            ctypes.CDLL(None).pause()
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return np.zeros((64, 64, 3), dtype=np.uint8)
    def get_avg_fps(self):
        return 4.0
    def get_batch(self, indices):
        if "never-decodes" in self.path:
            ctypes.CDLL(None).pause()
        raise DECORDError("no such frames")
'''


@pytest.fixture(autouse=True)
def _hanging_decord(tmp_path, monkeypatch):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "decord.py").write_text(HANGING)
    monkeypatch.syspath_prepend(tmp_path / "library")
    choose_reader.cache_clear()
    yield
    choose_reader.cache_clear()


@pytest.fixture
def reading(tiny) -> Processor:
    return load_processor(tiny.vision_language, reading=VideoReading(reader="decord", timeout_seconds=SECONDS))


def manifest(folder: Path, video: str) -> Path:
    """A picture, a video, a picture."""
    (folder / video).write_bytes(b"bytes that the library never gets through")
    Image.new("RGB", (64, 64)).save(folder / "picture.png")
    picture = said("<image> what is it?", "grey", image="picture.png")
    rows = [picture, said("<video> what happens?", "nothing", video=video), picture]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def module(path: Path, processor: Processor, folder: Path, **changed) -> PackedDataModule:
    unset = ("name", "root", "limit", "image_min_pixels", "image_max_pixels", "video_min_pixels", "video_max_pixels")
    unset += ("video_fps", "video_max_frames", "max_tokens", "tokens_per_batch", "patches_per_batch")
    settings = dict.fromkeys(unset) | {
        "sources": [path], "allow_absolute_paths": False, "video_reader": "decord", "media_timeout_seconds": SECONDS,
        "overlong": "error", "on_bad_row": "error", "on_bad_media": "mask", "max_bad_media": None, "max_bad_rows": None, "batch_size": 3,
        "order": "sequential", "heaviest_first": False, "pixels": "uint8", "num_workers": 0,
        "cache_dir": folder / "cache", "seed": 0,
    }  # fmt: skip
    made = PackedDataModule(**(settings | changed))
    made.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    return made


def test_counting_stops_it_and_names_file_row_and_setting(reading, tmp_path):
    path = manifest(tmp_path, "never-opens.mp4")
    with pytest.raises(DataError) as caught:
        module(path, reading, tmp_path)
    said = f"{path}:2: video '{tmp_path / 'never-opens.mp4'}' was not read by decord within 2 seconds"
    assert said in str(caught.value)
    assert "raise data.media_timeout_seconds" in str(caught.value)
    skipped = module(path, reading, tmp_path, on_bad_row="skip").accounting()["sources"]["rows"]
    assert (skipped["trained"], skipped["skipped_by_reason"]) == (2, {"media_timeout": 1})


@pytest.mark.parametrize("num_workers", [0, 1], ids=["main process", "worker"])
def test_loading_stops_it_and_the_other_rows_of_the_pack_are_trained(reading, tmp_path, num_workers):
    path = manifest(tmp_path, "never-decodes.mp4")
    data = module(path, reading, tmp_path)
    slots = list(data.steps(1, 1).slots(0))
    dataset = PackDataset(index=data.index, processor=reading, pixels="uint8", on_bad_media="mask")
    context = "forkserver" if num_workers else None
    loader = PlanLoader(
        dataset,
        sampler=SlotSampler(slots, num_done=0),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    (batch,) = loader
    assert batch["rows"] == [0, 1, 2]
    ((row, reason, finding),) = batch["masked"]
    assert (row, reason) == (1, "media_timeout")
    assert "never-decodes.mp4' was not read by decord within 2 seconds" in finding
    assert batch["target_samples"].unique().tolist() == [0, 2]


def test_what_hung_is_gone_afterwards(tmp_path):
    reader = ReadingProcess("decord", timeout_seconds=60.0)
    (tmp_path / "never-opens.mp4").touch()
    reader.header(tmp_path / "fine.mp4")
    pid = reader.pid
    assert pid is not None
    reader.timeout_seconds = 0.5
    with pytest.raises(ReadTimeout):
        reader.header(tmp_path / "never-opens.mp4")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    assert reader.pid is None
