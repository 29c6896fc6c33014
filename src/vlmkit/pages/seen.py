"""What the model sees of one image or video: the pixels it is given, put together again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.pages.pictures import data_uri, from_patches
from vlmkit.processing.encode import encode_prompt, layout
from vlmkit.processing.media import image_size, video_header
from vlmkit.processing.processor import Processor

if TYPE_CHECKING:
    from torch import Tensor

MAX_FRAMES = 12
"""Frames of a video that are shown, evenly spread over those the model gets."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One medium at the size the model sees.

    Attributes:
        kind: `image` or `video`.
        original: Height and width of the file in pixels.
        height, width: As the model sees it.
        num_visual_tokens: What the language model gets of it.
        num_frames: Frames of a video that the model gets; 1 for an image.
        frames: Data URIs: one for an image, some for a video.
        stamps: Seconds at which each shown frame stands (video only), as it is said to the model.
    """

    kind: str
    original: tuple[int, int]
    height: int
    width: int
    num_visual_tokens: int
    num_frames: int
    frames: list[str]
    stamps: list[str]

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return asdict(self)

    def to_text(self) -> str:
        """In a line."""
        height, width = self.original
        frames = f", {self.num_frames} frames" if self.kind == "video" else ""
        return (
            f"{self.kind} of {width} x {height} pixels{frames}, seen at {self.width} x {self.height}: "
            f"{self.num_visual_tokens} tokens"
        )


def look(part: ImagePart | VideoPart, processor: Processor) -> Seen:
    """Decode and resize a medium as for the model, and undo the cutting into patches.

    Raises:
        DataError: it cannot be read.
    """
    place = layout(part, processor)
    pairs, rows, columns = place.grid
    geometry = processor.geometry
    video = isinstance(part, VideoPart)
    if video:
        header = video_header(part, processor.reading)
        original = (header.height, header.width)
    else:
        original = image_size(part)
    prompt = encode_prompt(Conversation((Turn("user", (part, TextPart("?"))),)), processor)
    patches = _as_bytes(prompt["pixel_values_videos" if video else "pixel_values"], processor)
    frames = from_patches(patches, place.grid, geometry)[:: 1 if video else geometry.temporal_patch_size]
    shown = sorted({round(number * (len(frames) - 1) / max(1, MAX_FRAMES - 1)) for number in range(MAX_FRAMES)})
    return Seen(
        kind="video" if video else "image",
        original=original,
        height=rows * geometry.patch_size,
        width=columns * geometry.patch_size,
        num_visual_tokens=pairs * rows * columns // geometry.merge_size**2,
        num_frames=len(place.frames) if video else 1,
        frames=[data_uri(frames[number]) for number in shown],
        stamps=[f"{place.seconds[number // geometry.temporal_patch_size]:.1f}" for number in shown] if video else [],
    )


def _as_bytes(patches: Tensor, processor: Processor) -> Tensor:
    """Undo the scaling: (num_patches, 3 * values of a channel), float32 to uint8."""
    import torch

    planes = patches.unflatten(1, (3, -1))
    mean = torch.tensor(processor.pixel_mean)[:, None]
    std = torch.tensor(processor.pixel_std)[:, None]
    return (planes * std + mean).round().clamp(0, 255).to(torch.uint8).flatten(1)
