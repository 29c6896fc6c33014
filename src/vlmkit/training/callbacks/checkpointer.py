"""Writes checkpoints at the end of optimiser steps: aside, synced, renamed; also when a signal tells the run to leave."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch.distributed.checkpoint.api import CheckpointException

from vlmkit.errors import CheckpointError
from vlmkit.storage import aside_of, put_in_place
from vlmkit.training.ranks import Agreement, gather
from vlmkit.training.shards import nonfinite_names, read_whole, remove_checkpoint
from vlmkit.training.state import (
    KEY,
    RunState,
    checkpoint_name,
    finished_checkpoints,
    newest_checkpoint,
    read_content,
    restore_rng,
    rewrite_loops,
    rng_state,
)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to save and leave: the end of a job, and the warning before it (`#SBATCH --signal=USR1@120`)."""


class Checkpointer(Callback):
    """Saves every so many steps or minutes, at the end and on a signal, and keeps the newest few.

    It saves only where an optimiser step has just ended: in the middle of accumulation partial gradients would be lost.
    A signal sets a flag; it is read at the end of the step (on several ranks: of the next one, so that all leave
    together), the run is saved, and training ends with `stopped_by` set.

    Args:
        run_dir: Where `checkpoints/` lies.
        every_n_steps: None: not by steps.
        every_minutes: Minutes of rank 0's clock between two checkpoints; None: not by time.
        keep: How many to keep; older ones go once a newer one stands. 0 keeps all.
        state_at: Where the run stands after so many optimiser steps.
        done_batches: Micro-batches already done on each of today's ranks when resuming.
        before_save: Called on every rank before anything is written; raises where the weights are not worth keeping.
        spared: Names of checkpoints that are kept however old they are.
        paused: Told the seconds that writing took.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        every_n_steps: int | None,
        every_minutes: float | None,
        keep: int,
        state_at: Callable[[int], RunState],
        done_batches: Callable[[], int],
        before_save: Callable[[], None] = lambda: None,
        spared: Callable[[], set[str]] = set,
        paused: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.directory = run_dir / "checkpoints"
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.state_at = state_at
        self.done_batches = done_batches
        self.before_save = before_save
        self.spared = spared
        self.paused = paused
        self.saved_step = -1
        self.step = 0
        self.stopped_by: str | None = None
        self._writing = _PatientIO()
        self._signal: int | None = None
        self._restored: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write through our own input and output, which keeps an error until all ranks can hear it."""
        trainer.strategy.checkpoint_io = self._writing

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run starts, take the random states back, and listen for signals."""
        self.step = self.saved_step = trainer.global_step
        self.saved_at = time.monotonic()
        self.agreement = Agreement()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
        # Lightning's own flag would be sent around and waited for on every batch.
        cast(Any, trainer.fit_loop.epoch_loop)._broadcast_sigterm_tensor = lambda: None
        if self._restored is not None:  # last of all: making the loaders draws random numbers
            restore_rng(self._restored, rank=trainer.global_rank, num_ranks=trainer.world_size)
            self._restored = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a step has just ended and its turn has come, or if the run is to leave."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        leave, timely = self.agreement.exchange([self._signal is not None, trainer.is_global_zero and self._is_time()])
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last or leave or timely or (self.every_n_steps and self.step % self.every_n_steps == 0):
            self.save(trainer)
        if leave:
            numbers = gather(self._signal)
            self.stopped_by = signal.Signals(next(number for number in numbers if number is not None)).name
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hear the last wish; from here on SIGTERM ends the process, and there is nothing to lose."""
        self.agreement.close()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def save(self, trainer: L.Trainer) -> Path:
        """Write a checkpoint of this step, unless it stands; every rank must call.

        Raises:
            CheckpointError: weights are not finite, or the disk refuses them; on every rank. Earlier checkpoints stay.
        """
        step = trainer.global_step
        path = self.directory / checkpoint_name(step)
        if self.saved_step == step and path.exists():
            return path
        started = time.monotonic()
        self.before_save()
        self._refuse_ruined(trainer, path)
        aside = aside_of(path)
        self._writing.error = None
        if trainer.is_global_zero:
            self._writing.attempt(lambda: self.directory.mkdir(parents=True, exist_ok=True))
        try:
            trainer.save_checkpoint(aside)
        except (OSError, CheckpointException) as error:  # of shared models: every rank writes, and hears of it
            self._give_up(trainer, aside, path, str(error).splitlines()[0])
        if trainer.is_global_zero:
            if path.is_dir() or aside.is_dir():  # of the same step, by a run that this one goes back behind
                self._writing.attempt(lambda: remove_checkpoint(path))
            self._writing.attempt(lambda: put_in_place(aside, path))
            if self._writing.error is None:
                self._writing.attempt(lambda: self._prune(path))
        if error := trainer.strategy.broadcast(self._writing.error):
            self._give_up(trainer, aside, path, error)
        self.saved_step, self.saved_at = step, time.monotonic()
        self.paused(self.saved_at - started)
        return path

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add where the run stands, and every rank's random states."""
        checkpoint[KEY] = self.state_at(trainer.global_step).to_checkpoint(gather(rng_state()))

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count what is done on today's ranks, and keep the random states until training starts."""
        rewrite_loops(checkpoint, done_batches=self.done_batches())
        self._restored = {KEY: checkpoint[KEY]}

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = number

    def _is_time(self) -> bool:
        return self.every_minutes is not None and time.monotonic() - self.saved_at >= 60 * self.every_minutes

    def _give_up(self, trainer: L.Trainer, aside: Path, path: Path, error: str) -> None:
        if trainer.is_global_zero and aside.exists():
            remove_checkpoint(aside)
        left = newest_checkpoint(self.directory.parent)
        raise CheckpointError(
            f"{path}: could not be written ({error}). The newest good checkpoint is {left or 'none'}. Make room, then "
            "continue with resume_from=auto."
        )

    def _refuse_ruined(self, trainer: L.Trainer, path: Path) -> None:
        """Look at the weights, so that a checkpoint is always worth going on from."""
        found = gather(nonfinite_names(trainer.lightning_module))
        if names := sorted({name for names in found for name in names}):
            newest = newest_checkpoint(self.directory.parent)
            raise CheckpointError(
                f"{path}: not written, because {len(names)} trained tensors hold NaN or infinity (the first: {names[0]}). "
                f"The newest good checkpoint is {newest or 'none'}. Resume from there at a lower rate "
                "(resume_from=auto resume_allow=[optim] optim.lr=...)."
            )

    def _prune(self, written: Path) -> None:
        """Remove older ones; never the one that was just written, whatever a run that this one goes back behind left."""
        others = [path for path in finished_checkpoints(self.directory) if path != written]
        surplus = len(others) + 1 - self.keep if self.keep > 0 else 0
        for old in others[: max(0, surplus)]:
            if old.name not in self.spared():
                remove_checkpoint(old)


class _PatientIO(TorchCheckpointIO):
    """Keeps an error of writing to itself: the ranks that write nothing are waiting for the one that does."""

    error: str | None = None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file, or the directory that ranks which shared the model have written."""
        return read_whole(Path(path)) if Path(path).is_dir() else read_content(Path(path), mmap=False)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write straight to the file: no copy in memory."""
        self.attempt(lambda: torch.save(checkpoint, path))

    def attempt(self, write: Callable[[], object]) -> None:
        """Do something with the disk, unless something failed before."""
        if self.error is not None:
            return
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch's writer of archives turns the former into the latter
            self.error = str(error).splitlines()[0]
