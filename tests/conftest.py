"""What every room's tests share: an offline environment, tiny checkpoints made in place, and where real inputs lie."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores; more threads would wait for each other

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("VLMKIT_SHARED", REPOSITORY.parent / "shared")) / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images, videos, manifests and the real Qwen3 tokenizer."""
    if not SHARED.is_dir():
        pytest.skip(f"no real inputs in {SHARED}; set VLMKIT_SHARED to a folder that has data/")
    return SHARED


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache, for this test run only."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache: Path) -> None:
    os.environ["VLMKIT_CACHE"] = str(cache)


@pytest.fixture(scope="session")
def tiny(cache: Path):
    """The tiny vision-language template and language model, as Hugging Face directories."""
    from vlmkit.demo import tiny_checkpoints

    return tiny_checkpoints(cache)


@pytest.fixture(scope="session")
def processor(tiny):
    """The tiny template's processor, with budgets small enough for quick tests."""
    from vlmkit.processing.media import PixelBudget
    from vlmkit.processing.processor import load_processor

    budget = PixelBudget(image_max_pixels=64 * 64 * 4, video_max_pixels=64 * 64 * 16, video_max_frames=6)
    return load_processor(tiny.vision_language, budget=budget)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three drawn images of different sizes."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(64, 96), (120, 60), (33, 47)]):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn video: 24 frames of 64 x 48 pixels at 8 frames per second."""
    import av
    import numpy as np

    path = tmp_path_factory.mktemp("clips") / "drawn.mp4"
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(24):
            picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
