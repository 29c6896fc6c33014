"""What `hydra/sweeper=` and `hydra/launcher=` name. Hydra imports this at every start: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from vlmkit.cli.sweeping import Composer
    from vlmkit.sweeps.running import Launching


class _VlmkitLauncher(Launcher):
    """Runs jobs in processes of their own, with whatever sweeper asks."""

    composer: Composer
    launching: Launching

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what jobs are composed with."""
        from vlmkit.cli.sweeping import Composer

        self.composer = Composer(hydra_context, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs for another sweeper than ours."""
        from vlmkit.cli.sweeping import launch_for_others

        return launch_for_others(self.composer, self.launching, job_overrides)


class ProcessLauncher(_VlmkitLauncher):
    """Processes of this machine; see conf/hydra/launcher/process.yaml."""

    def __init__(self, *, num_parallel: int, devices: Sequence[str | int] | None) -> None:
        from vlmkit.sweeps.processes import LocalProcesses

        self.launching = LocalProcesses(num_parallel=num_parallel, devices=devices)


class SubmititLauncher(_VlmkitLauncher):
    """Jobs of a cluster; see conf/hydra/launcher/submitit_slurm.yaml."""

    def __init__(self, *, cluster: str, num_parallel: int, max_num_timeout: int, parameters: dict[str, Any]) -> None:
        from vlmkit.cli.sweeping import cluster_jobs

        self.launching = cluster_jobs(cluster, num_parallel, max_num_timeout, parameters)


class _VlmkitSweeper(Sweeper):
    """A sweeper that keeps what it was set up with until it is asked to sweep."""

    composer: Composer

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        from hydra.core.plugins import Plugins

        from vlmkit.cli.sweeping import Composer

        self.composer = Composer(hydra_context, config)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )


class GridSweeper(_VlmkitSweeper):
    """Every combination of values; see conf/hydra/sweeper/grid.yaml."""

    def __init__(self, *, params: dict[str, Any]) -> None:
        self.params = params

    def sweep(self, arguments: list[str]) -> Any:
        """Run them all; the table."""
        from vlmkit.cli.sweeping import sweep_grid

        return sweep_grid(self.composer, self._launcher, self.params, arguments)


class OptunaSweeper(_VlmkitSweeper):
    """A search by Optuna; see conf/hydra/sweeper/optuna.yaml."""

    def __init__(
        self, *, params: dict[str, Any], num_trials: int, sampler: DictConfig, pruner: DictConfig | None
    ) -> None:
        self.params, self.num_trials, self.sampler, self.pruner = params, num_trials, sampler, pruner

    def sweep(self, arguments: list[str]) -> Any:
        """Search; the table."""
        from vlmkit.cli.searching import sweep_optuna

        return sweep_optuna(
            self.composer,
            self._launcher,
            params=self.params,
            num_trials=self.num_trials,
            sampler=self.sampler,
            pruner=self.pruner,
            arguments=arguments,
        )
