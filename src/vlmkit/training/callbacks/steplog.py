"""Measures every step and writes a line per logged one: `train.jsonl`, the progress bar, and Lightning's loggers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from vlmkit.batch import Batch
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import Group
from vlmkit.training.shards import whole
from vlmkit.training.steplines import append_line, cut_back, read_lines

SCHEMA = "vlmkit.train/1"
MOST_KEPT = 64
"""Micro-batches whose token losses are kept before they are summed up: little memory, and hardly any wait."""
WAIT_TOLD = 0.05
"""Share of the time spent waiting for data from which it is said in words."""


class StepLog(Callback):
    """A line per logged step, over all ranks; between two lines nothing waits for the device.

    Loss and rates are means over the steps since the line before, weighed by supervised tokens. `seconds` counts from
    the start of this process. `data_wait` is the share of the time in which rank 0 waited for a batch, `data_wait_worst`
    that of the rank that waited longest: the others wait for it in the exchange of gradients, where nothing shows.

    Args:
        path: `train.jsonl`; lines after the step a run resumes at are cut off.
        every_n_steps: Steps between two lines.
        num_steps: Steps of the whole run.
        source_names: Names of the manifests, by number.
        epoch_at: Epoch (a fraction) after so many steps.
        progress: Show a bar.
        flops_of: Model FLOPs of a batch; for the share of the device's peak that is used.
        peak_flops: Of one device, per second; None where it is not known.
    """

    def __init__(
        self,
        *,
        path: Path,
        every_n_steps: int,
        num_steps: Callable[[], int],
        source_names: list[str],
        epoch_at: Callable[[int], float],
        progress: bool,
        flops_of: Callable[[Batch], float] | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.num_steps = num_steps
        self.source_names = source_names
        self.epoch_at = epoch_at
        self.progress = progress
        self.flops_of = flops_of
        self.peak_flops = peak_flops
        self.totals = {"supervised_tokens": 0, "tokens": 0, "patches": 0, "samples": 0}
        self.last: dict[str, Any] = {}
        self.wait_told = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut the log back to where the run stands, and open the bar."""
        self.device = pl_module.device
        self.step = self.first_step = trainer.global_step
        self.last_step = self.num_steps()
        self.started = self.mark = self.batch_ended = time.perf_counter()
        self.bar = None
        self._reset()
        if trainer.is_global_zero:
            cut_back(self.path, self.step)
            self.take_up()
            self.bar = tqdm(
                total=self.last_step, initial=self.step, unit="step", disable=not self.progress, dynamic_ncols=True
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The time since the last batch was spent waiting for this one."""
        self.waited += time.perf_counter() - self.batch_ended

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Read rates and gradient norms of a step that will be logged, before clipping."""
        if self._logs(trainer.global_step + 1):
            assert isinstance(pl_module, TrainingModule)
            self.lr = {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}
            self.grad_norm = {name: float(norm) for name, norm in grad_norms(pl_module.groups).items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the micro-batch; write a line if a step to log has just ended."""
        assert isinstance(pl_module, TrainingModule)
        self._count(batch, pl_module.token_losses)
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            if self.bar is not None:
                self.bar.update(1)
            if self._logs(self.step):
                self._write(trainer)
        self.batch_ended = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def take_up(self) -> None:
        """Count on from what the log holds: totals are those of the whole run, however often it was resumed."""
        written = read_lines(self.path)
        self.totals = {name: sum(line[name] for line in written) for name in self.totals}
        self.last = written[-1] if written else {}

    def pause(self, seconds: float) -> None:
        """Leave time that was not training out of the rates."""
        self.mark += seconds
        self.batch_ended += seconds

    def _logs(self, step: int) -> bool:
        return step % self.every_n_steps == 0 or step == self.last_step

    def _reset(self) -> None:
        num_sources = len(self.source_names)
        self.counts = [0.0] * 5  # tokens, patches, samples, supervised, FLOPs
        self.kept: list[tuple[list[int], Tensor, Tensor]] = []
        self.supervised = torch.zeros(num_sources, dtype=torch.float64)  # by source
        self.losses = torch.zeros(num_sources, dtype=torch.float64)
        self.unusable = torch.zeros(num_sources, dtype=torch.float64)  # NaN or infinite: no mean
        self.waited = 0.0

    def _count(self, batch: Batch, token_losses: Tensor) -> None:
        """Note what is known on the host; what is on the device stays there for now."""
        if batch["pack"] < 0:
            return
        counts = self.counts
        counts[0] += sum(batch["seqlens"])
        counts[1] += sum(batch["vision_seqlens"]) if batch["num_media"] else 0
        counts[2] += len(batch["rows"]) - len(batch["masked"])
        counts[3] += len(batch["targets"])
        if self.flops_of is not None and self.peak_flops:
            counts[4] += self.flops_of(batch)
        if len(token_losses):
            self.kept.append((batch["sources"], batch["target_samples"], token_losses))
        if len(self.kept) >= MOST_KEPT:
            self._sum_up()

    def _sum_up(self) -> None:
        """Add the losses that were kept to the sums by source. Waits for the device."""
        if not self.kept:
            return
        sources = torch.cat([torch.tensor(of_samples)[places.cpu()] for of_samples, places, _ in self.kept])
        losses = torch.cat([losses for _, _, losses in self.kept]).cpu().to(torch.float64)
        usable = losses.isfinite()
        self.supervised += torch.bincount(sources, minlength=len(self.source_names))
        self.losses.index_add_(0, sources, torch.where(usable, losses, 0.0))
        self.unusable.index_add_(0, sources, (~usable).to(torch.float64))
        self.kept = []

    def _write(self, trainer: L.Trainer) -> None:
        now = time.perf_counter()
        counts, by_source_counts, losses, unusable, waits = self._over_ranks(trainer)
        tokens, patches, samples, supervised = (int(value) for value in counts[:4])
        for name, value in zip(self.totals, (supervised, tokens, patches, samples), strict=True):
            self.totals[name] += value
        by_source = {
            name: loss / (count - lost)
            for name, loss, count, lost in zip(self.source_names, losses, by_source_counts, unusable, strict=True)
            if count > lost
        }
        elapsed = now - self.mark
        self.last = {
            "schema": SCHEMA,
            "step": self.step,
            "epoch": round(self.epoch_at(self.step), 4),
            "loss": sum(losses) / max(1, supervised - sum(unusable)),
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "supervised_tokens": supervised,
            "tokens": tokens,
            "patches": patches,
            "samples": samples,
            "tokens_per_second": tokens / elapsed,
            "data_wait": waits[0] / elapsed,
            "data_wait_worst": max(waits) / elapsed,
            "mfu": counts[4] / elapsed / (self.peak_flops * trainer.world_size) if self.peak_flops else None,
            "seconds": now - self.started,
            "loss_by_source": by_source,
        }
        self._tell(trainer)
        self.mark = now
        self._reset()

    def _over_ranks(self, trainer: L.Trainer) -> list[list[float]]:
        """Over all ranks: counts; by source supervised tokens, sums of losses, and token losses without a value; waits.

        The last are the seconds that each rank waited for data, by rank.
        """
        self._sum_up()
        waits = torch.zeros(trainer.world_size, dtype=torch.float64)
        waits[trainer.global_rank] = self.waited  # a place for each rank: the sum over ranks gathers them
        sums = [torch.tensor(self.counts, dtype=torch.float64), self.supervised, self.losses, self.unusable, waits]
        every = torch.cat(sums)
        if trainer.world_size > 1:
            every = every.to(self.device)
            torch.distributed.all_reduce(every)
        return [part.tolist() for part in every.cpu().split([len(one) for one in sums])]

    def _tell(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        append_line(self.path, self.last)
        if self.bar is not None:
            speed, wait = self.last["tokens_per_second"], self.last["data_wait_worst"]
            self.bar.set_postfix_str(f"loss {self.last['loss']:.4f}, {speed:,.0f} tok/s, data wait {wait:.0%}")
        words = wait_in_words(self.last["data_wait_worst"])
        if (
            words and not self.wait_told and self.step > self.first_step + self.every_n_steps
        ):  # workers start in the first
            self.wait_told = True
            tqdm.write(f"Step {self.step}: {words}")
        for logger in trainer.loggers:
            logger.log_metrics(_flat(self.last), step=self.step)


def wait_in_words(share: float) -> str | None:
    """What a share of the time (0 to 1) spent waiting for data means, where it is worth a word."""
    if share <= WAIT_TOLD:
        return None
    return (
        f"{share:.0%} of the time went by waiting for samples while the device idled. Raise data.num_workers, lower "
        "data.image_max_pixels, or put the media on a faster disk."
    )


def grad_norms(groups: list[Group]) -> dict[str, Tensor]:
    """L2 norm of the gradients of each part, before clipping (scalars, on the device). Every rank must call."""
    by_part: dict[str, list[Tensor]] = {}
    for group in groups:
        grads = [parameter.grad for _, parameter in group.parameters if parameter.grad is not None]
        by_part.setdefault(group.part, []).extend(grads)
    return {part: whole(torch.nn.utils.get_total_norm(grads)) for part, grads in by_part.items()}


def _flat(record: dict[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat.update({f"train/{key}/{name}": number for name, number in value.items()})
        elif isinstance(value, (int, float)) and key != "step":
            flat[f"train/{key}"] = value
    return flat
