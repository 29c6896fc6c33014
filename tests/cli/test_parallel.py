"""Several processes as users start them: shared models, torchrun, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import forked
from tests.training.conftest import REPOSITORY, environment, lines, ranks_below, run, small, start, write_manifest
from tests.training.test_together import free_port
from vlmkit.training.state import newest_checkpoint

LAUNCH = REPOSITORY / "scripts" / "launch.sh"
TWO = ["trainer.devices=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """16 rows, three of them text only."""
    return write_manifest(tmp_path_factory.mktemp("manifest"), 16, text_only=frozenset({1, 6, 11}))


@pytest.fixture(scope="module")
def alone(manifest, tmp_path_factory) -> Path:
    """What one process makes of two packs a step."""
    run_dir = tmp_path_factory.mktemp("alone")
    run("train", *small(manifest, run_dir, "trainer.accumulate_grad_batches=2"))
    return run_dir


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in lines(run_dir)]


@pytest.mark.slow
def test_a_shared_model_takes_the_place_of_a_single_one_and_its_end_is_resumed(manifest, tmp_path):
    """A file stands where the checkpoint's directory goes; and nothing is left to train when the run is called again."""
    run("train", *small(manifest, tmp_path, "trainer.max_steps=2", "save.every_n_steps=1", "save.keep=0"))
    assert (tmp_path / "checkpoints" / "step-000002.ckpt").is_file()
    shared = small(
        manifest, tmp_path, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=2"
    )
    assert "Resume that run by resume_from=auto, name another run_dir" in run("train", *shared, status=1)
    run("train", *shared, f"resume_from={tmp_path / 'checkpoints' / 'step-000001.ckpt'}")
    assert (tmp_path / "checkpoints" / "step-000002.ckpt" / "meta.pt").is_file()
    assert "Nothing is left to train" in run("train", *shared, "resume_from=auto")


@pytest.mark.slow
def test_a_shared_model_resumes_on_another_number_of_ranks(manifest, alone, tmp_path):
    run_dir = tmp_path / "run"
    run("train", *small(manifest, run_dir, "trainer=fsdp", *TWO, "save.every_n_steps=2", "save.keep=0"), cwd=tmp_path)
    assert losses(run_dir) == pytest.approx(losses(alone), rel=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "a rank wrote somewhere else"
    assert not list(run_dir.glob(".*")), "nothing hidden is left"
    one, other = (load_file(place / "hf" / "model.safetensors") for place in (alone, run_dir))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4
    (run_dir / "checkpoints" / "step-000004.ckpt" / "meta.pt").unlink()  # as if it were half written
    for name in ("step-000003.ckpt", "step-000004.ckpt"):
        place = run_dir / "checkpoints" / name
        if place.exists():
            place.rename(place.with_name(f".{name}.writing"))
    more = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.accumulate_grad_batches=2"]
    output = run("train", *small(manifest, run_dir, *more, "resume_from=auto"))
    assert "step-000002.ckpt" in output
    assert [line["step"] for line in lines(run_dir)] == [1, 2, 3, 4]
    assert losses(run_dir) == pytest.approx(losses(alone), rel=1e-4)


FORMS = {"single": [], "ddp": ["trainer=ddp", *TWO], "fsdp": ["trainer=fsdp", *TWO]}
EVEN = [
    "optim.optimizer={_target_: torch.optim.SGD, momentum: 0.9}", "optim.lr=0.05", "callbacks=average", "save.keep=0",
    "callbacks.average.decay=0.5", "save.every_n_steps=2",
]  # fmt: skip
"""AdamW's first steps make much of the last bits of small gradients; with momentum, equal gradients stay equal."""


@pytest.fixture(scope="module")
def forms(manifest, tmp_path_factory) -> dict[str, Path]:
    """The same run under each trainer, with its checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("forms")
    for name in FORMS:
        with_trainer(manifest, folder / name, name, folder / f"{name}-out")
    return {name: folder / name for name in FORMS}


def with_trainer(manifest: Path, run_dir: Path, name: str, output: Path, *more: str) -> None:
    settings = [*small(manifest, run_dir), *EVEN, *more]
    if name == "single":
        forked.run(*settings, "trainer.accumulate_grad_batches=2", output=output)
    else:
        forked.run_ranks(name, *settings, output=output)


def exported(run_dir: Path):
    return load_file(run_dir / "hf" / "model.safetensors")


def apart(one, other) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrote", "reads"),
    [("fsdp", "single"), ("fsdp", "ddp"), ("single", "fsdp"), ("ddp", "fsdp")],
)
def test_a_checkpoint_resumes_under_another_trainer(manifest, forms, tmp_path, wrote, reads):
    """Weights, optimiser, averages and place: the end is that of the run that nobody stopped."""
    run_dir = tmp_path / "run"
    place = forms[wrote] / "checkpoints" / "step-000002.ckpt"
    assert place.is_dir() == (wrote == "fsdp")
    with_trainer(manifest, run_dir, reads, tmp_path / "out", f"resume_from={place}")
    assert [line["step"] for line in lines(run_dir)] == [3, 4]
    assert apart(exported(run_dir), exported(forms[wrote])) < 1e-6
    assert apart(exported(forms["fsdp"]), exported(forms["single"])) < 1e-6
    halfway = torch.load(forms["single"] / "checkpoints" / "step-000002.ckpt", weights_only=True)["averages"]
    assert apart(exported(run_dir), {name: halfway[f"model.hf.{name}"] for name in exported(run_dir)}) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_shared_model_trains_in_bf16(manifest, alone, tmp_path, precision):
    checkpointing = "model.gradient_checkpointing={vision_encoder: true, language_model: true}"
    run("train", *small(manifest, tmp_path, "trainer=fsdp", *TWO, f"trainer.precision={precision}", checkpointing))
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=0.03)


@pytest.mark.slow
def test_torchrun_starts_it_too(manifest, alone, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    overrides = small(manifest, tmp_path / "run", "trainer=ddp", *TWO)
    done = subprocess.run(
        [*command, "-m", "vlmkit.cli.train", *overrides],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_after_a_kill_under_torchrun_with_a_fixed_port(manifest, tmp_path):
    """The documented command of two machines, on one: the relaunch knows nothing of the launch before."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--node-rank", "0", "--master-addr", "127.0.0.1",
        "--master-port", str(free_port()), "--nproc-per-node", "2", "-m", "vlmkit.cli.train",
        *small(manifest, tmp_path, "trainer=ddp", *TWO, "save.every_n_steps=1", "resume_from=auto"),
    ]  # fmt: skip
    process = subprocess.Popen(
        [*command, "trainer.max_epochs=500"],
        cwd=REPOSITORY, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not list(tmp_path.glob("checkpoints/step-*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(ranks_below(process.pid)[-1], signal.SIGKILL)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - killed < 30
    assert "exitcode  : -9" in output.split("Root Cause (first observed failure)")[1], "torchrun names the rank"
    assert not list(tmp_path.glob(".ranks*"))
    done = newest_checkpoint(tmp_path)
    assert done is not None
    again = subprocess.run(
        [*command, "trainer.max_epochs=500", "trainer.max_steps=2"],
        cwd=REPOSITORY, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout
    assert f"resumed from {done}" in again.stdout
    assert "without a word" not in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["child", "first"])
def test_a_killed_rank_stops_the_other(manifest, tmp_path, victim):
    process = start("train", *small(manifest, tmp_path, "trainer=ddp", *TWO, "trainer.max_epochs=500"))
    while not (tmp_path / "train.jsonl").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    (child,) = ranks_below(process.pid)
    os.kill(child if victim == "child" else process.pid, signal.SIGKILL)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=60)  # ends once both have closed their output
    assert time.monotonic() - killed < 60
    number = 1 if victim == "child" else 0
    assert f"rank {number} ended without a word" in output


def launched(tmp_path: Path, *arguments: str, status: int = 0, **variables: str) -> list[str]:
    """What `scripts/launch.sh` starts, told by a torchrun that only tells."""
    stub = tmp_path / "torchrun"
    stub.write_text('#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n')
    stub.chmod(0o755)
    done = subprocess.run(
        [str(LAUNCH), *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines() if status == 0 else [done.stderr.strip()]


def test_launch_reads_the_variables_of_managed_platforms(tmp_path):
    told = launched(
        tmp_path, "stage=stage1", "data.sources=[a b.json]",
        MLP_WORKER_GPU="8", MLP_WORKER_NUM="2", MLP_ROLE_INDEX="1", MLP_WORKER_0_HOST="first", MLP_WORKER_0_PORT="29400",
    )  # fmt: skip
    assert told == [
        "--nnodes", "2", "--node-rank", "1", "--master-addr", "first", "--master-port", "29400",
        "--nproc-per-node", "8", "-m", "vlmkit.cli.train", "trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2",
        "stage=stage1", "data.sources=[a b.json]",
    ]  # fmt: skip


def test_launch_counts_the_visible_devices(tmp_path):
    told = launched(tmp_path, "train", "trainer=fsdp", CUDA_VISIBLE_DEVICES="0,1,3")
    assert told == [
        "--standalone", "--nproc-per-node", "3", "-m", "vlmkit.cli.train", "trainer.devices=3", "trainer.num_nodes=1",
        "trainer=fsdp",
    ]  # fmt: skip
    assert "trainer.devices=1" in launched(tmp_path, CUDA_VISIBLE_DEVICES="")


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["eval"], {}, "eval runs in one process"),
        ([], {"MLP_WORKER_GPU": "many"}, "MLP_WORKER_GPU=many is not a number"),
        ([], {"MLP_WORKER_GPU": "8", "MLP_WORKER_NUM": "2"}, "MLP_ROLE_INDEX is not set"),
    ],
)
def test_launch_says_what_is_missing(tmp_path, arguments, variables, message):
    assert message in launched(tmp_path, *arguments, status=1, **variables)[0]
