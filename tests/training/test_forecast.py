"""Steps are exact, what a pack takes follows from what others took, and what is not known is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from vlmkit.data.dealing import Steps
from vlmkit.training.callbacks.prediction import StartForecast
from vlmkit.training.forecast import (
    Ranks,
    first_and_later,
    fitted_seconds,
    heaviest,
    memory_of_a_rank,
    step_seconds,
    time_notes,
    timed_packs,
    told,
)
from vlmkit.training.rehearsal import Calibration, Rehearsal

GIB = 2**30


class Plan:
    """The counts of six packs, and nothing else of a plan."""

    num_tokens = np.array([90, 80, 100, 20, 80, 60])
    num_patches = np.array([400, 100, 0, 40, 120, 80])
    num_supervised_tokens = np.array([3, 4, 5, 20, 1, 2])

    def __len__(self):
        return 6


def steps(packs, accumulate=1, start_pack=0) -> Steps:
    array = np.array(packs)
    num_steps = -(-len(array) // accumulate)
    return Steps(
        plan=Plan(), start_pack=start_pack, accumulate=accumulate, packs=array,
        step_supervised_tokens=np.ones(num_steps, dtype=np.int64),
    )  # fmt: skip


def rehearsal(**changes) -> Rehearsal:
    one = Calibration(
        pack=0, tokens=1000, patches=400, supervised=50, seconds=(2.0, 3.0, 2.5), cpu_seconds=(1.9, 2.0, 2.1), load_seconds=0.1,
    )  # fmt: skip
    settings = {"calibrations": (one,), "update_seconds": 0.1, "resting_bytes": 3 * GIB, "peak_bytes": 7 * GIB}
    return Rehearsal(**settings | changes)


def test_seconds_follow_a_line_through_the_calibrations():
    assert fitted_seconds([100, 200, 300], [1.2, 2.2, 3.2], np.array([100.0, 1000.0])) == pytest.approx([1.2, 10.2])
    assert fitted_seconds([100], [1.2], np.array([50.0])) == pytest.approx([0.6])
    falling = fitted_seconds([100, 300], [2.0, 1.0], np.array([100.0]))
    assert falling == pytest.approx([0.75]), "noise: in proportion"


def test_ranks_wait_for_the_slowest_in_every_micro_batch():
    dealt = steps([[0, 1], [2, 3], [4, -1]], accumulate=2)
    assert step_seconds(dealt, np.array([1.0, 5.0, 2.0, 1.0, 3.0, 0.0])).tolist() == [7.0, 3.0]


def test_the_first_step_is_rehearsed_as_the_first_and_the_heaviest_of_the_others_after_it():
    """The first step, often the heaviest of all, finds no optimiser state and no gradients in memory; later ones do."""
    dealt = steps([[0], [1], [2], [3], [4], [5]])
    first, later = first_and_later(dealt, fresh=True)
    assert (first, later.tolist()) == (0, [1, 2, 3, 4, 5])
    assert heaviest(dealt, later) == [4, 2, 3], "by weight and patches, tokens, supervised tokens"
    assert timed_packs(dealt, later, 2) == [4, 3]
    assert timed_packs(dealt, later, 1) == [4]
    first, later = first_and_later(dealt, fresh=False)
    assert (first, len(later)) == (None, 6), "a resumed run has its state already"
    assert heaviest(dealt, later)[0] == 0


def test_a_run_of_one_step_rehearses_that():
    first, later = first_and_later(steps([[1, 0], [2, 3], [4, 5]], accumulate=3), fresh=True)
    assert first == 0
    assert sorted(later.tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("measured", [1, 8])
def test_memory_of_ranks_that_share_a_model_is_that_of_the_one_that_was_measured(measured):
    """One process in the place of the first rank keeps what that keeps; it is said that it was alone."""
    ranks = Ranks(number=8, measured=measured, sharing="model")
    peak, resting, notes = memory_of_a_rank(rehearsal(), ranks, GIB, on_cpu=False)
    assert (peak, resting) == (7 * GIB, 3 * GIB)
    assert ("this process kept what the first of 8 ranks keeps" in notes[0]) == (measured == 1)


@pytest.mark.parametrize(("measured", "on_cpu", "more"), [(1, False, 1), (1, True, 1), (2, True, 1), (2, False, 0)])
def test_gradients_stand_twice_where_ranks_exchange_them(measured, on_cpu, more):
    """On CUDA the buckets of an exchange are in memory once it is set up; a CPU does not hold them until they are used."""
    ranks = Ranks(number=2, measured=measured, sharing="gradients")
    peak, resting, notes = memory_of_a_rank(rehearsal(), ranks, GIB, on_cpu=on_cpu)
    assert (peak, resting) == ((7 + more) * GIB, (3 + more) * GIB)
    assert ("1.00 GiB of it for the exchange of gradients" in notes[0]) == bool(more)


def test_where_memory_is_not_measured_it_is_said():
    nothing = rehearsal(peak_bytes=None, resting_bytes=None)
    assert memory_of_a_rank(nothing, Ranks(number=1, measured=1, sharing="nothing"), 0, on_cpu=True) == (
        None,
        None,
        ["Peak memory is not measured on this system."],
    )


def test_what_the_time_leaves_out_is_said():
    def notes(share=1.0, update=0.1, on_cpu=True, **ranks):
        found = Ranks(**{"number": 2, "measured": 2, "sharing": "gradients"} | ranks)
        return " ".join(time_notes(rehearsal(update_seconds=update), found, share, on_cpu=on_cpu))

    assert notes(number=1, measured=1, sharing="nothing") == ""
    assert "exchange of gradients is not in the time" in notes()
    assert "shared the model as in training" in notes(sharing="model")
    assert "One process ran alone, 2 will train" in notes(measured=1)
    assert "share the processors of this machine" in notes(measured=1)
    assert "processors" not in notes(measured=1, on_cpu=False, share=None)
    assert "updates are not in the time" in notes(update=None)
    assert "this process got 25% of a processor" in notes(share=0.25)


class Before(Callback):
    """Remembers what a forecast might change; its hook runs first."""

    def on_train_start(self, trainer, pl_module):
        self.weights = [p.detach().clone() for p in pl_module.parameters()]
        self.rng = torch.get_rng_state()
        self.groups = [dict(group) for group in trainer.optimizers[0].param_groups]


class After(Callback):
    """Looks whether it did; its hook runs last."""

    def __init__(self, before):
        self.before = before
        self.looked = False

    def on_train_start(self, trainer, pl_module):
        for parameter, was in zip(pl_module.parameters(), self.before.weights, strict=True):
            assert torch.equal(parameter, was)
            assert parameter.grad is None
        optimizer = trainer.optimizers[0]
        assert not optimizer.state
        assert [dict(group) for group in optimizer.param_groups] == self.before.groups
        assert torch.equal(torch.get_rng_state(), self.before.rng)
        self.looked = True


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_forecast_changes_nothing_counts_the_steps_and_stands_beside_what_followed(tiny, cache, tmp_path, precision):
    data = prepared(write_manifest(tmp_path, 8), tiny.vision_language, cache, batch_size=1, epochs=3)
    before, made = Before(), StartForecast(packs=2, rounds=2)
    after = After(before)
    fit(
        data, tiny.vision_language, tmp_path, callbacks=[before, made, after], precision=precision,
        accumulate_grad_batches=2,
    )  # fmt: skip
    assert after.looked
    found, followed = made.made, made.followed
    assert (found.num_steps, found.num_packs) == (12, 24)
    assert found.peak_bytes > found.resting_bytes > 0
    assert found.fastest_seconds <= found.seconds <= found.slowest_seconds
    assert found.epoch_seconds == pytest.approx(found.seconds / 3, rel=0.01)
    assert [len(one.seconds) for one in found.calibrations] == [2, 2]
    assert found.calibrations[0].tokens >= found.calibrations[1].tokens
    assert found.update_seconds > 0
    assert followed["steps"] == 12
    assert followed["epoch_seconds"] == pytest.approx(followed["seconds"] / 3, rel=0.01)
    assert found.peak_bytes == pytest.approx(followed["peak_bytes"], rel=0.15)
    assert "Forecast: 12 steps in " in found.to_text()
    assert "2 packs, 2 times after warming up" in found.to_text()
    assert found.to_json()["calibrations"][0]["tokens"] == found.calibrations[0].tokens


def test_the_epoch_is_told_where_the_steps_end_before_it(tiny, cache, tmp_path):
    data = prepared(write_manifest(tmp_path, 8), tiny.vision_language, cache, batch_size=1)
    data.plan_packs(num_epochs=None, max_packs=4)
    made = StartForecast(packs=1, rounds=1)
    fit(data, tiny.vision_language, tmp_path, callbacks=[made])
    tokens = sum(data.index.num_tokens.tolist())
    assert data.epoch_counts()[0] == tokens > sum(data.plan.num_tokens.tolist())
    assert made.made.num_packs == 4
    assert 1.5 < made.made.epoch_seconds / made.made.seconds < 3


def test_time_that_was_no_training_is_left_out_of_what_followed(tiny, cache, tmp_path):
    data = prepared(write_manifest(tmp_path, 4), tiny.vision_language, cache, batch_size=2)
    made = StartForecast(packs=1, rounds=1)
    made.pause(3600.0)
    fit(data, tiny.vision_language, tmp_path, callbacks=[made])
    assert made.followed["seconds"] < 0


@pytest.mark.parametrize("name", ["packs", "rounds"])
def test_less_than_one_is_refused(name):
    with pytest.raises(ValueError, match=rf"callbacks.forecast.{name} must be at least 1, got 0"):
        StartForecast(**{"packs": 1, "rounds": 1} | {name: 0})


def test_time_in_words():
    assert [told(seconds) for seconds in (0.042, 4.2, 42, 720, 12_240)] == ["42 ms", "4.2 s", "42 s", "12 min", "3.4 h"]
