"""Model FLOPs of a batch: what the mathematics asks for, not what recomputation adds; and the device's peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from vlmkit.batch import Batch
from vlmkit.model.families import Family, family_of
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.parts import mergers_of


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs of a training step on a batch.

    A matrix of n numbers costs 2 n per position forward, 2 n for the gradient of its input and 2 n for its own (Kaplan et
    al. 2020, arXiv:2001.08361, section 2.1); attention over a segment of length l and width w costs 4 l^2 w forward
    and twice that backward, half of it where it is causal (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, counts
    it whole). What is frozen has no gradient of its own, and none of its input unless something below it learns.

    Attributes:
        patch, block, merger, layer, head: Numbers in the matrices applied to each patch (of a still), patch, visual
            token, token and supervised token.
        vision_width, vision_depth, language_width, language_depth: Width over all heads, and blocks with attention over
            whole segments. Of many experts those count that a token is sent to.
        state: Numbers in the states that layers carry along the row; a token decays, corrects and reads each (Yang et al.
            2024, arXiv:2412.06464, equation 10).
        window_depth: Vision blocks that attend inside windows.
        merge: Patches of a visual token.
        freeze: What is trained.
        causal: Share of a causal attention that is counted.
    """

    patch: int
    block: int
    merger: int
    layer: int
    head: int
    vision_width: int
    vision_depth: int
    language_width: int
    language_depth: int
    merge: int
    freeze: FreezePolicy
    window_depth: int = 0
    state: int = 0
    causal: float = 0.5

    def __call__(self, batch: Batch) -> float:
        """FLOPs of forward and backward."""
        patches, tokens = sum(batch["vision_seqlens"]), sum(batch["seqlens"])
        videos = len(batch["video_patches"])
        see = 2.0 * (self.patch * (patches + videos) + self.block * patches)
        pairs = self.vision_depth * sum(n * n for n in batch["vision_seqlens"])
        pairs += self.window_depth * sum(n * n for n in batch.get("vision_window_seqlens", ()))
        look = 4.0 * self.vision_width * pairs
        join = 2.0 * self.merger * (patches // self.merge)
        read = 2.0 * ((self.layer + 3 * self.state) * tokens + self.head * len(batch["targets"]))
        attend = 4.0 * self.causal * self.language_width * self.language_depth * sum(n * n for n in batch["seqlens"])
        learns_below = not self.freeze.vision_encoder
        seen = _passes(not self.freeze.vision_encoder, learns_below)
        joined = _passes(not self.freeze.merger, learns_below)
        learns_below = learns_below or not self.freeze.merger or not self.freeze.language_model
        language = _passes(not self.freeze.language_model, learns_below)
        return (
            see * seen
            + look * (3 if not self.freeze.vision_encoder else 1)
            + join * joined
            + read * language
            + attend * (3 if learns_below else 1)
        )


def _passes(learns: bool, learns_below: bool) -> int:
    return 1 + learns + learns_below


def count_flops(hf: Any, freeze: FreezePolicy) -> FlopCount:
    """Read the sizes of a stock model."""
    visual, language, text = hf.model.visual, hf.model.language_model, hf.config.text_config
    family = family_of(hf)
    windowed = len(visual.blocks) - len(set(visual.fullatt_block_indexes)) if family.windows else 0
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return FlopCount(
        patch=visual.patch_embed.proj.weight.numel() // visual.config.temporal_patch_size,
        block=_matrices(visual.blocks),
        merger=sum(map(_matrices, mergers_of(hf))),
        layer=_seen_by_a_token(language.layers, family, text),
        head=hf.lm_head.weight.numel(),
        vision_width=visual.config.hidden_size,
        vision_depth=len(visual.blocks) - windowed,
        language_width=text.num_attention_heads * head_size,
        language_depth=sum(hasattr(layer, "self_attn") for layer in language.layers),
        merge=visual.config.spatial_merge_size**2,
        freeze=freeze,
        window_depth=windowed,
        state=sum(_state(layer.linear_attn) for layer in language.layers if hasattr(layer, "linear_attn")),
    )


def _seen_by_a_token(layers: Any, family: Family, text: Any) -> int:
    """Numbers in the matrices that a token passes: of many experts those that it is sent to."""
    if not family.experts:
        return _matrices(layers)
    experts = sum(_matrices(layer.mlp.experts) for layer in layers if hasattr(layer.mlp, "experts"))
    return _matrices(layers) - experts + experts * text.num_experts_per_tok // text.num_experts


def _state(layer: Any) -> int:
    return layer.num_v_heads * layer.head_k_dim * layer.head_v_dim


def _matrices(module: Any) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Dense peak of a device per second, from the makers' data sheets as Lightning lists them; None where it is not known."""
    if device.type != "cuda":
        return None
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    return get_available_flops(device, dtype)
