"""Several processes of one run: how they are started from this one, and the store that they share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies.launchers.subprocess_script import (
    _SubprocessScriptLauncher,  # pyright: ignore[reportPrivateUsage]  # the place where Lightning starts processes
)

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.digest import DataDigest, find_difference
from vlmkit.errors import DataError
from vlmkit.training.jobstore import JobStore, connect_store, single_store

_HANDED_ON = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of this node by a given command, and leaves the environment as it found it.

    Lightning re-runs the command line as it was typed: in a sweep, each of these processes would run the whole sweep.

    Args:
        launcher: Lightning's, which this one replaces.
        command: Runs this very job, given its `LOCAL_RANK`.
    """

    def __init__(self, launcher: _SubprocessScriptLauncher, command: list[str]) -> None:
        super().__init__(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        self.command = command

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the others, then call `function`."""
        environment = self.cluster_environment
        if environment.creates_processes_externally:  # torchrun, SLURM, or this is one of the others
            return function(*args, **kwargs)
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        found = {name: os.environ.get(name) for name in _HANDED_ON}
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        os.environ["NODE_RANK"], os.environ["LOCAL_RANK"] = str(environment.node_rank()), "0"
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        self.procs = [
            subprocess.Popen(self.command, env={**os.environ, "LOCAL_RANK": str(rank)})
            for rank in range(1, self.num_processes)
        ]
        try:
            return function(*args, **kwargs)
        finally:
            for name, value in found.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def await_digest(store: JobStore, key: str) -> DataDigest | None:
    """What rank 0 has made of the data, once it has; None on rank 0.

    Nobody indexes while rank 0 does: where `data.cache_dir` is on a disk that all see, the others then read its index.
    Where it is not, one rank of each machine counts the rows of its own copy, which is the only way to know that the
    media there are the same. The index itself is not sent: what must be equal is compared, in less than a megabyte.
    """
    return DataDigest.from_bytes(store.await_long(key)) if store.rank else None


def compare_digests(store: JobStore, key: str, data: PackedDataModule, theirs: DataDigest | None) -> None:
    """Publish rank 0's digest, or compare this rank's with it. No rank joins the group, let alone trains, before it has.

    Args:
        store: Of the job.
        key: Of the config, under which the data stands.
        data: As this rank has planned it.
        theirs: Rank 0's digest; None on rank 0.

    Raises:
        DataError: they differ; the message names both.
    """
    mine = data.digest()
    if theirs is None:
        store.publish_long(key, mine.to_bytes())
        return
    names = f"rank {store.rank}", "rank 0"
    if difference := find_difference(mine, theirs, data.index, names=names):
        raise DataError(
            f"{key}: rank {store.rank} ({mine.place}) and rank 0 ({theirs.place}) would train different data: {difference} "
            "Give all machines the same manifests and media, or put them on a disk that all see.",
            reason="ranks_differ",
        )


def use_command(trainer: L.Trainer, command: list[str]) -> None:
    """Let a trainer that starts its processes itself start them by a command."""
    strategy = cast(Any, trainer.strategy)
    if isinstance(strategy.launcher, _SubprocessScriptLauncher):
        strategy._launcher = RankLauncher(strategy.launcher, command)


def part(trainer: L.Trainer) -> None:
    """Leave the group of processes, so that the next job of a sweep can form its own."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if isinstance(launcher := cast(Any, trainer.strategy).launcher, RankLauncher):
        for process in launcher.procs:
            process.wait()


def job_store(trainer: L.Trainer) -> JobStore:
    """The store that the ranks of this launch share. Rank 0 serves it from here on, also to ranks still to be started."""
    if trainer.world_size == 1:
        return single_store()
    environment = cast(Any, trainer.strategy).cluster_environment
    return connect_store(
        environment.main_address, environment.main_port, rank=trainer.global_rank, num_ranks=trainer.world_size
    )
