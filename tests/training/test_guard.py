"""Losses that are not finite, and spikes: which step, which samples, and what becomes of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from vlmkit.training.callbacks.guard import GuardSettings, LossGuard, NonfiniteLossError, spike_limit
from vlmkit.training.callbacks.receipt import GradientReceipt
from vlmkit.training.callbacks.steplog import StepLog
from vlmkit.training.module import TrainingModule


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Eight rows of two packs' worth of images and text."""
    return write_manifest(tmp_path_factory.mktemp("rows"), 8, text_only=frozenset({1, 5}))


class Broken(TrainingModule):
    """Multiplies the loss of a pack by a number: what a bad sample, or a bad kernel, would do."""

    pack, factor = 2, float("nan")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch["pack"] == self.pack:
            self.token_losses = self.token_losses * self.factor
            loss = loss * self.factor
        return loss


class Endless(Broken):
    factor = float("inf")


class Weights(Callback):
    """A sum of all weights after each step."""

    def __init__(self):
        self.sums = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.sums):
            self.sums.append(sum(p.detach().double().sum().item() for p in pl_module.parameters()))


def settings(**changes):
    return GuardSettings(
        **{"on_nonfinite": "error", "max_skipped": 1, "spike_window": 20, "spike_threshold": 10.0} | changes
    )


def guard(data, out, **changes):
    return LossGuard(run_dir=out, settings=settings(**changes), origin_of=lambda row: str(data.index.origin(row)))


def told(out):
    return [json.loads(line) for line in (out / "suspects.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", [Broken, Endless])
def test_the_run_stops_and_names_the_samples_of_the_step(rows, tiny, cache, tmp_path, kind):
    data = prepared(rows, tiny.vision_language, cache)
    watch = guard(data, tmp_path)
    with pytest.raises(NonfiniteLossError, match=rf"Step 3: the loss is (nan|inf).*{rows}:5"):
        fit(data, tiny.vision_language, tmp_path, callbacks=[watch], kind=kind)
    bad, before = told(tmp_path)
    assert [sample["where"] for sample in bad["samples"]] == [f"{rows}:5", f"{rows}:6"]
    assert {sample["where"] for sample in before["samples"]} == {f"{rows}:3", f"{rows}:4"}
    assert all(sample["loss"] > 0 for sample in before["samples"])


def test_the_last_step_is_judged_too(rows, tiny, cache, tmp_path):
    data = prepared(rows, tiny.vision_language, cache)

    class Last(Broken):
        pack = 3

    with pytest.raises(NonfiniteLossError, match="Step 4"):
        fit(data, tiny.vision_language, tmp_path, callbacks=[guard(data, tmp_path)], kind=Last)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_leaves_the_weights_and_is_counted(rows, tiny, cache, tmp_path, accumulate):
    """Weights, moments and decay: with decay on, a step of zero gradients would move them."""
    data = prepared(rows, tiny.vision_language, cache)
    watch, weights = guard(data, tmp_path, on_nonfinite="skip"), Weights()
    log = StepLog(
        path=tmp_path / "train.jsonl", every_n_steps=1, num_steps=lambda: 4 // accumulate, source_names=["rows"],
        epoch_at=float, progress=False,
    )  # fmt: skip
    callbacks = [watch, GradientReceipt(steps_with_media=10), log, weights]
    fit(
        data,
        tiny.vision_language,
        tmp_path,
        callbacks=callbacks,
        kind=Broken,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
    )
    bad = {1: 3, 2: 2}[accumulate]
    assert watch.report() == {"skipped_steps": 1, "skipped": [bad], "loss_spikes": 0}
    sums = weights.sums
    assert sums[bad - 1] == sums[bad - 2]
    assert len(set(sums)) == len(sums) - 1
    written = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert all(line["loss"] == line["loss"] for line in written), "no NaN in the log"
    assert written[bad - 1]["grad_norm"] == {"vision_encoder": None, "merger": None, "language_model": None}


def test_more_than_so_many_are_an_error(rows, tiny, cache, tmp_path):
    data = prepared(rows, tiny.vision_language, cache)
    with pytest.raises(NonfiniteLossError, match=r"1th step.*guard\.max_skipped=0"):
        fit(
            data,
            tiny.vision_language,
            tmp_path,
            callbacks=[guard(data, tmp_path, on_nonfinite="skip", max_skipped=0)],
            kind=Broken,
        )


def test_a_spike_is_told_with_its_samples_highest_first(rows, tiny, cache, tmp_path):
    data = prepared(rows, tiny.vision_language, cache, epochs=7)

    class Spike(Broken):
        pack, factor = 25, 3.0

    watch = guard(data, tmp_path)
    fit(data, tiny.vision_language, tmp_path, callbacks=[watch], kind=Spike, lr=0.0)
    (spike,) = told(tmp_path)
    assert (spike["step"], spike["kind"]) == (26, "spike")
    assert spike["loss"] > spike["median"] * 2
    assert {sample["where"] for sample in spike["samples"]} == {f"{rows}:3", f"{rows}:4"}
    losses = [sample["loss"] for sample in spike["samples"]]
    assert losses == sorted(losses, reverse=True)
    assert watch.report()["loss_spikes"] == 1


def test_the_limit_is_moved_by_what_is_usual_and_hardly_by_a_spike():
    usual = [1.0, 1.1, 0.9, 1.05, 0.95] * 4
    assert spike_limit(usual, 10.0) == pytest.approx(1.0 + 10 * 1.4826 * 0.05)
    assert spike_limit([*usual, 1000.0], 10.0) < 2.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_nonfinite": "ignore"}, "error or skip"),
        ({"spike_window": 3}, "at least 20"),
        ({"spike_threshold": 0}, "positive"),
        ({"max_skipped": -1}, "negative"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_what_is_usual_and_what_was_skipped_survive_a_resume(rows, tiny, cache, tmp_path):
    data = prepared(rows, tiny.vision_language, cache)
    first, second = guard(data, tmp_path), guard(data, tmp_path)
    first.window.extend([1.0, 2.0])
    first.skipped, first.spikes = [7], 3
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert list(second.window) == [1.0, 2.0]
    assert second.report() == {"skipped_steps": 1, "skipped": [7], "loss_spikes": 3}
