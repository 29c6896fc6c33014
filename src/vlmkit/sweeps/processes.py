"""Jobs as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from vlmkit.errors import ConfigError
from vlmkit.sweeps.job import OUTPUT, Claim, Job

UNBUFFERED = {"PYTHONUNBUFFERED": "1"}
"""What a run prints is seen when it is printed, though it goes to a file."""
_DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


class LocalProcesses:
    """Starts each job as a process, in a group of its own: what the terminal sends to the sweep does not reach it.

    Args:
        num_parallel: Jobs at a time.
        devices: Ids of GPUs, dealt to the jobs that run at the same time in equal shares; None: each sees what the sweep
            sees.

    Raises:
        ConfigError: fewer than one job at a time, or devices that cannot be dealt evenly.
    """

    def __init__(self, *, num_parallel: int, devices: Sequence[str | int] | None) -> None:
        if num_parallel < 1:
            raise ConfigError(f"hydra.launcher.num_parallel={num_parallel}: wanted at least 1.")
        if devices is not None and (not devices or len(devices) % num_parallel):
            raise ConfigError(
                f"hydra.launcher.devices={list(devices)}: {len(devices)} devices cannot be dealt evenly to "
                f"{num_parallel} jobs at a time. Give a multiple of that."
            )
        self.num_parallel = num_parallel
        self.devices = None if devices is None else [str(device) for device in devices]

    def start(self, job: Job, claim: Claim, place: int) -> LocalProcess:
        """Start a job; it holds the claim on its directory even where the sweep dies."""
        return LocalProcess(
            job, environment={**os.environ, **UNBUFFERED, **self._visible(place)}, handles=(claim.handle,)
        )

    def _visible(self, place: int) -> Mapping[str, str]:
        if self.devices is None:
            return {}
        share = len(self.devices) // self.num_parallel
        return {_DEVICES_VARIABLE: ",".join(self.devices[place * share : (place + 1) * share])}


class LocalProcess:
    """A job's process and those it starts."""

    def __init__(self, job: Job, *, environment: Mapping[str, str], handles: Sequence[int] = ()) -> None:
        with (job.run_dir / OUTPUT).open("ab") as output:
            self.process = subprocess.Popen(
                job.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=handles,
                process_group=0,
            )

    def poll(self) -> int | None:
        """Exit status; None while it runs. What is left of its group is ended with it."""
        status = self.process.poll()
        if status is not None:
            self._send(signal.SIGKILL)
        return status

    def wait(self) -> int:
        """Exit status, once it has ended."""
        return self.process.wait()

    def stop(self) -> None:
        """SIGTERM to its first process, which saves after the step and tells its other ranks."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        self._send(signal.SIGKILL)
        self.process.wait()

    def trouble(self) -> str | None:
        """Nothing but its status is known."""
        return None

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
