"""Wrong frame rates and double sampling: the frames that are read are those whose time stamps are rendered."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vlmkit.conversation import Conversation, TextPart, Turn, VideoPart
from vlmkit.processing.encode import encode_example, layout
from vlmkit.processing.media import PixelBudget, load_frames
from vlmkit.processing.processor import Processor, load_processor

NUM_FRAMES = 40
BITS = 6
SIDE = 32


def picture(number: int) -> np.ndarray:
    """A frame that carries its number: a row of blocks, white where the bit is set."""
    frame = np.zeros((2 * SIDE, BITS * SIDE, 3), dtype=np.uint8)
    for bit in range(BITS):
        frame[:, bit * SIDE : (bit + 1) * SIDE] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: torch.Tensor) -> int:
    """What `picture` wrote."""
    centres = frame.float().mean(0)[SIDE, SIDE // 2 :: SIDE]
    return sum(int(level > 127) << bit for bit, level in enumerate(centres.tolist()))


def draw(path: Path, rate: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = BITS * SIDE, 2 * SIDE, "yuv420p"
        for number in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def sampling(tiny, fps: float, most: int) -> Processor:
    budget = PixelBudget(video_fps=fps, video_max_frames=most, video_max_pixels=2**20)
    return load_processor(tiny.vision_language, budget=budget)


def about(part: VideoPart) -> Conversation:
    asked = Turn(role="user", parts=(part, TextPart("what happens?")))
    return Conversation(turns=(asked, Turn(role="assistant", parts=(TextPart("it counts"),))))


def stamps(part: VideoPart, processor: Processor) -> list[str]:
    ids = encode_example(about(part), processor, pixels="uint8")["input_ids"]
    return re.findall(r"<([\d.]+) seconds>", processor.hf.tokenizer.decode(ids))


@pytest.mark.parametrize(("rate", "fps", "most"), [(8, 2.0, 768), (8, 4.0, 6), (25, 2.0, 768), (10, 10.0, 768)])
def test_frames_read_are_the_frames_stamped(tiny, tmp_path, rate, fps, most):
    part, processor = VideoPart(draw(tmp_path / "counting.mp4", rate)), sampling(tiny, fps, most)
    place = layout(part, processor)
    assert len(place.frames) <= most
    read = load_frames(part, list(place.frames), processor.reading)
    assert [number_of(frame) for frame in read] == list(place.frames), "each frame carries its number"
    frames = [*place.frames, *place.frames[-1:] * (len(place.frames) % 2)]
    middle = [(first / rate + second / rate) / 2 for first, second in zip(frames[::2], frames[1::2], strict=True)]
    assert list(place.seconds) == pytest.approx(middle)
    assert stamps(part, processor) == [f"{second:.1f}" for second in middle]


def test_the_stock_processor_renders_the_same_ids(tiny, tmp_path):
    part, processor = VideoPart(draw(tmp_path / "counting.mp4", 8)), sampling(tiny, 2.0, 768)
    place = layout(part, processor)
    sample = encode_example(about(part), processor, pixels="float32")
    text = processor.hf.apply_chat_template(
        [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what happens?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "it counts"}]},
        ],
        tokenize=False,
    )
    metadata = {"fps": 8.0, "frames_indices": list(place.frames), "total_num_frames": NUM_FRAMES}
    frames = load_frames(part, list(place.frames), processor.reading)
    stock = processor.hf(
        text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
    assert stock["input_ids"][0].tolist() == sample["input_ids"].tolist()
    assert stock["video_grid_thw"].tolist() == sample["grid_thw"].tolist()


def test_a_list_of_frames_is_taken_whole_at_the_sampling_rate(tiny, tmp_path):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(picture(number)).save(paths[-1])
    part, processor = VideoPart(tuple(paths)), sampling(tiny, 2.0, 768)
    place = layout(part, processor)
    assert place.frames == (0, 1, 2, 3, 4), "not sampled a second time"
    assert [number_of(frame) for frame in load_frames(part, list(place.frames), processor.reading)] == [0, 1, 2, 3, 4]
    assert place.seconds == (0.25, 1.25, 2.0)


def test_a_long_list_of_frames_keeps_to_the_most_frames_of_a_video(tiny, tmp_path):
    for number in range(9):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    part = VideoPart(tuple(tmp_path / f"{number}.png" for number in range(9)))
    place = layout(part, sampling(tiny, 2.0, 5))
    assert place.frames == (0, 2, 4, 6, 8)
    assert place.seconds == (0.5, 2.5, 4.0)
