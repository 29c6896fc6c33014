"""A search over settings by Optuna: it proposes, is told what came of it, and ends runs that fall behind.

The study is a journal beside the runs. One process alone, the sweep's, reads and writes it: runs need no Optuna and no
shared database, they are watched through the validations that they write anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from vlmkit.storage import written_aside
from vlmkit.sweeps.board import Board
from vlmkit.sweeps.job import Job, Outcome, check_settings, jobs_before
from vlmkit.sweeps.result import choose_metric, lower_is_better, validations_of, value_of
from vlmkit.sweeps.table import Table, figure

JOURNAL = "optuna.log"
SETTINGS = "search.json"
_DIGITS = 4
_MOST_REPEATS = 20
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Search(Board):
    """A sweep whose jobs follow from what came of those before.

    Args:
        directory: Of the sweep; holds the journal of the study.
        metric: What to improve; None: what the first validation measures, see `choose_metric`.
        lower: Whether lower is better.
        space: What may be proposed, by key.
        num_trials: Runs in all, those of a search that is taken up again included.
        sampler, pruner: Optuna's; no pruner: every run goes to its end.
        settings: What does not differ between the runs: a search is not taken up again with others.
        make_job: Makes a job of proposed values.
        write_page: Writes `sweep.html`.

    Raises:
        ConfigError: the directory holds a search with other settings.
    """

    def __init__(
        self,
        *,
        directory: Path,
        metric: str | None,
        lower: bool,
        space: Mapping[str, BaseDistribution],
        num_trials: int,
        sampler: BaseSampler,
        pruner: BasePruner | None,
        settings: Mapping[str, Any],
        make_job: Callable[[Mapping[str, str]], Job],
        write_page: Callable[[Table, Path], object],
    ) -> None:
        super().__init__(directory=directory, metric=metric, jobs=(), total=num_trials, write_page=write_page)
        _keep_settings(directory / SETTINGS, settings)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = dict(space)
        self.make_job = make_job
        self.study = optuna.create_study(
            study_name="sweep",
            storage=JournalStorage(JournalFileBackend(str(directory / JOURNAL))),
            sampler=sampler,
            pruner=pruner or NopPruner(),
            direction="minimize" if lower else "maximize",
            load_if_exists=True,
        )
        self.trials: dict[str, Trial] = {}
        self._seen: dict[str, int] = {}
        self.runs.update({job.name: (job, outcome) for job, outcome in jobs_before(directory)})
        if self.study.trials:
            sampler.reseed_rng()  # it would propose its first values again
        self._take_up()
        self._left = num_trials - sum(trial.state in _DONE for trial in self.study.trials)
        self._number = num_trials - self._left

    def jobs(self) -> Iterator[Job]:
        """Propose jobs, each when it is asked for; values that were tried are not run again."""
        repeats = 0
        while self._left > 0 and repeats < _MOST_REPEATS:
            trial = self.study.ask(self.space)
            job = self.make_job({key: _told(value) for key, value in trial.params.items()})
            if job.name in self.trials:  # is being run at this moment
                self.study.tell(trial, state=TrialState.FAIL)
                repeats += 1
                continue
            self._left -= 1
            repeats = 0
            self.trials[job.name] = trial
            yield job

    def stop_early(self, job: Job) -> str | None:
        """Hand its new validations to Optuna, and ask whether it falls behind."""
        path = job.run_dir / "validation.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self._seen.get(job.name, 0):
            return None
        self._seen[job.name] = size
        return self._report(job, self.trials[job.name])

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Tell Optuna how it ended; what is left to do comes first when the search is taken up again."""
        trial = self.trials.pop(job.name)
        self._seen.pop(job.name, None)
        self._report(job, trial)  # what it measured since the last look, for others to be compared with
        value = value_of(job.run_dir, self.metric) if outcome.state == "finished" else None
        if value is not None:
            self._tell(trial, value)
        else:
            self._tell(trial, state=TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL)
        super().ended(job, outcome)

    def _report(self, job: Job, trial: Trial) -> str | None:
        """Report the validations that Optuna does not know; why the run need not go on, if Optuna says so."""
        known, reason = _reported(trial), None
        for step, metrics in validations_of(job.run_dir):
            metric = self.metric or choose_metric(metrics)
            value = metrics.get(metric)
            if value is None or step in known:
                continue
            trial.report(value, step)
            if reason is None and trial.should_prune():
                pruner = type(self.study.pruner).__name__
                reason = f"{metric} {figure(metric, value)} after step {step}: {pruner} ended it"
        return reason

    def _tell(self, trial: Trial, value: float | None = None, state: TrialState | None = None) -> None:
        """Tell Optuna; a sampler that has nothing more to propose ends the search."""
        try:
            self.study.tell(trial, value, state=state)
        except RuntimeError as error:  # how it says so outside of its own loop, once the trial is written
            if "Study.stop" not in str(error):
                raise
            self._left = 0

    def _take_up(self) -> None:
        """Put what has no result, of a search that was left or whose runs failed, first in line."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
        waiting = [
            cast("dict[str, Any]", trial.system_attrs.get("fixed_params", {}))
            for trial in trials
            if trial.state == TrialState.WAITING
        ]
        known = [*(trial.params for trial in trials if trial.state in _DONE), *waiting]
        for trial in trials:
            if trial.params and trial.params not in known and _fits(trial, self.space):
                self.study.enqueue_trial(trial.params)
                known.append(trial.params)


def is_lower_better(metric: str | None, *, benchmarks: bool) -> bool:
    """Whether to look for low values of a metric, or of what `choose_metric` will choose.

    Args:
        metric: Its name, where it is known.
        benchmarks: Whether benchmarks are asked at validations.
    """
    return lower_is_better(metric) if metric is not None else not benchmarks


def _told(value: object) -> str:
    """A proposed value as an override: numbers with few digits, so that a run's name is its setting."""
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def _reported(trial: Trial) -> set[int]:
    return set(trial.storage.get_trial(trial._trial_id).intermediate_values)  # pyright: ignore[reportPrivateUsage]  # no public way


def _fits(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    return trial.distributions == dict(space)


def _keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write what does not differ, or compare it with what was written."""
    if path.is_file():
        check_settings(f"{path.parent} holds a search", json.loads(path.read_text(encoding="utf-8")), settings)
        return
    with written_aside(path) as aside:
        aside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
