"""What a check has made so far: handed from section to section."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import lightning as L
from omegaconf import DictConfig
from tqdm import tqdm
from transformers import PreTrainedConfig

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.survey.decoding import Decoded
from vlmkit.model.assembly import Assembly, WholeCheckpoint
from vlmkit.model.fit import Sizes
from vlmkit.model.freeze import FreezePolicy
from vlmkit.processing.processor import Processor
from vlmkit.training.optim import OptimizerPlan
from vlmkit.training.state import RunState

T = TypeVar("T")
_MIN_ROWS_SHOWN = 5_000


@dataclass(kw_only=True)
class Checked:
    """The objects of a run, as far as they could be made; None is what an error left unmade.

    Attributes:
        settled: Whether the settings that the sections read themselves are accepted.
        counted, judged, planned: How far the data came: index, verdicts, plan.
        decoded: Rows that were really decoded.
        num_steps: Optimiser steps of the run.
    """

    config: DictConfig
    run_dir: Path
    settled: bool = True
    source: Assembly | WholeCheckpoint | None = None
    data: PackedDataModule | None = None
    processor: Processor | None = None
    freeze: FreezePolicy | None = None
    optim: OptimizerPlan | None = None
    trainer: L.Trainer | None = None
    hf_config: PreTrainedConfig | None = None
    sizes: Sizes | None = None
    state: RunState | None = None
    checkpoint: Path | None = None
    counted: bool = False
    judged: bool = False
    planned: bool = False
    decoded: list[Decoded] = field(default_factory=list[Decoded])
    num_steps: int | None = None

    @property
    def num_ranks(self) -> int:
        """Ranks that would train; where the Trainer cannot be made here, as the config says."""
        if self.trainer is not None:
            return self.trainer.world_size
        devices = self.config.trainer.devices
        nodes = self.config.trainer.get("num_nodes") or 1
        return devices * nodes if type(devices) is int and devices > 0 else 1

    @property
    def accumulate(self) -> int:
        """Micro-batches of an optimiser step and rank."""
        told = self.config.trainer.accumulate_grad_batches
        return told if type(told) is int and told > 0 else 1

    def shown(self, things: Iterable[T], what: str, *, total: int, always: bool = False) -> Iterable[T]:
        """The same things, with a progress bar where they are many and somebody looks."""
        hidden = not self.config.log.progress or (total < _MIN_ROWS_SHOWN and not always)
        return tqdm(things, desc=f"check: {what}", total=total, unit=" rows", file=sys.stderr, disable=hidden or None)
