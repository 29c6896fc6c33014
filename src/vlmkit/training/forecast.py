"""What a run will take, from its plan and a few calibration steps: steps exactly, peak memory, time."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlmkit.batch import Batch
from vlmkit.data.dealing import Steps
from vlmkit.data.plan import pack_weights
from vlmkit.model.packed import PackedVLM


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What forward and backward of one pack took.

    Attributes:
        tokens, patches: Of the pack.
        seconds: Of the second of two runs; the first warms up.
    """

    tokens: int
    patches: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is to come.

    Attributes:
        num_steps: Optimiser steps that are left; exact.
        num_packs: Packs that are left.
        peak_bytes: Most memory of a rank: weights, optimiser state, and the heaviest pack's step. Of the device on
            CUDA, of the process on a CPU.
        resting_bytes: What of it stands between steps.
        seconds: Of the steps that are left, without loading, checkpoints and evaluations.
        epoch_seconds: Of a whole pass over the data.
    """

    num_steps: int
    num_packs: int
    peak_bytes: int
    resting_bytes: int
    seconds: float
    epoch_seconds: float

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)

    def to_text(self) -> str:
        """One line for people."""
        return (
            f"Forecast: {self.num_steps:,} steps, {told(self.seconds)} of computing ({told(self.epoch_seconds)} an epoch), "
            f"peak memory {self.peak_bytes / 2**30:.2f} GiB a rank (heaviest pack included)."
        )


def forecast(
    *,
    packed: PackedVLM,
    steps: Steps,
    load: Callable[[int], Batch],
    optimizer_bytes: int,
    num_calibrations: int = 3,
) -> Forecast:
    """Predict a run: run the heaviest pack and a few lighter ones forwards and backwards, and fit.

    Weights do not change, gradients are dropped, and nothing is communicated: on several ranks, call it on each before
    the model is wrapped, or on one.

    Args:
        packed: Frozen and in the modes that it is trained in, on its device.
        steps: The packs that are left, dealt out.
        load: The batch of a pack, by its number in the plan.
        optimizer_bytes: Of the optimiser's state; see `adamw_bytes`.
        num_calibrations: How many packs to run; the heaviest is one of them.
    """
    plan = steps.plan
    numbers = np.arange(steps.start_pack, len(plan))
    weight = pack_weights(plan.num_tokens[numbers], plan.num_patches[numbers])
    order = numbers[np.argsort(-weight, kind="stable")]
    places = np.unique(np.linspace(0, len(order) - 1, num_calibrations).astype(int))
    device = _device(packed)
    before = mark_peak(device)
    runs = [calibrate(packed, load(int(order[place]))) for place in (*places, places[0])]  # the heaviest among others
    rise = peak_bytes(device) - before
    packed.zero_grad(set_to_none=True)
    seconds = fitted_seconds(runs, plan.num_tokens, plan.num_patches)
    by_step = step_seconds(steps, seconds)
    share = len(plan.epochs) and float((plan.epochs == plan.epochs[-1]).mean())
    resting = before + optimizer_bytes
    return Forecast(
        num_steps=len(steps),
        num_packs=len(numbers),
        peak_bytes=resting + rise,
        resting_bytes=resting,
        seconds=float(by_step.sum()),
        epoch_seconds=float(seconds.sum()) * share / steps.num_ranks,
    )


def calibrate(packed: PackedVLM, batch: Batch) -> Calibration:
    """Run a pack forwards and backwards twice; what the second run took. Gradients are left.

    As in a run, the gradients of the step before stand until the forward is over.
    """
    device = _device(packed)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        loss = packed(to_device(batch, device)).loss_sum
        packed.zero_grad(set_to_none=True)
        loss.backward()
        _wait(device)
        seconds = time.perf_counter() - start
    patches = sum(batch["vision_seqlens"]) if batch["num_media"] else 0
    return Calibration(tokens=sum(batch["seqlens"]), patches=patches, seconds=seconds)


def adamw_bytes(parameters: Sequence[nn.Parameter], *, masters: bool) -> int:
    """Bytes of AdamW's two moments of what is trained, and of fp32 masters of narrow weights."""
    total = 0
    for parameter in parameters:
        if parameter.requires_grad:
            narrow = masters and parameter.dtype in (torch.bfloat16, torch.float16)
            total += parameter.numel() * (12 if narrow else 2 * parameter.element_size())
    return total


def fitted_seconds(
    runs: Sequence[Calibration], tokens: NDArray[np.int64], patches: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Seconds of packs with so many tokens and patches: a constant and a rate, fitted to the calibrations.

    The rate is over tokens plus a quarter of the patches: with few calibrations two rates cannot be told apart.
    """
    sizes = np.array([run.tokens + run.patches / 4 for run in runs], dtype=np.float64)
    took = np.array([run.seconds for run in runs])
    wanted = tokens + patches / 4
    if len(runs) == 1 or np.ptp(sizes) < 0.05 * sizes.max():
        return wanted * (took.sum() / sizes.sum())
    rate, constant = np.polyfit(sizes, took, 1)
    if rate <= 0 or constant < 0:  # noise: through the origin
        return wanted * (took.sum() / sizes.sum())
    return constant + rate * wanted


def step_seconds(steps: Steps, pack_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of each step: ranks wait for the slowest at every micro-batch."""
    of_slots = np.where(steps.packs < 0, 0.0, pack_seconds[steps.packs])
    slowest = of_slots.max(axis=1) if len(of_slots) else np.empty(0)
    step = np.arange(len(slowest)) // steps.accumulate
    return np.bincount(step, weights=slowest, minlength=len(steps)).astype(np.float64)


def used_bytes(device: torch.device) -> int:
    """Memory in use: allocated on CUDA; resident on a CPU, after what is free was given back."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def mark_peak(device: torch.device) -> int:
    """Let the peak count from here on; the memory in use now."""
    used = used_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (mark := Path("/proc/self/clear_refs")).exists():
        mark.write_text("5")
    return used


def peak_bytes(device: torch.device) -> int:
    """Most memory in use since `mark_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    moved: dict[str, Any] = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()
    }
    return moved  # type: ignore[return-value]  # the same keys


def told(seconds: float) -> str:
    """Seconds in words: `42 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _device(packed: PackedVLM) -> torch.device:
    return next(packed.parameters()).device


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(field: str) -> int:
    status = Path("/proc/self/status")
    match = re.search(rf"{field}:\s+(\d+)", status.read_text()) if status.exists() else None
    return 1024 * int(match[1]) if match else 0
