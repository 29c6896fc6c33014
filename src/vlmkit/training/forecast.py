"""What a run will take: steps exactly, from the plan; memory and time from steps that are rehearsed. One way for all.

`vlmkit-train` asks before its first step, `vlmkit-check` without training; both through `StartForecast`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vlmkit.data.dealing import Steps
from vlmkit.data.plan import pack_weights
from vlmkit.training.flops import FlopCount, count_flops
from vlmkit.training.ranks import gather
from vlmkit.training.rehearsal import Calibration, Parts, Rehearsal, rehearse
from vlmkit.training.shards import local_part

Sharing = Literal["nothing", "gradients", "model"]
"""What ranks have in common: one rank nothing, DDP exchanges gradients, FSDP2 shares the model."""
_CROWDED = 0.8
"""Share of a processor below which other work is in the way."""
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Who trains, and who was measured.

    Attributes:
        number: Ranks of the run.
        measured: Ranks that ran the packs, at the same time.
        sharing: What those of the run have in common.
    """

    number: int
    measured: int
    sharing: Sharing

    @property
    def alone(self) -> bool:
        """Whether one process was measured for several."""
        return self.measured < self.number


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is to come, and what that is based on.

    Attributes:
        num_steps: Optimiser steps that are left; exact.
        num_packs: Packs that are left.
        peak_bytes: Most memory of a rank, the heaviest pack and the optimiser's state included: of the device on CUDA,
            of the process on a CPU. None: not measured; `notes` say why.
        resting_bytes: What of it stands between steps.
        seconds: Of the steps that are left, loading included, without checkpoints and validation.
        fastest_seconds, slowest_seconds: The same, had every pack been as fast or slow as it was at its best and worst;
            on a CPU, at its best without other work in the way.
        epoch_seconds: Of a whole pass over the data.
        calibrations: Packs that were run, and each time what forward and backward took.
        update_seconds: Of the optimiser, a step; None: not rehearsed.
        device: Where.
        cpu_share: What the main thread got of a processor while it could have had one; None on CUDA.
        ranks: Who trains, and who was measured.
        notes: What else is to be known to understand the figures, a sentence each.
    """

    num_steps: int
    num_packs: int
    peak_bytes: int | None
    resting_bytes: int | None
    seconds: float
    fastest_seconds: float
    slowest_seconds: float
    epoch_seconds: float
    calibrations: tuple[Calibration, ...]
    update_seconds: float | None
    device: str
    cpu_share: float | None
    ranks: Ranks
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_text(self) -> str:
        """For people: what is to come, what it is based on, and what else is to be known."""
        span = f" ({told(self.fastest_seconds)} to {told(self.slowest_seconds)})"
        memory = (
            "peak memory not known"
            if self.peak_bytes is None
            else f"peak memory {self.peak_bytes / _GIB:.2f} GiB{' a rank' if self.ranks.number > 1 else ''}"
            + (f", {self.resting_bytes / _GIB:.2f} between steps" if self.resting_bytes is not None else "")
        )
        first = f"Forecast: {self.num_steps:,} steps in {told(self.seconds)}{span}, an epoch in {told(self.epoch_seconds)}; {memory}."
        return "\n  ".join([first, self.basis(), *self.notes])

    def basis(self) -> str:
        """What was measured."""
        packs = "; ".join(
            f"{one.tokens:,} tokens, {one.patches:,} patches: {_span(one.seconds)}" for one in self.calibrations
        )
        times = max(len(one.seconds) for one in self.calibrations)
        update = "" if self.update_seconds is None else f"; an update {_seconds(self.update_seconds)}"
        loading = np.mean([one.load_seconds for one in self.calibrations])
        return (
            f"Measured on {self.device}: forward and backward of {_many(len(self.calibrations), 'pack')}, "
            f"{_many(times, 'time')} after warming up ({packs}){update}; loading {_seconds(float(loading))} a pack and process. "
            "Checkpoints and validation come on top."
        )


def forecast(
    *, parts: Parts, steps: Steps, epoch: tuple[int, int, int], ranks: Ranks, packs: int, rounds: int, workers: int
) -> Forecast:
    """Predict a run from its plan and from steps that are rehearsed. Weights and random state of the run do not change.

    Args:
        parts: What takes part in a step.
        steps: The packs that are left, dealt out.
        epoch: Tokens, patches and supervised tokens of a whole pass over the data.
        ranks: Who trains, and who is measured; all that are measured must call.
        packs: How many packs to time: the heaviest, the lightest, and so many in between.
        rounds: How often each.
        workers: Processes that load for each rank; 0: the one that trains.

    Raises:
        RehearsalError: a step does not fit into memory.
    """
    plan = steps.plan
    first, later = first_and_later(steps, fresh=parts.optimizer is not None)
    trained = sum(local_part(p.detach()).nbytes for p in parts.packed.parameters() if p.requires_grad)
    found = rehearse(
        parts, first=first, heavy=heaviest(steps, later), timed=timed_packs(steps, later, packs), rounds=rounds
    )
    count = count_flops(parts.packed.hf)
    work = count.executed_of(plan.num_tokens, plan.num_patches, plan.num_supervised_tokens)
    loading = _loading(found.calibrations, plan.num_tokens, plan.num_patches)

    def seconds_of(of_passes: Callable[[Calibration], float]) -> float:
        computing = fitted_seconds(
            _work_of(found.calibrations, count), [of_passes(c) for c in found.calibrations], work
        )
        slowest = np.maximum(computing, loading / workers) if workers else computing + loading
        return float(step_seconds(steps, slowest).sum()) + len(steps) * (found.update_seconds or 0.0)

    seconds = seconds_of(lambda one: float(np.median(one.seconds)))
    on_cpu = parts.device.type == "cpu"
    fastest = seconds_of(lambda one: min(one.cpu_seconds) if on_cpu else min(one.seconds))
    left = float(work[steps.start_pack :].sum())
    of_epoch = float(count.executed_of(*(np.array([number]) for number in epoch)).sum())
    peak, resting, notes = memory_of_a_rank(found, ranks, trained, on_cpu=on_cpu)
    share = _cpu_share(found.calibrations) if on_cpu else None
    return Forecast(
        num_steps=len(steps),
        num_packs=len(plan) - steps.start_pack,
        peak_bytes=peak,
        resting_bytes=resting,
        seconds=seconds,
        fastest_seconds=min(seconds, fastest),
        slowest_seconds=seconds_of(lambda one: max(one.seconds)),
        epoch_seconds=seconds * of_epoch / max(left, 1.0),
        calibrations=found.calibrations,
        update_seconds=found.update_seconds,
        device=_device_name(parts.device),
        cpu_share=share,
        ranks=ranks,
        notes=(*notes, *time_notes(found, ranks, share, on_cpu=on_cpu)),
    )


def first_and_later(steps: Steps, *, fresh: bool) -> tuple[int | None, NDArray[np.int64]]:
    """The heaviest pack of the first step (None: it is past), and the packs of the others; of a single step, its own."""
    plan = steps.plan
    if not fresh:
        return None, np.arange(steps.start_pack, len(plan))
    ours = steps.packs[: steps.accumulate]
    ours = ours[ours >= 0]
    weight = pack_weights(plan.num_tokens, plan.num_patches)
    later = np.setdiff1d(np.arange(steps.start_pack, len(plan)), ours)
    return int(ours[np.argmax(weight[ours])]), later if len(later) else ours


def heaviest(steps: Steps, numbers: NDArray[np.int64]) -> list[int]:
    """The packs that may take the most memory: the heaviest, and those with most tokens, patches and supervised tokens."""
    plan = steps.plan
    weight = pack_weights(plan.num_tokens, plan.num_patches)
    columns = (weight, plan.num_tokens, plan.num_patches, plan.num_supervised_tokens)
    return list(dict.fromkeys(int(numbers[np.argmax(column[numbers])]) for column in columns))


def timed_packs(steps: Steps, numbers: NDArray[np.int64], count: int) -> list[int]:
    """So many packs, from the heaviest to the lightest."""
    weight = pack_weights(steps.plan.num_tokens, steps.plan.num_patches)
    order = numbers[np.argsort(-weight[numbers], kind="stable")]
    places = np.unique(np.linspace(0, len(order) - 1, count).astype(int))
    return [int(order[place]) for place in places]


def fitted_seconds(sizes: Sequence[float], took: Sequence[float], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of packs of a size, in FLOPs: a constant and a rate, fitted to packs that were run."""
    known, seconds = np.array(sizes, dtype=np.float64), np.array(took, dtype=np.float64)
    through_origin = wanted * (seconds.sum() / max(known.sum(), 1.0))
    if len(known) == 1 or np.ptp(known) < 0.05 * known.max():
        return through_origin
    rate, constant = np.polyfit(known, seconds, 1)
    return constant + rate * wanted if rate > 0 and constant >= 0 else through_origin  # else noise


def step_seconds(steps: Steps, pack_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of each step: ranks wait for the slowest at every micro-batch."""
    of_slots = np.where(steps.packs < 0, 0.0, pack_seconds[steps.packs])
    slowest = of_slots.max(axis=1) if len(of_slots) else np.empty(0)
    step = np.arange(len(slowest)) // steps.accumulate
    return np.bincount(step, weights=slowest, minlength=len(steps)).astype(np.float64)


def told(seconds: float) -> str:
    """Seconds in words: `42 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return _seconds(seconds)
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _span(seconds: Sequence[float]) -> str:
    middle = _seconds(float(np.median(seconds)))
    return middle if len(seconds) == 1 else f"{middle}, from {_seconds(min(seconds))} to {_seconds(max(seconds))}"


def _work_of(calibrations: Sequence[Calibration], count: FlopCount) -> list[float]:
    columns = np.array([(one.tokens, one.patches, one.supervised) for one in calibrations]).T
    return count.executed_of(*columns).tolist()


def _loading(
    calibrations: Sequence[Calibration], tokens: NDArray[np.int64], patches: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Seconds to load each pack in one process: in proportion to its tokens and patches."""
    size = sum(one.tokens + one.patches for one in calibrations)
    rate = sum(one.load_seconds for one in calibrations) / max(size, 1)
    return (tokens + patches).astype(np.float64) * rate


def _cpu_share(calibrations: Sequence[Calibration]) -> float:
    wall = sum(sum(one.seconds) for one in calibrations)
    return min(gather(min(1.0, sum(sum(one.cpu_seconds) for one in calibrations) / max(wall, 1e-9))))


def memory_of_a_rank(
    found: Rehearsal, ranks: Ranks, trained: int, *, on_cpu: bool
) -> tuple[int | None, int | None, list[str]]:
    """Peak and resting memory of a rank, and what is to be said of them."""
    peak, resting = found.peak_bytes, found.resting_bytes
    if peak is None or resting is None:
        return None, None, ["Peak memory is not measured on this system."]
    where = "of the process, its libraries included" if on_cpu else "of the device"
    notes = [f"Memory is {where}."]
    if ranks.sharing == "model" and ranks.alone:
        notes = [
            f"Memory is {where}: this process kept what the first of {ranks.number} ranks keeps. Buffers that the exchange "
            "between devices has for itself are not in it."
        ]
    if ranks.sharing == "gradients" and (ranks.alone or on_cpu):
        peak, resting = peak + trained, resting + trained  # the exchange's buckets, not there yet or not touched yet
        notes = [
            f"Memory is {where}; {trained / _GIB:.2f} GiB of it for the exchange of gradients are counted, not measured."
        ]
    return peak, resting, notes


def time_notes(found: Rehearsal, ranks: Ranks, share: float | None, *, on_cpu: bool) -> list[str]:
    """What the time leaves out, and what stood in its way."""
    notes: list[str] = []
    if found.update_seconds is None:
        notes.append("The optimiser's state was there already, so its updates are not in the time.")
    if ranks.alone:
        notes.append(
            f"One process ran alone, {ranks.number} will train: what they exchange"
            f"{', and that they share the processors of this machine,' if on_cpu else ''} is not in the time."
        )
    elif ranks.sharing == "gradients":
        notes.append(f"The {ranks.number} ranks ran at the same time; their exchange of gradients is not in the time.")
    elif ranks.sharing == "model":
        notes.append(f"The {ranks.number} ranks ran at the same time and shared the model as in training.")
    if share is not None and share < _CROWDED:
        notes.append(
            f"Other work was in the way: this process got {share:.0%} of a processor. The time holds if that goes on; the "
            "lower one is that of a machine with nothing else to do."
        )
    return notes


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
