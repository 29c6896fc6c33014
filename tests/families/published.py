"""What is known of the published checkpoints: the facts that `conf/model` tells, and stand-ins that share their traits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Text:
    """A language model: its width, layers, heads, heads of keys and values, head size, whether its head is tied, rope base."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    rope: float
    head: int = 128

    @property
    def told(self) -> str:
        """As the yaml files say it."""
        tied = "tied head" if self.tied else "head of its own"
        return (
            f"{self.width} wide, {self.layers} layers, {self.heads} heads of {self.head} ({self.kv_heads} for keys and values), "
            f"{tied}, rope base {self.rope:.0e}".replace("e+0", "e")
        )


@dataclass(frozen=True, kw_only=True)
class Vision:
    """A vision encoder: its depth, width, and the blocks that DeepStack taps (or that attend over whole images)."""

    depth: int
    width: int
    taps: tuple[int, ...]

    @property
    def told(self) -> str:
        """As the yaml files say it."""
        return f"{self.depth} blocks {self.width} wide"


QWEN3 = {
    "Qwen/Qwen3-0.6B": Text(width=1024, layers=28, heads=16, kv_heads=8, tied=True, rope=1e6),
    "Qwen/Qwen3-1.7B": Text(width=2048, layers=28, heads=16, kv_heads=8, tied=True, rope=1e6),
    "Qwen/Qwen3-4B": Text(width=2560, layers=36, heads=32, kv_heads=8, tied=True, rope=1e6),
    "Qwen/Qwen3-8B": Text(width=4096, layers=36, heads=32, kv_heads=8, tied=False, rope=1e6),
    "Qwen/Qwen3-14B": Text(width=5120, layers=40, heads=40, kv_heads=8, tied=False, rope=1e6),
    "Qwen/Qwen3-32B": Text(width=5120, layers=64, heads=64, kv_heads=8, tied=False, rope=1e6),
}
QWEN2_5 = {
    "Qwen/Qwen2.5-1.5B-Instruct": Text(width=1536, layers=28, heads=12, kv_heads=2, tied=True, rope=1e6),
    "Qwen/Qwen2.5-3B-Instruct": Text(width=2048, layers=36, heads=16, kv_heads=2, tied=True, rope=1e6),
    "Qwen/Qwen2.5-7B-Instruct": Text(width=3584, layers=28, heads=28, kv_heads=4, tied=False, rope=1e6),
    "Qwen/Qwen2.5-14B-Instruct": Text(width=5120, layers=48, heads=40, kv_heads=8, tied=False, rope=1e6),
}
_SMALL = Vision(depth=24, width=1024, taps=(5, 11, 17))
_LARGE = Vision(depth=27, width=1152, taps=(8, 16, 24))
_WINDOWED = Vision(depth=32, width=1280, taps=(7, 15, 23, 31))
QWEN3_VL = {
    "Qwen/Qwen3-VL-2B-Instruct": (_SMALL, Text(width=2048, layers=28, heads=16, kv_heads=8, tied=True, rope=5e6)),
    "Qwen/Qwen3-VL-4B-Instruct": (_SMALL, Text(width=2560, layers=36, heads=32, kv_heads=8, tied=True, rope=5e6)),
    "Qwen/Qwen3-VL-8B-Instruct": (_LARGE, Text(width=4096, layers=36, heads=32, kv_heads=8, tied=False, rope=5e6)),
    "Qwen/Qwen3-VL-32B-Instruct": (_LARGE, Text(width=5120, layers=64, heads=64, kv_heads=8, tied=False, rope=5e6)),
}
QWEN3_VL_MOE = {
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (
        _LARGE,
        Text(width=2048, layers=48, heads=32, kv_heads=4, tied=False, rope=5e6),
    ),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": (
        _LARGE,
        Text(width=4096, layers=94, heads=64, kv_heads=4, tied=False, rope=5e6),
    ),
}
QWEN2_5_VL = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (_WINDOWED, Text(width=2048, layers=36, heads=16, kv_heads=2, tied=True, rope=1e6)),
    "Qwen/Qwen2.5-VL-7B-Instruct": (_WINDOWED, Text(width=3584, layers=28, heads=28, kv_heads=4, tied=False, rope=1e6)),
    "Qwen/Qwen2.5-VL-32B-Instruct": (
        _WINDOWED,
        Text(width=5120, layers=64, heads=40, kv_heads=8, tied=False, rope=1e6),
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": (
        _WINDOWED,
        Text(width=8192, layers=80, heads=64, kv_heads=8, tied=False, rope=1e6),
    ),
}
_SMALL_UNTAPPED = Vision(depth=12, width=768, taps=())
_MIDDLE_UNTAPPED = Vision(depth=24, width=1024, taps=())
_LARGE_UNTAPPED = Vision(depth=27, width=1152, taps=())
QWEN3_5 = {
    "Qwen/Qwen3.5-0.8B": (
        _SMALL_UNTAPPED,
        Text(width=1024, layers=24, heads=8, kv_heads=2, tied=True, rope=1e7, head=256),
    ),
    "Qwen/Qwen3.5-2B": (
        _MIDDLE_UNTAPPED,
        Text(width=2048, layers=24, heads=8, kv_heads=2, tied=True, rope=1e7, head=256),
    ),
    "Qwen/Qwen3.5-4B": (
        _MIDDLE_UNTAPPED,
        Text(width=2560, layers=32, heads=16, kv_heads=4, tied=True, rope=1e7, head=256),
    ),
    "Qwen/Qwen3.5-9B": (
        _LARGE_UNTAPPED,
        Text(width=4096, layers=32, heads=16, kv_heads=4, tied=False, rope=1e7, head=256),
    ),
    "Qwen/Qwen3.5-27B": (
        _LARGE_UNTAPPED,
        Text(width=5120, layers=64, heads=24, kv_heads=4, tied=False, rope=1e7, head=256),
    ),
}
QWEN3_5_MOE = {
    "Qwen/Qwen3.5-35B-A3B": (
        _LARGE_UNTAPPED,
        Text(width=2048, layers=40, heads=16, kv_heads=2, tied=False, rope=1e7, head=256),
    ),
    "Qwen/Qwen3.5-122B-A10B": (
        _LARGE_UNTAPPED,
        Text(width=3072, layers=48, heads=32, kv_heads=2, tied=False, rope=1e7, head=256),
    ),
    "Qwen/Qwen3.5-397B-A17B": (
        _LARGE_UNTAPPED,
        Text(width=4096, layers=60, heads=32, kv_heads=2, tied=False, rope=1e7, head=256),
    ),
}
VALUE_HEADS = {
    "Qwen/Qwen3.5-0.8B": 1,
    "Qwen/Qwen3.5-2B": 1,
    "Qwen/Qwen3.5-4B": 2,
    "Qwen/Qwen3.5-9B": 2,
    "Qwen/Qwen3.5-27B": 3,
    "Qwen/Qwen3.5-35B-A3B": 2,
    "Qwen/Qwen3.5-122B-A10B": 4,
    "Qwen/Qwen3.5-397B-A17B": 4,
}
"""In layers with a state: heads of values to each head of queries and keys."""
WHOLE = {**QWEN3_VL, **QWEN3_VL_MOE, **QWEN2_5_VL, **QWEN3_5, **QWEN3_5_MOE}
LANGUAGE_MODELS = {**QWEN3, **QWEN2_5}
