"""Kills, signals, a full disk: what a run leaves behind is always enough to go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import forked
from tests.training.conftest import lines, small, start, write_manifest

COMPARED = ("step", "epoch", "loss", "lr", "grad_norm", "supervised_tokens", "tokens", "patches", "samples")
SETTINGS = ["trainer.max_epochs=2", "save.every_n_steps=2", "data.batch_size=3", "trainer.accumulate_grad_batches=2"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits set from outside")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest"), 24, text_only=frozenset({1, 6, 11, 17}))


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    """A run that nothing befell, and its touches of files."""
    folder = tmp_path_factory.mktemp("whole")
    count = forked.CountEvents(folder / "run", folder / "events")
    process = forked.start(*small(manifest, folder / "run", *SETTINGS), output=folder / "out", first=count)
    process.join(120)
    assert process.exitcode == 0, (folder / "out").read_text()
    return folder / "run", (folder / "events").read_text().splitlines()


def same_as(whole: Path, run_dir: Path) -> None:
    """The weights bit for bit, and the log."""
    one, other = (load_file(place / "hf" / "model.safetensors") for place in (whole, run_dir))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    wanted, found = ([[line[key] for key in COMPARED] for line in lines(place)] for place in (whole, run_dir))
    assert found == wanted
    assert [path.name for path in (run_dir / "checkpoints").glob(".*")] == [], "nothing half written is left"


def finish(manifest: Path, run_dir: Path, output: Path, *more: str) -> str:
    return forked.run(*small(manifest, run_dir, *SETTINGS, "resume_from=auto", *more), output=output)


def moments(events: list[str]) -> list[int]:
    """Five touches of files drawn by chance, three of them while a checkpoint is written."""
    chance = random.Random(0)
    saving = [number for number, event in enumerate(events, 1) if "step-" in event]
    return [*chance.sample(saving, 3), *chance.sample(range(10, len(events)), 2)]


@pytest.mark.parametrize("moment", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))])
def test_killed_at_a_touch_of_a_file(manifest, whole, tmp_path, moment):
    run_dir, event = tmp_path / "run", moments(whole[1])[moment]
    killed = forked.start(
        *small(manifest, run_dir, *SETTINGS), output=tmp_path / "out", first=forked.KillAt(run_dir, event)
    )
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "out").read_text()
    finish(manifest, run_dir, tmp_path / "again")
    same_as(whole[0], run_dir)


@pytest.mark.parametrize("moment", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))])
def test_killed_at_a_moment_of_its_time(manifest, whole, tmp_path, moment):
    """Some seconds after the first step was logged; odd moments: once a checkpoint has begun to be written."""
    run_dir = tmp_path / "run"
    process = forked.start(*small(manifest, run_dir, *SETTINGS), output=tmp_path / "out")
    while process.is_alive() and not _begun(run_dir, writing=moment % 2 == 1):
        process.join(0.002)
    process.join(0 if moment % 2 else random.Random(moment).uniform(0, 2))
    process.kill()
    process.join()
    finish(manifest, run_dir, tmp_path / "again")
    same_as(whole[0], run_dir)


def _begun(run_dir: Path, *, writing: bool) -> bool:
    if writing:
        return any(path.stat().st_size for path in _quietly(run_dir / "checkpoints", ".*.writing"))
    return (run_dir / "train.jsonl").exists()


def _quietly(folder: Path, pattern: str) -> list[Path]:
    found = []
    for path in folder.glob(pattern):
        try:
            path.stat()
        except FileNotFoundError:
            continue
        found.append(path)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_leaves_a_run_that_goes_on(manifest, whole, tmp_path, number):
    run_dir = tmp_path / "run"
    process = forked.start(*small(manifest, run_dir, *SETTINGS, "save.every_n_steps=null"), output=tmp_path / "out")
    while process.is_alive() and not (run_dir / "train.jsonl").exists():
        process.join(0.002)
    os.kill(process.pid, number)
    process.join(120)
    told = (tmp_path / "out").read_text()
    assert process.exitcode == 75, told
    saved = [path.name for path in (run_dir / "checkpoints").iterdir()]
    assert len(saved) == 1
    step = int(saved[0][5:11])
    assert f"{number.name}: saved after step {step}" in told
    assert f"run_dir={run_dir} resume_from=auto" in told
    assert "Traceback" not in told
    assert lines(run_dir)[-1]["step"] == step < 8
    finish(manifest, run_dir, tmp_path / "again", "save.every_n_steps=null")
    same_as(whole[0], run_dir)


def test_a_full_disk_is_told_and_the_last_good_checkpoint_stands(manifest, whole, tmp_path):
    """No file may grow beyond a limit set from outside once the first checkpoint stands: writes fail as on a full disk."""
    run_dir = tmp_path / "run"
    process = forked.start(*small(manifest, run_dir, *SETTINGS), output=tmp_path / "out")
    while process.is_alive() and not (run_dir / "checkpoints" / "step-000002.ckpt").exists():
        process.join(0.002)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    process.join(120)
    told = (tmp_path / "out").read_text()
    good = run_dir / "checkpoints" / "step-000002.ckpt"
    assert process.exitcode == 1, told
    assert "step-000004.ckpt: could not be written" in told
    assert f"The newest good checkpoint is {good}." in told
    assert "continue with resume_from=auto" in told
    assert "Traceback" not in told
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [good.name]
    finish(manifest, run_dir, tmp_path / "again")
    same_as(whole[0], run_dir)


def test_minutes_save_too_and_the_newest_are_kept(manifest, tmp_path):
    settings = ["trainer.max_steps=5", "save.every_n_steps=null", "save.every_minutes=0.00001", "save.keep=3"]
    forked.run(*small(manifest, tmp_path / "run", *settings), output=tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-{step:06d}.ckpt" for step in (3, 4, 5)]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(manifest, tmp_path):
    run_dir = tmp_path / "run"
    told = forked.run(
        *small(manifest, run_dir, "optim.lr=1e30", "optim.warmup_ratio=0", "save.every_n_steps=1"),
        output=tmp_path / "out",
        status=1,
    )
    assert "Step 2: the loss is nan." in told
    assert "guard.on_nonfinite=skip" in told
    assert "Traceback" not in told
    bad, before = (json.loads(line) for line in (run_dir / "suspects.jsonl").read_text().splitlines())
    assert (bad["step"], bad["kind"], bad["loss"]) == (2, "nonfinite", "nan")
    assert (before["step"], before["kind"]) == (1, "before_nonfinite")
    assert len(bad["samples"]) == 2
    assert all(sample["where"].startswith(f"{manifest}:") for sample in bad["samples"])
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-000001.ckpt"], "nothing bad is saved"


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_all_and_another_number_of_ranks_finishes(manifest, tmp_path):
    """Two real processes; every sample is trained exactly once, before the signal or after it."""
    run_dir = tmp_path / "run"
    settings = ["data.batch_size=1", "save.every_n_steps=null"]
    process = start(
        "train", *small(manifest, run_dir, *settings, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    )
    while process.poll() is None and not (run_dir / "train.jsonl").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "SIGUSR1: saved after step" in told
    assert "Traceback" not in told
    done = lines(run_dir)[-1]["step"]
    assert done < 12
    told = forked.run(*small(manifest, run_dir, *settings, "resume_from=auto"), output=tmp_path / "out")
    steps = lines(run_dir)
    assert [line["step"] for line in steps] == list(range(1, done + 24 - 2 * done + 1))
    assert sum(line["samples"] for line in steps) == 24
