"""Follows a sweep: writes its table after every change, and tells the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vlmkit.errors import VlmkitError
from vlmkit.sweeps.job import OUTPUT, WAITING, Job, Outcome, jobs_before
from vlmkit.sweeps.result import model_of
from vlmkit.sweeps.table import HTML_FILE, MARKDOWN_FILE, Table, duration, figure, make_table, text, write_table


class SweepFailed(VlmkitError):
    """Some runs of a sweep have no result; the others are in its table."""


class Board:
    """What is known of a sweep's runs.

    Args:
        directory: Of the sweep.
        metric: What to rank by; None: see `make_table`.
        jobs: Those that are known from the start.
        total: How many there will be.
        write_page: Writes `sweep.html`.
    """

    def __init__(
        self,
        *,
        directory: Path,
        metric: str | None,
        jobs: Sequence[Job],
        total: int,
        write_page: Callable[[Table, Path], object],
    ) -> None:
        self.directory = directory
        self.metric = metric
        self.total = total
        self.write_page = write_page
        self.runs: dict[str, tuple[Job, Outcome]] = {job.name: (job, WAITING) for job in jobs}
        self._number = 0
        self._numbers: dict[str, int] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def remember(self) -> None:
        """Take runs into the table that were finished here before and are not among the jobs of today."""
        for job, outcome in jobs_before(self.directory):
            if outcome.done:
                self.runs.setdefault(job.name, (job, outcome))

    def started(self, job: Job) -> None:
        """Tell that a job was started."""
        number = self._count(job)
        again = ", taken up again" if (job.run_dir / "train.jsonl").exists() else ""
        _say(f"[{number}/{self.total}] {job.name}: started{again}; it prints to {job.run_dir / OUTPUT}")
        self.runs[job.name] = (job, Outcome(state="running"))
        self.write()

    def stop_early(self, job: Job) -> str | None:
        """Let it run to its end."""
        return None

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Tell how a job ended, and write the table anew."""
        known = self.runs.get(job.name)
        running = known is not None and known[1].state == "running"
        number = self._numbers[job.name] if running else self._count(job)
        self.runs[job.name] = (job, outcome)
        table = self.write()
        row = next(row for row in table.rows if row.name == job.name)
        score = "" if row.score is None else f", {table.metric} {figure(table.metric, row.score.value)}"
        time = f" in {duration(outcome.seconds)}" if running else " before, not run again"
        why = f": {outcome.error}" if outcome.error else ""
        _say(f"[{number}/{self.total}] {job.name}: {outcome.state}{time}{score}{why}")

    def _count(self, job: Job) -> int:
        self._number += 1
        self._numbers[job.name] = self._number
        return self._number

    def write(self) -> Table:
        """Write `sweep.json`, `sweep.md` and `sweep.html` as things stand."""
        table = make_table(self.directory, list(self.runs.values()), metric=self.metric)
        write_table(table)
        self.write_page(table, self.directory / HTML_FILE)
        return table

    def tell(self) -> Table:
        """Print the table as things stand, and what to do next."""
        table = self.write()
        page = self.directory / HTML_FILE
        print(f"\n{text(table)}\n\nTable {self.directory / MARKDOWN_FILE}; page {page}: open {page.as_uri()}")
        if table.best is not None:
            best = model_of(self.directory / table.best.name, table.metric)
            print(f"Best: {best}. Next: vlmkit-eval ckpt={best}")
        sys.stdout.flush()
        return table

    def finish(self) -> Table:
        """Print the table at the end of the sweep.

        Raises:
            SweepFailed: a run failed or left, or no run measured the metric.
        """
        table = self.tell()
        if left := [row for row in table.rows if row.outcome.state in ("failed", "interrupted")]:
            raise SweepFailed(
                f"{len(left)} of {len(table.rows)} runs have no result: {', '.join(row.name for row in left)}. Run the same "
                f"command with run_dir={self.directory} to try these again; what is finished is not run again."
            )
        if table.best is None and table.count("finished"):
            measured = sorted({name for row in table.rows for name in row.result.scores})
            raise SweepFailed(f"sweep.metric={table.metric}: no run measured it. Choose one of {', '.join(measured)}.")
        return table


def _say(words: str) -> None:
    print(words, flush=True)
