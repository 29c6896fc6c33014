"""Small processes that leave in their directory what a training run leaves: real ones, started in milliseconds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from vlmkit.sweeps.job import Job, Outcome

HEAD = """
import json, os, signal, sys
from pathlib import Path
here = Path(sys.argv[1])
def log(step, loss):
    with (here / "train.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": loss, "tokens_per_second": 10.0}) + "\\n")
def validate(step, **metrics):
    line = {"step": step, "metrics": {name.replace("_", "/"): value for name, value in metrics.items()}, "stderr": {}}
    with (here / "validation.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
def finish(seconds=1.0, best=None):
    (here / "report.json").write_text(json.dumps({"seconds": seconds, "best": best}))
"""
WAITS = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
(here / "ready").touch()
signal.sigwait({signal.SIGTERM, signal.SIGUSR1})
sys.exit(75)
"""
"""Trains until it is told to save and leave."""


def job(folder: Path, name: str, code: str = "log(1, 2.0)\nfinish()", **settings: str) -> Job:
    """A job whose process runs some Python."""
    run_dir = folder / name
    command = (sys.executable, "-c", HEAD + code, str(run_dir))
    return Job(name=name, run_dir=run_dir, settings=settings, command=command, config={"settings": settings})


class Log:
    """Watches, and remembers."""

    def __init__(self, stops: Mapping[str, str] | None = None) -> None:
        self.starts: list[str] = []
        self.outcomes: dict[str, Outcome] = {}
        self.stops = stops or {}

    def started(self, job: Job) -> None:
        self.starts.append(job.name)

    def stop_early(self, job: Job) -> str | None:
        return self.stops.get(job.name) if (job.run_dir / "ready").exists() else None

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job.name] = outcome

    @property
    def states(self) -> dict[str, str]:
        return {name: outcome.state for name, outcome in self.outcomes.items()}
