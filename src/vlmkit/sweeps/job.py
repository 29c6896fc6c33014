"""One run of a sweep: what it is, how it ended, and the file beside it that says both."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vlmkit.errors import ConfigError
from vlmkit.storage import written_aside

SCHEMA = "vlmkit.job/1"
FILE = "job.json"
OUTPUT = "output.log"
"""What a run prints, of all its attempts."""
State = Literal["waiting", "running", "finished", "pruned", "failed", "interrupted"]
_ABOUT_THE_PLACE = ("run_dir", "resume_from", "log", "sweep")
"""Settings that make no other run."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is to be.

    Attributes:
        name: Its directory's.
        run_dir: Where it goes.
        settings: What differs between the runs of the sweep, by key.
        command: Runs it, in a process of its own.
        config: As composed: says whether a run that is there already is this one.
    """

    name: str
    run_dir: Path
    settings: Mapping[str, str]
    command: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run stands.

    Attributes:
        state: `waiting` and `interrupted` runs are taken up when the sweep is run again, and so are failed ones.
        error: Why it failed, was pruned or interrupted.
        seconds: Time of all its attempts.
        attempts: How often it was started.
    """

    state: State
    error: str | None = None
    seconds: float = 0.0
    attempts: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("finished", "pruned")


WAITING = Outcome(state="waiting")


def write_job(job: Job, outcome: Outcome) -> None:
    """Write `job.json`, whole or not at all."""
    told = {"schema": SCHEMA, "name": job.name, "settings": dict(job.settings), **asdict(outcome)}
    told |= {"command": job.command, "config": job.config}
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with written_aside(job.run_dir / FILE) as aside:
        aside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read_job(run_dir: Path) -> dict[str, Any] | None:
    """What `job.json` says; None where there is none."""
    path = run_dir / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def outcome_before(job: Job) -> Outcome:
    """How far this run came when the sweep was run before.

    Raises:
        ConfigError: the directory holds a run with other settings.
    """
    told = read_job(job.run_dir)
    if told is None:
        return WAITING
    check_settings(f"{job.run_dir} holds a run", told["config"], job.config)
    return _outcome(told, job.run_dir)


def jobs_before(directory: Path) -> list[tuple[Job, Outcome]]:
    """Every job of a sweep that was started before, as its `job.json` says."""
    found: list[tuple[Job, Outcome]] = []
    for path in sorted(directory.glob(f"*/{FILE}"), key=lambda path: path.parent.name):
        told = read_job(path.parent)
        assert told is not None
        job = Job(
            name=told["name"],
            run_dir=path.parent,
            settings=told["settings"],
            command=tuple(told["command"]),
            config=told["config"],
        )
        found.append((job, _outcome(told, path.parent)))
    return found


def check_settings(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings.

    Raises:
        ConfigError: `what` was made with other ones; says which.
    """
    if changed := list(_differences(before, now)):
        raise ConfigError(
            f"{what} with other settings: {'; '.join(changed[:5])}. Set them back to go on, or choose another run_dir."
        )


def _outcome(told: Mapping[str, Any], run_dir: Path) -> Outcome:
    found = Outcome(state=told["state"], error=told["error"], seconds=told["seconds"], attempts=told["attempts"])
    if found.state == "finished" and not (run_dir / "report.json").is_file():
        return replace(found, state="interrupted", error="its report.json is gone")
    return replace(found, state="interrupted", error="the sweep was killed") if found.state == "running" else found


class Claim:
    """The right to write into a run directory: held by the sweep and by the run's process, until both have ended.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(run_dir / ".claim", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.handle)
            raise ConfigError(
                f"{run_dir}: a run is still under way there, started by this sweep before. Wait for it, or end it."
            ) from error

    def release(self) -> None:
        """Let go, once; a process that was given the handle still holds it."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What another run would be for, in words."""
    old, new = (
        dict(_flat({key: value for key, value in one.items() if key not in _ABOUT_THE_PLACE})) for one in (before, now)
    )
    missing = object()
    for key in dict.fromkeys([*old, *new]):
        if old.get(key, missing) != new.get(key, missing):
            yield f"{key} was {old.get(key, 'not there')}, now {new.get(key, 'not there')}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
