"""Grounding boxes in a text, and what frame their coordinates are in. Pure functions.

Qwen3-VL speaks of a place as `"bbox_2d": [x1, y1, x2, y2]` with coordinates from 0 to 1000 in the image's width and
height. Older data say `<box>(x1,y1),(x2,y2)</box>` (Qwen-VL, 0 to 1000 too, the tags perhaps as special tokens), and
some count pixels, or shares from 0 to 1: a model trained on these learns to point at the wrong place, and no loss tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FRAME = 1000
"""Coordinates of Qwen3-VL go from 0 to this, along width and height alike."""
HINTS = (b"bbox_2d", b"<box>", b"<|box_start|>")
"""Bytes of which a row with boxes holds one."""
_SMALL_PIXELS = 600
"""An image with a shorter side tells thousandths from pixels."""
_ALMOST_ALL = 0.95
"""Some rows are wrong in any frame: mirrored, turned by EXIF, mistyped."""
_JSON = re.compile(r"""["']bbox_2d["']\s*:\s*\[([^\[\]]*)\]""")
_TAGS = re.compile(r"<(?:box|\|box_start\|)>(.*?)<(?:/box|\|box_end\|)>", flags=re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Frame = Literal["thousandths", "pixels", "shares"]


@dataclass(frozen=True, slots=True)
class Box:
    """Corners as written, in no frame yet."""

    left: float
    top: float
    right: float
    bottom: float

    def __str__(self) -> str:
        return f"[{self.left:g}, {self.top:g}, {self.right:g}, {self.bottom:g}]"

    @property
    def fault(self) -> str | None:
        """What is wrong with it in Qwen3-VL's frame, in words; None where nothing is."""
        corners = (self.left, self.top, self.right, self.bottom)
        if min(corners) < 0:
            return f"box {self} has a negative coordinate"
        if max(corners) > FRAME:
            return f"box {self} exceeds {FRAME}, the end of Qwen3-VL's frame"
        if self.right <= self.left or self.bottom <= self.top:
            return f"box {self} does not go from top left to bottom right"
        return None


def find_boxes(text: str) -> tuple[list[Box], str | None]:
    """The boxes of a text, and the first place that should hold some and holds no four numbers."""
    boxes: list[Box] = []
    broken: str | None = None
    for pattern in (_JSON, _TAGS):
        for match in pattern.finditer(text):
            numbers = [float(number) for number in _NUMBER.findall(match[1])]
            if not numbers or len(numbers) % 4:
                broken = broken or match[0][:60]
                continue
            boxes += [Box(*numbers[place : place + 4]) for place in range(0, len(numbers), 4)]
    return boxes, broken


def frame_of(boxes: Sequence[tuple[Box, int, int]], *, least: int = 20) -> Frame | None:
    """In what frame coordinates seem to be.

    Boxes in thousandths often pass the sides of images that are smaller than 1000 pixels; where almost none of many
    does, they count pixels.

    Args:
        boxes: Each with height and width of its image in pixels.
        least: Fewer boxes tell nothing.

    Returns:
        None where the boxes do not tell.
    """
    if len(boxes) < least:
        return None
    corners = [(box, max(box.left, box.right), max(box.top, box.bottom)) for box, _, _ in boxes]
    if all(right <= 1 and bottom <= 1 for _, right, bottom in corners):
        return "shares"
    telling = [
        (right <= width and bottom <= height)
        for (_, right, bottom), (_, height, width) in zip(corners, boxes, strict=True)
        if min(height, width) < _SMALL_PIXELS or max(right, bottom) > FRAME
    ]
    if len(telling) < least:
        return None
    return "pixels" if sum(telling) >= _ALMOST_ALL * len(telling) else "thousandths"
