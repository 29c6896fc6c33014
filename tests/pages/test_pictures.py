"""Pictures put together out of patches are what was cut; copies of files are small and upright."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.pages.pictures import data_uri, from_patches, thumbnail
from vlmkit.processing.encode import encode_example


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def sample_of(part, processor):
    turns = (Turn("user", (part, TextPart("x"))), Turn("assistant", (TextPart("y"),)))
    return encode_example(Conversation(turns), processor, pixels="uint8")


def test_an_image_of_a_fitting_size_comes_back_pixel_by_pixel(processor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample = sample_of(ImagePart(tmp_path / "a.png"), processor)
    frames = from_patches(sample["still_patches"], tuple(sample["grid_thw"][0].tolist()), processor.geometry)
    assert torch.equal(frames, torch.from_numpy(pixels)[None])


def test_frames_of_a_video_come_back_in_order(processor, tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    sample = sample_of(VideoPart(tuple(paths)), processor)
    frames = from_patches(sample["video_patches"], tuple(sample["grid_thw"][0].tolist()), processor.geometry)
    for frame, path in zip(frames, paths, strict=True):
        assert np.array_equal(frame.numpy(), np.asarray(Image.open(path)))


def test_drawings_become_png_and_photographs_jpeg():
    drawn = torch.zeros(32, 64, 3, dtype=torch.uint8)
    drawn[:, 10:20] = torch.tensor([200, 10, 10], dtype=torch.uint8)
    assert data_uri(drawn).startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(opened(data_uri(drawn))), drawn.numpy())
    noise = torch.randint(0, 256, (32, 64, 3), dtype=torch.uint8)
    assert data_uri(noise).startswith("data:image/jpeg;base64,")
    assert opened(data_uri(noise)).size == (64, 32)


def test_a_thumbnail_is_small_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 400), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert opened(thumbnail(tmp_path / "turned.jpg", side_pixels=100)).size == (50, 100)
    assert opened(thumbnail((tmp_path / "turned.jpg").read_bytes(), side_pixels=100)).size == (50, 100)


def test_what_cannot_be_read_has_no_thumbnail(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    assert thumbnail(tmp_path / "broken.jpg", side_pixels=100) is None
    assert thumbnail(tmp_path / "missing.jpg", side_pixels=100) is None
