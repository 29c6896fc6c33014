"""Variable-length attention over a packed row: one kernel call on a GPU, one call per segment elsewhere.

Registered with transformers under `VARLEN`, and given the segments as keyword arguments. Called without segments (by
`generate`, say) it is transformers' own SDPA with its own mask, so a model set to it stays usable in every other way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from vlmkit.errors import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])
VARLEN = "vlmkit_varlen"
"""Name of our attention in transformers' registry."""

Kernel = Literal["auto", "flash", "varlen", "sdpa"]


def choose_kernel(wanted: Kernel, device: torch.device, dtype: torch.dtype) -> Literal["flash", "varlen", "sdpa"]:
    """The kernel that `auto` means on a device: flash-attn where installed, else PyTorch's own, else SDPA per segment.

    Raises:
        ConfigError: `wanted` cannot run there.
    """
    able = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    if wanted == "auto":
        return ("varlen" if flash_fault() else "flash") if able else "sdpa"
    if wanted in ("flash", "varlen") and not able:
        raise ConfigError(
            f"model.attn_implementation={wanted} needs a CUDA device and bf16 or fp16, found {device.type} and {dtype}. "
            "Use auto."
        )
    if wanted == "flash" and (fault := flash_fault()):
        raise ConfigError(f"model.attn_implementation=flash: {fault} Use model.attn_implementation=auto.")
    return wanted


def _not_compiled(function: _F) -> _F:
    """Leave a function as it is in a compiled block: its kernels are whole, and its segments differ in every pack."""
    return cast(_F, torch.compiler.disable(function))


class Segments(Sequence[int]):
    """Segments that a compiled block hands on without looking at them.

    As a list and a tensor, each number and length of segments would be compiled anew.

    Attributes:
        starts: (segments + 1,) int32 on the device.
        lengths: On the host; the sequence that this object is.
    """

    def __init__(self, starts: Tensor, lengths: Sequence[int]) -> None:
        self.starts = starts
        self.lengths = list(lengths)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self.lengths[index]

    def __len__(self) -> int:
        return len(self.lengths)


@_not_compiled
def attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor | Segments,
    seqlens: Sequence[int],
    causal: bool,
    scale: float,
    kernel: Kernel = "auto",
) -> Tensor:
    """Attention inside each segment of a packed row, and never across.

    Args:
        query: (tokens, heads, head_size).
        key: (tokens, kv_heads, head_size), kv_heads dividing heads.
        value: As `key`.
        cu_seqlens: (segments + 1,) int32 on the device: where each segment starts.
        seqlens: The segments' lengths, on the host: nothing here waits for the device.
        causal: Each token sees itself and earlier ones only.
        scale: Factor of the scores.
        kernel: See `choose_kernel`.

    Returns:
        (tokens, heads, head_size).
    """
    if isinstance(cu_seqlens, Segments):
        cu_seqlens = cu_seqlens.starts
    chosen = choose_kernel(kernel, query.device, query.dtype)
    if chosen == "sdpa":
        return _sdpa(query, key, value, seqlens, causal, scale)
    longest = max(seqlens)
    if chosen == "flash":
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  # optional: needs a GPU

        return flash_attn_varlen_func(
            query, key, value, cu_seqlens, cu_seqlens, longest, longest, softmax_scale=scale, causal=causal
        )
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    window = (-1, 0) if causal else (-1, -1)
    found = varlen_attn(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=window, enable_gqa=grouped
    )
    assert isinstance(found, Tensor)
    return found


def _sdpa(query: Tensor, key: Tensor, value: Tensor, seqlens: Sequence[int], causal: bool, scale: float) -> Tensor:
    """One SDPA call per length: equal segments share a batch."""
    grouped = query.shape[1] != key.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # (segments, length, heads, head_size)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped).transpose(1, 2)

    if len(set(seqlens)) == 1:
        shape = (len(seqlens), seqlens[0])
        return attend(*(x.unflatten(0, shape) for x in (query, key, value))).flatten(0, 1)
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(seqlens):
        by_length[length].append(number)
    queries, keys, values = (x.split(list(seqlens)) for x in (query, key, value))
    found: dict[int, Tensor] = {}
    for numbers in by_length.values():
        batch = attend(*(torch.stack([split[number] for number in numbers]) for split in (queries, keys, values)))
        found.update(zip(numbers, batch.unbind(0), strict=True))
    return torch.cat([found[number] for number in range(len(seqlens))])


def _varlen_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor | Segments | None = None,
    seqlens: Sequence[int] | None = None,
    kernel: Kernel = "auto",
    **rest: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention signature: (1, heads, tokens, head_size) in, (1, tokens, heads, head_size) out."""
    if cu_seq_lens_q is None or seqlens is None:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
        return found, None
    packed = attend_segments(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        cu_seqlens=cu_seq_lens_q,
        seqlens=seqlens,
        causal=True,
        scale=scaling,
        kernel=kernel,
    )
    return packed[None], None


class PackedVisionAttention(nn.Module):
    """The vision encoder's attention with the stock parameters (same names), over host-known segments.

    The stock module splits its input with `.tolist()` three times per layer, a host wait each; here the segments come
    in once per call.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.num_heads: int = stock.num_heads  # type: ignore[assignment]
        self.scaling: float = stock.scaling  # type: ignore[assignment]
        self.qkv: nn.Linear = stock.qkv  # type: ignore[assignment]
        self.proj: nn.Linear = stock.proj  # type: ignore[assignment]

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor | Segments,
        position_embeddings: tuple[Tensor, Tensor],
        seqlens: Sequence[int] | None = None,
        kernel: Kernel = "auto",
        **_: Any,
    ) -> Tensor:
        """Attend inside each segment.

        Args:
            hidden_states: (patches, width).
            cu_seqlens: (segments + 1,) int32.
            position_embeddings: Cosines and sines, (patches, head_size) each.
            seqlens: Lengths on the host; read from `cu_seqlens` (a host wait) where the caller has none.
            kernel: See `choose_kernel`.

        Returns:
            (patches, width).
        """
        num_patches = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).reshape(num_patches, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        if seqlens is None:
            seqlens = cu_seqlens if isinstance(cu_seqlens, Segments) else cu_seqlens.diff().tolist()
        attended = attend_segments(
            query, key, value, cu_seqlens=cu_seqlens, seqlens=seqlens, causal=False, scale=self.scaling, kernel=kernel
        )
        return self.proj(attended.flatten(1))


@cache
def flash_fault() -> str | None:
    """Why flash-attn cannot be used here; None where it can. Its binaries load under one PyTorch only."""
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed. Install it: pip install --no-build-isolation 'vlmkit[flash]'."
    try:
        import_module("flash_attn")
    except (ImportError, OSError, RuntimeError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"flash-attn does not load ({told}). Install a build for torch {torch.__version__}, or remove it."
    return None


AttentionInterface.register(VARLEN, _varlen_forward)
AttentionMaskInterface.register(VARLEN, sdpa_mask)  # without it, padding masks would be dropped and nothing said
