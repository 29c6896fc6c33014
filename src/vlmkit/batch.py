"""The tensor contract between data and model: every key, shape and dtype written out, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is not supervised (the default of `torch.nn.functional.cross_entropy`)."""


MaskedRow = tuple[int, str, str]
"""A row whose media could not be read: its number in the index, `DataError.reason`, and the message without origin."""


class Sample(TypedDict):
    """One encoded conversation.

    A *still patch* is one temporal copy of an image patch: 3 x patch x patch values, channel first. A *video patch*
    is 3 x temporal_patch x patch x patch values. Both are uint8 (`data.pixels=uint8`) or normalised float32
    (`data.pixels=float32`). Patches stand in merge-block order, as transformers' processor writes them.

    Keys:
        input_ids: (num_tokens,) int64.
        labels: (num_tokens,) int64; `IGNORE_INDEX` where not supervised; never supervised at position 0.
        position_ids: (4, num_tokens) int64; row 0 counts tokens from 0, rows 1 to 3 are mRoPE time, height, width.
        still_patches: (num_still_patches, 3 * patch**2).
        video_patches: (num_video_patches, 3 * temporal_patch * patch**2).
        grid_thw: (num_items, 3) int64, in the order in which the media are said; a video is one item.
        is_video: (num_items,) bool.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    still_patches: Tensor
    video_patches: Tensor
    grid_thw: Tensor
    is_video: Tensor


class Batch(TypedDict):
    """A pack: samples joined into one row, without padding and without a mask.

    T tokens, S samples, K supervised positions, P patches (stills first, then videos), V visual tokens
    (`P / merge_size**2`, in the order of the patches), A vision segments (a still, or one frame pair of a video).
    Everything that needs the host is made in the workers, so the forward never waits for it.

    Keys:
        input_ids: (1, T) int64.
        position_ids: (4, 1, T) int64, restarting per sample.
        cu_seqlens: (S + 1,) int32, where each sample starts; `seqlens` are the lengths as host integers.
        supervised_positions: (K,) int64, positions *before* each supervised label: where the logits are needed.
        targets: (K,) int64, the labels there.
        target_samples: (K,) int64, which sample of the pack (0 to S - 1) each target belongs to.
        still_patches: (P_still, 3 * patch**2); video_patches: (P_video, 3 * temporal_patch * patch**2).
        visual_positions: (V,) int64, position in the row of each visual token; empty when `dummy_visual`.
        vision_cu_seqlens: (A + 1,) int32; `vision_seqlens` are the lengths as host integers.
        vision_position_ids: (P, 2) int64, row and column of each patch, for the rotary embedding.
        vision_interp_indices: (P, 4) int64 and vision_interp_weights: (P, 4) float32, for the learned positions; (0, 4)
            where the vision encoder has none.
        vision_window_order: (V,) int64, visual tokens window by window; vision_window_cu_seqlens and vision_window_seqlens as
            above, of the windows; absent where the vision encoder has none.
        dummy_visual: the one item is a small grey image that stands in for no media; its features weigh zero.
        num_media: real items in the pack (0 when `dummy_visual`).
        step_supervised_tokens: supervised tokens of the whole optimiser step, over all ranks and micro-batches.
        rows: dataset rows of the samples, in order; sources: which manifest each came from.
        pack: number of the pack in the plan; -1 for an idle slot at the end of the plan.
        masked: rows of the pack whose media could not be read (`data.on_bad_media=mask`): each stands in `rows` with one
            unsupervised token.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    seqlens: list[int]
    supervised_positions: Tensor
    targets: Tensor
    target_samples: Tensor
    still_patches: Tensor
    video_patches: Tensor
    visual_positions: Tensor
    vision_cu_seqlens: Tensor
    vision_seqlens: list[int]
    vision_position_ids: Tensor
    vision_interp_indices: Tensor
    vision_interp_weights: Tensor
    vision_window_order: NotRequired[Tensor]
    vision_window_cu_seqlens: NotRequired[Tensor]
    vision_window_seqlens: NotRequired[list[int]]
    dummy_visual: bool
    num_media: int
    step_supervised_tokens: int
    rows: list[int]
    sources: list[int]
    pack: int
    masked: list[MaskedRow]
