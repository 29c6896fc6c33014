"""The one root module: a packed row in, its summed loss out.

Its forward is embed, one visual call, language model, and cross-entropy at the supervised positions. It runs the stock
transformers modules (their weights, names and layers), so what it trains is what `save_pretrained` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from vlmkit.batch import Batch
from vlmkit.model.attention import VARLEN, VARLEN_VISION, Kernel, PartAttention, Segments
from vlmkit.model.compiling import compile_blocks, fill_order, fill_rows, filled
from vlmkit.model.families import family_of
from vlmkit.model.head import linear_cross_entropy
from vlmkit.model.linear_attention import keep_segments_apart
from vlmkit.model.parts import Part, blocks_of
from vlmkit.model.patch_embed import PatchNormalizer, embed_patches

HEAD_CHUNK = 512
"""Rows of logits held at once: 297 MiB of fp32 at Qwen's vocabulary."""


@dataclass(frozen=True, slots=True)
class PackedOutput:
    """What a forward gives.

    Attributes:
        loss_sum: Scalar, sum of the cross-entropies of the pack's supervised tokens (not a mean).
        token_losses: (supervised tokens,) detached, in the order of `batch["targets"]`.
    """

    loss_sum: Tensor
    token_losses: Tensor


class Patches(NamedTuple):
    """What the vision encoder is handed in place of the stock processor's pixels.

    Attributes:
        stills: Normalised, as `embed_patches` takes them.
        videos: Normalised, as `embed_patches` takes them.
        filler: Rows of zeros behind the embedded patches.
    """

    stills: Tensor
    videos: Tensor
    filler: int


class PackedVLM(nn.Module):
    """A vision-language model of any family that runs on packs.

    Attributes:
        hf: The stock model; its attention is set to `VARLEN_VISION` and `VARLEN`, its patch embedding takes `Patches` too.
        family: What sets it apart from other models.
        attention: Of each part that attends, and which kernels have run there.
        compiled: Whether its blocks are compiled, and lengths filled up to buckets; see `vlmkit.model.compiling`.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
        kernel: Kernel = "auto",
        head_chunk: int = HEAD_CHUNK,
        compiled: bool = False,
        compiler: str = "inductor",
    ) -> None:
        super().__init__()
        hf.set_attn_implementation({"text_config": VARLEN, "vision_config": VARLEN_VISION})
        self.family = family_of(hf)
        self.hf: Any = hf
        _take_patches(self.hf.model.visual.patch_embed)
        if self.family.experts and hf.dtype == torch.float64:
            hf.set_experts_implementation("eager")  # the grouped product of transformers' default knows no fp64
        if self.family.linear_attention:
            keep_segments_apart(blocks_of(hf, "language_model"))
        self.normalize = PatchNormalizer(mean=pixel_mean, std=pixel_std)
        self.attention: dict[Part, PartAttention] = {
            "vision_encoder": PartAttention(kernel),
            "language_model": PartAttention(kernel),
        }
        self.head_chunk = head_chunk
        self.compiled = compiled
        if compiled:
            compile_blocks(hf, backend=compiler)

    def forward(self, batch: Batch) -> PackedOutput:
        """Run a pack.

        Args:
            batch: See `vlmkit.batch.Batch`.

        Returns:
            The summed loss; zero, but connected to every trainable tensor, for a pack without supervised tokens.
        """
        hidden = self.hidden_states(batch)[0]
        states = hidden.index_select(0, batch["supervised_positions"])
        weight = self.hf.lm_head.weight
        loss_sum, losses = linear_cross_entropy(states, weight, batch["targets"], chunk=self.head_chunk)
        return PackedOutput(loss_sum=loss_sum, token_losses=losses)

    def logits(self, batch: Batch) -> Tensor:
        """Logits at every position, (1, tokens, vocabulary): for tests and previews, never for training."""
        return self.hf.lm_head(self.hidden_states(batch))

    def hidden_states(self, batch: Batch, *, cache: Any = None) -> Tensor:
        """States after the last norm, (1, tokens, width).

        Args:
            batch: See `vlmkit.batch.Batch`.
            cache: Handed every layer's keys and values, (1, heads, tokens, head_size), as transformers' caches are; gives
                back what is attended to.
        """
        language = self.hf.model.language_model
        embeds = language.embed_tokens(batch["input_ids"])
        merged, deepstack = self._see(batch)
        if batch["dummy_visual"]:
            # Every rank runs the vision encoder at every step; what it says of the stand-in image weighs nothing.
            embeds = embeds + 0.0 * (merged.sum() + sum(feature.sum() for feature in deepstack)).to(embeds.dtype)
            deepstack = []
        else:
            embeds = embeds.index_copy(1, batch["visual_positions"], merged[None].to(embeds.dtype))
        return self._read(embeds, deepstack, batch, cache)

    def _see(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Visual tokens (V, width) and the DeepStack features of the same shape, from one call into the encoder.

        It is the stock forward. What it would read from the grids on the host, and wait for, comes with the batch.
        """
        visual: Any = self.hf.model.visual
        patches = len(batch["vision_position_ids"])
        num_tokens = patches // visual.spatial_merge_size**2
        filler, segments = self._segments("vision_encoder", batch["vision_cu_seqlens"], batch["vision_seqlens"])
        arguments: dict[str, Any] = {
            "position_ids": fill_rows(batch["vision_position_ids"], filler, 0),
            "cu_seqlens": segments,
            "max_seqlen": 0,  # not None, or it is read from `cu_seqlens`; the segments know it, and a number is compiled in
        }
        if self.family.learned_positions:
            arguments["interp_indices"] = fill_rows(batch["vision_interp_indices"], filler, 0)
            arguments["interp_weights"] = fill_rows(batch["vision_interp_weights"], filler, 0)
        if self.family.windows:
            order = batch["vision_window_order"]  # pyright: ignore[reportTypedDictNotRequiredAccess]  # made for windows
            starts, lengths = batch["vision_window_cu_seqlens"], batch["vision_window_seqlens"]  # pyright: ignore[reportTypedDictNotRequiredAccess]  # as above
            arguments["window_index"] = fill_order(order, filler // visual.spatial_merge_unit)
            arguments["cu_window_seqlens"] = self._segments("vision_encoder", starts, lengths)[1]
            arguments["max_window_seqlen"] = 0
        stills, videos = self.normalize(batch["still_patches"]), self.normalize(batch["video_patches"])
        seen = visual(Patches(stills, videos, filler), None, **arguments)
        deepstack = cast("list[Tensor]", seen.deepstack_features) if self.family.deepstack else []
        return seen.pooler_output[:num_tokens], [feature[:num_tokens] for feature in deepstack]

    def _segments(self, part: Part, starts: Tensor, lengths: Sequence[int]) -> tuple[int, Segments]:
        """Rows of filler, and the segments with it."""
        segments = Segments(starts, lengths, self.attention[part])
        return filled(segments) if self.compiled else (0, segments)

    def _read(self, embeds: Tensor, deepstack: list[Tensor], batch: Batch, cache: Any) -> Tensor:
        """States after the last norm.

        Not the stock forward: that adds DeepStack's features through a boolean mask, for which the host waits.
        """
        language: Any = self.hf.model.language_model
        filler, segments = self._segments("language_model", batch["cu_seqlens"], batch["seqlens"])
        positions = fill_rows(batch["position_ids"], filler, 2)
        hidden = fill_rows(embeds, filler, 1)
        rotary = language.rotary_emb(hidden, positions[1:])
        for number, layer in enumerate(language.layers):
            hidden = layer(
                hidden,
                position_embeddings=rotary,
                position_ids=positions[0],
                past_key_values=cache,
                use_cache=False,
                cu_seq_lens_q=segments,
                seqlens=segments,
            )
            if number < len(deepstack):
                feature = deepstack[number][None].to(hidden.dtype)
                hidden = hidden.index_add(1, batch["visual_positions"], feature)
        return language.norm(hidden[:, : embeds.shape[1]])


def _take_patches(patch_embed: nn.Module) -> None:
    """Let a stock patch embedding take `Patches` as well as the pixels that it knows."""
    patch_embed.forward = MethodType(_embed, patch_embed)


def _embed(patch_embed: Any, pixels: Tensor | Patches) -> Tensor:
    """(patches, width); the stock module's forward for a tensor."""
    if isinstance(pixels, Tensor):
        return type(patch_embed).forward(patch_embed, pixels)
    embedded = embed_patches(patch_embed.proj, pixels.stills, pixels.videos)
    return pad(embedded, (0, 0, 0, pixels.filler)) if pixels.filler else embedded
