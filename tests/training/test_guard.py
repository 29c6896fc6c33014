"""Losses that are not finite, and spikes: which step, which samples, and what becomes of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from tests.training.test_state import checkpointer
from vlmkit.errors import CheckpointError
from vlmkit.training.callbacks.average import WeightAverage
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


class Torn(TrainingModule):
    """A pack whose loss is fine and whose gradient is not: what an overflow in a backward does."""

    pack, value = 2, float("nan")

    def training_step(self, batch, batch_idx):
        self.torn = batch["pack"] == self.pack
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        if self.torn:
            next(p for p in self.parameters() if p.requires_grad).grad.view(-1)[-1] = self.value


class Infinite(Torn):
    value = float("inf")


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


@pytest.mark.parametrize("kind", [Torn, Infinite])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_is_never_saved(rows, tiny, cache, tmp_path, kind, clip):
    """The loss of its step is finite, its update ruins the weights, and the step is one that would be saved."""
    data = prepared(rows, tiny.vision_language, cache)
    watch = guard(data, tmp_path)
    saver = checkpointer(data, tmp_path, keep=1, before_save=watch.settle)
    message = rf"Step 3: the gradient's norm is (nan|inf) \(the loss is \d.*{rows}:5.*resume_allow=\[optim\]"
    with pytest.raises(NonfiniteLossError, match=message):
        fit(data, tiny.vision_language, tmp_path, callbacks=[watch, saver], kind=kind, gradient_clip_val=clip)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert kept.name == "step-000002.ckpt"
    assert all(t.isfinite().all() for t in torch.load(kept, weights_only=True)["state_dict"].values())
    bad, _ = told(tmp_path)
    assert (bad["step"], bad["kind"]) == (3, "nonfinite")
    assert all(sample["loss"] > 0 for sample in bad["samples"])


def test_a_gradient_that_is_not_finite_is_found_at_a_step_that_is_not_saved(rows, tiny, cache, tmp_path):
    data = prepared(rows, tiny.vision_language, cache)

    class First(Torn):
        pack = 0

    with pytest.raises(NonfiniteLossError, match="Step 1: the gradient's norm is nan"):
        fit(data, tiny.vision_language, tmp_path, callbacks=[guard(data, tmp_path)], kind=First)


def test_a_skipped_gradient_leaves_weights_that_are_saved(rows, tiny, cache, tmp_path):
    data = prepared(rows, tiny.vision_language, cache)
    watch, weights = guard(data, tmp_path, on_nonfinite="skip"), Weights()
    saver = checkpointer(data, tmp_path, before_save=watch.settle)
    fit(data, tiny.vision_language, tmp_path, callbacks=[watch, weights, saver], kind=Torn)
    assert watch.report()["skipped"] == [3]
    assert weights.sums[2] == weights.sums[1] != weights.sums[3]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


class Ruin(Callback):
    """Makes one number of a weight, or of its running average, infinite after a step, without a trace in loss or gradient."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            name, weight = next((name, p) for name, p in pl_module.named_parameters() if p.requires_grad)
            tensor = weight if self.what == "weight" else pl_module.averages[name]
            tensor.detach().view(-1)[-1] = float("inf")


@pytest.mark.parametrize(("what", "name"), [("weight", "model.hf."), ("average", "averages.model.hf.")])
def test_weights_are_looked_at_before_they_are_saved(rows, tiny, cache, tmp_path, what, name):
    data = prepared(rows, tiny.vision_language, cache)
    saver = checkpointer(data, tmp_path, keep=1)
    callbacks = [WeightAverage(decay=0.5, export=False), Ruin(2, what), saver]
    good = tmp_path / "checkpoints" / "step-000001.ckpt"
    message = (
        rf"step-000002\.ckpt: not written, because 1 trained tensors hold NaN or infinity \(the first: {name}.*{good}"
    )
    with pytest.raises(CheckpointError, match=message):
        fit(data, tiny.vision_language, tmp_path, callbacks=callbacks)
    assert list((tmp_path / "checkpoints").iterdir()) == [good]


class Waits(TorchDispatchMode):
    """Counts the times that a number is read on the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_judging_a_gradient_waits_for_nothing(rows, tiny, cache, tmp_path):
    """Clipping and judging read no number; the norm is that of all gradients, before clipping."""
    data = prepared(rows, tiny.vision_language, cache)
    module = fit(data, tiny.vision_language, tmp_path, callbacks=[])
    parameters = [p for p in module.parameters() if p.requires_grad]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(number))
    wanted = sum(number**2 * p.numel() for number, p in enumerate(parameters)) ** 0.5
    with Waits() as waits:
        module.configure_gradient_clipping(module.optimizers(), 1.0, "norm")
    assert waits.count == 0
    assert float(module.grad_norm) == pytest.approx(wanted, rel=1e-3)  # fp32 sums of many equal squares
    assert float(torch.nn.utils.get_total_norm([p.grad for p in parameters])) == pytest.approx(1.0, rel=1e-4)
    with Waits() as waits:
        float(module.grad_norm)
    assert waits.count == 1, "the count counts"


@pytest.mark.parametrize(("how", "largest"), [("value", 0.5), (None, 3.0)])
def test_other_ways_of_clipping_are_as_asked_for(rows, tiny, cache, tmp_path, how, largest):
    data = prepared(rows, tiny.vision_language, cache)
    module = fit(data, tiny.vision_language, tmp_path, callbacks=[])
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    module.configure_gradient_clipping(module.optimizers(), 0.5 if how else None, how)
    assert {float(p.grad.max()) for p in module.parameters()} == {largest}
    assert module.grad_norm.isfinite()


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
