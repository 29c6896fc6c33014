"""What each of two ranks adds to a checkpoint: its random states, and what it draws next."""

from __future__ import annotations

import os
import random
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from vlmkit.training.callbacks.checkpointer import Checkpointer
from vlmkit.training.ranks import gather
from vlmkit.training.state import KEY, RunState


def main() -> None:
    """Draw from seeds of this rank's own; rank 0 writes down what the checkpoint got."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7 + rank)
    saver = Checkpointer(
        run_dir=Path(sys.argv[1]), every_n_steps=1, every_minutes=None, keep=0, done_batches=lambda: 0,
        state_at=lambda step: RunState(step=step, consumed_packs=step, plan_key="", freeze={}, contract=None),
    )  # fmt: skip
    checkpoint: dict = {}
    saver.on_save_checkpoint(SimpleNamespace(global_step=3), None, checkpoint)
    drawn = gather([random.random(), float(np.random.rand()), float(torch.rand(()))])
    if rank == 0:
        torch.save({"rng": checkpoint[KEY]["rng"], "next": drawn}, Path(sys.argv[1]) / "state.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
