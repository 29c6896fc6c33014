"""Run a few packs as a training does, and see what they take: memory of everything that stands at once, and time.

Steps are rehearsed, not parts of them: the first one, after which the optimiser has its state; then the heaviest of the
others, with that state and the gradients of the step before in memory, as it is when it comes. Weights stay as they are:
the optimiser is another one, of the same kind over the same weights, with gradients of zero and a rate of zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.optim import Optimizer

from vlmkit.batch import Batch
from vlmkit.data.dataset import to_device
from vlmkit.errors import VlmkitError, is_out_of_memory
from vlmkit.model.packed import PackedVLM
from vlmkit.training.memory import is_measured, mark_peak, peak_bytes, used_bytes
from vlmkit.training.ranks import gather
from vlmkit.training.shards import fingerprint

ENOUGH_SECONDS = 60.0
"""Rounds end after so long, however many were asked for: steps that take long vary little."""


class RehearsalError(VlmkitError):
    """A step that cannot be rehearsed: it does not fit into memory, or the optimiser cannot keep still."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What takes part in a step.

    Attributes:
        packed: Frozen and in the modes that it is trained in, on its device, wrapped if it will be.
        optimizer: Moves nothing; see `vlmkit.training.optim.still_twin`. None: the run's own has its state already, and
            updates are not rehearsed.
        accumulate: Micro-batches of a step.
        load: The batch of a pack, by its number in the plan.
        forward_context: Around each forward: what the Trainer's precision asks for.
        unsynced: Around each micro-batch but the last: what the strategy asks for.
    """

    packed: PackedVLM
    optimizer: Optimizer | None
    accumulate: int
    load: Callable[[int], Batch]
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    unsynced: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.packed.parameters()).device


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What forward and backward of one pack took.

    Attributes:
        pack: Its number in the plan.
        tokens, patches, supervised: Of the pack.
        seconds: Of each time it was run, after a first one that warmed up.
        cpu_seconds: Of the same, what the main thread got of a processor: less, where other work is in the way.
        load_seconds: Reading, decoding and packing it in one process.
    """

    pack: int
    tokens: int
    patches: int
    supervised: int
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    load_seconds: float


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was measured.

    Attributes:
        calibrations: Of each pack that was timed.
        update_seconds: Of the optimiser, a step; None: not rehearsed.
        resting_bytes: What stands between steps: weights and the optimiser's state (on a CPU, and the process itself).
            None where memory cannot be measured.
        peak_bytes: The most that stood at once.
    """

    calibrations: tuple[Calibration, ...]
    update_seconds: float | None
    resting_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class _Taken:
    seconds: float
    cpu_seconds: float
    update_seconds: float


def rehearse(parts: Parts, *, first: int | None, heavy: Sequence[int], timed: Sequence[int], rounds: int) -> Rehearsal:
    """Run the first step, the heaviest later ones, and a few packs several times.

    Every rank must call, with the same packs; nothing is communicated but what a wrapped model does.

    Args:
        parts: What takes part.
        first: Pack of the first step; None: the run is past it.
        heavy: Packs of later steps that may take the most memory.
        timed: Packs to time.
        rounds: How often each of those is run, after a first time; fewer where that takes too long.

    Raises:
        RehearsalError: a step does not fit into the device's memory, or the optimiser moves weights all the same.
    """
    before = _fingerprints(parts)
    mark_peak(parts.device)
    updates: list[float] = []
    for number in (*([] if first is None else [first]), *heavy, *(n for n in timed if n not in heavy)):
        taken = _run(parts, number, parts.load(number))
        updates.append(taken.update_seconds)
    batches: list[tuple[int, Batch, float]] = []
    for number in timed:
        started = time.perf_counter()
        batch = parts.load(number)
        batches.append((number, batch, time.perf_counter() - started))
    found: list[list[_Taken]] = []
    started = time.perf_counter()
    while len(found) < rounds and (not found or max(gather(time.perf_counter() - started)) < ENOUGH_SECONDS):
        found.append([_run(parts, number, batch) for number, batch, _ in batches])
        updates += [taken.update_seconds for taken in found[-1]]
    peak = max(gather(peak_bytes(parts.device)))
    parts.packed.zero_grad(set_to_none=True)
    resting = used_bytes(parts.device)
    if _fingerprints(parts) != before:
        raise RehearsalError(
            f"The optimiser ({type(parts.optimizer).__name__}) moves weights at a learning rate of 0 with gradients of 0, so a "
            "step cannot be rehearsed with it. Leave the forecast out: callbacks.forecast=null (check.forecast=false)."
        )
    measured = is_measured(parts.device)
    return Rehearsal(
        calibrations=tuple(
            _calibration(number, batch, loading, [one[place] for one in found])
            for place, (number, batch, loading) in enumerate(batches)
        ),
        update_seconds=None if parts.optimizer is None else median(updates[1:] or updates),  # the first makes the state
        resting_bytes=resting if measured else None,
        peak_bytes=peak if measured else None,
    )


def _run(parts: Parts, number: int, batch: Batch) -> _Taken:
    try:
        return _step(parts, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RehearsalError(
            f"A step of pack {number} ({sum(batch['seqlens']):,} tokens, {sum(batch['vision_seqlens']):,} patches), of the "
            f"heaviest of the run, does not fit into the memory of {parts.device}. Lower data.tokens_per_batch (or "
            "data.batch_size), recompute (model.gradient_checkpointing), or share the model (trainer=fsdp)."
        ) from error


def _step(parts: Parts, batch: Batch) -> _Taken:
    """A step of one micro-batch, or of two where there are more: gradients stand while the second one runs."""
    packed, num_micro = parts.packed, min(parts.accumulate, 2)
    started, worked = time.perf_counter(), time.thread_time()
    for micro in range(num_micro):
        with nullcontext() if micro == num_micro - 1 else parts.unsynced():
            with parts.forward_context():
                loss = packed(to_device(batch, parts.device)).loss_sum
            if micro == 0:
                packed.zero_grad(set_to_none=True)  # as the Trainer: those of the step before stand until here
            loss.backward()
            del loss
    _wait(parts.device)
    seconds, cpu_seconds = time.perf_counter() - started, time.thread_time() - worked
    started = time.perf_counter()
    if parts.optimizer is not None:
        for parameter in packed.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()  # one that is not finite would reach the weights even at a rate of zero
        parts.optimizer.step()
        _wait(parts.device)
    return _Taken(
        seconds=seconds / num_micro, cpu_seconds=cpu_seconds / num_micro, update_seconds=time.perf_counter() - started
    )


def _calibration(number: int, batch: Batch, loading: float, taken: Sequence[_Taken]) -> Calibration:
    return Calibration(
        pack=number,
        tokens=sum(batch["seqlens"]),
        patches=sum(batch["vision_seqlens"]) if batch["num_media"] else 0,
        supervised=len(batch["targets"]),
        seconds=tuple(one.seconds for one in taken),
        cpu_seconds=tuple(one.cpu_seconds for one in taken),
        load_seconds=loading,
    )


def _fingerprints(parts: Parts) -> list[int]:
    return [fingerprint(parameter) for parameter in parts.packed.parameters() if parameter.requires_grad]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
