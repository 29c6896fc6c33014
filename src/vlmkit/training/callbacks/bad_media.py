"""Counts the rows whose media could not be read, over all ranks, and stops a run that has too many."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vlmkit.batch import Batch, MaskedRow
from vlmkit.errors import DataError, Origin

NUM_NAMED = 5


class BadMedia(Callback):
    """Keeps the list of masked rows (`data.on_bad_media=mask`), the same on every rank.

    What a worker could not read travels in its batch, so rows of batches that were loaded and never trained on do not
    count. A row counts once, however many epochs meet it. After each optimiser step the ranks tell each other of new
    rows: one number is exchanged, and the rows only where there are any. So all ranks stop at the same step. The list
    stands in the checkpoint; a resumed run counts on.

    It must stand before the checkpointer: a checkpoint holds the rows of its own step.

    Args:
        masks: Whether rows are masked at all; if not, nothing is exchanged.
        most: Most masked rows of a run; None: any number.
        origin_of: File and row of a row of the index.
    """

    def __init__(self, *, masks: bool, most: int | None, origin_of: Callable[[int], Origin]) -> None:
        self.masks = masks
        self.most = most
        self.origin_of = origin_of
        self.rows: dict[int, MaskedRow] = {}
        self.fresh: list[MaskedRow] = []
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run starts."""
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the masked rows of a micro-batch; at the end of a step, count them over all ranks.

        Raises:
            DataError: more rows are masked than may be; names the last ones. On every rank, at the same step.
        """
        if not self.masks:
            return
        self.fresh += [masked for masked in batch["masked"] if masked[0] not in self.rows]
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        found = _over_ranks(self.fresh, trainer.world_size, pl_module.device)
        self.fresh = []
        new = {row: (row, reason, finding) for row, reason, finding in found if row not in self.rows}
        self.rows.update(new)
        if trainer.is_global_zero:
            for row, _, finding in new.values():
                print(f"{self.origin_of(row)}: masked: {finding}", file=sys.stderr)
        if new and self.most is not None and len(self.rows) > self.most:
            raise self._too_many(self.most)

    def state_dict(self) -> dict[str, Any]:
        """The masked rows, as plain values."""
        return {"rows": [list(masked) for masked in self.rows.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint."""
        self.rows = {row: (row, reason, finding) for row, reason, finding in state_dict["rows"]}

    def _too_many(self, most: int) -> DataError:
        last = list(self.rows.values())[-NUM_NAMED:]
        told = "\n".join(f"{self.origin_of(row)}: {finding}" for row, _, finding in last)
        return DataError(
            f"The media of {len(self.rows)} rows could not be read by step {self.step}, more than "
            f"data.max_bad_media={most}. The last ones:\n{told}\n"
            "Mend the files, or raise data.max_bad_media and continue with resume_from=auto.",
            reason="too_many_bad_media",
        )


def _over_ranks(fresh: list[MaskedRow], world_size: int, device: torch.device) -> list[MaskedRow]:
    """The new rows of all ranks, in the order of ranks; every rank must call."""
    if world_size == 1:
        return fresh
    most = torch.tensor(len(fresh), device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    if not int(most):
        return []
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, fresh)
    return [masked for rank in gathered for masked in rank]
