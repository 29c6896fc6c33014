"""A pack: samples in one row, with every shape and order that the tensor contract names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from vlmkit.batch import IGNORE_INDEX, Batch, Sample
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.data.manifest import parse_row
from vlmkit.errors import Origin
from vlmkit.processing.encode import Pixels, encode_example
from vlmkit.processing.processor import Processor

KINDS = ["text", "image", "image_at_end", "three_images", "video", "mixture", "turns"]
PACKS = [[kind] for kind in KINDS] + [
    ["text", "text", "turns"],
    ["image", "text", "three_images"],
    ["video", "image"],
    ["mixture", "text", "video", "image", "mixture"],
]
Encode = Callable[..., Sample]


@pytest.fixture
def encode(corpus: Any, processor: Processor) -> Encode:
    def made(kind: str, pixels: Pixels = "uint8") -> Sample:
        conversation = parse_row(corpus.rows[kind], origin=Origin("rows.jsonl", 1), root=corpus.root)
        return encode_example(conversation, processor, pixels=pixels)

    return made


def info(num_samples: int) -> PackInfo:
    return PackInfo(
        pack=4, rows=tuple(range(10, 10 + num_samples)), sources=(1,) * num_samples, step_supervised_tokens=99
    )


def media_of(samples: list[Sample]) -> tuple[list[list[int]], list[list[int]]]:
    """Grids of stills and of videos, each in the order in which they are said."""
    stills: list[list[int]] = []
    videos: list[list[int]] = []
    for sample in samples:
        for grid, is_video in zip(sample["grid_thw"].tolist(), sample["is_video"].tolist(), strict=True):
            (videos if is_video else stills).append(grid)
    return stills, videos


def check_shapes(batch: Batch, processor: Processor) -> None:
    geometry = processor.geometry
    tokens, samples = batch["input_ids"].shape[1], len(batch["seqlens"])
    supervised = len(batch["targets"])
    patches = len(batch["still_patches"]) + len(batch["video_patches"])
    width = 3 * geometry.patch_size**2
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "input_ids": ((1, tokens), torch.int64),
        "position_ids": ((4, 1, tokens), torch.int64),
        "cu_seqlens": ((samples + 1,), torch.int32),
        "supervised_positions": ((supervised,), torch.int64),
        "targets": ((supervised,), torch.int64),
        "target_samples": ((supervised,), torch.int64),
        "vision_cu_seqlens": ((len(batch["vision_seqlens"]) + 1,), torch.int32),
        "vision_position_ids": ((patches, 2), torch.int64),
        "vision_interp_indices": ((patches, 4), torch.int64),
        "vision_interp_weights": ((patches, 4), torch.float32),
    }
    for name, (shape, dtype) in wanted.items():
        tensor: torch.Tensor = batch[name]  # type: ignore[literal-required]
        assert (name, tuple(tensor.shape), tensor.dtype) == (name, shape, dtype)
    assert batch["still_patches"].shape[1] == width
    assert batch["video_patches"].shape[1] == width * geometry.temporal_patch_size
    assert batch["cu_seqlens"].diff().tolist() == batch["seqlens"]
    assert batch["vision_cu_seqlens"].diff().tolist() == batch["vision_seqlens"]
    assert sum(batch["vision_seqlens"]) == patches
    assert batch.keys() == {key for key in Batch.__annotations__ if not key.startswith("vision_window")}


@pytest.mark.parametrize("kinds", PACKS, ids="+".join)
@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_a_pack_is_its_samples_in_a_row(kinds: list[str], pixels: Pixels, encode: Encode, processor: Processor) -> None:
    samples = [encode(kind, pixels) for kind in kinds]
    batch = pack_samples(samples, processor, info(len(samples)))
    check_shapes(batch, processor)
    stills, videos = media_of(samples)
    assert batch["seqlens"] == [len(sample["input_ids"]) for sample in samples]
    assert batch["num_media"] == len(stills) + len(videos)
    assert batch["dummy_visual"] == (not stills and not videos)
    assert (batch["pack"], batch["rows"], batch["step_supervised_tokens"]) == (4, list(info(len(samples)).rows), 99)
    assert batch["sources"] == [1] * len(samples)
    start = 0
    for number, sample in enumerate(samples):
        part = slice(start, start + len(sample["input_ids"]))
        assert batch["input_ids"][0, part].equal(sample["input_ids"])
        assert batch["position_ids"][:, 0, part].equal(sample["position_ids"])
        labels = torch.full_like(sample["labels"], IGNORE_INDEX)
        own = batch["target_samples"] == number
        labels[batch["supervised_positions"][own] + 1 - start] = batch["targets"][own]
        assert labels.equal(sample["labels"])
        start = part.stop
    if stills:
        assert batch["still_patches"].equal(torch.cat([sample["still_patches"] for sample in samples]))
    assert batch["video_patches"].equal(torch.cat([sample["video_patches"] for sample in samples]))


@pytest.mark.parametrize("kinds", PACKS, ids="+".join)
def test_visual_positions_follow_the_patches(kinds: list[str], encode: Encode, processor: Processor) -> None:
    """Each visual token of the row, matched with the patches it stands for through its own mRoPE place."""
    samples = [encode(kind) for kind in kinds]
    batch = pack_samples(samples, processor, info(len(samples)))
    stills, videos = media_of(samples)
    positions, merge = batch["visual_positions"], processor.geometry.merge_size
    num_stills = sum(len(sample["still_patches"]) for sample in samples) // merge**2
    ids = batch["input_ids"][0, positions]
    assert ids[:num_stills].eq(processor.image_token_id).all()
    assert ids[num_stills:].eq(processor.video_token_id).all()
    visual = torch.isin(batch["input_ids"][0], torch.tensor([processor.image_token_id, processor.video_token_id]))
    assert sorted(positions.tolist()) == visual.nonzero()[:, 0].tolist()
    segments = [(rows, columns) for pairs, rows, columns in stills + videos for _ in range(pairs)]
    place = 0
    for rows, columns in segments:
        count = rows * columns // merge**2
        mrope = batch["position_ids"][1:, 0, positions[place : place + count]]
        assert (mrope[1] - mrope[1].min()).tolist() == [
            row for row in range(rows // merge) for _ in range(columns // merge)
        ]
        assert (mrope[2] - mrope[2].min()).tolist() == list(range(columns // merge)) * (rows // merge)
        place += count
    assert place == len(positions)
    if segments:
        assert batch["vision_seqlens"] == [rows * columns for rows, columns in segments]
        grids = torch.tensor(stills + videos)
        assert batch["vision_position_ids"].equal(get_vision_position_ids(grids, merge))
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=processor.geometry.positions_per_side,
            mode="bilinear",
            align_corners=True,
            spatial_merge_size=merge,
        )
        assert batch["vision_interp_indices"].equal(indices)
        assert batch["vision_interp_weights"].equal(weights)
        assert weights.sum(1).allclose(torch.ones(len(weights)))


def test_image_order_survives(encode: Encode, processor: Processor) -> None:
    """A video said before an image comes after it in the patches, as the model embeds stills first."""
    sample = encode("mixture")
    assert sample["is_video"].tolist() == [True, False]
    batch = pack_samples([sample], processor, info(1))
    frames = batch["visual_positions"][len(sample["still_patches"]) // processor.geometry.merge_size**2 :]
    images = batch["visual_positions"][: len(batch["visual_positions"]) - len(frames)]
    assert frames.max() < images.min()


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_a_grey_image_stands_in_where_there_is_none(pixels: Pixels, encode: Encode, processor: Processor) -> None:
    sample = encode("text", pixels)
    batch = pack_samples([sample], processor, info(1))
    assert batch["dummy_visual"]
    assert batch["num_media"] == 0
    assert batch["visual_positions"].shape == (0,)
    assert batch["vision_seqlens"] == [16]
    assert batch["still_patches"].dtype == sample["still_patches"].dtype
    grey = {"uint8": 128, "float32": 0}[pixels]
    assert batch["still_patches"].eq(grey).all()
    assert batch["video_patches"].shape[0] == 0


def test_an_idle_slot_is_one_token_that_trains_nothing(processor: Processor) -> None:
    idle = PackInfo(pack=-1, rows=(), sources=(), step_supervised_tokens=12)
    batch = pack_samples([], processor, idle)
    check_shapes(batch, processor)
    assert batch["seqlens"] == [1]
    assert batch["cu_seqlens"].tolist() == [0, 1]
    assert len(batch["targets"]) == 0
    assert batch["dummy_visual"]
    assert (batch["pack"], batch["rows"], batch["sources"], batch["step_supervised_tokens"]) == (-1, [], [], 12)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("image", {"still_patches": 4}, "6 image tokens and 20 patches stand in a pack whose images make 6 and 24"),
        ("image", {"input_ids": 1}, "5 image tokens and 24 patches stand in a pack whose images make 6 and 24"),
        ("video", {"video_patches": 16}, "8 video tokens and 16 patches stand in a pack whose videos make 8 and 32"),
    ],
)
def test_counts_that_do_not_agree(
    kind: str, change: dict[str, int], message: str, encode: Encode, processor: Processor
) -> None:
    sample = encode(kind)
    for key, count in change.items():
        if key == "input_ids":
            visual = (sample["input_ids"] == processor.image_token_id).nonzero()[:count, 0]
            sample["input_ids"][visual] = 0
        else:
            sample[key] = sample[key][:-count]  # type: ignore[literal-required]
    with pytest.raises(ValueError, match=message):
        pack_samples([sample], processor, info(1))


def test_counts_that_agree_in_sum_only(encode: Encode, processor: Processor) -> None:
    """An image's tokens written as a video's: as many in all, but the features would land on the wrong ones."""
    sample = encode("mixture")
    swapped = sample["input_ids"].clone()
    first_image = (swapped == processor.image_token_id).nonzero()[0, 0]
    swapped[first_image] = processor.video_token_id
    sample["input_ids"] = swapped
    with pytest.raises(ValueError, match="image tokens and"):
        pack_samples([sample], processor, info(1))


def test_a_supervised_first_token_is_refused(encode: Encode, processor: Processor) -> None:
    sample = encode("text")
    sample["labels"][0] = 5
    with pytest.raises(ValueError, match="the first token of a sample is supervised"):
        pack_samples([encode("text"), sample], processor, info(2))
