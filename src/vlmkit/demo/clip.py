"""A drawn video, for whoever measures readers of videos."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def draw_clip(path: Path, *, num_frames: int = 500, fps: int = 25) -> Path:
    """Moving noise and colour, 640 x 360 pixels, MPEG-4: costs a decoder what a filmed scene costs.

    Args:
        path: Of the file.
        num_frames: Frames to draw.
        fps: Frames a second.
    """
    generator = np.random.default_rng(0)
    base = generator.integers(0, 256, (45, 80, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 640, 360, "yuv420p", 1_500_000
        for number in range(num_frames):
            picture = np.kron(np.roll(base, number, axis=1), np.ones((8, 8, 1), dtype=np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
