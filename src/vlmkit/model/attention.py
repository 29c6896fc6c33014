"""Variable-length attention over a packed row: one kernel call on a GPU, one call per length of segments elsewhere.

Registered with transformers for both parts: under `VARLEN` for the language model and under `VARLEN_VISION` for the vision
encoder. The segments come in as the `cu_seqlens` of the stock modules, made on the host once per call. Called without
segments (by `generate`, say) it is transformers' own SDPA with its own mask, so a model set to it stays usable in every
other way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, cast, get_args, overload

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vlmkit.errors import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])
VARLEN = "vlmkit_varlen"
"""Name of our attention in transformers' registry, for the language model."""
VARLEN_VISION = "vlmkit_flash_varlen"
"""The same for the vision encoder: only a name that holds "flash" is handed the whole row; for any other, the stock module
cuts the row with `.tolist()` in every block, a host wait each."""

Chosen = Literal["flash4", "flash3", "flash", "varlen", "sdpa"]
Kernel = Literal["auto", "flash4", "flash3", "flash", "varlen", "sdpa"]
Capability = tuple[int, int]
KERNEL_NAMES: Mapping[Chosen, str] = {
    "flash4": "FlashAttention 4, through PyTorch's variable-length attention",
    "flash3": "FlashAttention 3, through PyTorch's variable-length attention",
    "flash": "flash-attn's variable-length kernel (FlashAttention 2)",
    "varlen": "PyTorch's own variable-length kernel (FlashAttention 2)",
    "sdpa": "PyTorch's attention, segment by segment",
}
"""What each kernel is, in words."""
_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_OLDEST = (8, 0)
"""Compute capability (Ampere) from which there are FlashAttention kernels, and arithmetic in bf16."""
_IMPLEMENTATIONS: Mapping[str, tuple[str, str, tuple[int, ...]]] = {
    "flash3": ("FA3", "flash_attn_interface", (9,)),
    "flash4": ("FA4", "flash_attn.cute.interface", (9, 10)),
}
"""Name in PyTorch's registry of FlashAttention, the module it loads, and the GPUs' major compute capabilities it runs on."""


def attention_dtype(precision: str) -> torch.dtype:
    """The type that attention computes in under `trainer.precision`."""
    kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return kinds.get(precision.partition("-")[0], torch.float32)


def compute_capability(device: torch.device) -> Capability | None:
    """Major and minor compute capability of an NVIDIA GPU; None for other devices, and for a GPU that is not here."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def runs_on_cuda(device: torch.device) -> bool:
    """Whether CUDA's kernels can take the tensors of a device."""
    return device.type == "cuda"


def choose_kernel(
    wanted: Kernel, device: torch.device, dtype: torch.dtype, capability: Capability | None = None
) -> Chosen:
    """The kernel that runs for tensors of a type on a device.

    The one place that decides: a run, its report, `vlmkit-check` and `vlmkit-doctor` all ask it. `auto` is the newest
    FlashAttention that is installed and made for the GPU (4 on Blackwell, 3 on Hopper, else 2 by flash-attn), else PyTorch's
    own, else SDPA per segment.

    Args:
        wanted: `model.attn_implementation`.
        device: Of the tensors.
        dtype: Of queries, keys and values as the kernel gets them: under autocast, its type (`attention_dtype`).
        capability: Compute capability of the GPU; None: that of `device`, if it is here.

    Raises:
        ConfigError: `wanted` is no kernel, or cannot run there.
    """
    if wanted not in get_args(Kernel):
        raise ConfigError(f"model.attn_implementation must be one of {', '.join(get_args(Kernel))}; got {wanted!r}.")
    capability = capability or compute_capability(device)
    fault = _no_flash(device, dtype, capability)
    if wanted == "auto":
        if fault:
            return "sdpa"
        major = capability[0] if capability else 0
        newest: Chosen = "flash4" if major == 10 else "flash3"  # 4 runs on Hopper too; there 3 is the mature one
        if implementation_fault(newest, major) is None:
            return newest
        return "varlen" if flash_fault() else "flash"
    if wanted == "sdpa":
        return "sdpa"
    if fault:
        raise ConfigError(f"model.attn_implementation={wanted} needs {fault}. Use model.attn_implementation=auto.")
    if wanted in _IMPLEMENTATIONS:
        fault = implementation_fault(wanted, capability[0] if capability else 0)
    elif wanted == "flash":
        fault = flash_fault()
    if fault:
        raise ConfigError(f"model.attn_implementation={wanted}: {fault} Use model.attn_implementation=auto.")
    return wanted


def _no_flash(device: torch.device, dtype: torch.dtype, capability: Capability | None) -> str | None:
    """What a FlashAttention kernel lacks there; None where it can run."""
    if not runs_on_cuda(device) or dtype not in _FLASH_DTYPES:
        return f"a CUDA device and bf16 or fp16, found {device.type} and {dtype}"
    if capability is not None and capability < _OLDEST:
        return f"compute capability 8.0 or newer, found {capability[0]}.{capability[1]}"
    return None


def precision_fault(precision: str, capability: Capability | None) -> str | None:
    """Why a precision is a bad choice on a GPU: before compute capability 8.0 there is no bf16, and no FlashAttention."""
    if capability is None or capability >= _OLDEST or attention_dtype(precision) != torch.bfloat16:
        return None
    return (
        f"trainer.precision={precision}: a GPU of compute capability {capability[0]}.{capability[1]} has no bf16 arithmetic "
        f"(8.0 and newer have it). Use trainer.precision={precision.replace('bf16', '16')}."
    )


class PartAttention:
    """How one part of a model attends.

    Attributes:
        wanted: `model.attn_implementation`.
        ran: How many calls each kernel has run: what a run prints and reports is read from here, not predicted.
    """

    def __init__(self, wanted: Kernel = "auto") -> None:
        self.wanted: Kernel = wanted
        self.ran: Counter[Chosen] = Counter()


class Segments(Sequence[int]):
    """Segments of a packed row, and how they are attended to.

    A compiled block hands them on without looking at them; as a list and a tensor, each number and length of segments would
    be compiled anew.

    Attributes:
        starts: (segments + 1,) int32 on the device.
        lengths: On the host; the sequence that this object is.
        attention: Of the part that the row belongs to.
    """

    def __init__(self, starts: Tensor, lengths: Sequence[int], attention: PartAttention | None = None) -> None:
        self.starts = starts
        self.lengths = list(lengths)
        self.attention = attention or PartAttention()

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self.lengths[index]

    def __len__(self) -> int:
        return len(self.lengths)


def _not_compiled(function: _F) -> _F:
    """Leave a function as it is in a compiled block: its kernels are whole, and its segments differ in every pack."""
    return cast(_F, torch.compiler.disable(function))


@_not_compiled
def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, *, segments: Segments, causal: bool, scale: float
) -> Tensor:
    """Attention inside each segment of a packed row, and never across.

    Under autocast, queries, keys and values take its type before a kernel is chosen: norms and rotary embeddings with fp32
    weights make them fp32, which no fast kernel takes.

    Args:
        query: (tokens, heads, head_size).
        key: (tokens, kv_heads, head_size), kv_heads dividing heads.
        value: As `key`.
        segments: Of the row. Their lengths are host integers: nothing here waits for the device.
        causal: Each token sees itself and earlier ones only.
        scale: Factor of the scores.

    Returns:
        (tokens, heads, head_size).
    """
    device = query.device
    if torch.is_autocast_enabled(device.type) and query.dtype != torch.float64:
        query, key, value = (x.to(torch.get_autocast_dtype(device.type)) for x in (query, key, value))
    chosen = choose_kernel(segments.attention.wanted, device, query.dtype)
    segments.attention.ran[chosen] += 1
    if chosen == "sdpa":
        return _sdpa(query, key, value, segments.lengths, causal, scale)
    starts, longest = segments.starts, max(segments.lengths)
    if chosen == "flash":
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  # optional: needs a GPU

        return flash_attn_varlen_func(
            query, key, value, starts, starts, longest, longest, softmax_scale=scale, causal=causal
        )
    from torch.nn.attention.varlen import varlen_attn

    _activate(chosen)
    # PyTorch's kernel has no causal flag: a window without a right side is causal. Without any window, on compute
    # capability 9 and 10, segments longer than 128 go to cuDNN (torch 2.14: `_can_use_cudnn`), whose plans depend on the
    # number of segments and the longest one, both new in every pack. A window as wide as the longest segment hides nothing
    # and keeps forward and backward in FlashAttention (`enable_gqa=True` would keep the forward alone there).
    window = (-1, 0) if causal else (longest, longest)
    grouped = query.shape[1] != key.shape[1]
    attended = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scale, window_size=window, enable_gqa=grouped
    )
    assert isinstance(attended, Tensor)
    return attended


def _activate(chosen: Chosen) -> None:
    """Let PyTorch's flash attention be the implementation that a kernel names; FlashAttention 2 is PyTorch's own."""
    from torch.nn.attention import (
        activate_flash_attention_impl,
        current_flash_attention_impl,
        restore_flash_attention_impl,
    )

    wanted = _IMPLEMENTATIONS[chosen][0] if chosen in _IMPLEMENTATIONS else None
    if current_flash_attention_impl() == wanted:
        return
    if wanted is None:
        restore_flash_attention_impl()
    else:
        activate_flash_attention_impl(wanted)


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
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor | Segments | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention signature: (1, heads, tokens, head_size) in, (1, tokens, heads, head_size) out."""
    if cu_seq_lens_q is None:
        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **rest
        )
        return attended, None
    if isinstance(cu_seq_lens_q, Tensor):  # the stock vision encoder, called by `generate`
        cu_seq_lens_q = Segments(cu_seq_lens_q, cu_seq_lens_q.diff().tolist())
    packed = attend_segments(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        segments=cu_seq_lens_q,
        causal=module.is_causal if is_causal is None else is_causal,
        scale=scaling,
    )
    return packed[None], None


@cache
def flash_fault() -> str | None:
    """Why flash-attn cannot be used here; None where it can. Its binaries load under one PyTorch only."""
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed. Install it: pip install --no-build-isolation 'vlmkit[flash]'."
    if (fault := _load_fault("flash_attn")) is None and not hasattr(
        import_module("flash_attn"), "flash_attn_varlen_func"
    ):
        return "flash_attn holds no flash_attn_varlen_func: FlashAttention 4 alone is installed."
    return fault


@cache
def implementation_fault(kernel: str, major: int) -> str | None:
    """Why FlashAttention 3 or 4 cannot be used on a GPU of a major compute capability; None where it can."""
    name, module, majors = _IMPLEMENTATIONS[kernel]
    if major not in majors:
        able = " and ".join(f"{number}.x" for number in majors)
        return f"FlashAttention {name[-1]} runs on compute capability {able}, found {major}.x."
    package = module.partition(".")[0]
    try:
        missing = find_spec(module) is None
    except ModuleNotFoundError:
        missing = True
    return f"FlashAttention {name[-1]} is not installed (no module {module})." if missing else _load_fault(package)


def _load_fault(package: str) -> str | None:
    try:
        import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = package.replace("_", "-")
        return f"{name} does not load ({reason}). Install a build for torch {torch.__version__}, or remove it."
    return None


def describe_attention(attention: Mapping[Any, PartAttention]) -> str:
    """Kernels that ran in each part, such as `varlen in the vision encoder, sdpa in the language model`."""
    parts = [
        f"{' and '.join(sorted(part.ran))} in the {name.replace('_', ' ')}"
        for name, part in attention.items()
        if part.ran
    ]
    return ", ".join(parts)


for _name in (VARLEN, VARLEN_VISION):
    AttentionInterface.register(_name, _varlen_forward)
    AttentionMaskInterface.register(_name, sdpa_mask)  # without it, padding masks would be dropped and nothing said
