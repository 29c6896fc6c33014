"""FLOPs of a batch: what the mathematics asks for, and what is computed anew on top."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vlmkit.batch import Batch
from vlmkit.model.families import family_of
from vlmkit.model.parts import mergers_of

_STAGES = tuple(
    re.compile(pattern)
    for pattern in (
        r"^(norm1|input_layernorm|norm|ln_q)\.",
        r"^(attn\.qkv|self_attn\.[qkv]_proj|linear_attn\.(in_proj_\w+|conv1d|dt_bias|A_log))(\.|$)",
        r"^self_attn\.[qk]_norm\.",
        r"^(attn\.proj|self_attn\.o_proj|linear_attn\.(norm|out_proj))\.",
        r"^(norm2|post_attention_layernorm)\.",
        r"(^|\.)(linear_fc1|gate_proj|up_proj|gate_up_proj|mlp\.0|gate|shared_expert_gate)(\.|$)",
        r"(^|\.)(linear_fc2|down_proj|mlp\.2)(\.|$)",
    )
)
"""Parameters of a block or merger in the order in which they are applied; those of a stage stand side by side."""
_ATTENTION = 3
"""The stage before which a block attends."""


@dataclass(kw_only=True)
class Rates:
    """FLOPs for each unit of a batch.

    Attributes:
        embedded: Of a patch that is embedded (a still's, or half a video's).
        patch, visual_token, token, supervised: Of what goes through the vision encoder's blocks, the mergers, the
            language model's layers, and the head.
        patch_pair, window_pair, token_pair: Of a pair of patches of one image or window, or of tokens of one sample (all
            pairs, later ones too).
    """

    embedded: float = 0.0
    patch: float = 0.0
    visual_token: float = 0.0
    token: float = 0.0
    supervised: float = 0.0
    patch_pair: float = 0.0
    window_pair: float = 0.0
    token_pair: float = 0.0


@dataclass(kw_only=True)
class FlopCount:
    """FLOPs of a training step on a batch.

    A matrix of n numbers costs 2 n per position forward, 2 n for the gradient of its input and 2 n for its own (Kaplan et
    al. 2020, arXiv:2001.08361, section 2.1); attention over a segment of length l and width w costs 4 l^2 w forward
    and twice that backward, half of it where it is causal (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, counts
    it whole). What is frozen has no gradient of its own; and nothing has one of its input unless something before it
    learns: a part, an adapter, or a norm. Of many experts those count that a token is sent to. Of a state that a layer carries
    along the row a token decays, corrects and reads each number (Yang et al. 2024, arXiv:2412.06464, equation 10).

    Attributes:
        model: What the mathematics asks for; model FLOPs utilisation is of this.
        recomputed: What recomputation adds (`model.gradient_checkpointing`): a block's forward but for its last product,
            which nothing in the backward pass needs.
        merge: Patches of a visual token.
        causal: Share of a causal attention that is counted.
    """

    model: Rates = field(default_factory=Rates)
    recomputed: Rates = field(default_factory=Rates)
    merge: int
    causal: float = 0.5

    def __call__(self, batch: Batch) -> float:
        """Model FLOPs of forward and backward."""
        return self._of(batch, self.model)

    def executed(self, batch: Batch) -> float:
        """FLOPs that are computed, recomputation included."""
        return self._of(batch, self.model) + self._of(batch, self.recomputed)

    def executed_of(
        self, tokens: NDArray[np.int64], patches: NDArray[np.int64], supervised: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The same of packs of which only the counts are known: without attention, videos taken as stills."""
        found = np.zeros(len(tokens))
        for rates in (self.model, self.recomputed):
            found += (rates.embedded + rates.patch + rates.visual_token / self.merge) * patches
            found += rates.token * tokens + rates.supervised * supervised
        return found

    def _of(self, batch: Batch, rates: Rates) -> float:
        patches, tokens = sum(batch["vision_seqlens"]), sum(batch["seqlens"])
        return (
            rates.embedded * (patches + len(batch["video_patches"]))
            + rates.patch * patches
            + rates.visual_token * (patches // self.merge)
            + rates.token * tokens
            + rates.supervised * len(batch["targets"])
            + rates.patch_pair * sum(n * n for n in batch["vision_seqlens"])
            + rates.window_pair * sum(n * n for n in batch.get("vision_window_seqlens", ()))
            + rates.token_pair * self.causal * sum(n * n for n in batch["seqlens"])
        )


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """FLOPs of a block for each position and each pair of positions, and whether something learns by its end."""

    position: float
    pair: float
    again: float
    pair_again: float
    learns: bool


def count_flops(hf: Any) -> FlopCount:
    """Read sizes, what is trained and what is recomputed of a model that is frozen, adapted and set as it trains."""
    visual, language, text = hf.model.visual, hf.model.language_model, hf.config.text_config
    found = FlopCount(merge=visual.config.spatial_merge_size**2)
    family = family_of(hf)
    proj = visual.patch_embed.proj.weight
    found.model.embedded = _passes(proj, below=False) * proj.numel() / visual.config.temporal_patch_size
    learns = _trains(visual.patch_embed) or (family.learned_positions and _trains(visual.pos_embed))
    whole = set(visual.fullatt_block_indexes) if family.windows else None
    for number, block in enumerate(visual.blocks):
        pair = "patch_pair" if whole is None or number in whole else "window_pair"
        learns = _add_block(found, block, "patch", pair, width=visual.config.hidden_size, below=learns)
    speaks = learns
    for merger in _single(mergers_of(hf)):
        cost = _cost(merger, below=learns)
        found.model.visual_token += cost.position
        speaks = speaks or cost.learns
    learns = speaks or _trains(language.embed_tokens)
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    experts = text.num_experts_per_tok / text.num_experts if family.experts else 1.0
    for layer in language.layers:
        learns = _add_block(found, layer, "token", "token_pair", width=width, below=learns, experts=experts)
    head = hf.lm_head.weight
    found.model.supervised = _passes(head, below=learns or _trains(language.norm)) * head.numel()
    return found


def _single(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        yield from module if isinstance(module, nn.ModuleList) else (module,)


def _add_block(
    found: FlopCount, block: nn.Module, unit: str, pair: str, *, width: int, below: bool, experts: float = 1.0
) -> bool:
    """Add a block; whether something learns by its end."""
    recomputes = bool(getattr(block, "gradient_checkpointing", False)) and block.training
    cost = _cost(block, width=width, below=below, recomputes=recomputes, experts=experts)
    for rates, of_position, of_pair in (
        (found.model, cost.position, cost.pair),
        (found.recomputed, cost.again, cost.pair_again),
    ):
        setattr(rates, unit, getattr(rates, unit) + of_position)
        setattr(rates, pair, getattr(rates, pair) + of_pair)
    return cost.learns


def _cost(module: nn.Module, *, below: bool, width: int = 0, recomputes: bool = False, experts: float = 1.0) -> _Cost:
    """Of a block, or of a merger.

    Args:
        module: Its parameters are named as `_STAGES` has them, those of adapters below them.
        below: Whether its input has a gradient.
        width: Over all heads, of a block that attends.
        recomputes: Whether its forward is computed again in the backward pass.
        experts: Share of its experts that a token is sent to.
    """
    carrier: Any = getattr(module, "linear_attn", None)
    state = 0.0 if carrier is None else 6.0 * carrier.num_v_heads * carrier.head_k_dim * carrier.head_v_dim
    attention = 4.0 * width if carrier is None else 0.0
    position, forward, last, pair = 0.0, state, 0.0, 0.0
    for stage, parameters in enumerate(_staged(module)):
        if stage == _ATTENTION:
            pair, position = attention * (3 if below else 1), position + state * (3 if below else 1)
        for name, parameter in parameters:
            if parameter.ndim > 1:
                numbers = parameter.numel() * (experts if ".experts." in name else 1.0)
                beside = ".lora_B." in name  # its input is the first matrix' output, which learns
                position += _passes(parameter, below=below or beside) * numbers
                forward, last = forward + 2.0 * numbers, 2.0 * numbers
        below = below or any(parameter.requires_grad for _, parameter in parameters)
    again = recomputes and below
    return _Cost(
        position=position,
        pair=pair,
        again=forward - last if again else 0.0,
        pair_again=attention if again else 0.0,
        learns=below,
    )


def _staged(module: nn.Module) -> list[list[tuple[str, nn.Parameter]]]:
    """Parameters of each stage.

    Raises:
        KeyError: one belongs to no stage; it would be counted at the wrong place.
    """
    stages: list[list[tuple[str, nn.Parameter]]] = [[] for _ in _STAGES]
    for name, parameter in module.named_parameters():
        place = next((number for number, pattern in enumerate(_STAGES) if pattern.search(name)), None)
        if place is None:
            raise KeyError(f"parameter {name!r} of {type(module).__name__} belongs to no known stage of a block")
        stages[place].append((name, parameter))
    return stages


def _passes(weight: nn.Parameter, *, below: bool) -> float:
    """FLOPs per number and position: forward, gradient of the input, gradient of the weight."""
    return 2.0 * (1 + below + weight.requires_grad)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
