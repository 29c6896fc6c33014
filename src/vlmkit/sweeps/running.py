"""Runs jobs, so many at a time, each in a process of its own: whatever befalls one, the others go on."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vlmkit.errors import Interrupted
from vlmkit.sweeps.job import OUTPUT, Claim, Job, Outcome, outcome_before, write_job

_POLL_SECONDS = 0.1
_TAIL_BYTES = 16_384
_LONGEST_ERROR = 600
_MOST_LINES = 4
_OWN_WORD = "vlmkit-"
"""A user's error is printed as `vlmkit-train: message`, last of all."""


class Running(Protocol):
    """A job under way, here or on a cluster."""

    def poll(self) -> int | None:
        """Exit status of its process, a negative number for a signal; None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to save and leave (status 75)."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def trouble(self) -> str | None:
        """What is known of its end besides what it printed."""
        ...


class Launching(Protocol):
    """Where jobs run."""

    num_parallel: int

    def start(self, job: Job, claim: Claim, place: int) -> Running:
        """Start a job; what it prints is appended to `output.log` in its directory.

        Args:
            job: What to run.
            claim: Its directory's, to be held as long as the job lives, where it runs on this machine.
            place: Which of the `num_parallel` places it takes, counted from 0.
        """
        ...


class Watching(Protocol):
    """Who wants to know how a sweep goes."""

    def started(self, job: Job) -> None:
        """A job was started."""
        ...

    def stop_early(self, job: Job) -> str | None:
        """Asked again and again while a job runs: why it need not go on; None lets it."""
        ...

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job ended, or had ended when the sweep was run before."""
        ...


@dataclass(kw_only=True)
class _Active:
    job: Job
    place: int
    running: Running
    claim: Claim
    before: Outcome
    output_start: int
    started: float = field(default_factory=time.monotonic)
    shown: int = 0
    pruned: str | None = None


def run_jobs(
    jobs: Iterator[Job], *, directory: Path, launching: Launching, watching: Watching, show_output: bool
) -> None:
    """Run jobs as places become free; what was finished when the sweep was run before is only reported.

    A job is asked of the iterator when there is a place for it, so it may depend on how those before it ended.

    Args:
        jobs: What to run.
        directory: Of the sweep, for the message of what to do next.
        launching: Where.
        watching: Is told, and may end jobs early.
        show_output: Print what a job prints, where one runs at a time.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1: every job was told to save and leave, and did; a second signal kills.
        ConfigError: a directory holds a run with other settings, or one that is still under way.
    """
    active: list[_Active] = []
    show_output = show_output and launching.num_parallel == 1
    with _signals() as signals:
        try:
            _run(jobs, active, signals, launching, watching, show_output)
        except BaseException:
            for one in active:  # an error of ours leaves no process behind
                one.running.kill()
            raise
    if signals:
        name = signal.Signals(signals[0]).name
        raise Interrupted(
            f"{name}: the runs under way were saved. Run the same command with run_dir={directory} to go on."
        )


def _run(
    jobs: Iterator[Job],
    active: list[_Active],
    signals: list[int],
    launching: Launching,
    watching: Watching,
    show_output: bool,
) -> None:
    waiting, exhausted, told = jobs, False, 0
    while active or not (exhausted or signals):
        while not (signals or exhausted) and len(active) < launching.num_parallel:
            if (job := next(waiting, None)) is None:
                exhausted = True
            elif (started := _start(job, launching, watching, {one.place for one in active})) is not None:
                active.append(started)
        if (wish := min(len(signals), 2)) > told:
            for one in active:
                (one.running.stop if wish == 1 else one.running.kill)()
            told = wish
        for one in list(active):
            if show_output:
                _show(one)
            if (status := one.running.poll()) is not None:
                active.remove(one)
                _end(one, status, watching, show_output=show_output, left=bool(signals))
            elif one.pruned is None and not signals and (reason := watching.stop_early(one.job)):
                one.pruned = reason
                one.running.stop()
        if active:
            time.sleep(_POLL_SECONDS)


def _start(job: Job, launching: Launching, watching: Watching, taken: set[int]) -> _Active | None:
    """Start a job in the first free place; None where nothing is left to do."""
    before = outcome_before(job)
    if before.done:
        watching.ended(job, before)
        return None
    claim = Claim(job.run_dir)
    output = job.run_dir / OUTPUT
    size = output.stat().st_size if output.exists() else 0
    running = Outcome(state="running", seconds=before.seconds, attempts=before.attempts + 1)
    write_job(job, running)
    watching.started(job)
    place = next(place for place in range(launching.num_parallel) if place not in taken)
    try:
        process = launching.start(job, claim, place)
    except BaseException:
        claim.release()
        raise
    return _Active(job=job, place=place, running=process, claim=claim, before=running, output_start=size, shown=size)


def _end(one: _Active, status: int, watching: Watching, *, show_output: bool, left: bool) -> None:
    if show_output:
        _show(one)
    one.claim.release()
    seconds = one.before.seconds + time.monotonic() - one.started
    state, error = _verdict(one, status, left)
    outcome = Outcome(state=state, error=error, seconds=round(seconds, 3), attempts=one.before.attempts)
    write_job(one.job, outcome)
    watching.ended(one.job, outcome)


def _verdict(one: _Active, status: int, left: bool):
    """State and error of a job that ended with this status."""
    if status == 0 and (one.job.run_dir / "report.json").is_file():
        return "finished", None  # also one that was to be stopped and came to its end before
    if one.pruned is not None:
        return "pruned", one.pruned
    if left or status == Interrupted.status:
        return "interrupted", "told to leave; it can be resumed"
    said = last_words(one.job.run_dir / OUTPUT, one.output_start)
    return "failed", _error(status, said, one.running.trouble())


def _error(status: int, said: str, trouble: str | None) -> str:
    """Why a process failed, in a line or a few."""
    if trouble:
        return f"{trouble}: {said}" if said else trouble
    if status < 0:
        name = signal.Signals(-status).name
        why = " (the system ends a process so when memory runs out)" if name == "SIGKILL" else ""
        return f"killed by {name}{why}"
    return said or f"ended with status {status} and said nothing"


def last_words(path: Path, start: int = 0) -> str:
    """The error that a command printed last: ours as it stands, of a traceback its last line.

    Args:
        path: What it printed.
        start: Where its output begins in the file.
    """
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line.strip()]
    own = [number for number, line in enumerate(lines) if line.startswith(_OWN_WORD) and ": " in line]
    if own:
        lines[own[-1]] = lines[own[-1]].partition(": ")[2]
        told = "\n".join(lines[own[-1] :][:_MOST_LINES])
    else:
        told = next((line for line in reversed(lines) if not line.startswith(" ")), "")
    return told if len(told) <= _LONGEST_ERROR else told[: _LONGEST_ERROR - 1] + "…"


def _show(one: _Active) -> None:
    """Print what the job printed since the last look."""
    path = one.job.run_dir / OUTPUT
    if not path.exists() or path.stat().st_size <= one.shown:
        return
    with path.open("rb") as file:
        file.seek(one.shown)
        content = file.read()
    one.shown += len(content)
    sys.stdout.write(content.decode("utf-8", "replace"))
    sys.stdout.flush()


@contextmanager
def _signals() -> Generator[list[int]]:
    """The signals that told this process to leave, as they come; they do nothing else while the block lasts."""
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
