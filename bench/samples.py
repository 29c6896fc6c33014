"""From row to tensors: how fast beside the stock processor, what decode and resize alone take, what a worker hands over.

One process, one thread, set up as a worker is, 640-pixel JPEGs, each with a question and an answer; the sides take turns at every image,
and the figures are medians of the rounds. `python bench/samples.py --help` for the options.

Printed, and checked (exit status 1 where a target is missed):
- float pixels, equal to the stock processor's bit for bit: at least 1.7 times its samples per second.
- pixels as bytes: at least 2 times.
- at most 1 MiB a sample from worker to main process, with pixels as bytes.
"""

from __future__ import annotations

import argparse
import io
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.data.workers import settle_worker
from vlmkit.demo import tiny_checkpoints
from vlmkit.processing.encode import encode_example
from vlmkit.processing.media import PixelBudget, load_image
from vlmkit.processing.processor import Processor, load_processor

SIDE_PIXELS = 640
SIZES = [(640, 480), (640, 427), (480, 640), (640, 426), (427, 640), (640, 360)]
"""Width and height of what is drawn: the commonest of COCO's photographs."""
MIN_PIXELS, MAX_PIXELS = 256 * 32 * 32, 1280 * 32 * 32
TARGET_FLOAT, TARGET_BYTES, TARGET_MIB = 1.7, 2.0, 1.0
ANSWER = "A few things stand on a table in front of a window, and light falls on them from the left."


def main() -> int:
    """Draw or read images, measure in turns, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="directory of photographs to use, scaled to 640 pixels; else drawn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round; speed is not judged")
    options = parser.parse_args()
    settle_worker()
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder), options.images)
        checkpoint = tiny_checkpoints(Path(folder) / "tiny").vision_language
        budget = PixelBudget(image_min_pixels=MIN_PIXELS, image_max_pixels=MAX_PIXELS)
        return measure(
            files,
            load_processor(checkpoint, budget=budget),
            rounds=1 if options.quick else options.rounds,
            quick=options.quick,
        )


def measure(files: list[Path], processor: Processor, *, rounds: int, quick: bool) -> int:
    """Time all sides over the files in turns, and judge; `quick` judges no speed."""
    sides: dict[str, Callable[[Path], object]] = {
        "stock processor": lambda path: stock_sample(path, processor),
        "vlmkit, float32": lambda path: encode_example(conversation(path), processor, pixels="float32"),
        "vlmkit, bytes": lambda path: encode_example(conversation(path), processor, pixels="uint8"),
        "decode by PIL": lambda path: np.asarray(Image.open(path).convert("RGB")),
        "decode by vlmkit": lambda path: load_image(ImagePart(path)),
        "decode and resize by PIL": lambda path: decode_and_resize(path, processor),
    }
    for path in files:
        check_equal(path, processor)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        spent = dict.fromkeys(sides, 0.0)
        for path in files:
            for name, make in sides.items():
                start = time.perf_counter()
                make(path)
                spent[name] += time.perf_counter() - start
        if number:  # the first round warms up
            for name, total in spent.items():
                seconds[name].append(total / len(files))
    stock = seconds["stock processor"]
    print(f"{len(files)} JPEGs of {SIDE_PIXELS} pixels, one process, one thread, medians of {rounds} rounds")
    for name, times in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(stock, times, strict=True))
        print(f"  {name:<26}{1 / statistics.median(times):8.1f} a second  {ratio:5.2f} times the stock processor")
    ratios = {
        name: statistics.median(one / other for one, other in zip(stock, seconds[name], strict=True))
        for name in ("vlmkit, float32", "vlmkit, bytes")
    }
    handed = [handed_over_mib(path, processor) for path in files]
    print(
        f"  handed from worker to main process: {statistics.mean(handed):.2f} MiB a sample, at most {max(handed):.2f}"
    )
    fast = [
        judged("float pixels", ratios["vlmkit, float32"], TARGET_FLOAT, at_least=True),
        judged("pixels as bytes", ratios["vlmkit, bytes"], TARGET_BYTES, at_least=True),
    ]
    small = judged("MiB a sample", max(handed), TARGET_MIB, at_least=False)
    return 0 if small and (all(fast) or quick) else 1


def judged(name: str, value: float, target: float, *, at_least: bool) -> bool:
    """Print a figure beside its target."""
    met = value >= target if at_least else value <= target
    print(f"{name}: {value:.2f}, target {'at least' if at_least else 'at most'} {target}: {'met' if met else 'MISSED'}")
    return met


def make_images(folder: Path, photographs: Path | None) -> list[Path]:
    """JPEGs of 640 pixels, quality 90: photographs, or drawn with the detail of one."""
    files: list[Path] = []
    found = (
        sorted(path for path in photographs.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if photographs
        else []
    )
    images = [Image.open(path).convert("RGB") for path in found] or [
        drawn(seed, size) for seed, size in enumerate(SIZES * 2)
    ]
    for number, image in enumerate(images):
        scale = SIDE_PIXELS / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        files.append(folder / f"{number}.jpg")
        image.save(files[-1], quality=90)
    return files


def drawn(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colour with edges and a little grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    grain = generator.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray(
        np.clip(np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + grain, 0, 255).astype(np.uint8)
    )


def conversation(path: Path) -> Conversation:
    """What a row of a manifest says."""
    asked = (ImagePart(path), TextPart("\nWhat is in the picture?"))
    return Conversation(turns=(Turn(role="user", parts=asked), Turn(role="assistant", parts=(TextPart(ANSWER),))))


def stock_sample(path: Path, processor: Processor) -> Any:
    """The same through transformers: chat template and processor."""
    asked = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": "\nWhat is in the picture?"}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    ]
    return processor.hf.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


def check_equal(path: Path, processor: Processor) -> None:
    """Both sides make the same ids and the same pixels, bit for bit; else the comparison would mean nothing."""
    theirs, ours = stock_sample(path, processor), encode_example(conversation(path), processor, pixels="float32")
    patches = ours["still_patches"]
    doubled = patches.reshape(len(patches), 3, 1, -1).expand(-1, -1, 2, -1).reshape(len(patches), -1)
    if (
        not torch.equal(theirs["pixel_values"], doubled)
        or theirs["input_ids"][0].tolist() != ours["input_ids"].tolist()
    ):
        raise SystemExit(f"{path}: the stock processor gives another sample.")


def decode_and_resize(path: Path, processor: Processor) -> object:
    """What cannot be saved."""
    image = Image.open(path).convert("RGB")
    _, rows, columns = processor.image_grid(image.height, image.width)
    size = processor.geometry.patch_size
    return np.asarray(image.resize((columns * size, rows * size), Image.Resampling.BICUBIC))


def handed_over_mib(path: Path, processor: Processor) -> float:
    """Bytes of a sample's tensors and of what is pickled around them."""
    sample = encode_example(conversation(path), processor, pixels="uint8")
    buffer = io.BytesIO()
    tensors = [value for value in vars_of(sample).values() if isinstance(value, torch.Tensor)]
    pickle.dump([tuple(tensor.shape) for tensor in tensors], buffer)
    return (sum(tensor.numel() * tensor.element_size() for tensor in tensors) + buffer.tell()) / 2**20


def vars_of(sample: Any) -> dict[str, Any]:
    """The fields of a sample, however it keeps them."""
    return dict(sample) if isinstance(sample, dict) else vars(sample)


if __name__ == "__main__":
    sys.exit(main())
