"""Looks at the model from outside every so many steps: held-out loss, and whatever else is to be measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.call import (
    _call_callback_hooks,  # pyright: ignore[reportPrivateUsage]  # as Lightning's own validation loop calls them
)
from torch import nn

from vlmkit.batch import Batch
from vlmkit.training.callbacks.average import as_exported
from vlmkit.training.held_out import HeldOut, write_held_out
from vlmkit.training.module import TrainingModule
from vlmkit.training.ranks import gather
from vlmkit.training.shards import reshard
from vlmkit.training.state import rng_state, set_rng_state
from vlmkit.training.steplines import append_line, cut_back

SCHEMA = "vlmkit.validation/1"
FILE = "validation.jsonl"
LOSS = "val/loss"


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured at a validation.

    Attributes:
        loader: This rank's held-out packs, in order; None: no held-out loss. As many on every rank.
        others: Called on rank 0 with the step; give metrics by name.
        where: Names a held-out row, the same in every run that holds it out.
    """

    loader: Iterable[Batch] | None
    others: Sequence[Callable[[int], dict[str, float]]]
    where: Callable[[int], str]


class Validator(Callback):
    """Measures, writes a line of `validation.jsonl`, tells the loggers; keeps the best checkpoint, stops early.

    It looks at the weights that the run would export: with `callbacks=average`, the averages. The training does not
    notice: weights, random states, modes and gradients are afterwards what they were.

    To other callbacks it is Lightning's validation: their hooks are called, and `trainer.callback_metrics` has the metrics.

    Args:
        run_dir: Where `validation.jsonl` is written.
        every_n_steps: None: at the end only. The last step is always validated.
        measures: What is measured, made when training starts.
        best: Metric whose best checkpoint is kept; a name that ends in `loss` is better lower, any other higher.
        stop_after: Validations without a better one after which the run ends; None: never.
        save: Writes a checkpoint of this step; every rank calls.
        paused: Told the seconds that measuring took.
        metrics: Names of what is measured.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        every_n_steps: int | None,
        measures: Callable[[], Measures],
        best: str | None,
        stop_after: int | None,
        save: Callable[[L.Trainer], object],
        paused: Callable[[float], None],
        metrics: Sequence[str] = (),
    ) -> None:
        self.metrics = tuple(metrics)
        self.path = run_dir / FILE
        self.every_n_steps = every_n_steps
        self.make_measures = measures
        self.best = best
        self.stop_after = stop_after
        self.save = save
        self.paused = paused
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.misses = 0
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"best_value": self.best_value, "best_step": self.best_step, "misses": self.misses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        self.misses = state_dict["misses"]

    def report(self) -> dict[str, Any]:
        """For `report.json`."""
        return {"metric": self.best, "value": self.best_value, "step": self.best_step, "stopped_early": self.stopped}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make what is measured; cut the lines back to where the run stands."""
        self.step = trainer.global_step
        self.measures = self.make_measures()
        if trainer.is_global_zero:
            cut_back(self.path, self.step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate if a step has just ended and its turn has come."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last or (self.every_n_steps and self.step % self.every_n_steps == 0):
            assert isinstance(pl_module, TrainingModule)
            started = time.perf_counter()
            for hook in ("on_validation_start", "on_validation_epoch_start"):
                _call_callback_hooks(trainer, hook)
            metrics = self._validate(trainer, pl_module)
            pl_module.log_dict(metrics, logger=False, on_step=True, on_epoch=False)
            for hook in ("on_validation_epoch_end", "on_validation_end"):
                _call_callback_hooks(trainer, hook)
            self.paused(time.perf_counter() - started)
            self._judge(trainer, metrics)

    def _validate(self, trainer: L.Trainer, module: TrainingModule) -> dict[str, float]:
        """Metrics by name, the same on every rank."""
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        stderr: dict[str, float | None] = {}
        with unnoticed(module), as_exported(module):
            if self.measures.loader is not None:
                held_out = self._losses(trainer, module, self.measures.loader)
                metrics[LOSS] = held_out.mean
                stderr[LOSS] = held_out.stderr
                if trainer.is_global_zero:
                    place = self.path.parent / "validation" / f"step-{self.step:06d}" / "held_out.jsonl"
                    write_held_out(place, held_out, self.measures.where)
            if self.measures.others and trainer.is_global_zero:
                for measure in self.measures.others:
                    metrics.update(measure(self.step))
            metrics = trainer.strategy.broadcast(metrics)
        if trainer.is_global_zero:
            seconds = time.perf_counter() - started
            line = {"schema": SCHEMA, "step": self.step, "metrics": metrics, "stderr": stderr, "seconds": seconds}
            append_line(self.path, line)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=self.step)
        return metrics

    def _losses(self, trainer: L.Trainer, module: TrainingModule, loader: Iterable[Batch]) -> HeldOut:
        """Loss of every held-out sample, over all ranks."""
        rows: list[int] = []
        sums: list[torch.Tensor] = []
        for batch in loader:
            with trainer.precision_plugin.forward_context():
                losses = module.packed(module.transfer_batch_to_device(batch, module.device, 0)).token_losses
            rows += batch["rows"]
            samples = batch["target_samples"].to(losses.device)
            ones = torch.ones(len(losses), dtype=torch.float64, device=losses.device)
            zeros = torch.zeros(2, len(batch["rows"]), dtype=torch.float64, device=losses.device)
            sums.append(zeros.index_add(1, samples, torch.stack([losses.double(), ones])))
        reshard(module)
        losses, counts = torch.cat(sums, dim=1).tolist() if sums else ([], [])
        return HeldOut.joined(gather((rows, losses, counts)))

    def _judge(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        if self.best is None or (value := metrics.get(self.best)) is None:
            if trainer.should_stop:  # another callback ends the run here
                self.save(trainer)
            return
        better = self.best_value is None or (
            value < self.best_value if self.best.endswith("loss") else value > self.best_value
        )
        if better:
            self.best_value, self.best_step, self.misses = value, self.step, 0
        else:
            self.misses += 1
        if self.stop_after is not None and self.misses >= self.stop_after:
            self.stopped = trainer.should_stop = True
        if better or trainer.should_stop:
            self.save(trainer)


@contextmanager
def unnoticed(module: nn.Module) -> Generator[None]:
    """Evaluation mode and no gradients inside; modes and random states afterwards as before."""
    modes = {one: one.training for one in module.modules()}
    rng = rng_state()
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for one, mode in modes.items():
            one.training = mode
        set_rng_state(rng)
