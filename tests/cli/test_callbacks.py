"""Stock callbacks of Lightning, given by config: they find metrics, stop runs and save checkpoints that resume."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.training import forked
from tests.training.conftest import lines, small, write_manifest

STOCK = "lightning.pytorch.callbacks"
QUICK = ["callbacks.forecast=null", "validate.samples=0", "data.validation=0.25", "validate.every_n_steps=1"]


class Watcher(Callback):
    """Writes down, at each hook, what `callback_metrics` holds."""

    def __init__(self, *, path: str) -> None:
        self.path = path

    def _write(self, trainer, hook):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"hook": hook, "step": trainer.global_step, "metrics": metrics}) + "\n")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._write(trainer, "batch")

    def on_validation_start(self, trainer, pl_module):
        self._write(trainer, "start")

    def on_validation_end(self, trainer, pl_module):
        self._write(trainer, "end")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("manifest"), 16)


@pytest.fixture(scope="module")
def watched(manifest, tmp_path_factory):
    """A run with Lightning's ModelCheckpoint and a watcher of our own."""
    folder = tmp_path_factory.mktemp("watched")
    forked.run(
        *small(manifest, folder / "run", *QUICK, "save.every_n_steps=1", "save.keep=0", "optim.lr=1e-2"),
        f"+callbacks.watcher={{_target_: tests.cli.test_callbacks.Watcher, path: {folder / 'seen'}}}",
        f"+callbacks.top={{_target_: {STOCK}.ModelCheckpoint, monitor: val/loss, save_top_k: 2, filename: '{{step}}'}}",
        output=folder / "out",
    )
    return folder / "run", [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


def test_callbacks_find_every_logged_figure_and_every_metric(watched):
    run_dir, seen = watched
    validations = [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]
    logged = lines(run_dir)
    assert [(one["hook"], one["step"]) for one in seen] == [
        (hook, line["step"]) for line in logged for hook in ("batch", "start", "end")
    ]
    for number, line in enumerate(logged):
        batch, start, end = seen[3 * number : 3 * number + 3]
        for name in ("loss", "tokens_per_second", "epoch"):
            assert batch["metrics"][f"train/{name}"] == pytest.approx(line[name], rel=1e-6)
        assert end["metrics"]["val/loss"] == pytest.approx(validations[number]["metrics"]["val/loss"], rel=1e-6)
        assert ("val/loss" in start["metrics"]) == (number > 0)


def test_its_best_checkpoints_are_the_best_and_resume(watched, manifest, tmp_path):
    run_dir, _ = watched
    validations = [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]
    best = sorted(validations, key=lambda line: line["metrics"]["val/loss"])[:2]
    kept = [path.name for path in (run_dir / "checkpoints").glob("*.ckpt") if "=" in path.name]
    assert sorted(kept) == sorted(f"step={line['step']}.ckpt" for line in best)
    step = min(line["step"] for line in best)
    place = run_dir / "checkpoints" / f"step={step}.ckpt"
    ours = torch.load(run_dir / "checkpoints" / f"step-{step:06d}.ckpt", weights_only=True)["state_dict"]
    theirs = torch.load(place, weights_only=True)["state_dict"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    forked.run(
        *small(manifest, tmp_path / "run", *QUICK, "optim.lr=1e-2", f"resume_from='{place}'"), output=tmp_path / "out"
    )
    rest = [line["loss"] for line in lines(run_dir) if line["step"] > step]
    assert rest
    assert [line["loss"] for line in lines(tmp_path / "run")] == rest


def test_early_stopping_ends_a_run_that_is_saved_and_exported(manifest, tmp_path):
    forked.run(
        *small(manifest, tmp_path / "run", *QUICK, "save.every_n_steps=null", "trainer.max_epochs=3"),
        f"+callbacks.stop={{_target_: {STOCK}.EarlyStopping, monitor: val/loss, patience: 2, min_delta: 1000.0}}",
        output=tmp_path / "out",
    )
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    assert (tmp_path / "run" / "checkpoints" / "step-000003.ckpt").is_file()
    assert (tmp_path / "run" / "hf" / "config.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [f"+callbacks.stop={{_target_: {STOCK}.EarlyStopping, monitor: val/loss}}"],
            "EarlyStopping monitors val/loss, which is not measured in this run. Measured: nothing",
        ),
        (
            [f"+callbacks.stop={{_target_: {STOCK}.EarlyStopping, monitor: train/loss}}"],
            "EarlyStopping looks at train/loss at each validation, and there are none in this run. Set data.validation",
        ),
        (
            [f"+callbacks.top={{_target_: {STOCK}.ModelCheckpoint, monitor: val_loss}}", "data.validation=0.25"],
            "ModelCheckpoint monitors val_loss, which is not measured in this run. Measured: val/loss",
        ),
    ],
)
def test_what_is_never_measured_is_refused(manifest, tmp_path, overrides, message):
    output = forked.run(*small(manifest, tmp_path / "run", *overrides), output=tmp_path / "out", status=1)
    assert message in output
    assert "Traceback" not in output
