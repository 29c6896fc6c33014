"""Pixels differ between training and serving: odd files are seen as qwen-vl-utils and vLLM see them, wherever they are read."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from qwen_vl_utils import fetch_image

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.manifest import decode_row
from vlmkit.errors import DataError, Origin
from vlmkit.generation.messages import encoded_image
from vlmkit.generation.vllm_request import make_request
from vlmkit.pages.pictures import from_patches
from vlmkit.processing.encode import encode_example, layout, measure_example
from vlmkit.processing.media import load_image, video_header
from vlmkit.processing.video import VideoReading

WIDTH, HEIGHT = 96, 64
"""Whole cells of the tiny model, so that nothing is resized."""


def coloured() -> Image.Image:
    pixels = np.random.default_rng(34).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def faded() -> Image.Image:
    """Every opacity from none to full, over colours."""
    image = coloured().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    return image


def black_on_nothing() -> Image.Image:
    image = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (10, 10, 40, 40))
    return image


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


Save = Callable[[Path], None]
OPAQUE: dict[str, Save] = {
    "colours.png": lambda path: coloured().save(path),
    "grey.png": lambda path: coloured().convert("L").save(path),
    "bilevel.png": lambda path: coloured().convert("1").save(path),
    "palette.png": lambda path: coloured().convert("P").save(path),
    "palette.gif": lambda path: coloured().convert("P").save(path),
    "cmyk.jpg": lambda path: coloured().convert("CMYK").save(path),
    "cmyk.tif": lambda path: coloured().convert("CMYK").save(path),
    "colours.jpg": lambda path: coloured().save(path),
    "colours.webp": lambda path: coloured().save(path, lossless=True),
    "colours.avif": lambda path: coloured().save(path),
    "turned.jpg": lambda path: coloured().transpose(Image.Transpose.ROTATE_90).save(path, exif=turned_exif()),
}
TRANSPARENT: dict[str, Save] = {
    "black on nothing.png": lambda path: black_on_nothing().save(path),
    "faded.png": lambda path: faded().save(path),
    "faded.webp": lambda path: faded().save(path, lossless=True),
    "faded.avif": lambda path: faded().save(path),
    "faded grey.png": lambda path: faded().convert("LA").save(path),
    "palette.png": lambda path: coloured().convert("P").save(path, transparency=7),
    "palette of opacities.png": lambda path: coloured().convert("P").save(path, transparency=bytes(range(256))),
    "palette.gif": lambda path: coloured().convert("P").save(path, transparency=7),
    "one colour.png": lambda path: coloured().save(path, transparency=coloured().getpixel((5, 5))),
    "one grey.png": lambda path: coloured().convert("L").save(path, transparency=200),
}
FILES = OPAQUE | {f"transparent {name}": save for name, save in TRANSPARENT.items()}


def upright(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


def by_qwen_vl_utils(path: Path) -> np.ndarray:
    """What qwen-vl-utils makes of an image, upright and with its transparency in an alpha channel."""
    image = upright(path)
    image = image.convert("RGBA") if image.has_transparency_data else image
    return np.asarray(fetch_image({"image": image}, image_patch_size=16))


def by_the_rule_of_vllm(path: Path) -> np.ndarray:
    """Whatever has transparency is laid over white, all else converted."""
    image = upright(path)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    coloured, opacity = np.split(np.asarray(image.convert("RGBA")).astype(float), [3], axis=2)
    return np.rint(coloured * opacity / 255 + 255 - opacity)


def seen(path: Path) -> np.ndarray:
    return load_image(ImagePart(path)).permute(1, 2, 0).numpy()


def about(path: Path) -> Conversation:
    turns = Turn(role="user", parts=(ImagePart(path), TextPart("What is it?"))), Turn(role="assistant", parts=(TextPart("Red."),))  # fmt: skip
    return Conversation(turns=turns)


@pytest.fixture
def page(tmp_path, processor) -> Callable[[str], Path]:
    """Draws a file of the page."""

    def draw(name: str) -> Path:
        path = tmp_path / name.removeprefix("transparent ")
        FILES[name](path)
        return path

    return draw


@pytest.mark.parametrize("name", FILES)
def test_odd_files_have_the_pixels_of_qwen_vl_utils_and_vllm(page, name):
    path = page(name)
    assert np.array_equal(seen(path), by_qwen_vl_utils(path))
    assert np.abs(seen(path).astype(int) - by_the_rule_of_vllm(path)).max() <= 1  # Pillow's rounding is its own


@pytest.mark.parametrize("name", ["colours.png", "transparent faded.png", "transparent palette.png", "turned.jpg"])  # fmt: skip
def test_training_evaluation_and_served_models_see_the_same(page, name, processor):
    path = page(name)
    sample = encode_example(about(path), processor, pixels="uint8")
    trained = from_patches(sample["still_patches"], tuple(sample["grid_thw"][0].tolist()), processor.geometry)[0]
    assert np.array_equal(trained.numpy(), seen(path))
    kind, sent = encoded_image(ImagePart(path))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent)).convert("RGB")), seen(path)), kind
    engine = make_request(Conversation(about(path).turns[:1]), processor).prompt["multi_modal_data"]["image"][0]
    assert np.array_equal(np.asarray(engine), seen(path))
    uri = f"data:image;base64,{base64.b64encode(sent).decode()}"
    assert np.array_equal(np.asarray(fetch_image({"image": uri}, image_patch_size=16)), seen(path))


def test_black_on_transparent_is_black_on_white(page):
    pixels = seen(page("transparent black on nothing.png"))
    assert pixels[20, 20].tolist() == [0, 0, 0]
    assert pixels[50, 80].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm", "swapped.tif"])
def test_grey_of_sixteen_bits_keeps_its_shades(tmp_path, name):
    values = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    path = tmp_path / name
    if name == "grey.pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes())
    elif name == "swapped.tif":
        Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    pixels = seen(path)
    assert np.abs(pixels - values[..., None] / 257).max() <= 0.51
    assert len(np.unique(pixels)) == 256
    kind, sent = encoded_image(ImagePart(path))
    assert kind == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent)).convert("RGB")), pixels)


def test_a_transparent_shade_of_sixteen_bits_is_white(tmp_path):
    values = np.full((HEIGHT, WIDTH), 1000, dtype=np.uint16)
    values[:5] = 30_000
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    pixels = seen(tmp_path / "a.png")
    assert (pixels[0, 0, 0], pixels[20, 20, 0]) == (117, 255)


@pytest.mark.parametrize(("kind", "said"), [("I", "32-bit integers"), ("F", "floating-point numbers")])
def test_pixels_without_a_known_range_are_refused_before_they_are_decoded(tmp_path, processor, kind, said):
    Image.new(kind, (WIDTH, HEIGHT), 3).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif' cannot be read as an image \(its pixels are {said}"):
        measure_example(about(tmp_path / "a.tif"), processor)


def animation(path: Path, num_frames: int = 6, **settings: object) -> list[np.ndarray]:
    """An animated file of frames that differ; gives their pixels."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), (40 * number, 255 - 40 * number, 9)) for number in range(num_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250, **settings)
    return [np.asarray(frame) for frame in frames]


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
@pytest.mark.parametrize("timeout", [None, 60.0], ids=["in this process", "in its own"])
def test_an_animation_given_as_video_is_read_as_its_frames(tmp_path, name, timeout):
    drawn = animation(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    row = {"video": name, "conversations": [{"from": "human", "value": "<video> What?"}, {"from": "gpt", "value": "It fades."}]}  # fmt: skip
    (part,) = decode_row(json.dumps(row).encode(), origin=Origin("a.json", 1), root=tmp_path).media
    reading = VideoReading(timeout_seconds=timeout)
    header = video_header(part, reading)
    assert (header.num_frames, header.fps, header.height, header.width) == (6, 4.0, HEIGHT, WIDTH)
    frames = reading.frames(part.source, [0, 3, 5]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(frames, np.stack([drawn[0], drawn[3], drawn[5]]))


def test_a_gif_has_the_frames_that_a_library_of_videos_gives(tmp_path):
    animation(tmp_path / "a.gif")
    with av.open(str(tmp_path / "a.gif")) as container:
        wanted = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    frames = VideoReading(timeout_seconds=None).frames(tmp_path / "a.gif", list(range(6)))
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), wanted)


def test_a_transparent_animation_is_laid_over_white(tmp_path):
    frames = [Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0)) for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste((0, 0, 0, 255), (10 * number, 0, 10 * number + 10, 10))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    pixels = VideoReading(timeout_seconds=None).frames(tmp_path / "a.gif", [0, 1, 2])
    for number in range(3):
        assert pixels[number, 0, 5].tolist() == [255 * (number != place // 10) for place in range(30)] + [255] * 66


def test_several_gifs_are_several_videos_and_frames_stay_frames(tmp_path):
    def media(video: object, count: int) -> tuple[object, ...]:
        row = {"video": video, "conversations": [{"from": "human", "value": "<video>" * count}, {"from": "gpt", "value": "b"}]}  # fmt: skip
        return tuple(part.source for part in decode_row(json.dumps(row).encode(), origin=Origin("a", 1), root=tmp_path).media)  # fmt: skip

    assert media(["a.gif", "b.GIF"], 2) == (tmp_path / "a.gif", tmp_path / "b.GIF")
    assert media(["a.webp", "b.webp"], 1) == ((tmp_path / "a.webp", tmp_path / "b.webp"),)
    assert media("a.png", 1) == ((tmp_path / "a.png",),)


def test_an_animation_is_counted_as_it_is_trained(tmp_path, processor):
    animation(tmp_path / "a.gif", 12)
    turns = Turn(role="user", parts=(VideoPart(tmp_path / "a.gif"),)), Turn(role="assistant", parts=(TextPart("b"),))
    sample = encode_example(Conversation(turns=turns), processor, pixels="uint8")
    assert measure_example(Conversation(turns=turns), processor).num_tokens == len(sample["input_ids"])
    assert len(layout(VideoPart(tmp_path / "a.gif"), processor).frames) > 1
    assert torch.unique(sample["video_patches"], dim=0).shape[0] > 1
