"""Runs of `vlmkit-train` in processes forked from one that has imported everything: real runs, real kills, in seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.training.conftest import REPOSITORY

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.training.forked_imports"])


def start(*overrides: str, output: Path, first: Callable[[], None] | None = None) -> BaseProcess:
    """Start `vlmkit-train`; what it prints goes to a file.

    Args:
        overrides: Of the command line.
        output: File for what it prints.
        first: Called in the process before the command.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    process = _context.Process(target=_main, args=(overrides, str(output), dict(os.environ), first))
    process.start()
    return process


def run(*overrides: str, output: Path, status: int = 0) -> str:
    """Run it to its end; what it printed."""
    process = start(*overrides, output=output)
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
