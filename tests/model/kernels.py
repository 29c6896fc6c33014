"""Stand-ins for attention kernels that need a GPU: their exact signatures and demands, computed in fp64 segment by segment.

`flash_attn_varlen_func` is that of flash-attn 2.8, `varlen_attn` that of `torch.nn.attention.varlen`. What the kernels
refuse is refused here, so code that runs on these calls the real ones rightly; where they would go on and compute something
else (an offset too few, a longest segment that is too short), it is refused as well.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.attention.varlen as torch_varlen
from torch.nn.attention import _registry, current_flash_attention_impl

from vlmkit.model import attention

LARGEST_HEAD = 256


@dataclass(kw_only=True)
class Calls:
    """What the stand-ins were called with.

    Attributes:
        names: The kernel of each call.
        dtypes: Of the queries, before which all three were found equal.
        cudnn: Calls of PyTorch's kernel that would have left FlashAttention for cuDNN, forward or backward.
        longest: Longest segment of each call.
    """

    names: list[str] = field(default_factory=list)
    dtypes: set[torch.dtype] = field(default_factory=set)
    cudnn: int = 0
    longest: list[int] = field(default_factory=list)


def attend_in_fp64(q, k, v, starts, *, causal, scale, window=(-1, -1)):
    """Attention by its definition: softmax of scaled products inside each segment and window.

    Args:
        q: (tokens, heads, head_size).
        k, v: (tokens, kv_heads, head_size).
        starts: (segments + 1,).
        causal: No token sees a later one.
        scale: Factor of the products.
        window: How many tokens to the left and to the right are seen; -1: all.
    """
    groups = q.shape[1] // k.shape[1]
    rows = []
    for start, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        queries, keys, values = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        keys, values = (x.repeat_interleave(groups, 0) for x in (keys, values))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = distance < 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
        left, right = window
        hidden = hidden | (distance > left if left >= 0 else False) | (-distance > right if right >= 0 else False)
        scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
        rows.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(rows).to(q.dtype)


def _refuse(q, k, v, starts_q, starts_k, longest_q, longest_k):
    for name, x in (("q", q), ("k", k), ("v", v)):
        assert x.dim() == 3, f"{name} must be (tokens, heads, head_size)"
        assert x.dtype in (torch.float16, torch.bfloat16), "FlashAttention only supports fp16 and bf16 data types"
        assert x.dtype == q.dtype, "query, key and value must have the same dtype"
        assert x.stride(-1) == 1, "the last dimension must be contiguous"
        assert x.shape[0] == q.shape[0], "queries, keys and values of a packed row are equally many"
    assert q.shape[-1] <= LARGEST_HEAD, "FlashAttention takes heads up to 256"
    assert q.shape[-1] % 8 == 0, "head sizes must be multiples of 8"
    assert q.shape[1] % k.shape[1] == 0, "the number of heads must be a multiple of that of keys and values"
    for starts, longest in ((starts_q, longest_q), (starts_k, longest_k)):
        assert starts.dtype == torch.int32, "offsets must be int32"
        assert starts.is_contiguous()
        assert type(longest) is int
        lengths = starts.diff()
        assert (int(starts[0]), int(starts[-1])) == (0, len(q)), "offsets must span the row"
        assert int(lengths.min()) > 0
        assert longest == int(lengths.max()), "the longest segment is not the one that was given"


class Stubs:
    """Both kernels, and what they were called with."""

    def __init__(self) -> None:
        self.calls = Calls()

    def flash_attn_varlen_func(
        self,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        """Of flash-attn 2.8 (`flash_attn/flash_attn_interface.py`)."""
        _refuse(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        assert (dropout_p, softcap, alibi_slopes, block_table, return_attn_probs) == (0.0, 0.0, None, None, False)
        self._note("flash", q, max_seqlen_q)
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        return attend_in_fp64(q, k, v, cu_seqlens_q, causal=causal, scale=scale, window=window_size)

    def varlen_attn(
        self,
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        return_aux=None,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
        seqused_k=None,
        block_table=None,
        num_splits=None,
    ):
        """Of the installed PyTorch: causal where the window is exactly (-1, 0)."""
        _refuse(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
        assert (return_aux, seqused_k, block_table, num_splits) == (None, None, None, None)
        assert enable_gqa or query.shape[1] == key.shape[1], "grouped queries need enable_gqa=True"
        on_gpu = SimpleNamespace(
            is_cuda=True, device=SimpleNamespace(index=0), dtype=query.dtype, shape=query.shape, size=query.size
        )
        both = (on_gpu, key, value, max_q, list(window_size))
        # Once as the forward asks, once as the backward does, which is not told of `enable_gqa`.
        self.calls.cudnn += any(torch_varlen._can_use_cudnn(*both, *more) for more in ((enable_gqa,), ()))
        self._note(current_flash_attention_impl() or "varlen", query, max_q)
        causal = window_size == (-1, 0)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        return attend_in_fp64(query, key, value, cu_seq_q, causal=causal, scale=factor, window=window_size)

    def _note(self, name, query, longest):
        self.calls.names.append(name)
        self.calls.dtypes.add(query.dtype)
        self.calls.longest.append(longest)


def install(monkeypatch, kernel: str, *, capability: tuple[int, int] = (9, 0)) -> Calls:
    """Let tensors on the CPU be taken for those of a GPU on which `kernel` is the newest that is installed.

    Args:
        monkeypatch: Undoes it.
        kernel: flash4, flash3, flash or varlen.
        capability: Of the GPU.

    Returns:
        What the stand-ins will be called with.
    """
    stubs = Stubs()
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = stubs.flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(torch_varlen, "varlen_attn", stubs.varlen_attn)
    monkeypatch.setattr(torch_varlen, "_should_use_cudnn", lambda index: capability[0] in (9, 10))
    implementations = {name: lambda: SimpleNamespace(remove=lambda: None) for name in ("FA3", "FA4")}
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", implementations)
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_ACTIVE", None)
    monkeypatch.setattr(attention, "runs_on_cuda", lambda device: True)
    monkeypatch.setattr(attention, "compute_capability", lambda device: capability)
    missing = "not installed here."
    monkeypatch.setattr(attention, "flash_fault", lambda: None if kernel == "flash" else missing)
    monkeypatch.setattr(attention, "implementation_fault", lambda name, major: None if kernel == name else missing)
    return stubs.calls
