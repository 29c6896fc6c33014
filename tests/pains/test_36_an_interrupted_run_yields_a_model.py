"""An interrupted run leaves no model in the usual format: every command takes its checkpoints, a file or sharded."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.training import forked
from tests.training.conftest import run, small, write_manifest
from vlmkit.cli.checkpoints import exported, locate_model
from vlmkit.training.shards import read_whole

SHARED = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("manifest"), 16)


def interrupted(manifest, folder, *more):
    """The directory of a run that was killed once its second step was saved."""
    settings = small(manifest, folder / "run", "save.every_n_steps=1", "save.keep=0", "callbacks.forecast=null", *more)
    process = forked.start(*settings, output=folder / "out")
    second = folder / "run" / "checkpoints" / "step-000002.ckpt"
    while not second.exists():
        assert process.is_alive(), (folder / "out").read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (folder / "run" / "hf").exists()
    return folder / "run"


@pytest.mark.parametrize("more", [[], pytest.param(SHARED, marks=pytest.mark.slow)], ids=["file", "sharded"])
def test_the_model_holds_the_checkpoint_bit_for_bit(manifest, tmp_path, more):
    run_dir = interrupted(manifest, tmp_path, *more)
    checkpoint = run_dir / "checkpoints" / "step-000001.ckpt"
    assert checkpoint.is_dir() == bool(more)
    directory = exported(locate_model(checkpoint, key="ckpt"), otherwise=tmp_path / "elsewhere")
    assert directory == run_dir / "checkpoints" / "hf_step-000001"
    state = (read_whole(checkpoint) if more else torch.load(checkpoint, weights_only=True))["state_dict"]
    held = {name.removeprefix("model.hf."): tensor for name, tensor in state.items()}
    held.pop("lm_head.weight", None)  # tied
    written = load_file(directory / "model.safetensors")
    assert held.keys() == written.keys()
    assert all(torch.equal(held[name], written[name]) for name in held)


def test_the_run_is_evaluated_talked_with_and_trained_on(manifest, tmp_path):
    run_dir = interrupted(manifest, tmp_path)
    newest = max((run_dir / "checkpoints").glob("step-*.ckpt"))
    output = run("eval", f"ckpt={run_dir}", "max_samples_per_benchmark=4", "max_new_tokens=3", "progress=false")
    exported_to = run_dir / "checkpoints" / f"hf_{newest.stem}"
    assert f"{newest}: exported to {exported_to}." in output
    summary = json.loads((run_dir / "eval" / "summary.json").read_text())
    assert summary["checkpoint"]["path"] == str(exported_to)
    written = (exported_to / "vlmkit.json").stat().st_mtime_ns
    run("chat", f"ckpt={newest}", "question=What?", "max_new_tokens=3")
    again = [f"init_from={newest}", f"run_dir={tmp_path / 'next'}", "trainer.max_steps=1", "log.progress=false"]
    output = run("train", *again, "callbacks.forecast=null")
    assert f"Taken over from {run_dir}: data=llava, model=tiny" in output
    assert (exported_to / "vlmkit.json").stat().st_mtime_ns == written, "exported once, and used again"
    assert (tmp_path / "next" / "hf" / "config.json").is_file()
