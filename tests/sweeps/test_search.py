"""A search by Optuna over small processes: it finds, ends what falls behind, and goes on where it was left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.sweeps.standins import WAITS, job
from vlmkit.errors import ConfigError, Interrupted
from vlmkit.sweeps.naming import run_names
from vlmkit.sweeps.processes import LocalProcesses
from vlmkit.sweeps.running import run_jobs

optuna = pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from vlmkit.sweeps.search import Search, is_lower_better  # noqa: E402

GOOD = "validate(1, val_loss=2.0)\nvalidate(2, val_loss=1.0)\nfinish()"
BAD = "validate(1, val_loss=5.0)\n" + WAITS


def search(folder, code_of, space, num_trials, *, pruner=None, settings=None, metric=None, sampler=None):
    def make_job(values):
        (name,) = run_names([values], list(space))
        return job(folder, name, code_of(values), **values)

    return Search(
        directory=folder, metric=metric, lower=True, space=space, num_trials=num_trials,
        sampler=sampler or optuna.samplers.TPESampler(seed=0), pruner=pruner, settings=settings or {"seed": 0},
        make_job=make_job, write_page=lambda table, path: None,
    )  # fmt: skip


def run(found, num_parallel=1):
    launching = LocalProcesses(num_parallel=num_parallel, devices=None)
    run_jobs(found.jobs(), directory=Path(), launching=launching, watching=found, show_output=False)
    return {name: outcome.state for name, (_, outcome) in found.runs.items()}


def in_order(found, *values):
    """Let these values be proposed first."""
    for value in values:
        found.study.enqueue_trial({"x": value})
    return found


def test_values_have_few_digits_and_the_study_knows_what_came_of_them(tmp_path):
    code = "validate(1, val_loss=abs({x} - 0.003))\nfinish()"
    space = {"x": FloatDistribution(1e-4, 1e-1, log=True)}
    found = search(tmp_path, lambda values: code.format(**values), space, 6)
    states = run(found, num_parallel=2)
    assert list(states.values()) == ["finished"] * 6
    for trial in found.study.trials:
        told = f"{trial.params['x']:.4g}"
        assert (tmp_path / f"x-{told}").is_dir()
        assert trial.value == pytest.approx(abs(float(told) - 0.003))
    table = found.finish()
    assert table.best.score.value == pytest.approx(found.study.best_value)
    assert table.keys == {"x": "x"}


def test_a_run_that_falls_behind_is_ended(tmp_path):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    space = {"x": CategoricalDistribution(["a", "b", "c"])}
    order = iter([GOOD, GOOD, BAD])
    found = search(tmp_path, lambda _: next(order), space, 3, pruner=pruner)
    states = run(in_order(found, "a", "b", "c"))
    assert sorted(states.values()) == ["finished", "finished", "pruned"]
    assert [trial.state for trial in found.study.trials] == [
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.PRUNED,
    ]
    assert found.study.trials[0].intermediate_values == {1: 2.0, 2: 1.0}
    pruned = next(outcome for _, outcome in found.runs.values() if outcome.state == "pruned")
    assert pruned.error == "val/loss 5.0000 after step 1: MedianPruner ended it"
    table = found.finish()
    assert [row.rank for row in table.rows] == [1, 1, None]


def test_without_a_pruner_every_run_goes_to_its_end(tmp_path):
    space = {"x": CategoricalDistribution(["a", "b"])}
    order = iter([GOOD, "validate(1, val_loss=5.0)\nfinish()"])
    found = in_order(search(tmp_path, lambda _: next(order), space, 2), "a", "b")
    assert run(found) == {"x-a": "finished", "x-b": "finished"}


def test_a_search_goes_on_where_it_was_left(tmp_path):
    """A run is told to leave; it comes first when the search is taken up."""
    space = {"x": CategoricalDistribution(["a", "b", "c"])}
    first = in_order(search(tmp_path, lambda values: WAITS, space, 3), "b")
    first.stop_early = lambda one: os.kill(os.getpid(), signal.SIGTERM) if (one.run_dir / "ready").exists() else None
    with pytest.raises(Interrupted):
        run(first)
    (left,) = first.runs
    assert first.runs[left][1].state == "interrupted"
    second = search(tmp_path, lambda values: GOOD, space, 3)
    assert next(iter(second.jobs())).name == left
    second.trials.clear()
    third = in_order(search(tmp_path, lambda values: GOOD, space, 3), "a", "c")
    assert run(third) == dict.fromkeys(["x-a", "x-b", "x-c"], "finished")
    assert sum(trial.state == TrialState.COMPLETE for trial in third.study.trials) == 3
    fourth = search(tmp_path, lambda values: "sys.exit(1)", space, 3)
    assert list(fourth.jobs()) == [], "nothing is left"
    assert len(fourth.finish().rows) == 3


def test_a_failed_run_is_told_and_tried_again(tmp_path):
    space = {"x": CategoricalDistribution(["a", "b"])}
    order = iter(["sys.exit('vlmkit-train: broken')", GOOD])
    found = in_order(search(tmp_path, lambda _: next(order), space, 2), "a", "b")
    assert sorted(run(found).values()) == ["failed", "finished"]
    again = search(tmp_path, lambda _: GOOD, space, 2)
    assert set(run(again).values()) == {"finished"}


def test_values_that_were_tried_are_not_run_again(tmp_path):
    counts = "with (here / 'count').open('a') as file: file.write('x')\n"
    space = {"x": CategoricalDistribution(["a"])}
    found = search(tmp_path, lambda _: counts + GOOD, space, 3)
    assert run(found) == {"x-a": "finished"}
    assert (tmp_path / "x-a" / "count").read_text() == "x"
    assert [trial.value for trial in found.study.trials] == [1.0] * 3


def test_a_sampler_that_has_nothing_more_to_propose_ends_the_search(tmp_path):
    space = {"x": CategoricalDistribution(["a", "b"])}
    sampler = optuna.samplers.GridSampler({"x": ["a", "b"]}, seed=0)
    found = search(tmp_path, lambda _: GOOD, space, 10, sampler=sampler)
    assert run(found) == {"x-a": "finished", "x-b": "finished"}
    assert len(found.study.trials) == 2


def test_a_search_is_not_taken_up_with_other_settings(tmp_path):
    space = {"x": CategoricalDistribution(["a"])}
    search(tmp_path, lambda _: GOOD, space, 1, settings={"optim": {"decay": 0.0}})
    with pytest.raises(ConfigError, match=r"holds a search with other settings: optim\.decay was 0\.0, now 0\.1"):
        search(tmp_path, lambda _: GOOD, space, 1, settings={"optim": {"decay": 0.1}})


def test_the_direction_follows_from_what_is_measured():
    assert is_lower_better("val/loss", benchmarks=True)
    assert not is_lower_better("eval/shapes/exact_match", benchmarks=False)
    assert is_lower_better(None, benchmarks=False)
    assert not is_lower_better(None, benchmarks=True)
