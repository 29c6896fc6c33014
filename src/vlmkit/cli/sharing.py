"""Processes that answer one evaluation together: which one this is, how the others are started, how all end together.

Nothing is sent between them: each appends records to a file of its own. So there is no group of processes to form, and a
GPU that fails takes nobody along who waits for it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.errors import ConfigError
from vlmkit.evaluation.parts import Share
from vlmkit.storage import written_aside

if TYPE_CHECKING:
    from vlmkit.training.jobstore import JobStore

_STORE_VARIABLE = "VLMKIT_EVAL_STORE"
"""Where the first process serves the store of the ranks that it starts: `address:port`."""
_HERE = "127.0.0.1"
_POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among those that answer together.

    Attributes:
        share: Its rank, and how many there are.
        local_rank: Among the processes of its machine.
        launch: What leads to the store of this start, the same for all ranks: its address, or on SLURM the name of a file
            that holds it. None where torchrun started them and ends them together.
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
        launch = environment.get(_STORE_VARIABLE)
        return Place(share=share, local_rank=int(environment.get("LOCAL_RANK", "0")), launch=launch, outside=not launch)
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        share = Share(rank=int(environment["SLURM_PROCID"]), num_ranks=int(environment["SLURM_STEP_NUM_TASKS"]))
        keys = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        launch = "-".join(environment.get(key, "0") for key in keys)
        return Place(share=share, local_rank=int(environment.get("SLURM_LOCALID", "0")), launch=launch, outside=True)
    launch = f"{_HERE}:0" if devices > 1 else None
    return Place(share=Share(rank=0, num_ranks=devices), local_rank=0, launch=launch, outside=False)


@contextmanager
def all_ranks(place: Place, output_dir: Path, command: Sequence[str]) -> Generator[None]:
    """Start the other ranks, if this command is to; when one fails or vanishes, all end within seconds.

    Args:
        place: Where this process stands.
        output_dir: Seen by all ranks.
        command: Runs this very evaluation as another rank.
    """
    if place.launch is None:
        yield
        return
    from vlmkit.training.together import together

    with _shared_store(place, output_dir) as store:
        starts = not place.outside and place.share.rank == 0
        others = [_start(command, rank, store) for rank in range(1, place.share.num_ranks)] if starts else []
        with together(store, program="vlmkit-eval"):
            yield
        for other in others:
            other.wait()


@contextmanager
def _shared_store(place: Place, output_dir: Path) -> Generator[JobStore]:
    """The store of all ranks, on a free port of the first one's machine.

    On SLURM nothing but the shared directory is known to all: the first rank writes the address to a file there, once.
    """
    from vlmkit.training.jobstore import connect_store

    assert place.launch is not None
    rank, num_ranks = place.share.rank, place.share.num_ranks
    if not place.outside:
        address, _, port = place.launch.rpartition(":")
        yield connect_store(address, int(port), rank=rank, num_ranks=num_ranks)
        return
    file = output_dir / f".ranks-{place.launch}"
    if rank == 0:
        store = connect_store(socket.gethostname(), 0, rank=0, num_ranks=num_ranks)
        output_dir.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as aside:
            aside.write_text(f"{socket.gethostname()}:{store.port}")
        try:
            yield store
        finally:
            file.unlink(missing_ok=True)
        return
    while not file.exists():
        time.sleep(_POLL_SECONDS)
    address, _, port = file.read_text().rpartition(":")
    yield connect_store(address, int(port), rank=rank, num_ranks=num_ranks)


def _start(command: Sequence[str], rank: int, store: JobStore) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": store.num_ranks,
        _STORE_VARIABLE: f"{_HERE}:{store.port}",
    }
    return subprocess.Popen(command, env={**os.environ, **{name: str(value) for name, value in variables.items()}})


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
