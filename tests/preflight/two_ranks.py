"""Two real ranks that share a model: what the first one allocates and exchanges in a step, for each setting."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig

from tests.preflight.settings import PACK, make_setting
from vlmkit.preflight.simulation import make_batch, make_optimizer_of, make_packed, run_step
from vlmkit.preflight.tracking import StepTracker

SHARED: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "fsdp mixed": {"precision": "bf16-mixed"},
    "fsdp mixed and recomputed": {"precision": "bf16-mixed", "recompute_language_model": True},
    "fsdp bf16": {"precision": "bf16-true"},
}


def main(checkpoint: str, out: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    config = AutoConfig.from_pretrained(checkpoint)
    measured = {}
    for name, changes in SHARED.items():
        setting = make_setting(config, strategy="fsdp", num_ranks=2, **changes)
        torch.manual_seed(0)
        packed = make_packed(setting, mesh)
        optimizer, batch = make_optimizer_of(packed, setting), make_batch(PACK, config)
        run_step(packed, optimizer, batch, setting, StepTracker())
        tracker = StepTracker()
        tracker.follow_step(packed, optimizer, batch)
        with tracker:
            traffic, _ = run_step(packed, optimizer, batch, setting, tracker)
        collectives = [(each.name, each.num_bytes) for each in traffic.collectives]
        measured[name] = {"peak": tracker.peak_bytes, "kinds": tracker.at_peak, "collectives": collectives}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(measured))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
