"""Runs of `vlmkit-train` in processes forked from one that has imported everything: real runs, real kills, in seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.training.conftest import REPOSITORY

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.training.forked_imports"])


def start(
    *overrides: str,
    output: Path,
    first: Callable[[], None] | None = None,
    variables: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start `vlmkit-train`; what it prints goes to a file.

    Args:
        overrides: Of the command line.
        output: File for what it prints.
        first: Called in the process before the command.
        variables: Of its environment, beside those of this process.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    process = context.Process(target=_main, args=(overrides, str(output), {**os.environ, **(variables or {})}, first))
    process.start()
    return process


def start_ranks(
    trainer: str, *overrides: str, output: Path, first: Callable[[], None] | None = None
) -> list[BaseProcess]:
    """Start two ranks of one run, as a launcher would; rank N prints to `<output>.N`.

    Args:
        trainer: Option of `trainer=`.
        overrides: Of the command line.
        output: What is printed goes beside it.
        first: Called in both processes before the command; `LOCAL_RANK` is set.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": "2",
    }  # fmt: skip
    more = [f"trainer={trainer}", "trainer.devices=2", "trainer.accelerator=cpu"]
    return [
        start(
            *overrides,
            *more,
            output=output.with_name(f"{output.name}.{rank}"),
            first=first,
            variables={**shared, "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def end_ranks(ranks: list[BaseProcess], *, output: Path, status: int = 0) -> list[str]:
    """Wait for both ranks; what each printed. One that does not end in time is killed, and told."""
    for rank in ranks:
        rank.join(120)
    late = [number for number, rank in enumerate(ranks) if rank.is_alive()]
    for rank in ranks:
        rank.kill()
        rank.join()
    told = [output.with_name(f"{output.name}.{number}").read_text() for number in range(len(ranks))]
    assert not late, f"ranks {late} hang:\n" + "\n".join(told)
    assert [rank.exitcode for rank in ranks] == [status] * len(ranks), "\n".join(told)
    return told


def run_ranks(
    trainer: str, *overrides: str, output: Path, first: Callable[[], None] | None = None, status: int = 0
) -> list[str]:
    """Run two ranks to their end; what each printed."""
    return end_ranks(start_ranks(trainer, *overrides, output=output, first=first), output=output, status=status)


def run(*overrides: str, output: Path, status: int = 0, variables: Mapping[str, str] | None = None) -> str:
    """Run it to its end; what it printed."""
    process = start(*overrides, output=output, variables=variables)
    process.join(120)
    assert process.exitcode == status, output.read_text()
    return output.read_text()


class KillAt:
    """Kill the process at its n-th touch of a file under a directory: deterministic, and as sudden as any kill."""

    def __init__(self, directory: Path, event: int) -> None:
        self.directory = str(directory)
        self.event = event

    def __call__(self) -> None:
        count = 0

        def watch(event: str, args: tuple) -> None:
            nonlocal count
            if event in _EVENTS and str(args[0]).startswith(self.directory):
                count += 1
                if count == self.event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)


class CountEvents:
    """Write down how many touches there were."""

    def __init__(self, directory: Path, out: Path) -> None:
        self.directory = str(directory)
        self.out = out

    def __call__(self) -> None:
        import atexit

        counted: list[str] = []
        sys.addaudithook(
            lambda event, args: (
                counted.append(f"{event} {args[0]}")
                if event in _EVENTS and str(args[0]).startswith(self.directory)
                else None
            )
        )
        write = lambda: self.out.write_text("\n".join(counted))  # noqa: E731
        atexit.register(write)
        multiprocessing.util.Finalize(None, write, exitpriority=1)


def _main(overrides: tuple[str, ...], output: str, environment: dict[str, str], first: Callable[[], None] | None):
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["vlmkit-train", *overrides]
    from vlmkit.cli.train import main

    if first is not None:
        first()
    main()
