"""Looks at the model from outside every so many steps: held-out loss, and whatever else is to be measured."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.call import (
    _call_callback_hooks,  # pyright: ignore[reportPrivateUsage]  # as Lightning's own validation loop calls them
)
from torch import nn

from vlmkit.batch import Batch, MaskedRow
from vlmkit.errors import DataError
from vlmkit.training.callbacks.average import as_exported
from vlmkit.training.held_out import HeldOut, write_held_out
from vlmkit.training.module import TrainingModule
from vlmkit.training.ranks import Agreement, gather
from vlmkit.training.shards import reshard
from vlmkit.training.state import rng_state, set_rng_state
from vlmkit.training.steplines import append_line, cut_back, read_lines

SCHEMA = "vlmkit.validation/1"
FILE = "validation.jsonl"
LOSS = "val/loss"


class ValidationInterrupted(Exception):
    """The run is to be saved and left before the validation is complete."""


class Measure(Protocol):
    """Something that needs the model's answers. All ranks call both methods, one after the other."""

    def answer(self, step: int) -> None:
        """Do this rank's part, at its own pace, without waiting for other ranks.

        Raises:
            ValidationInterrupted: passed on from what is called between two batches.
        """
        ...

    def figures(self, step: int) -> dict[str, float]:
        """Metrics by name, on rank 0, once all ranks have answered."""
        ...


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured at a validation.

    Attributes:
        loader: This rank's held-out packs, in order; None: no held-out loss. As many on every rank.
        others: What else is measured.
        where: Names a held-out row, the same in every run that holds it out.
        max_bad_media: Most held-out rows whose media may be unreadable; None: any number.
    """

    loader: Iterable[Batch] | None
    others: Sequence[Measure]
    where: Callable[[int], str]
    max_bad_media: int | None = None


class Validator(Callback):
    """Measures, writes a line of `validation.jsonl`, tells the loggers; keeps the best checkpoint, stops early.

    It looks at the weights that the run would export: with `callbacks=average`, the averages. The training does not
    notice: weights, random states, modes and gradients are afterwards what they were.

    To other callbacks it is Lightning's validation: their hooks are called, and `trainer.callback_metrics` has the metrics.

    It comes after the checkpointer, so a checkpoint that is due at the same step is on the disk before anything is
    measured. A signal is heard between any two batches: the validation is given up, and the run saved and left. What a
    checkpoint does not know of the validation of its step is taken from `validation.jsonl` when the run is resumed, or
    measured then.

    Args:
        run_dir: Where `validation.jsonl` is written.
        every_n_steps: None: at the end only. The last step is always validated.
        measures: What is measured, made when training starts.
        best: Metric whose best checkpoint is kept; a name that ends in `loss` is better lower, any other higher.
        stop_after: Validations without a better one after which the run ends; None: never.
        save: Writes a checkpoint of this step; every rank calls.
        leave: Saves and ends the run; every rank calls.
        is_signalled: Whether this rank has been asked to leave.
        is_left: Whether the run is being left.
        meet: Waits for all ranks, under a name, however long that takes: in a collective they could wait no longer than
            its limit.
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
        leave: Callable[[L.Trainer], object],
        is_signalled: Callable[[], bool],
        is_left: Callable[[], bool],
        meet: Callable[[str], None],
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
        self.leave = leave
        self.is_signalled = is_signalled
        self.is_left = is_left
        self.meet = meet
        self.paused = paused
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.misses = 0
        self.judged_step: int | None = 0
        self.stopped = False
        self.masked: set[int] = set()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "misses": self.misses,
            "judged_step": self.judged_step,
            "metric": self.best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        self.misses = state_dict["misses"]
        self.judged_step = state_dict.get("judged_step")  # None: of a version that validated before it saved

    def report(self) -> dict[str, Any]:
        """For `report.json`."""
        return {"metric": self.best, "value": self.best_value, "step": self.best_step, "stopped_early": self.stopped}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make what is measured; cut the lines back to where the run stands, and make up for what a checkpoint lacks."""
        assert isinstance(pl_module, TrainingModule)
        self.step = trainer.global_step
        rng = rng_state()  # the checkpoint's have been restored, and making the loaders draws
        self.measures = self.make_measures()
        set_rng_state(rng)
        self.agreement = Agreement()
        if trainer.is_global_zero:
            cut_back(self.path, self.step)
        if self.step:
            self._make_up(trainer, pl_module, is_due=bool(self.every_n_steps and self.step % self.every_n_steps == 0))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate if a step has just ended and its turn has come, unless the run is being left."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if (last or (self.every_n_steps and self.step % self.every_n_steps == 0)) and not self.is_left():
            assert isinstance(pl_module, TrainingModule)
            self._validate(trainer, pl_module)

    def take_up_end(self, trainer: L.Trainer, module: TrainingModule, step: int) -> None:
        """Where nothing is left to train, make up for what the last checkpoint lacks; rank 0 alone, without a group."""
        if not trainer.is_global_zero:
            return
        self.step = step
        self.measures = self.make_measures()
        self.agreement = Agreement()
        self.meet = lambda _: None  # the others are not here
        if trainer.strategy.root_device.type != "cpu":
            module.to(trainer.strategy.root_device)
        self._make_up(trainer, module, is_due=True)

    def _make_up(self, trainer: L.Trainer, module: TrainingModule, *, is_due: bool) -> None:
        """Judge the validation of a step whose checkpoint was written before it, from its line or by doing it now."""
        if self.judged_step in (self.step, None):
            return
        lines = read_lines(self.path) if trainer.is_global_zero else []
        known = next((line["metrics"] for line in lines if line["step"] == self.step), None)
        known = trainer.strategy.broadcast(known)
        if known is not None:
            self._judge({name: math.nan if value is None else value for name, value in known.items()})
        elif is_due:
            metrics = self._measure(trainer, module)
            if metrics is None:
                self.leave(trainer)
            else:
                self._judge(metrics)

    def _validate(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Measure and judge; leave the run where a signal comes meanwhile."""
        started = time.perf_counter()
        for hook in ("on_validation_start", "on_validation_epoch_start"):
            _call_callback_hooks(trainer, hook)
        metrics = self._measure(trainer, module)
        if metrics is None:
            self.paused(time.perf_counter() - started)
            self.leave(trainer)
            return
        module.log_dict(metrics, logger=False, on_step=True, on_epoch=False)
        for hook in ("on_validation_epoch_end", "on_validation_end"):
            _call_callback_hooks(trainer, hook)
        self.paused(time.perf_counter() - started)
        is_better = self._judge(metrics)
        if self.stop_after is not None and self.misses >= self.stop_after:
            self.stopped = trainer.should_stop = True
        if is_better or trainer.should_stop:  # another callback may end the run here
            self.save(trainer)

    def _measure(self, trainer: L.Trainer, module: TrainingModule) -> dict[str, float] | None:
        """Metrics by name, the same on every rank; None where the run is to be left."""
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        stderr: dict[str, float | None] = {}
        masked: list[MaskedRow] = []
        with unnoticed(module), as_exported(module):
            if self.measures.loader is not None:
                measured = self._losses(trainer, module, self.measures.loader)
                if measured is None:
                    return None
                held_out, masked = measured
                self._report_masked(masked, show=trainer.is_global_zero)
                metrics[LOSS] = held_out.mean
                stderr[LOSS] = held_out.stderr
                if trainer.is_global_zero:
                    place = self.path.parent / "validation" / f"step-{self.step:06d}" / "held_out.jsonl"
                    write_held_out(place, held_out, self.measures.where)
            if self.measures.others:
                if not self._answer():
                    return None
                for measure in self.measures.others:
                    metrics.update(measure.figures(self.step))
                self.meet(f"validation-{self.step}-figures")
            metrics = trainer.strategy.broadcast(metrics)
        if trainer.is_global_zero:
            seconds = time.perf_counter() - started
            line: dict[str, Any] = {
                "schema": SCHEMA,
                "step": self.step,
                "metrics": metrics,
                "stderr": stderr,
                "seconds": seconds,
            }
            line["masked"] = [
                {"where": self.measures.where(row), "reason": reason, "finding": finding}
                for row, reason, finding in masked
            ]
            append_line(self.path, line)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=self.step)
        return metrics

    def _answer(self) -> bool:
        """Answer on every rank; whether none was interrupted."""
        interrupted = False
        try:
            for measure in self.measures.others:
                measure.answer(self.step)
        except ValidationInterrupted:
            interrupted = True
        self.meet(f"validation-{self.step}-answers")
        return not self.agreement.agree(interrupted)

    def _losses(
        self, trainer: L.Trainer, module: TrainingModule, loader: Iterable[Batch]
    ) -> tuple[HeldOut, list[MaskedRow]] | None:
        """Loss of every held-out sample, and the rows whose media could not be read, over all ranks; None where the run is to be left.

        All ranks give up before the same batch: under `fsdp` they compute it together.
        """
        rows: list[int] = []
        masked: list[MaskedRow] = []
        sums: list[torch.Tensor] = []
        interrupted = False
        for batch in loader:
            if interrupted := self.agreement.exchange([self.is_signalled()])[0]:
                break
            with trainer.precision_plugin.forward_context():
                losses = module.packed(module.transfer_batch_to_device(batch, module.device, 0)).token_losses
            rows += batch["rows"]
            masked += batch["masked"]
            samples = batch["target_samples"].to(losses.device)
            ones = torch.ones(len(losses), dtype=torch.float64, device=losses.device)
            zeros = torch.zeros(2, len(batch["rows"]), dtype=torch.float64, device=losses.device)
            sums.append(zeros.index_add(1, samples, torch.stack([losses.double(), ones])))
        reshard(module)
        if self.agreement.agree(interrupted or self.is_signalled()):
            return None
        losses, counts = torch.cat(sums, dim=1).tolist() if sums else ([], [])
        parts = gather((rows, losses, counts, masked))
        every_masked = sorted(entry for *_, entries in parts for entry in entries)
        return HeldOut.joined([part[:3] for part in parts]), every_masked

    def _report_masked(self, masked: list[MaskedRow], *, show: bool) -> None:
        """Name the held-out rows whose media could not be read, each once.

        Raises:
            DataError: there are more than may be; on every rank.
        """
        for row, _, finding in masked:
            if show and row not in self.masked:
                print(f"{self.measures.where(row)}: held out, masked: {finding}", file=sys.stderr)
            self.masked.add(row)
        most = self.measures.max_bad_media
        if most is not None and len(masked) > most:
            row, _, finding = masked[0]
            raise DataError(
                f"The media of {len(masked)} held-out rows cannot be read, more than data.max_bad_media={most}. The first: "
                f"{self.measures.where(row)}: {finding} Replace the files, or raise data.max_bad_media.",
                reason="too_many_bad_media",
            )

    def _judge(self, metrics: dict[str, float]) -> bool:
        """Count a validation; whether it is the best so far."""
        self.judged_step = self.step
        if self.best is None or (value := metrics.get(self.best)) is None:
            return False
        is_better = self.best_value is None or is_improvement(self.best, value, self.best_value)
        if is_better:
            self.best_value, self.best_step, self.misses = value, self.step, 0
        else:
            self.misses += 1
        return is_better


def is_improvement(metric: str, value: float, best: float) -> bool:
    """Whether a value of a metric is better than the best so far: lower where its name ends in `loss`, else higher."""
    return value < best if metric.endswith("loss") else value > best


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
