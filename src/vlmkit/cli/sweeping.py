"""From Hydra's sweeps to ours: overrides become jobs with a name, a directory, a command and a config."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vlmkit.errors import ConfigError, Interrupted
from vlmkit.pages.sweep import write_sweep_page
from vlmkit.sweeps.board import Board
from vlmkit.sweeps.job import OUTPUT, Job, outcome_before
from vlmkit.sweeps.naming import differing, run_names
from vlmkit.sweeps.result import value_of
from vlmkit.sweeps.running import Launching, Watching, run_jobs
from vlmkit.sweeps.table import JSON_FILE, Table, read_sweep

_THE_SWEEP_S_OWN = ("run_dir",)
"""Settings that say where the sweep goes, and cannot differ between its jobs."""


class Composer:
    """Composes the jobs of a sweep.

    Args:
        context: Hydra's, with its config loader.
        config: Of the sweep, as composed from what does not differ.
    """

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        self.loader = context.config_loader
        self.config = config
        self.directory = Path(str(config.hydra.sweep.dir)).expanduser().absolute()
        self.module = str(config.hydra.job.config_name)

    @property
    def metric(self) -> str | None:
        """What to rank by; None: whatever the runs measure."""
        return self.config.sweep.metric or self.config.save.best

    def parse(self, overrides: Iterable[str]) -> list[Override]:
        """Parsed overrides.

        Raises:
            ConfigError: one cannot differ between jobs.
        """
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))
        for override in parsed:
            if override.is_sweep_override() and override.get_key_element() in _THE_SWEEP_S_OWN:
                raise ConfigError(f"{override.get_key_element()}: it is the directory of the whole sweep. Give one.")
        return parsed

    def jobs(self, values: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[Job]:
        """A job for each set of overrides.

        Args:
            values: By key as on the command line, `+` included.
            keys: What differs: names are made of these.

        Raises:
            HydraException: one does not compose.
            ConfigError: two are the same.
        """
        names = run_names(values, keys)
        if len(set(names)) < len(names):
            raise ConfigError("The sweep has the same run twice. Give each value once.")
        return [self.job(one, name, keys) for one, name in zip(values, names, strict=True)]

    def job(self, values: Mapping[str, str], name: str, keys: Sequence[str]) -> Job:
        """One job."""
        run_dir = self.directory / name
        return Job(
            name=name,
            run_dir=run_dir,
            settings={key.lstrip("+"): values[key] for key in keys if key in values},
            command=tuple(self.command(values, run_dir)),
            config=self.settings([f"{key}={value}" for key, value in values.items()]),
        )

    def command(self, values: Mapping[str, str], run_dir: Path) -> list[str]:
        """What runs a job as a process of its own."""
        place = str(run_dir).replace("\\", "\\\\").replace("'", "\\'")
        own = {"run_dir": f"'{place}'", "hydra.mode": "RUN"}  # an experiment may ask for a sweep
        if "resume_from" not in values:
            own["resume_from"] = "auto"
        overrides = [f"{key}={value}" for key, value in (dict(values) | own).items()]
        sources = self.config.hydra.runtime.config_sources
        added = [source.path for source in sources if source.provider == "command-line"]
        flags = [word for path in added for word in ("--config-dir", path)]
        return [sys.executable, "-m", f"vlmkit.cli.{self.module}", *flags, *overrides]

    def settings(self, overrides: list[str]) -> dict[str, Any]:
        """The composed settings, as plain values: without those that say where a run goes."""
        config = self.loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.pop("hydra")
            config.pop("run_dir", None)
        try:
            plain = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException:  # a value that is missing is told by the run itself
            plain = OmegaConf.to_container(config, resolve=False)
        return cast("dict[str, Any]", plain)


def sweep_grid(composer: Composer, launcher: Launcher, params: Mapping[str, object], arguments: list[str]) -> Table:
    """Every combination of values, each a job; those that are finished already are not run again.

    Args:
        composer: Makes the jobs.
        launcher: One of ours.
        params: What to sweep by the config; the command line wins.
        arguments: Overrides of the command line.

    Raises:
        SweepFailed: a run failed; the others were run all the same.
        Interrupted: a signal told the sweep to leave.
    """
    launching = launching_of(launcher)
    listed = {key: list(values_of(override)) for key, override in by_key(composer, params, arguments).items()}
    values = [dict(zip(listed, chosen, strict=True)) for chosen in itertools.product(*listed.values())]
    named = {*differing(values), *_keys_before(composer.directory)}
    jobs = composer.jobs(values, [key for key in listed if key in named or key.lstrip("+") in named])
    for job in jobs:
        outcome_before(job)  # refuses other settings before anything runs
    board = Board(
        directory=composer.directory,
        metric=composer.metric,
        jobs=jobs,
        total=len(jobs),
        write_page=write_sweep_page,
    )
    board.remember()
    at_once = f"{launching.num_parallel} at a time" if launching.num_parallel > 1 else "one at a time"
    print(f"Sweep {composer.directory}: {len(jobs)} runs, {at_once}.", flush=True)
    return run_sweep(iter(jobs), launching, board, board)


def run_sweep(jobs: Iterator[Job], launching: Launching, watching: Watching, board: Board) -> Table:
    """Run jobs to the end of the sweep, or to a signal; print the table either way."""
    try:
        run_jobs(jobs, directory=board.directory, launching=launching, watching=watching, show_output=True)
    except Interrupted:
        board.tell()
        raise
    return board.finish()


def launching_of(launcher: Launcher) -> Launching:
    """Where a launcher's jobs run.

    Raises:
        ConfigError: it runs them inside this process, where one that crashes would end the sweep.
    """
    launching = getattr(launcher, "launching", None)
    if launching is None:
        raise ConfigError(
            f"hydra/launcher: {type(launcher).__name__} does not run each job in a process of its own. Choose "
            "hydra/launcher=process, submitit_local or submitit_slurm."
        )
    return launching


def cluster_jobs(cluster: str, num_parallel: int, max_num_timeout: int, parameters: Mapping[str, Any]) -> Launching:
    """Where a cluster's jobs run.

    Raises:
        ConfigError: submitit is not installed.
    """
    try:
        from vlmkit.sweeps.cluster import ClusterJobs
    except ImportError as error:
        raise ConfigError(
            f"hydra/launcher=submitit_{cluster} needs the package submitit, which is not installed: "
            "pip install 'vlmkit[sweep]'. Without it runs go one after the other on this machine: hydra/launcher=process."
        ) from error
    return ClusterJobs(
        cluster=cast(Any, cluster), num_parallel=num_parallel, max_num_timeout=max_num_timeout, parameters=parameters
    )


def launch_for_others(
    composer: Composer, launching: Launching, job_overrides: Sequence[Sequence[str]]
) -> Sequence[JobReturn]:
    """Run jobs for a sweeper that is not ours, and return what each is to be judged by."""
    values = [
        {one.get_key_element(): one.get_value_element_as_str() for one in composer.parse(overrides)}
        for overrides in job_overrides
    ]
    keys = differing(values) or [key for key in (values[0] if values else ()) if key not in _THE_SWEEP_S_OWN]
    jobs = composer.jobs(values, keys)
    board = Board(
        directory=composer.directory, metric=composer.metric, jobs=jobs, total=len(jobs), write_page=write_sweep_page
    )
    run_jobs(iter(jobs), directory=board.directory, launching=launching, watching=board, show_output=True)
    board.tell()
    return [_returned(job, overrides, board) for job, overrides in zip(jobs, job_overrides, strict=True)]


def _returned(job: Job, overrides: Sequence[str], board: Board) -> JobReturn:
    returned = JobReturn(overrides=list(overrides), working_dir=str(job.run_dir))
    outcome = board.runs[job.name][1]
    if outcome.state == "finished":
        returned.status, returned.return_value = JobStatus.COMPLETED, value_of(job.run_dir, board.metric)
    else:
        returned.status = JobStatus.FAILED
        returned.return_value = ConfigError(
            f"{job.name}: {outcome.state}: {outcome.error}. Look at {job.run_dir / OUTPUT}."
        )
    return returned


def _keys_before(directory: Path) -> list[str]:
    """What runs were named by when this directory was swept before: a value taken away or added renames none."""
    return list(read_sweep(directory)["settings"]) if (directory / JSON_FILE).is_file() else []


def by_key(composer: Composer, params: Mapping[str, object], arguments: list[str]) -> dict[str, Override]:
    """The last override of each key; those of the command line come after those of the config."""
    parsed = composer.parse([*(f"{key}={value}" for key, value in params.items()), *arguments])
    return {override.get_key_element(): override for override in parsed}


def values_of(override: Override) -> Iterator[str]:
    """The values that an override lists, as on a command line.

    Raises:
        ConfigError: it is a range without end.
    """
    if not override.is_sweep_override():
        yield override.get_value_element_as_str()
    elif override.is_discrete_sweep():
        yield from override.sweep_string_iterator()
    else:
        raise ConfigError(
            f"{override.input_line}: an interval has no end of values to try. Give them one by one, or choose hydra/sweeper=optuna."
        )
