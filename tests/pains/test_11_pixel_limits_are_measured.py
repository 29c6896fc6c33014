"""Pixel limits that a version ignores or renames: they are set in one place, and measured on what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.processing.encode import encode_example, measure_example
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.processor import load_processor

LEAST, MOST, VIDEO_MOST = 128 * 128, 256 * 256, 4 * 96 * 96


@pytest.fixture(scope="module")
def limited(tiny):
    budget = PixelBudget(
        image_min_pixels=LEAST, image_max_pixels=MOST, video_min_pixels=64 * 64, video_max_pixels=VIDEO_MOST
    )
    return load_processor(tiny.vision_language, budget=budget)


def drawn(folder, name, height, width):
    from PIL import Image

    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(folder / name)
    return folder / name


def encoded(part, processor):
    turns = (Turn(role="user", parts=(part, TextPart("?"))), Turn(role="assistant", parts=(TextPart("yes"),)))
    conversation = Conversation(turns=turns)
    sample, measure = encode_example(conversation, processor, pixels="uint8"), measure_example(conversation, processor)
    patches = int(sample["grid_thw"].prod(-1).sum())
    assert measure.num_patches == patches == len(sample["still_patches"]) + len(sample["video_patches"])
    return sample["grid_thw"][0]


def test_a_large_and_a_small_image_come_out_within_the_limits(limited, tmp_path):
    patch = limited.geometry.patch_size**2
    large = int(encoded(ImagePart(drawn(tmp_path, "large.png", 900, 700)), limited).prod()) * patch
    small = int(encoded(ImagePart(drawn(tmp_path, "small.png", 40, 50)), limited).prod()) * patch
    assert MOST * 0.8 < large <= MOST, "the limit is reached, not merely kept"
    assert LEAST <= small < LEAST * 1.3


def test_the_limit_of_a_video_is_of_all_its_frames_together(limited, tmp_path):
    frames = tuple(drawn(tmp_path, f"{number}.png", 300, 300) for number in range(4))
    pairs, rows, columns = encoded(VideoPart(frames), limited).tolist()
    pixels = pairs * 2 * rows * columns * limited.geometry.patch_size**2
    assert VIDEO_MOST * 0.6 < pixels <= VIDEO_MOST


def test_the_stock_processor_obeys_the_same_limits_after_saving(limited, tmp_path):
    limited.save(tmp_path / "saved")
    again = load_processor(tmp_path / "saved", positions_per_side=limited.geometry.positions_per_side)
    image = torch.zeros(3, 900, 700, dtype=torch.uint8)
    grids = [one.hf.image_processor(images=[image], return_tensors="pt")["image_grid_thw"] for one in (limited, again)]
    assert grids[0].tolist() == grids[1].tolist() == [[1, *limited.image_grid(900, 700)[1:]]]
