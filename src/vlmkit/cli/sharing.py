"""Processes that answer one evaluation together: which one this is, how the others are started, how all end together.

Nothing is sent between them: each appends records to a file of its own. So there is no group of processes to form, and a
GPU that fails takes nobody along who waits for it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from vlmkit.errors import ConfigError
from vlmkit.evaluation.parts import Share

_LAUNCH = "VLMKIT_EVAL_LAUNCH"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among those that answer together.

    Attributes:
        share: Its rank, and how many there are.
        local_rank: Among the processes of its machine.
        launch: Names this start, the same for all ranks; None where whoever started them ends them together.
        outside: Whether something else than this command starts the processes.
    """

    share: Share
    local_rank: int
    launch: str | None
    outside: bool


def find_place(devices: object, environment: Mapping[str, str]) -> Place:
    """Where this process stands.

    Args:
        devices: Processes on this machine; not looked at where torchrun or SLURM's srun start them.
        environment: `os.environ`.

    Raises:
        ConfigError: `devices` is no number of processes.
    """
    if type(devices) is not int or devices < 1:
        raise ConfigError(f"devices={devices}: wanted a whole number of at least 1.")
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "RANK" in environment:
        share = Share(rank=int(environment["RANK"]), num_ranks=int(environment["WORLD_SIZE"]))
        launch = environment.get(_LAUNCH)
        return Place(share=share, local_rank=int(environment.get("LOCAL_RANK", "0")), launch=launch, outside=not launch)
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        share = Share(rank=int(environment["SLURM_PROCID"]), num_ranks=int(environment["SLURM_STEP_NUM_TASKS"]))
        keys = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        launch = "-".join(environment.get(key, "0") for key in keys)
        return Place(share=share, local_rank=int(environment.get("SLURM_LOCALID", "0")), launch=launch, outside=True)
    launch = f"{os.getpid()}-{time.time_ns()}" if devices > 1 else None
    return Place(share=Share(rank=0, num_ranks=devices), local_rank=0, launch=launch, outside=False)


@contextmanager
def all_ranks(place: Place, output_dir: Path, command: Sequence[str]) -> Generator[None]:
    """Start the other ranks, if this command is to; when one fails or vanishes, all end within seconds.

    Args:
        place: Where this process stands.
        output_dir: Seen by all ranks.
        command: Runs this very evaluation as another rank.
    """
    from vlmkit.training.together import together

    starts = not place.outside and place.share.rank == 0
    others = [_start(command, rank, place) for rank in range(1, place.share.num_ranks)] if starts else []
    watched = (
        together(
            run_dir=output_dir,
            launch=place.launch,
            rank=place.share.rank,
            num_ranks=place.share.num_ranks,
            program="vlmkit-eval",
        )
        if place.launch
        else nullcontext()
    )
    with watched:
        yield
    for other in others:
        other.wait()


def _start(command: Sequence[str], rank: int, place: Place) -> subprocess.Popen[bytes]:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": place.share.num_ranks, _LAUNCH: place.launch}
    return subprocess.Popen(command, env={**os.environ, **{name: str(value) for name, value in told.items()}})


def settle(place: Place, device: str) -> str:
    """The device of this process; on a CPU the processes of a machine share its cores.

    Args:
        place: Where it stands.
        device: As configured: `auto`, or the name of one.
    """
    if place.share.num_ranks == 1:
        return device
    import torch

    if device == "auto" and torch.cuda.is_available():
        return f"cuda:{place.local_rank % torch.cuda.device_count()}"
    if device in ("auto", "cpu") and not place.outside:
        torch.set_num_threads(max(1, torch.get_num_threads() // place.share.num_ranks))
    return device
