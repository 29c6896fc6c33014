"""Train a few packs for real, to see how long a pack takes and how much memory: weights are thrown away afterwards."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from vlmkit.batch import Batch
from vlmkit.model.parts import restore_rotary_buffers
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import make_optimizer, parameter_groups


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One pack, trained as a step of its own.

    Attributes:
        pack: Its number in the plan.
        seconds: Forward, backward and update; loading is not in it.
        peak_bytes: Most memory of the device so far; on a CPU, of the process.
    """

    pack: int
    seconds: float
    peak_bytes: int


def try_packs(module: TrainingModule, batches: Iterable[Batch], *, device: torch.device, precision: str) -> list[Trial]:
    """Train packs, each as a step; the first one twice, since kernels are chosen and memory is taken then.

    Args:
        module: As for training; its model is made, changed, and of no use afterwards.
        batches: Packs with at least one supervised token, the heaviest first.
        device: Where.
        precision: `trainer.precision`.
    """
    module.configure_model()
    module.to(device)
    restore_rotary_buffers(module.packed.hf)
    module.freeze_policy.set_modes(module.packed.hf)
    groups = parameter_groups(module.packed.hf.named_parameters(), module.optimizer_plan)
    optimizer = make_optimizer(groups, module.optimizer_plan)

    def train(batch: Batch) -> float:
        started = time.perf_counter()
        with _autocast(device, precision):
            loss = module.packed(batch).loss_sum / max(1, len(batch["targets"]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        return time.perf_counter() - started

    trials: list[Trial] = []
    for batch in batches:
        moved = cast(Batch, move_data_to_device(batch, device))
        if not trials:
            train(moved)
        seconds = train(moved)
        trials.append(Trial(pack=batch["pack"], seconds=seconds, peak_bytes=_peak_bytes(device)))
    return trials


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    if not precision.endswith("mixed"):
        return nullcontext()
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
