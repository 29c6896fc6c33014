"""`model.kernels=liger`: Liger's fused norms and activations in the language model, where a GPU runs Triton."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch

from vlmkit.errors import ConfigError
from vlmkit.model.families import FAMILIES, family_of

Kernels = Literal["torch", "liger"]


def use_kernels(hf: Any, kernels: Kernels) -> None:
    """Let the language model's norms and MLPs run Liger's kernels; loss, rotary embedding and attention stay ours.

    Raises:
        ConfigError: an unknown choice, another family's language model, Liger is not installed, or there is no CUDA device
            to run it.
    """
    check_kernels(kernels)
    if kernels == "torch":
        return
    refuse_other_families(hf)
    _apply(hf)


def check_kernels(kernels: Kernels) -> None:
    """Make sure that the kernels can run here.

    Raises:
        ConfigError: an unknown choice, Liger is not installed, or there is no CUDA device to run it.
    """
    if kernels == "torch":
        return
    if kernels != "liger":
        raise ConfigError(f"model.kernels must be torch or liger, got {kernels!r}.")
    if find_spec("liger_kernel") is None:
        raise ConfigError(
            "model.kernels=liger: Liger is not installed. pip install 'vlmkit[liger]', or model.kernels=torch."
        )
    if not torch.cuda.is_available():
        raise ConfigError("model.kernels=liger needs a CUDA device, and there is none. Use model.kernels=torch.")


def refuse_other_families(hf: Any) -> None:
    """Make sure that Liger's kernels compute what the norms and MLPs of this model do.

    Raises:
        ConfigError: they are not known to.
    """
    if not (family := family_of(hf)).liger:
        able = ", ".join(name for name, each in FAMILIES.items() if each.liger)
        raise ConfigError(
            f"model.kernels=liger: its kernels are those of {able}, and this is a {family.name}. Use model.kernels=torch."
        )


def _apply(hf: Any) -> None:
    """Instance by instance: nothing of transformers is changed for other models of this process."""
    from types import MethodType

    from liger_kernel.transformers import LigerRMSNorm, LigerSwiGLUMLP  # pyright: ignore[reportMissingImports]

    language = hf.model.language_model
    norms = [language.norm]
    for layer in language.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn.q_norm, layer.self_attn.k_norm]
        layer.mlp.forward = MethodType(LigerSwiGLUMLP.forward, layer.mlp)
    for norm in norms:
        norm.offset, norm.casting_mode, norm.in_place, norm.row_mode = 0.0, "llama", False, None
        norm.forward = MethodType(LigerRMSNorm.forward, norm)
