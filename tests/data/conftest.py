"""A tiny processor, and manifests with real images, made in temporary directories."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.manifest import Source
from vlmkit.demo import tiny_checkpoints
from vlmkit.processing.processor import Processor, load_processor

Row = dict[str, Any]


def said(question: str, answer: str = "a red square", **media: object) -> Row:
    """A row of one question and one answer."""
    return {
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        **media,
    }


@dataclass(frozen=True)
class Corpus:
    """A directory of media, and one row of every kind that the tests speak of."""

    root: Path

    def draw(self, name: str, width: int, height: int) -> str:
        """Write an image whose pixels differ from place to place; gives the path below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = bytes((7 * place + 13 * (place // width)) % 256 for place in range(width * height * 3))
        Image.frombytes("RGB", (width, height), pixels).save(path)
        return name

    @property
    def rows(self) -> dict[str, Row]:
        """By kind; all of them can be trained on."""
        frames = ["frames/0.png", "frames/1.png", "frames/2.png"]
        return {
            "text": said("what is seven and two?", "nine"),
            "image": said("<image>\nwhat is this?", image="wide.png"),
            "image_at_end": said("what is this?\n<image>", "a wide one", image=["wide.png"]),
            "three_images": said(
                "<image> and <image>, or <image>?", "the last", images=["wide.png", "tall.png", "small.png"]
            ),
            "video": said("<video>\nwhat happens?", "it turns", video=frames),
            "mixture": said("<video> then <image> what is it?", "both", image="tall.png", videos=[frames[:2]]),
            "turns": {
                "image": "small.png",
                "conversations": [
                    {"from": "system", "value": "answer in one word"},
                    {"from": "human", "value": "<image> colour?"},
                    {"from": "gpt", "value": "red"},
                    {"from": "human", "value": "and the shape?"},
                    {"from": "gpt", "value": "square"},
                ],
            },
        }

    def write(self, rows: Sequence[object], name: str = "rows.jsonl") -> Path:
        """Write a manifest beside the media, as its suffix says; bytes and strings go in as they are."""
        path = self.root / name
        texts = [row.decode() if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(texts) + "\n" if path.suffix == ".jsonl" else "[" + ",\n".join(texts) + "]")
        return path


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    """The processor of the tiny vision-language checkpoint."""
    return load_processor(tiny_checkpoints(tmp_path_factory.mktemp("tiny")).vision_language)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Media in a directory of their own."""
    made = Corpus(tmp_path / "media")
    made.draw("wide.png", 96, 64)
    made.draw("tall.png", 50, 130)
    made.draw("small.png", 33, 31)
    for number in range(3):
        made.draw(f"frames/{number}.png", 64, 64)
    return made


@pytest.fixture
def source() -> Callable[..., Source]:
    """Makes a source of a manifest; media lie beside it."""

    def make(path: Path, weight: float = 1.0) -> Source:
        return Source(path=path, root=path.parent, weight=weight, name=path.stem)

    return make


@pytest.fixture
def datamodule(tmp_path: Path) -> Callable[..., PackedDataModule]:
    """Makes a datamodule with quiet settings; keywords change them."""

    def make(*sources: object, **changed: Any) -> PackedDataModule:
        settings: dict[str, Any] = {
            "name": None,
            "sources": list(sources),
            "root": None,
            "allow_absolute_paths": False,
            "limit": None,
            "image_min_pixels": None,
            "image_max_pixels": None,
            "video_min_pixels": None,
            "video_max_pixels": None,
            "video_fps": None,
            "video_max_frames": None,
            "video_reader": "auto",
            "media_timeout_seconds": None,
            "max_tokens": None,
            "overlong": "error",
            "on_bad_row": "error",
            "on_bad_media": "error",
            "max_bad_rows": None,
            "max_bad_media": None,
            "batch_size": 2,
            "tokens_per_batch": None,
            "patches_per_batch": None,
            "order": "shuffled",
            "heaviest_first": True,
            "pixels": "uint8",
            "num_workers": 0,
            "cache_dir": tmp_path / "cache",
            "seed": 5,
        }
        return PackedDataModule(**(settings | changed))

    return make
