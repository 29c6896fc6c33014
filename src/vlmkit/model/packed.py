"""The one root module: a packed row in, its summed loss out.

Its forward is embed, one visual call, language model, and cross-entropy at the supervised positions. It runs the stock
transformers modules (their weights, names and layers), so what it trains is what `save_pretrained` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmkit.batch import Batch
from vlmkit.model.attention import VARLEN, Kernel, PackedVisionAttention, Segments
from vlmkit.model.compiling import compile_blocks, fill_rows, filled
from vlmkit.model.families import family_of
from vlmkit.model.head import linear_cross_entropy
from vlmkit.model.linear_attention import keep_segments_apart
from vlmkit.model.parts import blocks_of
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


class PackedVLM(nn.Module):
    """A vision-language model of any family that runs on packs.

    Attributes:
        hf: The stock model; its vision attention is ours, its language attention is set to `VARLEN`.
        family: What sets it apart from other models.
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
        hf.set_attn_implementation({"text_config": VARLEN})
        self.family = family_of(hf)
        self.hf: Any = hf
        for block in blocks_of(hf, "vision_encoder"):
            if not isinstance(block.attn, PackedVisionAttention):
                block.attn = PackedVisionAttention(cast(nn.Module, block.attn))
        if self.family.experts and hf.dtype == torch.float64:
            hf.set_experts_implementation("eager")  # the grouped product of transformers' default knows no fp64
        if self.family.linear_attention:
            keep_segments_apart(blocks_of(hf, "language_model"))
        self.normalize = PatchNormalizer(mean=pixel_mean, std=pixel_std)
        self.kernel: Kernel = kernel
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
        """Visual tokens (V, width) and the DeepStack features of the same shape, from one call into the encoder."""
        visual: Any = self.hf.model.visual
        stills, videos = self.normalize(batch["still_patches"]), self.normalize(batch["video_patches"])
        hidden = embed_patches(visual.patch_embed.proj, stills, videos)
        if self.family.learned_positions:
            taps = visual.pos_embed(batch["vision_interp_indices"])
            hidden = hidden + (taps * batch["vision_interp_weights"][:, :, None]).sum(1).to(hidden.dtype)
        places = batch["vision_position_ids"]
        filler, *segments = self._segments(batch["vision_cu_seqlens"], batch["vision_seqlens"])
        inside, order = segments, None
        if self.family.windows:
            order = batch["vision_window_order"]  # pyright: ignore[reportTypedDictNotRequiredAccess]  # made for windows
            hidden, places = (_in_order(each, order) for each in (hidden, places))
            _, *inside = self._segments(batch["vision_window_cu_seqlens"], batch["vision_window_seqlens"])  # pyright: ignore[reportTypedDictNotRequiredAccess]  # as above
        hidden = fill_rows(hidden, filler, 0)
        rotary = visual.rotary_pos_emb(hidden, fill_rows(places, filler, 0))
        num_tokens = len(places) // visual.spatial_merge_size**2
        taps_after: list[int] = list(visual.deepstack_visual_indexes) if self.family.deepstack else []
        whole: set[int] = set(visual.fullatt_block_indexes) if self.family.windows else set()
        deepstack: list[Tensor] = []
        for number, block in enumerate(visual.blocks):
            cu_seqlens, seqlens = segments if number in whole else inside
            hidden = block(
                hidden,
                cu_seqlens=cu_seqlens,
                seqlens=seqlens,
                position_embeddings=rotary,
                kernel=self.kernel,
            )
            if number in taps_after:
                merger = visual.deepstack_merger_list[taps_after.index(number)]
                deepstack.append(merger(hidden)[:num_tokens])
        merged = visual.merger(hidden)[:num_tokens]
        return (merged if order is None else merged[order.argsort()]), deepstack

    def _segments(self, cu_seqlens: Tensor, seqlens: Sequence[int]) -> tuple[int, Tensor | Segments, Sequence[int]]:
        """Rows of filler, and where segments start and how long they are."""
        if not self.compiled:
            return 0, cu_seqlens, seqlens
        filler, segments = filled(cu_seqlens, seqlens)
        return filler, segments, segments

    def _read(self, embeds: Tensor, deepstack: list[Tensor], batch: Batch, cache: Any) -> Tensor:
        language: Any = self.hf.model.language_model
        filler, cu_seqlens, seqlens = self._segments(batch["cu_seqlens"], batch["seqlens"])
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
                cu_seq_lens_q=cu_seqlens,
                cu_seq_lens_k=cu_seqlens,
                seqlens=seqlens,
                kernel=self.kernel,
            )
            if number < len(deepstack):
                feature = deepstack[number][None].to(hidden.dtype)
                hidden = hidden.index_add(1, batch["visual_positions"], feature)
        return language.norm(hidden[:, : embeds.shape[1]])


def _in_order(patches: Tensor, order: Tensor) -> Tensor:
    """Rows of patches, in groups that make one visual token each, in another order of these groups."""
    return patches.unflatten(0, (len(order), -1))[order].flatten(0, 1)
