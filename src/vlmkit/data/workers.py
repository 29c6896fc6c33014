"""How a process that loads samples is set up."""

from __future__ import annotations

import contextlib
import ctypes

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 28


def settle_worker(_: int = 0) -> None:
    """One thread, since workers share the cores with training; and freed memory kept for the next sample.

    Where samples of many sizes come in turn, glibc gives their buffers back to the system and has every page made anew,
    which took a third of the time of a sample. Its parameters are described in mallopt(3); another C library ignores them.
    """
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_TRIM_THRESHOLD, 2 * _KEPT_BYTES)
