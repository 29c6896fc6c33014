"""Which parts are trained: `requires_grad` of parameters, and the modes of modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmkit.errors import ConfigError
from vlmkit.model.parts import PARTS, Part, mergers_of, part_of


@dataclass(frozen=True, kw_only=True)
class FreezePolicy:
    """True freezes a part. A tied head follows the embeddings, which belong to the language model.

    Attributes:
        vision_encoder: The ViT, without its merger.
        merger: The merger and the DeepStack mergers.
        language_model: Embeddings, layers, last norm and head.
    """

    vision_encoder: bool
    merger: bool
    language_model: bool

    def is_frozen(self, part: Part) -> bool:
        """Whether a part keeps its weights."""
        return bool(getattr(self, part))

    def apply(self, model: nn.Module) -> None:
        """Set `requires_grad` of every parameter.

        Raises:
            ConfigError: nothing would be trained.
            KeyError: a parameter belongs to no part.
        """
        if all(self.is_frozen(part) for part in PARTS):
            raise ConfigError(
                "freeze: all three parts are frozen, so nothing would be trained. Choose another freeze=."
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not self.is_frozen(part_of(name)))

    def set_modes(self, model: Any) -> None:
        """Train mode, but for a frozen vision encoder.

        The language model stays in train mode even when frozen: transformers recomputes activations only then, and in
        the first stage gradients pass through it to the merger.

        Raises:
            ConfigError: the language model has dropout, which train mode would switch on in a frozen part.
        """
        model.train()
        if self.vision_encoder:
            model.model.visual.eval()
            for merger in mergers_of(model):
                merger.train()
        if self.language_model and (dropout := model.config.text_config.attention_dropout):
            raise ConfigError(
                f"freeze.language_model: the language model has attention_dropout={dropout}; a frozen one must have 0."
            )
