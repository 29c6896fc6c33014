"""LoRA: small trained matrices beside frozen ones, injected by PEFT, and merged into plain weights for export."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.parts import PARTS, Part, part_of
from vlmkit.model.tensors import seeded_generator

ADAPTER = "default"
_BASE = ".base_layer."
_MATRIX = re.compile(rf"\.lora_(?P<which>[AB])\.{ADAPTER}\.")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Which matrices get an adapter, and of what rank.

    A part with targets keeps its own weights and trains its adapters; parts without follow the freeze policy.

    Attributes:
        rank: Rows of the first matrix.
        alpha: The product of both is scaled by `alpha / rank`.
        dropout: Of the adapters' input, in training.
        vision_encoder, merger, language_model: Last names of the linear layers of a part, such as `q_proj`; none: no
            adapters there.
    """

    rank: int
    alpha: float
    dropout: float
    vision_encoder: list[str]
    merger: list[str]
    language_model: list[str]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"model.lora.rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.lora.dropout must lie in 0..1, got {self.dropout}")
        if not any(self.targets(part) for part in PARTS):
            raise ValueError(
                "model.lora: no part has targets, so there is nothing to adapt; give a part some, or set rank 0"
            )

    def targets(self, part: Part) -> list[str]:
        """Last names of the layers to adapt."""
        found: list[str] = getattr(self, part)
        return found

    @property
    def scale(self) -> float:
        """Factor of the product of both matrices."""
        return self.alpha / self.rank

    def inject(self, hf: nn.Module) -> None:
        """Put adapters beside the targets; the second matrix is zero, so the model computes what it did.

        Raises:
            ConfigError: PEFT is not installed, or a target names no linear layer of its part.
        """
        check_peft()
        from peft import LoraConfig, inject_adapter_in_model

        names = self._layers(hf)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=cast(int, self.alpha),
            lora_dropout=self.dropout,
            target_modules=names,
            bias="none",  # type: ignore[arg-type]
        )
        inject_adapter_in_model(config, hf, adapter_name=ADAPTER)
        dtype = next(hf.parameters()).dtype
        for name, parameter in hf.named_parameters():
            if _MATRIX.search(name):
                parameter.data = parameter.data.to(dtype)

    def choose(self, hf: nn.Module, policy: FreezePolicy) -> None:
        """Set `requires_grad`: adapters are trained, the rest of their parts is not, other parts as the policy says."""
        adapted = {part for part in PARTS if self.targets(part)}
        for name, parameter in hf.named_parameters():
            part = part_of(name)
            trained = bool(_MATRIX.search(name)) if part in adapted else not policy.is_frozen(part)
            parameter.requires_grad_(trained)

    def reader(self, read: Callable[[str, int, int], Tensor], hf: nn.Module, *, seed: int) -> Callable[..., Tensor]:
        """Rows of an injected model: of the base as `read` has them, of the adapters as they are drawn at first."""

        def rows(name: str, first: int, last: int) -> Tensor:
            match = _MATRIX.search(name)
            if match is None:
                return read(name.replace(_BASE, "."), first, last)
            shape = list(hf.get_parameter(name).shape)
            if match["which"] == "B":
                return torch.zeros(last - first, *shape[1:])
            generator = seeded_generator(seed, name)
            bound = math.sqrt(1 / shape[1])  # as PEFT draws it: Kaiming's uniform with a = sqrt(5)
            return ((2 * torch.rand(shape, generator=generator) - 1) * bound)[first:last]

        return rows

    def merge(self, state: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Names and tensors of the plain model: each adapted matrix with its adapter added, in fp32 at least."""
        tensors = dict(state)
        merged: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if _MATRIX.search(name):
                continue
            plain = name.replace(_BASE, ".")
            stem, _, leaf = name.rpartition(_BASE)
            if stem and leaf == "weight":
                exact = torch.float64 if tensor.dtype == torch.float64 else torch.float32
                up, down = (tensors[f"{stem}.lora_{which}.{ADAPTER}.weight"].to(exact) for which in "BA")
                tensor = (tensor.to(exact) + (up @ down) * self.scale).to(tensor.dtype)
            merged[plain] = tensor
        return merged

    def _layers(self, hf: nn.Module) -> list[str]:
        linear = {
            name: part_of(f"{name}.weight") for name, module in hf.named_modules() if isinstance(module, nn.Linear)
        }
        found: list[str] = []
        for part in PARTS:
            last = {name.rpartition(".")[2] for name, of in linear.items() if of == part} - {"lm_head"}
            if unknown := sorted(set(self.targets(part)) - last):
                raise ConfigError(
                    f"model.lora.{part}: no linear layer is named {unknown[0]!r}. There are: {', '.join(sorted(last))}."
                )
            found += [
                name for name, of in linear.items() if of == part and name.rpartition(".")[2] in self.targets(part)
            ]
        return found


def check_peft() -> None:
    """Make sure that PEFT is there.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigError("model.lora needs PEFT, which is not installed: pip install 'vlmkit[lora]'.")


def prove_merge(hf: Any, plain: Any) -> None:
    """Compare the model with adapters and the plain one that was merged of it: logits of a text, in eval mode.

    Raises:
        CheckpointError: they differ by more than rounding.
    """
    tokens = torch.arange(1, 33)[None] % plain.config.text_config.vocab_size
    modes = {module: module.training for module in hf.modules()}
    hf.eval()
    try:
        with torch.no_grad():
            wanted = hf(input_ids=tokens.to(hf.device), use_cache=False).logits.cpu().float()
            found = plain(input_ids=tokens, use_cache=False).logits.float()
    finally:
        for module, mode in modes.items():
            module.training = mode
    tolerance = 1e-4 if plain.dtype in (torch.float32, torch.float64) else 0.1
    if (worst := float((wanted - found).abs().max())) > tolerance * max(1.0, float(wanted.abs().max())):
        raise CheckpointError(
            f"The merged model's logits differ by {worst:g} from those of the model with adapters. Please report it."
        )


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return bool(_MATRIX.search(name))
