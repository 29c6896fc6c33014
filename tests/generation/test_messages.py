"""Conversations as a server is sent them: order, bytes unchanged where they may be, the pixels that we see elsewhere."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vlmkit.conversation import Conversation, ImagePart, Origin, TextPart, Turn, VideoPart
from vlmkit.errors import DataError
from vlmkit.generation.messages import encoded_image, to_messages
from vlmkit.processing.media import load_image
from vlmkit.processing.video import VideoReading

READING = VideoReading(timeout_seconds=None)


def told(*parts, video="frames", num_frames=4, role="user", origin=None):
    conversation = Conversation((Turn(role, tuple(parts)),), origin)
    return to_messages(conversation, video=video, num_frames=num_frames, reading=READING)[0]["content"]


def decoded(url: str) -> tuple[str, bytes]:
    head, content = url.split(",", 1)
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(content)


def drawn(mode="RGB", kind="PNG", size=(40, 30), **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def test_text_alone_is_sent_as_text_and_parts_keep_their_order(tmp_path):
    (tmp_path / "1.png").write_bytes(drawn())
    conversation = Conversation((
        Turn("system", (TextPart("Be "), TextPart("brief."))),
        Turn("user", (TextPart("a "), ImagePart(tmp_path / "1.png"), TextPart(" b"), ImagePart(drawn(kind="JPEG")))),
    ))  # fmt: skip
    system, user = to_messages(conversation, video="frames", num_frames=4, reading=READING)
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text", "image_url"]
    assert decoded(user["content"][1]["image_url"]["url"]) == ("image/png", drawn())
    assert decoded(user["content"][3]["image_url"]["url"]) == ("image/jpeg", drawn(kind="JPEG"))


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("RGB", "WEBP")]
)
def test_plain_images_are_sent_byte_for_byte(mode, kind):
    content = drawn(mode, kind)
    assert encoded_image(ImagePart(content)) == (f"image/{kind.lower()}", content)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return drawn(kind="JPEG", exif=exif)


@pytest.mark.parametrize(
    "content", [drawn("RGBA"), drawn("CMYK", "JPEG"), drawn("P", "GIF"), drawn("RGB", "BMP"), turned()],
    ids=["RGBA", "CMYK", "GIF", "BMP", "turned"],
)  # fmt: skip
def test_other_images_are_sent_as_the_pixels_that_we_see(content):
    kind, sent = encoded_image(ImagePart(content))
    assert kind == "image/png"
    with Image.open(io.BytesIO(sent)) as image:
        assert image.mode == "RGB"
        seen = np.asarray(image)
    assert (seen == load_image(ImagePart(content)).permute(1, 2, 0).numpy()).all()


def test_a_video_is_sent_as_frames_or_as_its_file(clip):
    frames = told(VideoPart(clip), TextPart("What moves?"), num_frames=4)
    assert [part["type"] for part in frames] == ["image_url"] * 4 + ["text"]
    shown = [np.asarray(Image.open(io.BytesIO(decoded(part["image_url"]["url"])[1]))) for part in frames[:4]]
    wanted = READING.frames(clip, [3, 9, 15, 21]).permute(0, 2, 3, 1).numpy()
    for one, other in zip(shown, wanted, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).mean() < np.abs(shown[0].astype(int) - wanted[1]).mean()
    assert len(told(VideoPart(clip), num_frames=1000)) == 24
    (whole,) = told(VideoPart(clip), video="video_url")
    assert whole["type"] == "video_url"
    assert decoded(whole["video_url"]["url"]) == ("video/mp4", clip.read_bytes())


def test_what_cannot_be_sent_is_told_with_its_row(tmp_path, pictures):
    origin = Origin("x.parquet", 7)
    with pytest.raises(DataError, match=r"x\.parquet:7: image .*gone\.png' not found"):
        told(ImagePart(tmp_path / "gone.png"), origin=origin)
    with pytest.raises(DataError, match=r"x\.parquet:7: image '<5 bytes>' cannot be read"):
        told(ImagePart(b"bytes"), origin=origin)
    with pytest.raises(DataError, match="list of frames, which video_url cannot carry. Set backend.video=frames"):
        told(VideoPart((pictures[0],)), video="video_url")
    with pytest.raises(DataError, match="not found"):
        told(VideoPart(tmp_path / "gone.mp4"), video="video_url")
    assert len(told(VideoPart((pictures[0], pictures[0])))) == 2
