"""Writes down the rows of every micro-batch that a run really trains, rank by rank."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback


class RowRecorder(Callback):
    """A line for each micro-batch: the optimiser step it belongs to, its pack and its rows."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Append and sync: a kill must not take lines with it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        told = {"step": trainer.global_step + 1, "pack": batch["pack"], "rows": batch["rows"]}
        with open(self.directory / f"rank{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(told) + "\n")
            file.flush()
            os.fsync(file.fileno())


def recorded(directory: Path) -> list[dict[str, Any]]:
    """All lines of all ranks, without idle slots; a last line that a kill cut short is left out."""
    found = []
    for path in sorted(directory.glob("rank*.jsonl")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(json.loads(line))
    return [line for line in found if line["pack"] >= 0]
