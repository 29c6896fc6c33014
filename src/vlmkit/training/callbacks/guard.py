"""Watches loss and gradient of every step: NaN and infinity stop the run or are skipped, spikes are told, with their samples."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vlmkit.batch import Batch
from vlmkit.errors import VlmkitError
from vlmkit.training.module import TrainingModule
from vlmkit.training.ranks import gather
from vlmkit.training.shards import whole
from vlmkit.training.steplines import append_line, cut_back

SCHEMA = "vlmkit.suspects/1"
FILE = "suspects.jsonl"
OnNonfinite = Literal["error", "skip"]
MIN_WINDOW = 20
"""Losses that must have been seen before one can be called a spike."""
_MAD_TO_DEVIATION = 1.4826
"""Of a normal distribution, the standard deviation over the median absolute deviation (Rousseeuw & Croux 1993, eq. 1.1)."""


class NonfiniteLossError(VlmkitError):
    """A step whose loss or gradient is NaN or infinite. Names the file that lists its samples."""


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """What is done about strange losses.

    Attributes:
        on_nonfinite: A step whose loss or gradient is NaN or infinite: `error` stops the run and names its samples; `skip`
            leaves the weights as they were and counts it. To skip, every step waits for the device.
        max_skipped: So many skipped steps may be; one more is an error all the same.
        spike_window: Steps whose losses say what is usual.
        spike_threshold: Standard deviations above their median from which a loss is a spike. The deviation is estimated by
            1.4826 times the median absolute deviation, which spikes themselves hardly move.
    """

    on_nonfinite: OnNonfinite
    max_skipped: int
    spike_window: int
    spike_threshold: float

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("error", "skip"):
            raise ValueError(f"guard.on_nonfinite must be error or skip, got {self.on_nonfinite!r}")
        if self.max_skipped < 0:
            raise ValueError(f"guard.max_skipped must not be negative, got {self.max_skipped}")
        if self.spike_window < MIN_WINDOW:
            raise ValueError(f"guard.spike_window must be at least {MIN_WINDOW}, got {self.spike_window}")
        if self.spike_threshold <= 0:
            raise ValueError(f"guard.spike_threshold must be positive, got {self.spike_threshold}")


@dataclass(kw_only=True)
class _Step:
    """One optimiser step of this rank: its loss and its gradient's norm on the way from the device, and its samples."""

    number: int
    packs: list[tuple[list[int], Tensor, Tensor]] = field(default_factory=list[tuple[list[int], Tensor, Tensor]])
    loss: Tensor | None = None
    values: Tensor | None = None
    arrived: Any = None

    def send(self, norm: Tensor | None) -> None:
        """Start to copy loss and norm (None: not judged) to the host; nothing waits."""
        assert self.loss is not None
        values = torch.stack([self.loss, self.loss.new_zeros(()) if norm is None else norm.to(self.loss)])
        if values.device.type == "cuda":
            self.values = torch.empty(2, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        else:
            self.values = values.cpu()

    def receive(self) -> tuple[float, float]:
        """Loss and norm, once this step (not those queued after it) is computed."""
        assert self.values is not None
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.values[0]), float(self.values[1])

    def samples(self) -> list[tuple[int, float | None, int]]:
        """Row of the index, mean loss and supervised tokens of each sample."""
        found: list[tuple[int, float | None, int]] = []
        for rows, target_samples, losses in self.packs:
            places, values = target_samples.cpu(), losses.double().cpu()
            sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, places, values).tolist()
            counts = torch.bincount(places, minlength=len(rows)).tolist()
            found += [
                (row, total / count if count else None, count)
                for row, total, count in zip(rows, sums, counts, strict=True)
            ]
        return found


class LossGuard(Callback):
    """Looks at loss and gradient of every optimiser step, over all ranks and micro-batches.

    The sum of the ranks' losses is NaN wherever one of them is, and the gradient's norm is that of all ranks together, so
    all ranks see the same and act alike. With `on_nonfinite=error` both are read one step late, so that nothing waits for
    the device; nothing is saved in between (`settle`), and the report lists the samples of the step before as well, whose
    update may be the cause.

    Args:
        run_dir: Where `suspects.jsonl` is written.
        settings: What is done.
        origin_of: File and row of a row of the index.
    """

    def __init__(self, *, run_dir: Path, settings: GuardSettings, origin_of: Callable[[int], str]) -> None:
        self.path = run_dir / FILE
        self.settings = settings
        self.origin_of = origin_of
        self.window: deque[float] = deque(maxlen=settings.spike_window)
        self.skipped: list[int] = []
        self.spikes = 0
        self.pending: _Step | None = None
        self.former: _Step | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"window": list(self.window), "skipped": self.skipped, "spikes": self.spikes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.window.extend(state_dict["window"])
        self.skipped, self.spikes = list(state_dict["skipped"]), state_dict["spikes"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut the report back to where the run stands."""
        self.trainer = trainer
        self.current = _Step(number=trainer.global_step + 1)
        self.total: Tensor | None = None
        self.unsent: _Step | None = None
        if trainer.is_global_zero:
            cut_back(self.path, trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the batch at hand; the hook that knows the loss is not given it."""
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Add up the step's loss; note what it is made of."""
        assert isinstance(pl_module, TrainingModule)
        loss = loss.detach()
        self.total = loss.clone() if self.total is None else self.total + loss
        self.current.packs.append((self.batch["rows"], self.batch["target_samples"], pl_module.token_losses))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Judge the step before, or this one where it may have to be skipped."""
        assert isinstance(pl_module, TrainingModule)
        assert self.total is not None
        if trainer.world_size > 1:
            dist.all_reduce(self.total)
        step, mean = self.current, self.total / trainer.world_size
        self.current, self.total = _Step(number=step.number + 1), None
        self.settle()
        step.loss = mean
        if self.settings.on_nonfinite == "skip":
            pl_module.skip_step = self._must_skip(pl_module, step)
        else:
            self.unsent = step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Send what a step that has just ended is judged by: its norm is known since it was clipped."""
        if self.unsent is None:
            return
        assert isinstance(pl_module, TrainingModule)
        # A scaler of fp16 losses finds infinite gradients by itself, skips their step, and lowers the scale.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self.unsent.send(None if scaled else pl_module.grad_norm)
        self.pending, self.unsent = self.unsent, None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the last step."""
        self.settle()

    def settle(self) -> None:
        """Judge what has not been judged; every rank must call.

        Raises:
            NonfiniteLossError: its loss or its gradient is NaN or infinite.
        """
        if (step := self.pending) is None:
            return
        self.pending = None
        loss, norm = step.receive()
        if math.isfinite(loss) and math.isfinite(norm):
            self._usual(step, loss)
            self.former = step
            return
        self._tell(step, loss, "nonfinite")
        if self.former is not None:
            self._tell(self.former, self.former.receive()[0], "before_nonfinite")
        wrong = (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else f"the gradient's norm is {norm} (the loss is {loss:g})"
        )
        raise NonfiniteLossError(
            f"Step {step.number}: {wrong}. Nothing of this step was saved; its samples, and those of the step "
            f"before, stand in {self.path} (the first: {self._first(step)}). Look at them. Then "
            "resume from the newest checkpoint, whose weights are sound, at a lower rate (resume_from=auto "
            "resume_allow=[optim] optim.lr=...), or let such steps be skipped: guard.on_nonfinite=skip."
        )

    def report(self) -> dict[str, Any]:
        """For `report.json`."""
        return {"skipped_steps": len(self.skipped), "skipped": self.skipped[:100], "loss_spikes": self.spikes}

    def _must_skip(self, module: TrainingModule, step: _Step) -> bool:
        grads = [p.grad for group in module.groups for _, p in group.parameters if p.grad is not None]
        step.send(whole(torch.nn.utils.get_total_norm(grads)))
        loss, size = step.receive()
        if math.isfinite(loss) and math.isfinite(size):
            self._usual(step, loss)
            return False
        self.skipped.append(step.number)
        self._tell(step, loss, "nonfinite")
        if len(self.skipped) > self.settings.max_skipped:
            raise NonfiniteLossError(
                f"Step {step.number}: the loss is {loss}, the gradient's norm {size}, and this is the {len(self.skipped)}th "
                f"step that would be skipped (guard.max_skipped={self.settings.max_skipped}). The samples of all of them stand "
                f"in {self.path}. Look at them, or resume from the newest checkpoint at a lower rate (resume_from=auto "
                "resume_allow=[optim] optim.lr=...)."
            )
        return True

    def _usual(self, step: _Step, loss: float) -> None:
        if len(self.window) >= MIN_WINDOW and loss > spike_limit(self.window, self.settings.spike_threshold):
            self.spikes += 1
            self._tell(step, loss, "spike")
        self.window.append(loss)

    def _first(self, step: _Step) -> str:
        rows = [rows[0] for rows, _, _ in step.packs if rows]
        return self.origin_of(rows[0]) if rows else "on another rank"

    def _tell(self, step: _Step, loss: float, kind: str) -> None:
        """Write the step's samples of all ranks, those of the highest loss first."""
        samples = [(*sample, rank) for rank, found in enumerate(gather(step.samples())) for sample in found]
        if not self.trainer.is_global_zero:
            return
        samples.sort(key=lambda sample: _badness(sample[1]), reverse=True)
        append_line(
            self.path,
            {
                "schema": SCHEMA,
                "step": step.number,
                "kind": kind,
                "loss": loss if math.isfinite(loss) else str(loss),
                "median": median(self.window) if self.window else None,
                "samples": [
                    {"where": self.origin_of(row), "loss": value, "supervised_tokens": count, "rank": rank}
                    for row, value, count, rank in samples
                ],
            },
        )


def spike_limit(window: deque[float] | list[float], threshold: float) -> float:
    """The loss above which a step is a spike: median + threshold * 1.4826 * median absolute deviation."""
    middle = median(window)
    spread = median(abs(loss - middle) for loss in window)
    return middle + threshold * _MAD_TO_DEVIATION * max(spread, 1e-3 * abs(middle))


def _badness(loss: float | None) -> float:
    if loss is None:
        return -math.inf
    return loss if math.isfinite(loss) else math.inf
