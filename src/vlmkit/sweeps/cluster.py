"""Jobs handed to a cluster by submitit; each waits beside a run that is, there too, a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import submitit

from vlmkit.errors import ConfigError
from vlmkit.sweeps.job import Claim, Job
from vlmkit.sweeps.processes import UNBUFFERED, LocalProcess

FOLDER = ".submitit"
"""In a run's directory: what submitit keeps, and the wishes of the sweep."""
_WISH = "stop"
_STARTED = "started"
_LOOK_SECONDS = 0.5


class ClusterJobs:
    """Submits each job by itself, as soon as there is a place for it.

    Args:
        cluster: `slurm`, or `local`: the same way on this machine, for trying it out.
        num_parallel: Jobs queued or running at a time; how many of these run is the cluster's business.
        parameters: Of `submitit.AutoExecutor.update_parameters`; those that are None are left out.
        max_num_timeout: How often a job that ran out of time is queued again.

    Raises:
        ConfigError: the cluster is not here, or a parameter is refused.
    """

    def __init__(
        self,
        *,
        cluster: Literal["slurm", "local"],
        num_parallel: int,
        parameters: Mapping[str, Any],
        max_num_timeout: int,
    ) -> None:
        if num_parallel < 1:
            raise ConfigError(f"hydra.launcher.num_parallel={num_parallel}: wanted at least 1.")
        if cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise ConfigError(
                "hydra/launcher=submitit_slurm: there is no srun here, so this is no machine of a SLURM cluster. Choose "
                "hydra/launcher=submitit_local to try the same way without one."
            )
        self.cluster = cluster
        self.num_parallel = num_parallel
        self.parameters = {name: value for name, value in parameters.items() if value is not None}
        self.max_num_timeout = max_num_timeout
        with tempfile.TemporaryDirectory() as folder:
            self._executor(Path(folder), "refused now, not after the first job")

    def start(self, job: Job, claim: Claim, place: int) -> ClusterJob:
        """Submit a job; the claim on its directory goes over to its process."""
        folder = job.run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        for name in (_WISH, _STARTED):
            (folder / name).unlink(missing_ok=True)
        executor = self._executor(folder, job.name)
        claim.release()
        with _deaf_to_the_terminal():
            submitted = executor.submit(Beside(job))
        return ClusterJob(submitted, folder)

    def _executor(self, folder: Path, name: str) -> submitit.AutoExecutor:
        try:
            executor = submitit.AutoExecutor(
                folder=folder, cluster=self.cluster, slurm_max_num_timeout=self.max_num_timeout
            )
            executor.update_parameters(name=name, **self.parameters)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"hydra/launcher=submitit_{self.cluster}: {error}. Look at hydra.launcher.parameters."
            ) from error
        return executor


class ClusterJob:
    """A job that was submitted."""

    def __init__(self, submitted: submitit.Job[int], folder: Path) -> None:
        self.submitted = submitted
        self.folder = folder
        self._trouble: str | None = None

    def poll(self) -> int | None:
        """Exit status of the run, of the first of its tasks that failed; None while it waits or runs."""
        if not self.submitted.done():
            return None
        try:
            statuses = self.submitted.results()
        except Exception as error:  # whatever befell it, the sweep goes on: the cluster's words are in the table
            said = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            self._trouble = f"job {self.submitted.job_id} ended as {self.submitted.state} ({said.strip()})"
            return 1
        return next((status for status in statuses if status), 0)

    def stop(self) -> None:
        """Let it save and leave; one that still waits in the queue is taken out of it."""
        self._wish("save")
        if not (self.folder / _STARTED).exists():
            self.submitted.cancel(check=False)

    def kill(self) -> None:
        """End it at once."""
        self._wish("kill")
        self.submitted.cancel(check=False)

    def trouble(self) -> str | None:
        """What the cluster says of its end."""
        return self._trouble

    def _wish(self, wish: str) -> None:
        (self.folder / _WISH).write_text(wish)


class Beside:
    """What runs on the cluster: starts the run as a process, waits, and passes on what it is told.

    A run that is killed leaves this process standing, which reports it. Before the cluster takes its time away (or gives
    its place to another) submitit calls `checkpoint`: the run saves, and goes on where it was when it is queued again.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process: LocalProcess | None = None

    def __call__(self) -> int:
        """Exit status of the run."""
        folder = self.job.run_dir / FOLDER
        first = submitit.JobEnvironment().global_rank == 0
        claim = Claim(self.job.run_dir) if first else None
        (folder / _STARTED).touch()
        signal.signal(signal.SIGTERM, lambda *_: self._send(signal.SIGTERM))
        self.process = LocalProcess(
            self.job, environment=_environment(), handles=(claim.handle,) if claim is not None else ()
        )
        told = ""
        while True:
            with suppress(subprocess.TimeoutExpired):
                self.process.process.wait(timeout=_LOOK_SECONDS)
                break
            wish = (folder / _WISH).read_text() if (folder / _WISH).exists() else ""
            if wish != told:
                told = wish
                (self.process.kill if wish == "kill" else self.process.stop)()
        status = self.process.poll()
        assert status is not None
        return status

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Let the run save; what is queued again takes it up."""
        self._send(signal.SIGUSR1)
        if self.process is not None:
            self.process.wait()
        return submitit.helpers.DelayedSubmission(Beside(self.job))

    def _send(self, number: int) -> None:
        if self.process is not None and self.process.process.poll() is None:
            self.process.process.send_signal(number)


def _environment() -> dict[str, str]:
    """For the run: with one task it starts its other ranks itself, so SLURM's tasks are none of its business."""
    alone = os.environ.get("SLURM_NTASKS", "1") == "1"
    return {
        **os.environ,
        **UNBUFFERED,
        **({"SLURM_JOB_NAME": "bash"} if alone else {}),
    }  # Lightning's word for no tasks of SLURM's


@contextmanager
def _deaf_to_the_terminal() -> Generator[None]:
    """What is started inside does not hear a ctrl-C, which is the sweep's to pass on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
