"""Where the vision encoder, the merger and the language model live in a model, by parameter name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from vlmkit.model.families import FAMILIES, PARTS, Part, family_of

__all__ = [
    "PARTS",
    "Part",
    "blocks_of",
    "mergers_of",
    "part_of",
    "restore_rotary_buffers",
    "set_checkpointing",
]
_PREFIXES: dict[str, Part] = {
    prefix: part for family in FAMILIES.values() for prefix, part in family.layout.prefixes.items()
}
"""Of all families together: no two of them give one prefix to different parts (`tests/model/test_parts.py`)."""


def part_of(name: str) -> Part:
    """The part that a parameter belongs to, in a model of any family.

    Raises:
        KeyError: no part claims it; a parameter nobody placed must not be trained or frozen by accident.
    """
    fitting = [prefix for prefix in _PREFIXES if name.startswith(prefix)]
    if not fitting:
        raise KeyError(f"parameter {name!r} belongs to no known part; known prefixes: {', '.join(_PREFIXES)}")
    return _PREFIXES[max(fitting, key=len)]


def blocks_of(model: nn.Module, part: Part) -> list[nn.Module]:
    """The blocks of a part, in order; none for the merger."""
    path = family_of(model).layout.blocks.get(part)
    return list(cast(Iterable[nn.Module], model.get_submodule(path))) if path else []


def mergers_of(model: nn.Module) -> list[nn.Module]:
    """The modules that make up the merger."""
    return [model.get_submodule(path) for path in family_of(model).layout.mergers]


def set_checkpointing(model: Any, *, vision_encoder: bool, language_model: bool) -> None:
    """Recompute the blocks of a part in the backward pass instead of keeping their activations (non-reentrant)."""
    for module, wanted in ((model.model.visual, vision_encoder), (model.model.language_model, language_model)):
        name = "activation" if hasattr(module, "activation_checkpointing_enable") else "gradient"  # before 5.23
        if wanted:
            getattr(module, f"{name}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(module, f"{name}_checkpointing_disable")()


def restore_rotary_buffers(model: Any) -> None:
    """Compute the rotary frequencies anew, in fp32 on their device.

    They are not saved, so a model built on the meta device lacks them; and a cast of the model to bf16 damages them.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    visual, language = model.model.visual.rotary_pos_emb, model.model.language_model.rotary_emb
    scaled = ROPE_INIT_FUNCTIONS.get(language.rope_type)
    for module, compute in (
        (visual, visual.compute_axial_rope_parameters),
        (language, scaled or language.compute_default_rope_parameters),
    ):
        frequencies, _ = compute(module.config)
        for name in ("inv_freq", "original_inv_freq"):
            old = getattr(module, name)
            device = torch.device("cpu") if old.is_meta else old.device
            setattr(module, name, nn.Buffer(frequencies.to(device=device, dtype=torch.float32), persistent=False))
