"""Memory in use, and the most of it since a mark: of the device on CUDA, of the process on a CPU."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MARK = Path("/proc/self/clear_refs")


def is_measured(device: torch.device) -> bool:
    """Whether peaks can be told here: on CUDA, and on a Linux that counts the memory of its processes."""
    return device.type == "cuda" or (_status("VmHWM") > 0 and _MARK.exists())


def used_bytes(device: torch.device) -> int:
    """Memory in use: allocated on CUDA; resident on a CPU, after what is free was given back."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def mark_peak(device: torch.device) -> int:
    """Let the peak count from here on; the memory in use now, garbage collected."""
    gc.collect()
    used = used_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or a sandbox that does not let us
            _MARK.write_text("5")
    return used


def peak_bytes(device: torch.device) -> int:
    """Most memory in use since `mark_peak`; see `is_measured`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+)", _STATUS.read_text()) if _STATUS.exists() else None
    return 1024 * int(match[1]) if match else 0
