"""Where the vision encoder, the merger and the language model live in each architecture, by parameter name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

Part = Literal["vision_encoder", "merger", "language_model"]
PARTS: tuple[Part, ...] = ("vision_encoder", "merger", "language_model")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of one architecture.

    Attributes:
        prefixes: Beginning of a parameter name and the part it belongs to; the longest that fits decides.
        blocks: Path of the module list whose entries are checkpointed and sharded one by one, per part.
    """

    prefixes: dict[str, Part]
    blocks: dict[Part, str]


QWEN3_VL = Layout(
    prefixes={
        "model.visual.": "vision_encoder",
        "model.visual.merger.": "merger",
        "model.visual.deepstack_merger_list.": "merger",
        "model.language_model.": "language_model",
        "lm_head.": "language_model",
    },
    blocks={"vision_encoder": "model.visual.blocks", "language_model": "model.language_model.layers"},
)
LAYOUTS = {"qwen3_vl": QWEN3_VL}
"""Layout of each `model_type`. A new family is an entry here and the tests of `tests/model` on it."""


def part_of(name: str, layout: Layout = QWEN3_VL) -> Part:
    """The part that a parameter belongs to.

    Raises:
        KeyError: no part claims it; a parameter nobody placed must not be trained or frozen by accident.
    """
    fitting = [prefix for prefix in layout.prefixes if name.startswith(prefix)]
    if not fitting:
        raise KeyError(f"parameter {name!r} belongs to no known part; known prefixes: {', '.join(layout.prefixes)}")
    return layout.prefixes[max(fitting, key=len)]


def blocks_of(model: nn.Module, part: Part, layout: Layout = QWEN3_VL) -> list[nn.Module]:
    """The blocks of a part, in order; none for the merger."""
    path = layout.blocks.get(part)
    return list(cast(Iterable[nn.Module], model.get_submodule(path))) if path else []


def set_checkpointing(model: Any, *, vision_encoder: bool, language_model: bool) -> None:
    """Recompute the blocks of a part in the backward pass instead of keeping their activations (non-reentrant)."""
    for module, wanted in ((model.model.visual, vision_encoder), (model.model.language_model, language_model)):
        if wanted:
            module.activation_checkpointing_enable({"use_reentrant": False})
        else:
            module.activation_checkpointing_disable()


def restore_rotary_buffers(model: Any) -> None:
    """Compute the rotary frequencies anew, in fp32 on their device.

    They are not saved, so a model built on the meta device lacks them; and a cast of the model to bf16 damages them.
    """
    import torch

    visual, language = model.model.visual.rotary_pos_emb, model.model.language_model.rotary_emb
    for module, compute in (
        (visual, visual.compute_axial_rope_parameters),
        (language, language.compute_default_rope_parameters),
    ):
        frequencies, _ = compute(module.config)
        for name in ("inv_freq", "original_inv_freq"):
            old = getattr(module, name)
            device = torch.device("cpu") if old.is_meta else old.device
            setattr(module, name, nn.Buffer(frequencies.to(device=device, dtype=torch.float32), persistent=False))
