"""Run by two processes: unlike batches on a model that they share."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.training.two_ranks import pairs


def main() -> None:
    """Of a checkpoint, on the batches of a folder; what was found is left there."""
    checkpoint, folder = map(Path, sys.argv[1:])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = pairs(checkpoint, folder / "batches.pt", folder)
    if os.environ["RANK"] == "0":
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main()
