"""What Lightning, logging and callbacks cost a step, over a bare loop on the same model and packs.

`vlmkit-train`'s own Trainer, with its guard, receipt, log and checkpoints, trains the demo's tiny model; after each of its
steps a bare loop (forward, backward, clipping, AdamW, schedule) takes one on the same pack with a model of its own.
So both meet the same load, step by step, in one process on one thread. `python bench/overhead.py --help` for the options.

Printed, and checked (exit status 1 where it is missed): milliseconds a step over the bare loop, median over steps of the
difference of a pair; under 2. Beside it the same in CPU time of the thread, in which other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vlmkit.batch import Batch
from vlmkit.cli.quiet import hush
from vlmkit.cli.training import make_bad_media
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.dealing import Slot
from vlmkit.demo import tiny_checkpoints
from vlmkit.demo.shapes import shapes_manifest
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.processor import load_processor
from vlmkit.training.callbacks.checkpointer import Checkpointer
from vlmkit.training.callbacks.guard import GuardSettings, LossGuard
from vlmkit.training.callbacks.receipt import GradientReceipt
from vlmkit.training.callbacks.steplog import StepLog
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import OptimizerPlan, make_optimizer, make_schedule, parameter_groups
from vlmkit.training.state import RunState

MAX_MILLISECONDS = 2.0
PLAN = OptimizerPlan(
    lr=1e-4, lr_vision_encoder=None, lr_merger=None, lr_language_model=None, layer_decay=1.0, weight_decay=0.0,
    beta1=0.9, beta2=0.999, eps=1e-8, fp32_masters=True, optimizer=None, schedule="cosine", warmup_ratio=0.03,
    min_lr_ratio=0.0,
)  # fmt: skip
FREEZE = FreezePolicy(vision_encoder=True, merger=False, language_model=True)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Seconds of the clock and of the thread's CPU time."""

    wall: float
    cpu: float

    def __sub__(self, other: Moment) -> Moment:
        return Moment(wall=self.wall - other.wall, cpu=self.cpu - other.cpu)


def now() -> Moment:
    """This moment."""
    return Moment(wall=time.perf_counter(), cpu=time.thread_time())


class InTurn(Callback):
    """After each step of the Trainer, a step of the bare loop; keeps what each took. The last of the callbacks."""

    def __init__(self, bare: Iterator[None]) -> None:
        self.bare = bare
        self.pairs: list[tuple[Moment, Moment]] = []

    def on_train_start(self, *_: Any) -> None:
        """From here on the Trainer's time runs."""
        self.resumed = now()

    def on_train_batch_end(self, *_: Any) -> None:
        """Its time stops while the other one's runs."""
        ended = now()
        next(self.bare)
        resumed = now()
        self.pairs.append((ended - self.resumed, resumed - ended))
        self.resumed = resumed


def main() -> int:
    """Run both in turn, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    hush()
    torch.set_num_threads(1)
    over: list[Moment] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            pairs = in_turn(options.steps, Path(folder))[options.steps // 10 :]
        engine, bare = (middle([pair[place] for pair in pairs]) for place in (0, 1))
        over += [one - other for one, other in pairs]
        told = middle([one - other for one, other in pairs])
        print(
            f"round {number + 1}: vlmkit-train {1000 * engine.wall:6.2f} ms a step, bare {1000 * bare.wall:6.2f}; over "
            f"{1000 * told.wall:5.2f} ms, in CPU time {1000 * told.cpu:5.2f} ms"
        )
    told = middle(over)
    good = 1000 * told.wall < MAX_MILLISECONDS
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(
        f"over the bare loop: {1000 * told.wall:.2f} ms a step, under {MAX_MILLISECONDS:.0f}; in CPU time {1000 * told.cpu:.2f} ms "
        f"(load average {load}){'' if good else '   MISSED'}"
    )
    return 0 if good else 1


def middle(moments: Sequence[Moment]) -> Moment:
    """Medians."""
    return Moment(wall=statistics.median(m.wall for m in moments), cpu=statistics.median(m.cpu for m in moments))


class Ready(PackedDataModule):
    """Packs that are in memory already: whoever loads a file first pays for it, which would be the Trainer every time."""

    def make_ready(self) -> None:
        """Load all packs."""
        self.ready = [super(Ready, self).pack_batch(number) for number in range(len(self.plan))]

    def pack_batch(self, number: int) -> Batch:
        """A pack by its number."""
        return self.ready[number]

    def pack_dataset(self) -> Any:
        """Packs by their slots, as the loader asks for them; as itself, while they are loaded."""
        return self if hasattr(self, "ready") else super().pack_dataset()

    def __getitem__(self, slot: Slot) -> Batch:
        return self.ready[slot.pack]


def datamodule(steps: int) -> Ready:
    """One row a pack, as many packs as steps."""
    data = Ready(
        name="shapes", sources=[shapes_manifest()], root=None, allow_absolute_paths=False, limit=steps,
        image_min_pixels=None, image_max_pixels=64 * 64, video_min_pixels=None, video_max_pixels=None, video_fps=None,
        video_max_frames=None, max_tokens=None, overlong="error", on_bad_row="error", max_bad_rows=None, video_reader="auto",
        media_timeout_seconds=60, on_bad_media="error", max_bad_media=0, batch_size=1,
        tokens_per_batch=None, patches_per_batch=None, order="sequential", heaviest_first=False, pixels="uint8",
        num_workers=0, cache_dir=Path(tempfile.gettempdir()) / "vlmkit-overhead", seed=0,
    )  # fmt: skip
    processor = load_processor(tiny_checkpoints().vision_language, budget=data.budget)
    data.prepare(processor=processor, num_epochs=None, max_packs=steps, require_media=False)
    data.make_ready()
    return data


def made(data: PackedDataModule) -> PackedVLM:
    """The tiny model."""
    hf = WholeCheckpoint(path=tiny_checkpoints().vision_language, processor=None).build(dtype=torch.float32).model
    return PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)


def bare(data: PackedDataModule) -> Iterator[None]:
    """A step of a loop that does nothing else, at each `next`."""
    model = made(data)
    FREEZE.apply(model.hf)
    FREEZE.set_modes(model.hf)
    groups = parameter_groups(model.hf.named_parameters(), PLAN)
    optimizer = make_optimizer(groups, PLAN)
    schedule = make_schedule(optimizer, PLAN, num_steps=len(data.plan))
    trained = [p for p in model.parameters() if p.requires_grad]
    for number in range(len(data.plan)):
        batch = data.pack_batch(number)
        loss = model(batch).loss_sum / batch["step_supervised_tokens"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        yield


def in_turn(steps: int, folder: Path) -> list[tuple[Moment, Moment]]:
    """What each step of `vlmkit-train` took, with what a run has around it, and each of the bare loop."""
    data = datamodule(steps)
    last = InTurn(bare(data))
    module = TrainingModule(
        make_model=lambda: made(data), freeze=FREEZE, optimizer_plan=PLAN, count_steps=data.num_steps
    )
    guard = LossGuard(
        run_dir=folder,
        settings=GuardSettings(on_nonfinite="error", max_skipped=10, spike_window=100, spike_threshold=10.0),
        origin_of=str,
    )
    log = StepLog(
        path=folder / "train.jsonl", every_n_steps=10, num_steps=lambda: data.num_steps(1, 1), source_names=["shapes"],
        epoch_at=float, progress=False,
    )  # fmt: skip
    saving = Checkpointer(
        run_dir=folder, every_n_steps=None, every_minutes=None, keep=1, done_batches=lambda: 0, before_save=guard.settle,
        state_at=lambda step: RunState(step=step, consumed_packs=step, plan_key=data.plan.key, freeze=vars(FREEZE)),
    )  # fmt: skip
    receipt, media = GradientReceipt(steps_with_media=10), make_bad_media(data)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, gradient_clip_val=1.0, use_distributed_sampler=False,
        enable_checkpointing=False, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[guard, receipt, media, log, saving, last], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return last.pairs[:-1]  # the last step saves


if __name__ == "__main__":
    sys.exit(main())
