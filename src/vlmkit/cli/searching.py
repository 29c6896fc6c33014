"""From Hydra's overrides to a search by Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from vlmkit.cli.sweeping import Composer, by_key, launching_of, run_sweep, values_of
from vlmkit.config import build
from vlmkit.errors import ConfigError
from vlmkit.pages.sweep import write_sweep_page
from vlmkit.sweeps.job import Job
from vlmkit.sweeps.naming import run_names
from vlmkit.sweeps.table import Table

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def sweep_optuna(
    composer: Composer,
    launcher: Launcher,
    *,
    params: Mapping[str, object],
    num_trials: int,
    sampler: DictConfig,
    pruner: DictConfig | None,
    arguments: list[str],
) -> Table:
    """Search by Optuna.

    Args:
        composer: Makes the jobs.
        launcher: One of ours.
        params: What to search by the config; the command line wins.
        num_trials: Runs in all.
        sampler, pruner: Nodes that make Optuna's objects.
        arguments: Overrides of the command line.

    Raises:
        ConfigError: Optuna is not installed, nothing is to be searched, or a search with other settings is there.
        SweepFailed: a run failed; the others were run all the same.
        Interrupted: a signal told the sweep to leave.
    """
    try:
        from optuna.pruners import BasePruner
        from optuna.samplers import BaseSampler

        from vlmkit.sweeps.search import Search, is_lower_better
    except ImportError as error:
        raise ConfigError(
            "hydra/sweeper=optuna needs the package optuna, which is not installed: pip install 'vlmkit[sweep]'. Without it "
            "every combination of listed values can be tried: hydra/sweeper=grid."
        ) from error
    if num_trials < 1:
        raise ConfigError(f"hydra.sweeper.num_trials={num_trials}: wanted at least 1.")
    launching = launching_of(launcher)
    overrides = by_key(composer, params, arguments)
    fixed = {key: one.get_value_element_as_str() for key, one in overrides.items() if not one.is_sweep_override()}
    space = {key: _distribution(one) for key, one in overrides.items() if one.is_sweep_override()}
    if not space:
        raise ConfigError(
            "hydra/sweeper=optuna: nothing to search. Give an interval or a choice: "
            "'optim.lr=tag(log, interval(1e-5, 1e-3))' 'freeze=choice(merger_only,none)'."
        )
    keys = list(space)

    def make_job(chosen: Mapping[str, str]) -> Job:
        (name,) = run_names([chosen], keys)
        return composer.job({**fixed, **chosen}, name, keys)

    config = composer.config
    search = Search(
        directory=composer.directory,
        metric=composer.metric,
        lower=is_lower_better(composer.metric, benchmarks=bool(config.validate.benchmarks)),
        space=space,
        num_trials=num_trials,
        sampler=build(_as_node(sampler), BaseSampler, "hydra.sweeper.sampler"),
        pruner=build(_as_node(pruner), BasePruner, "hydra.sweeper.pruner") if pruner else None,
        settings=composer.settings([f"{key}={value}" for key, value in fixed.items()])
        | {"search": _in_words(overrides)},
        make_job=make_job,
        write_page=write_sweep_page,
    )
    goal = "lower" if search.study.direction.name == "MINIMIZE" else "higher"
    print(
        f"Sweep {composer.directory}: {num_trials} runs proposed by {type(search.study.sampler).__name__}, "
        f"{launching.num_parallel} at a time; {composer.metric or 'what is validated'}, {goal} is better.",
        flush=True,
    )
    return run_sweep(search.jobs(), launching, search, search)


def _as_node(node: DictConfig) -> DictConfig:
    return cast(DictConfig, OmegaConf.create(OmegaConf.to_container(node, resolve=True)))


def _in_words(overrides: Mapping[str, Override]) -> dict[str, str]:
    return {key: str(one.input_line) for key, one in overrides.items() if one.is_sweep_override()}


def _distribution(override: Override) -> BaseDistribution:
    """What Optuna may propose for an override: an interval (by the logarithm if tagged so), a range, or a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        start, end, log = value.start, value.end, "log" in value.tags
        assert start is not None
        assert end is not None
        if isinstance(start, int) and isinstance(end, int):
            return IntDistribution(start, end, log=log)
        return FloatDistribution(float(start), float(end), log=log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        start, stop, step = value.start, value.stop, value.step
        assert start is not None
        assert stop is not None
        if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
            return IntDistribution(start, stop - 1 - (stop - 1 - start) % step, step=step)
    if isinstance(value, (ChoiceSweep, RangeSweep)):
        return CategoricalDistribution(list(values_of(override)))
    raise ConfigError(f"{override.input_line}: wanted interval(low, high), choice(a, b) or range(start, stop).")
