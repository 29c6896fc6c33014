"""Join encoded samples into one packed row, with everything the forward needs from the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from vlmkit.batch import IGNORE_INDEX, Batch, MaskedRow, Sample
from vlmkit.processing.encode import Pixels
from vlmkit.processing.processor import Processor, VisionGeometry

DUMMY_SIDE = 64
"""Side in pixels of the image that stands in where a pack has no media."""
_GREY = 128


@dataclass(frozen=True, kw_only=True)
class PackInfo:
    """What a batch carries besides its samples.

    Attributes:
        pack: Number in the plan, -1 for an idle slot.
        rows: Row of the index of each sample.
        sources: Manifest of each sample.
        step_supervised_tokens: Supervised tokens of the whole optimiser step.
        pixels: Whether patches are bytes or normalised numbers; an idle slot has none to tell it by.
        masked: Rows among `rows` whose media could not be read.
    """

    pack: int
    rows: tuple[int, ...]
    sources: tuple[int, ...]
    step_supervised_tokens: int
    pixels: Pixels = "uint8"
    masked: tuple[MaskedRow, ...] = ()


def pack_samples(samples: Sequence[Sample], processor: Processor, info: PackInfo) -> Batch:
    """Join samples into one row without padding.

    Args:
        samples: In the order of `info.rows`; none for an idle slot, which becomes one unsupervised token.
        processor: Gives the ids of visual tokens and the geometry.
        info: Where the pack stands.

    Returns:
        See `vlmkit.batch.Batch`. Without media, a small grey image stands in, so that every rank runs the same modules.

    Raises:
        ValueError: the number of image or video tokens is not what the media make, or a first token is supervised.
    """
    samples = samples or [idle_sample(processor, info.pixels)]
    geometry = processor.geometry
    seqlens = [len(sample["input_ids"]) for sample in samples]
    input_ids = torch.cat([sample["input_ids"] for sample in samples])
    labels = torch.cat([sample["labels"] for sample in samples])
    starts = torch.tensor([0, *seqlens]).cumsum(0)
    if bool((labels[starts[:-1]] != IGNORE_INDEX).any()):
        raise ValueError("the first token of a sample is supervised, and nothing stands before it")
    supervised = (labels != IGNORE_INDEX).nonzero()[:, 0]
    stills, videos, grids, is_video = (
        torch.cat([sample[key] for sample in samples])
        for key in ("still_patches", "video_patches", "grid_thw", "is_video")
    )
    images, frames = (
        (input_ids == token).nonzero()[:, 0] for token in (processor.image_token_id, processor.video_token_id)
    )
    _check_counts("image", grids[~is_video], len(images), len(stills), geometry)
    _check_counts("video", grids[is_video], len(frames), len(videos), geometry)
    grids = torch.cat([grids[~is_video], grids[is_video]])  # stills first, as their patches are embedded first
    visual_positions = torch.cat([images, frames])
    num_media = len(grids)
    if num_media == 0:
        stills, grids = _dummy(stills, geometry)
    segments = [rows * columns for pairs, rows, columns in grids.tolist() for _ in range(pairs)]
    indices, weights = _interpolation(grids, geometry)
    batch = Batch(
        input_ids=input_ids[None],
        position_ids=torch.cat([sample["position_ids"] for sample in samples], dim=1)[:, None],
        cu_seqlens=starts.to(torch.int32),
        seqlens=seqlens,
        supervised_positions=supervised - 1,
        targets=labels[supervised],
        target_samples=torch.repeat_interleave(torch.tensor(seqlens))[supervised],
        still_patches=stills,
        video_patches=videos,
        visual_positions=visual_positions,
        vision_cu_seqlens=torch.tensor([0, *segments]).cumsum(0).to(torch.int32),
        vision_seqlens=segments,
        vision_position_ids=get_vision_position_ids(grids, geometry.merge_size),
        vision_interp_indices=indices,
        vision_interp_weights=weights,
        dummy_visual=num_media == 0,
        num_media=num_media,
        step_supervised_tokens=info.step_supervised_tokens,
        rows=list(info.rows),
        sources=list(info.sources),
        pack=info.pack,
        masked=list(info.masked),
    )
    if geometry.window_pixels is not None:
        order, starts = get_vision_window_index(grids, geometry.merge_size, geometry.window_pixels, geometry.patch_size)
        batch["vision_window_order"], batch["vision_window_cu_seqlens"] = order, starts
        batch["vision_window_seqlens"] = starts.diff().tolist()
    return batch


def _interpolation(grids: Tensor, geometry: VisionGeometry) -> tuple[Tensor, Tensor]:
    """Places in the learned positions and their weights, (patches, 4) each; (0, 4) where there are none."""
    if geometry.positions_per_side is None:
        return torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 4)
    return get_vision_interpolation_indices_and_weights(
        grids,
        num_grid_per_side=geometry.positions_per_side,
        mode="bilinear",
        align_corners=True,
        spatial_merge_size=geometry.merge_size,
    )


def _check_counts(kind: str, grids: Tensor, num_positions: int, num_patches: int, geometry: VisionGeometry) -> None:
    wanted = int(grids.prod(-1).sum())
    if num_patches != wanted or num_positions * geometry.merge_size**2 != wanted:
        raise ValueError(
            f"{num_positions} {kind} tokens and {num_patches} patches stand in a pack whose {kind}s make "
            f"{wanted // geometry.merge_size**2} and {wanted}"
        )


def _dummy(stills: Tensor, geometry: VisionGeometry) -> tuple[Tensor, Tensor]:
    side = DUMMY_SIDE // geometry.factor * geometry.factor // geometry.patch_size or geometry.merge_size
    value = _GREY if stills.dtype == torch.uint8 else 0.0
    patches = torch.full((side * side, stills.shape[1]), value, dtype=stills.dtype)
    return patches, torch.tensor([[1, side, side]])


def idle_sample(processor: Processor, pixels: Pixels) -> Sample:
    """One token, nothing supervised: what a rank runs when the plan has no pack left for it, or for a masked row."""
    geometry = processor.geometry
    width = 3 * geometry.patch_size**2
    dtype = torch.uint8 if pixels == "uint8" else torch.float32
    return Sample(
        input_ids=torch.zeros(1, dtype=torch.int64),
        labels=torch.full((1,), IGNORE_INDEX),
        position_ids=torch.zeros(4, 1, dtype=torch.int64),
        still_patches=torch.empty(0, width, dtype=dtype),
        video_patches=torch.empty(0, width * geometry.temporal_patch_size, dtype=dtype),
        grid_thw=torch.empty(0, 3, dtype=torch.int64),
        is_video=torch.empty(0, dtype=torch.bool),
    )
