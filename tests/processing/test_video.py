"""Videos: every reader gives the frames that were drawn, time stamps are true, a reader that hangs or crashes is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vlmkit.conversation import Conversation, TextPart, Turn, VideoPart
from vlmkit.errors import ConfigError, DataError
from vlmkit.processing import readers
from vlmkit.processing.encode import encode_example, layout, measure_example
from vlmkit.processing.readers import READERS
from vlmkit.processing.reading import ReadingProcess, ReadTimeout
from vlmkit.processing.video import VideoReading, choose_reader

FPS, NUM_FRAMES, SIDE = 8, 40, 64


def numbered(path: Path, num_frames: int = NUM_FRAMES, codec: str = "mpeg4") -> Path:
    """A video whose frame n shows n: six squares, black or white, for its bits."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 3 * SIDE, 2 * SIDE, "yuv420p", 2_000_000
        for number in range(num_frames):
            bits = np.array([number >> bit & 1 for bit in range(6)], dtype=np.uint8).reshape(2, 3) * 255
            picture = np.repeat(np.kron(bits, np.ones((SIDE, SIDE), dtype=np.uint8))[..., None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_of(frame: np.ndarray) -> int:
    """The number that a frame (height, width, 3) shows."""
    squares = frame.reshape(2, SIDE, 3, SIDE, 3).mean(axis=(1, 3, 4)).reshape(-1)
    return sum(1 << bit for bit, value in enumerate(squares) if value > 127)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return numbered(tmp_path_factory.mktemp("video") / "numbered.mp4")


def usable(name: str) -> str:
    try:
        return choose_reader(name)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("timeout", [None, 60.0], ids=["in this process", "in its own"])
@pytest.mark.parametrize("name", READERS)
def test_every_reader_gives_the_frames_that_were_drawn(video, name, timeout):
    read = VideoReading(reader=usable(name), timeout_seconds=timeout)
    header = read.header(video)
    assert (header.num_frames, header.fps, header.height, header.width) == (NUM_FRAMES, FPS, 2 * SIDE, 3 * SIDE)
    indices = [0, 7, 8, 23, 39]
    frames = read.frames(video, indices)
    assert (frames.shape, frames.dtype) == ((5, 3, 2 * SIDE, 3 * SIDE), torch.uint8)
    assert [number_of(frame) for frame in frames.permute(0, 2, 3, 1).numpy()] == indices


def conversation(path: Path) -> Conversation:
    turns = (
        Turn(role="user", parts=(VideoPart(path), TextPart("What happens?"))),
        Turn(role="assistant", parts=(TextPart("Squares blink."),)),
    )
    return Conversation(turns=turns)


@pytest.mark.parametrize("name", READERS)
def test_time_stamps_are_indices_over_fps_and_counts_are_exact(video, name, processor, monkeypatch):
    monkeypatch.setattr(processor, "reading", VideoReading(reader=usable(name), timeout_seconds=None))
    place = layout(VideoPart(video), processor)
    frames = processor.reading.frames(video, list(place.frames))
    shown = [number_of(frame) for frame in frames.permute(0, 2, 3, 1).numpy()]
    assert shown == list(place.frames)
    assert len(shown) % 2 == 0
    assert place.seconds == tuple((shown[n] + shown[n + 1]) / 2 / FPS for n in range(0, len(shown), 2))
    sample = encode_example(conversation(video), processor, pixels="uint8")
    text = processor.hf.tokenizer.decode(sample["input_ids"].tolist())
    for seconds in place.seconds:
        assert f"<{seconds:.1f} seconds>" in text
    assert measure_example(conversation(video), processor).num_tokens == len(sample["input_ids"])


def test_sampling_is_that_of_the_stock_processor(video, processor):
    from transformers.video_utils import VideoMetadata

    stock = processor.hf.video_processor
    wanted = stock.sample_frames(VideoMetadata(total_num_frames=NUM_FRAMES, fps=FPS), fps=stock.fps)
    assert list(layout(VideoPart(video), processor).frames) == [int(index) for index in wanted]


def turned(path: Path, degrees: int) -> None:
    """Say in an mp4 that it is to be shown turned clockwise (ISO 14496-12, 8.3.2: the matrix of `tkhd`)."""
    one = 1 << 16
    a, b = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_upright_with_every_reader(tmp_path, video, name, degrees):
    read = VideoReading(reader=usable(name), timeout_seconds=60.0)
    lying = read.frames(video, [0, 22]).permute(0, 2, 3, 1).numpy()
    path = tmp_path / "turned.mp4"
    path.write_bytes(video.read_bytes())
    turned(path, degrees)
    header, frames = read.header(path), read.frames(path, [0, 22])
    assert (header.height, header.width) == tuple(frames.shape[-2:])
    upright = np.rot90(lying, -degrees // 90, axes=(1, 2))
    assert np.abs(frames.permute(0, 2, 3, 1).numpy().astype(int) - upright).mean() < 2


@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_the_rate_of_the_container(tmp_path, name):
    path = numbered(tmp_path / "cut.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    read = VideoReading(reader=usable(name), timeout_seconds=60.0)
    header = read.header(path)
    assert header.fps == FPS
    assert header.num_frames < NUM_FRAMES
    last = read.frames(path, [header.num_frames - 1]).permute(0, 2, 3, 1).numpy()[0]
    assert number_of(last) == header.num_frames - 1


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["empty", "noise", "head only", "text"])
def test_a_damaged_file_is_told_with_its_reader(tmp_path, video, name, damage):
    read = VideoReading(reader=usable(name), timeout_seconds=30.0)
    path = tmp_path / "bad.mp4"
    content = video.read_bytes()
    path.write_bytes(
        {"empty": b"", "noise": os.urandom(5000), "head only": content[:200], "text": b"not a video\n" * 99}[damage]
    )
    with pytest.raises(DataError, match=r"bad\.mp4' (cannot be read by \w+|holds no frame)") as caught:
        read.header(path)
    assert caught.value.reason in ("unreadable_media", "empty_media")
    assert read.header(video).num_frames == NUM_FRAMES  # and it goes on


@pytest.mark.parametrize("name", READERS)
def test_a_video_cut_short_never_gives_other_frames(tmp_path, name):
    whole = numbered(tmp_path / "whole.avi", 60)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    read = VideoReading(reader=usable(name), timeout_seconds=30.0)
    with contextlib.suppress(DataError):  # refused is right, and so are the very frames
        frames = read.frames(cut, [0, 55])
        assert [number_of(frame) for frame in frames.permute(0, 2, 3, 1).numpy()] == [0, 55]


def test_a_reader_that_hangs_is_stopped_and_the_next_read_works(video, tmp_path):
    pipe = tmp_path / "never.mp4"
    os.mkfifo(pipe)  # opening it waits for a writer that never comes, inside the library
    process = ReadingProcess("pyav", timeout_seconds=1.0)
    try:
        assert process.header(video).num_frames == NUM_FRAMES
        start = time.monotonic()
        with pytest.raises(ReadTimeout):
            process.header(pipe)
        assert time.monotonic() - start < 10
        process.timeout_seconds = 60.0
        assert process.header(video).num_frames == NUM_FRAMES
    finally:
        process.close()


def test_the_time_out_names_file_reader_and_setting(tmp_path):
    pipe = tmp_path / "never.mp4"
    os.mkfifo(pipe)
    with pytest.raises(
        DataError, match=r"never\.mp4' was not read by pyav within 0\.5 seconds.*media_timeout_seconds"
    ) as caught:
        VideoReading(reader="pyav", timeout_seconds=0.5).header(pipe)
    assert caught.value.reason == "media_timeout"


def test_a_reader_that_crashes_is_a_bad_file_not_the_end(video, monkeypatch):
    process = ReadingProcess("pyav", timeout_seconds=60.0)
    try:
        process.header(video)
        os.kill(process._process.pid, signal.SIGSEGV)
        process._process.wait()
        assert process.header(video).num_frames == NUM_FRAMES  # found dead before it was asked: started anew
        child = process._process
        os.kill(child.pid, signal.SIGSTOP)  # it must not answer before it is killed
        monkeypatch.setattr(
            process, "_line", lambda *_: (child.kill(), child.wait(), process._some(child, time.monotonic() + 9, 1))[2]
        )
        with pytest.raises(readers.ReadError, match="pyav ended with status -9 on it"):
            process.header(video)
    finally:
        process.close()


def test_a_reader_that_cannot_be_loaded_is_told_with_its_remedy_and_auto_goes_on(monkeypatch):
    class Broken:
        def __init__(self):
            raise ImportError("libavutil.so.56: cannot open shared object file")

    choose_reader.cache_clear()
    monkeypatch.setattr("vlmkit.processing.video.READERS", {"torchcodec": Broken, "pyav": readers.PyavReader})
    try:
        with pytest.raises(
            ConfigError,
            match=r"data\.video_reader=torchcodec cannot be loaded\. Install it, or choose data\.video_reader=auto\. torchcodec: libavutil.* \(pip",
        ):
            choose_reader("torchcodec")
        assert choose_reader("auto") == "pyav"
        choose_reader.cache_clear()
        monkeypatch.setattr("vlmkit.processing.video.READERS", {"torchcodec": Broken})
        with pytest.raises(ConfigError, match="no library that reads videos can be loaded"):
            choose_reader("auto")
    finally:
        choose_reader.cache_clear()


def test_settings_are_checked():
    with pytest.raises(
        ValueError, match=r"data\.video_reader must be one of auto, decord, torchcodec, pyav, got 'cv2'"
    ):
        VideoReading(reader="cv2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.media_timeout_seconds must be positive, or null, got 0"):
        VideoReading(timeout_seconds=0)
