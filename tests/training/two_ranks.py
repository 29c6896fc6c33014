"""What two ranks do, in one start: steps of a real Trainer, and every pairing of unlike batches on a sharded model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.training.conftest import REPOSITORY, environment


def start_two(module: str, *arguments: str, timeout: float = 300) -> None:
    """Run a module as rank 0 and as rank 1, and wait for both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**shared, "LOCAL_RANK": str(rank), "RANK": str(rank)},
            cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)


def steps(rows: Path, checkpoint: Path, cache: Path, out: Path, scenarios: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One optimiser step of a real Trainer for each scenario."""
    from tests.training.gradients import gradients
    from vlmkit.training.strategy import ShardedStrategy

    found = {}
    for name, settings in scenarios.items():
        if (reduce := settings.pop("reduce_every_micro_batch", None)) is not None:
            settings["strategy"] = ShardedStrategy(reduce_every_micro_batch=reduce, timeout_minutes=1)
        found[name] = gradients(rows, checkpoint, cache, devices=2, out=out, **settings)
    return found


def pairs(checkpoint: Path, batches: Path, out: Path) -> dict[str, float]:
    """Largest difference from the mean of what each batch gives alone, for every pairing; and rounds through a checkpoint
    of either form.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.optim import AdamW

    from vlmkit.model.assembly import WholeCheckpoint
    from vlmkit.model.packed import PackedVLM
    from vlmkit.training.shards import load_shards, save_shards, whole
    from vlmkit.training.strategy import Sharding

    source = WholeCheckpoint(path=checkpoint, processor=None)
    given = torch.load(batches, weights_only=False)
    mean = {"pixel_mean": [0.5 * 255] * 3, "pixel_std": [0.5 * 255] * 3}
    plain = PackedVLM(source.build(dtype=torch.float64).model, **mean).train()
    alone = {kind: gradients_of(plain, batch) for kind, batch in given.items()}
    sketch = source.sketch(dtype=torch.float64)
    model = PackedVLM(sketch.model, **mean).train()
    Sharding(mesh=init_device_mesh("cpu", (2,)), device=torch.device("cpu"), compute_dtype=None).apply(
        model, sketch.read
    )
    worst = {}
    for ours, theirs in combinations(given, 2):
        mine = given[ours] if dist.get_rank() == 0 else given[theirs]
        found = {name: whole(grad) for name, grad in gradients_of(model, mine).items()}
        wanted = {name: (grad + alone[theirs][name]) / 2 for name, grad in alone[ours].items()}
        worst[f"{ours} with {theirs}"] = max(float((found[n] - wanted[n]).abs().max()) for n in wanted)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    optimizer.step()
    save_shards(out / "step-000001.ckpt", module=model, optimizers=[optimizer], rest={"step": 1})
    before = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    moments = {name: whole(optimizer.state[p]["exp_avg"]).clone() for name, p in model.named_parameters()}
    if dist.get_rank() == 0:
        torch.save({"model": before, "moments": moments}, out / "before.pt")
        one_file(out / "step-000002.ckpt", before, moments)
    dist.barrier()
    for name in ("step-000001.ckpt", "step-000002.ckpt"):
        optimizer.step()
        rest = load_shards(out / name, module=model, optimizers=[optimizer])
        assert rest["step"] == int(name[5:11])
        for name, p in model.named_parameters():
            assert torch.equal(whole(p.detach()), before[name]), name
            assert torch.equal(whole(optimizer.state[p]["exp_avg"]), moments[name]), name
            assert float(optimizer.state[p]["step"]) == 1
    return worst


def one_file(path: Path, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]) -> None:
    """What a run that does not share its model would have written: the same weights and moments, in AdamW's own order."""
    state = {
        number: {"step": torch.tensor(1.0), "exp_avg": moment, "exp_avg_sq": moment.square()}
        for number, moment in enumerate(moments.values())
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": list(state)}
    content = {"state_dict": weights, "optimizer_states": [{"state": state, "param_groups": [group]}], "step": 2}
    torch.save(content, path)


def gradients_of(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch).loss_sum.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def main() -> None:
    """Run what a file asks for, and leave what was found beside it."""
    asked = Path(sys.argv[1])
    told = json.loads(asked.read_text())
    places = {name: Path(told[name]) for name in ("rows", "checkpoint", "cache", "out")}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {
        "pairs": {
            kind: pairs(Path(told[kind]), Path(told["batches"]), Path(told["out"]) / kind)
            for kind in ("tied", "untied")
        },
        "steps": steps(**places, scenarios=told["scenarios"]),
    }
    if os.environ["RANK"] == "0":
        torch.save(found, asked.with_suffix(".pt"))


if __name__ == "__main__":
    main()
