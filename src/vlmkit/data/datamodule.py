"""Manifests to loaders: wiring only. Counting, planning, dealing and encoding are done elsewhere in this room."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch

from vlmkit.batch import Batch, MaskedRow
from vlmkit.data.dataset import OnBadMedia, PackDataset, PlanLoader, SlotSampler, to_device
from vlmkit.data.dealing import Slot, Steps, deal
from vlmkit.data.holding_out import hold_out
from vlmkit.data.index import Index
from vlmkit.data.indexing import build_index
from vlmkit.data.judging import OnBadRow, judge
from vlmkit.data.manifest import resolve_sources, row_id
from vlmkit.data.overlong import OVERLONG, Overlong
from vlmkit.data.packing import Budget
from vlmkit.data.plan import Order, Plan, PlanRows, draw_rows, make_plan, rows_over
from vlmkit.data.workers import start_server, start_worker
from vlmkit.errors import ConfigError, DataError
from vlmkit.processing.encode import Pixels
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.processor import Processor
from vlmkit.processing.video import ReaderName, VideoReading

_MOST_WORKERS = 4
"""Where nobody says how many: each holds a tokenizer and a reader of videos."""


class PackedDataModule(L.LightningDataModule):
    """Counts, plans and loads the rows of one or more manifests.

    Args:
        name: What reports call this data.
        sources: Manifests: paths, or mappings with `path` and, as wanted, `root`, `weight`, `name`, pixel limits.
        root: Directory that media paths are relative to; None: each manifest's own.
        allow_absolute_paths: Whether rows may name media outside the root.
        limit: Only the first so many rows, of all sources together and in their order.
        image_min_pixels, image_max_pixels, video_min_pixels, video_max_pixels, video_fps, video_max_frames: See
            `PixelBudget`.
        video_reader, media_timeout_seconds: See `VideoReading`.
        max_tokens: Longest row; media tokens are never cut.
        overlong: What happens to a longer one: `error`, `drop`, `shrink_media` or `drop_turns`.
        on_bad_row: `error`, or `skip` (counted in `report.json`).
        max_bad_rows: Under `skip`, the most bad rows: a share of all rows (a float), or a count; None: any number.
        on_bad_media: A medium that cannot be read while training: `error`, or `mask` (the row keeps its place in the
            plan with no supervised token, and is named in `report.json`).
        max_bad_media: Under `mask`, the most rows that may be masked in a run; None: any number.
        batch_size: Rows in a pack; or
        tokens_per_batch: Most tokens in a pack, and
        patches_per_batch: Most vision patches in it.
        order: `shuffled`, `grouped` or `sequential`.
        heaviest_first: The heaviest pack goes first, so that memory fails at once or never.
        pixels: `uint8` or `float32`; see `encode_example`.
        num_workers: Processes that load; 0 loads in the main one. None: as many as the CPUs that this process may use,
            at most four.
        cache_dir: Where the index is kept.
        seed: Of the order of rows.
    """

    def __init__(
        self,
        *,
        name: str | None,
        sources: Sequence[str | Path | Mapping[str, object]],
        root: str | Path | None,
        allow_absolute_paths: bool,
        limit: int | None,
        image_min_pixels: int | None,
        image_max_pixels: int | None,
        video_min_pixels: int | None,
        video_max_pixels: int | None,
        video_fps: float | None,
        video_max_frames: int | None,
        video_reader: ReaderName,
        media_timeout_seconds: float | None,
        max_tokens: int | None,
        overlong: Overlong,
        on_bad_row: OnBadRow,
        max_bad_rows: float | None,
        on_bad_media: OnBadMedia,
        max_bad_media: int | None,
        batch_size: int | None,
        tokens_per_batch: int | None,
        patches_per_batch: int | None,
        order: Order,
        heaviest_first: bool,
        pixels: Pixels,
        num_workers: int | None,
        cache_dir: str | Path,
        seed: int,
    ) -> None:
        super().__init__()
        _check_number("limit", limit, least=1, optional=True)
        _check_number("image_min_pixels", image_min_pixels, least=1, optional=True)
        _check_number("image_max_pixels", image_max_pixels, least=1, optional=True)
        _check_number("video_min_pixels", video_min_pixels, least=1, optional=True)
        _check_number("video_max_pixels", video_max_pixels, least=1, optional=True)
        _check_number("video_fps", video_fps, least=0, optional=True, whole=False)
        _check_number("video_max_frames", video_max_frames, least=1, optional=True)
        _check_number("media_timeout_seconds", media_timeout_seconds, least=0, optional=True, whole=False)
        _check_number("max_tokens", max_tokens, least=1, optional=True)
        _check_number("batch_size", batch_size, least=1, optional=True)
        _check_number("tokens_per_batch", tokens_per_batch, least=1, optional=True)
        _check_number("patches_per_batch", patches_per_batch, least=1, optional=True)
        _check_number("num_workers", num_workers, least=0, optional=True)
        _check_number("seed", seed, least=0)
        _check_choice("overlong", overlong, OVERLONG)
        _check_choice("on_bad_row", on_bad_row, ("error", "skip"))
        _check_number("max_bad_rows", max_bad_rows, least=0, optional=True, whole=False)
        if isinstance(max_bad_rows, float) and max_bad_rows > 1:
            raise ConfigError(
                f"data.max_bad_rows={max_bad_rows}: a share is at most 1. Give a share or a whole number of rows."
            )
        _check_choice("on_bad_media", on_bad_media, ("error", "mask"))
        if max_bad_media is not None and max_bad_media < 0:
            raise ValueError(f"data.max_bad_media must be 0 or more, or null, got {max_bad_media}")
        _check_choice("order", order, ("shuffled", "grouped", "sequential"))
        _check_choice("pixels", pixels, ("uint8", "float32"))
        if not sources:
            raise ValueError("data.sources is empty: name at least one manifest, data.sources=[my.json]")
        self.sources = resolve_sources(sources, root=root)
        self.name = name or "+".join(source.name for source in self.sources)
        self.allow_absolute_paths = allow_absolute_paths
        self.limit = limit
        self.budget = PixelBudget(
            image_min_pixels=image_min_pixels,
            image_max_pixels=image_max_pixels,
            video_min_pixels=video_min_pixels,
            video_max_pixels=video_max_pixels,
            video_fps=video_fps,
            video_max_frames=video_max_frames,
        )
        self.reading = VideoReading(reader=video_reader, timeout_seconds=media_timeout_seconds)
        self.max_tokens = max_tokens
        self.overlong: Overlong = overlong
        self.on_bad_row: OnBadRow = on_bad_row
        self.max_bad_rows = max_bad_rows
        self.on_bad_media: OnBadMedia = on_bad_media
        self.max_bad_media = max_bad_media
        self.pack_budget = Budget(
            rows=None if tokens_per_batch else batch_size, tokens=tokens_per_batch, patches=patches_per_batch
        )
        self.order: Order = order
        self.heaviest_first = heaviest_first
        self.pixels: Pixels = pixels
        self.num_workers = min(usable_cpus(), _MOST_WORKERS) if num_workers is None else num_workers
        self.cache_dir = Path(cache_dir).expanduser()
        self.seed = seed
        self.start_pack = 0
        self.start_step = 0
        self.held_out_share = 0.0
        self.held_out_plan: Plan | None = None
        self._dealt: Steps | None = None

    def prepare(
        self,
        *,
        processor: Processor,
        num_epochs: int | None,
        max_packs: int | None,
        require_media: bool,
    ) -> None:
        """Count the rows and plan the packs, before anything is trained.

        Args:
            processor: What rows are encoded with; its pixel limits are this data's.
            num_epochs: Passes over the data; None: as many as `max_packs` asks for.
            max_packs: Most packs.
            require_media: Leave text-only rows out (they train nothing where only the merger learns), counted.

        Raises:
            DataError: a bad or over-long row where that is an error, or no row is left.
            ConfigError: a row that no pack can hold, or a plan without rows or end.
        """
        self.count(processor)
        self.judge_rows(require_media=require_media)
        self.plan_packs(num_epochs=num_epochs, max_packs=max_packs)

    def count(self, processor: Processor, *, limit_each: int | None = None) -> None:
        """Count the rows, or take the counts from the cache.

        Args:
            processor: What rows are encoded with; its pixel limits are this data's.
            limit_each: Only the first so many rows of each source.

        Raises:
            DataError: a manifest that is empty or broken as a whole.
        """
        self.processor = processor
        self.index: Index = build_index(
            self.sources,
            processor,
            cache_dir=self.cache_dir,
            limit=self.limit,
            limit_each=limit_each,
            allow_absolute_paths=self.allow_absolute_paths,
            num_processes=self.num_workers,
        )

    def judge_rows(self, *, require_media: bool) -> None:
        """Say of every counted row what becomes of it.

        Raises:
            DataError: a bad or over-long row where that is an error, or more bad rows than may be skipped.
        """
        self.judgement = judge(
            self.index,
            self.processor,
            on_bad_row=self.on_bad_row,
            max_bad_rows=self.max_bad_rows,
            max_tokens=self.max_tokens,
            overlong=self.overlong,
            require_media=require_media,
            num_processes=self.num_workers,
        )
        if self.held_out_share:
            self._hold_out()

    def plan_packs(self, *, num_epochs: int | None, max_packs: int | None) -> None:
        """Plan the packs of the rows that can be trained on.

        Raises:
            DataError: no row is left.
            ConfigError: a row that no pack can hold, or a plan without rows or end.
        """
        rows = self.judgement.plan_rows()
        if not len(rows):
            told = ", ".join(f"{count} {word}" for word, count in self.judgement.counts().items())
            told = told or "there are none"
            raise DataError(
                f"data: none of the {len(self.index)} rows can be trained on ({told}). Check data.sources, data.root "
                "and data.max_tokens.",
                reason="no_rows",
            )
        self._check_budget(rows)
        try:
            self.plan: Plan = make_plan(
                rows,
                budget=self.pack_budget,
                seed=self.seed,
                num_epochs=num_epochs,
                max_packs=max_packs,
                order=self.order,
                heaviest_first=self.heaviest_first,
                weights=[source.weight for source in self.sources],
                contents=_packed_contents(self.index, self.processor),
            )
        except ValueError as error:
            raise ConfigError(f"data: {error}. Check trainer.max_epochs, trainer.max_steps and the weights.") from error

    def steps(self, num_ranks: int, accumulate: int) -> Steps:
        """The packs that are left, dealt to so many ranks and micro-batches; dealt once, however often it is asked."""
        dealt = self._dealt
        if (
            dealt is None
            or dealt.plan is not self.plan
            or (dealt.start_pack, dealt.num_ranks, dealt.accumulate) != (self.start_pack, num_ranks, accumulate)
        ):
            dealt = deal(self.plan, num_ranks=num_ranks, accumulate=accumulate, start_pack=self.start_pack)
            self._dealt = dealt
        return dealt

    def num_steps(self, num_ranks: int, accumulate: int) -> int:
        """Optimiser steps of the whole run, those that are done included."""
        return self.start_step + len(self.steps(num_ranks, accumulate))

    def epoch_counts(self) -> tuple[int, int, int]:
        """Tokens, patches and supervised tokens of a whole pass over the data, also where the plan ends before."""
        rows = self.judgement.plan_rows()
        drawn = draw_rows(rows, [source.weight for source in self.sources], seed=self.seed, epoch=0)
        tokens, patches, supervised = (
            int(column[drawn].sum()) for column in (rows.num_tokens, rows.num_patches, rows.num_supervised_tokens)
        )
        return tokens, patches, supervised

    def _hold_out(self) -> None:
        try:
            self.judgement, rows = hold_out(self.judgement, self.held_out_share)
        except ValueError as error:
            raise ConfigError(f"{error}.") from error
        self._check_budget(rows)
        self.held_out_plan = make_plan(
            rows, budget=self.pack_budget, seed=0, num_epochs=1, order="sequential", heaviest_first=False
        )

    def held_out_loader(self, *, num_ranks: int, rank: int) -> PlanLoader:
        """A rank's part of the rows that are held out, in the order of the manifests; as many packs on every rank."""
        assert self.held_out_plan is not None
        slots = deal(self.held_out_plan, num_ranks=num_ranks, accumulate=1).slots(rank)
        workers = min(self.num_workers, 2)
        if workers:
            start_server()
        return PlanLoader(
            PackDataset(index=self.index, processor=self.processor, pixels=self.pixels, fits=self.judgement.fits),
            sampler=SlotSampler(slots, num_done=0),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=start_worker if workers else None,
            multiprocessing_context="forkserver" if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> PlanLoader:
        """This rank's part of the plan."""
        assert self.trainer is not None
        accumulate = self.trainer.accumulate_grad_batches
        slots = self.steps(self.trainer.world_size, accumulate).slots(self.trainer.global_rank)
        if self.num_workers:
            start_server()
        return PlanLoader(
            self.pack_dataset(),
            sampler=SlotSampler(slots, num_done=self.start_step * accumulate),
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=start_worker if self.num_workers else None,
            multiprocessing_context="forkserver" if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Tensors to the device, nothing waits; the lists of host integers, which Lightning would walk through, stay."""
        return to_device(batch, device)

    def pack_dataset(self) -> PackDataset:
        """What encodes the judged rows."""
        return PackDataset(
            index=self.index,
            processor=self.processor,
            pixels=self.pixels,
            fits=self.judgement.fits,
            on_bad_media=self.on_bad_media,
        )

    def pack_batch(self, number: int) -> Batch:
        """The batch of a pack of the plan by its number, as if it were a step of its own: for calibration and previews."""
        pack = self.plan[number]
        supervised = int(self.plan.num_supervised_tokens[number])
        slot = Slot(pack=number, rows=pack.rows, step=0, step_supervised_tokens=supervised, epoch=0)
        return self.pack_dataset()[slot]

    def accounting(self, num_packs: int | None = None, *, masked: Sequence[MaskedRow] = ()) -> dict[str, Any]:
        """For `report.json`: what became of every row, by source and reason, with the first of each.

        Every row has one fate, so `read = trained + skipped + masked + overlong`; see `Judgement.accounting`.

        Args:
            num_packs: Packs of the plan that were trained on; None: all.
            masked: Rows whose media could not be read while training; each is named.
        """
        reached = len(self.plan) if num_packs is None else num_packs
        judged = self.judgement.with_masked([row for row, _, _ in masked])
        told = judged.accounting(self.plan.rows, num_reached=int(self.plan.starts[reached]))
        return told | {"overlong": self.judgement.overlong_cases(), "masked": self._masked(masked)}

    def _masked(self, masked: Sequence[MaskedRow]) -> dict[str, Any]:
        return {
            "policy": self.on_bad_media,
            "max_bad_media": self.max_bad_media,
            "by_reason": dict(Counter(reason for _, reason, _ in masked).most_common()),
            "rows": [
                {
                    "where": str(self.index.origin(row)),
                    "id": row_id(self.index.read(row)),
                    "reason": reason,
                    "finding": finding,
                }
                for row, reason, finding in masked
            ],
        }

    def _check_budget(self, rows: PlanRows) -> None:
        """Refuse rows that exceed the budget of a pack by themselves."""
        over = rows_over(rows, self.pack_budget)
        if not len(over):
            return
        first = int(over[0])
        place = int(np.searchsorted(rows.row, first))
        raise ConfigError(
            f"{self.index.origin(first)}: {rows.num_tokens[place]} tokens and {rows.num_patches[place]} "
            f"vision patches, more than a pack may hold (data.tokens_per_batch={self.pack_budget.tokens}, "
            f"data.patches_per_batch={self.pack_budget.patches}). {len(over)} of {len(rows)} rows do not fit. Raise "
            "these, lower data.image_max_pixels, or drop long rows by data.max_tokens and data.overlong=drop."
        )


def _packed_contents(index: Index, processor: Processor) -> list[str]:
    """What packs depend on besides the counts of their rows: manifests, processor, and limits of single sources.

    Not where manifests and media lie: a run can be resumed after its data has moved. That the media there are the same is
    seen in the counts, and again when each row is loaded.
    """
    limits = [json.dumps(dict(source.limits), sort_keys=True) for source in index.sources]
    return [*index.contents, processor.fingerprint, *limits]


def usable_cpus() -> int:
    """CPUs that this process may use: on a shared machine often fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_number(name: str, value: object, *, least: int, optional: bool = False, whole: bool = True) -> None:
    """Refuse what is no number, or too small a one, by its key and before anything is read.

    Raises:
        ConfigError: naming the key and what was found.
    """
    kinds = (int,) if whole else (int, float)
    if (value is None and optional) or (type(value) in kinds and cast(float, value) >= least):
        return
    wanted = f"{'a whole number' if whole else 'a number'} of at least {least}{' or null' if optional else ''}"
    raise ConfigError(f"data.{name}={value}: wanted {wanted}.")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"data.{name} must be one of {', '.join(known)}, got {value!r}")
