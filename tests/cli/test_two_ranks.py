"""What two ranks do together when one of them has bad news, and that a model they share is looked at and exported whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_validating import loss_of_export
from tests.training import forked
from tests.training.conftest import REPOSITORY, environment, lines, small, write_manifest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits set from outside")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """16 rows, three of them text only: 4 steps of two packs."""
    return write_manifest(tmp_path_factory.mktemp("manifest"), 16, text_only=frozenset({1, 6, 11}))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory) -> Path:
    """Five rows: three packs of two, so that one rank is idle once."""
    return write_manifest(tmp_path_factory.mktemp("unseen"), 5, text_only=frozenset({2}))


class Spoil:
    """Make the loss of one pack NaN, on whichever rank has it; at the end each rank writes down what it knows."""

    def __init__(self, pack: int, out: Path) -> None:
        self.pack = pack
        self.out = out

    def __call__(self) -> None:
        from vlmkit.training.callbacks.guard import LossGuard
        from vlmkit.training.module import TrainingModule

        step, end = TrainingModule.training_step, LossGuard.on_train_end

        def training_step(module, batch, batch_idx):
            loss = step(module, batch, batch_idx)
            if batch["pack"] == self.pack:
                (self.out / "rank").write_text(os.environ["LOCAL_RANK"])
                module.token_losses = module.token_losses * float("nan")
                loss = loss * float("nan")
            return loss

        def on_train_end(guard, trainer, module):
            end(guard, trainer, module)
            sums = [float(parameter.detach().double().sum()) for parameter in module.parameters()]
            told = {"report": guard.report(), "sums": sums, "steps": trainer.global_step}
            (self.out / f"told-{trainer.global_rank}").write_text(json.dumps(told))

        TrainingModule.training_step, LossGuard.on_train_end = training_step, on_train_end


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(manifest, tmp_path, trainer):
    run_dir = tmp_path / "run"
    settings = [*small(manifest, run_dir, "save.every_n_steps=1"), "callbacks.receipt=null"]
    told = forked.run_ranks(trainer, *settings, output=tmp_path / "out", first=Spoil(5, tmp_path), status=1)
    spoilt = int((tmp_path / "rank").read_text())
    both = "\n".join(told)
    assert "Step 3: the loss is nan." in both
    assert "guard.on_nonfinite=skip" in both
    assert "Traceback" not in both
    bad, before = (json.loads(line) for line in (run_dir / "suspects.jsonl").read_text().splitlines())
    assert (bad["step"], bad["kind"]) == (3, "nonfinite")
    assert sorted(sample["rank"] for sample in bad["samples"]) == [0, 0, 1, 1]
    assert [sample["rank"] for sample in bad["samples"] if sample["loss"] is None] == [spoilt, spoilt]
    assert all(sample["where"].startswith(f"{manifest}:") for sample in bad["samples"])
    assert [sample["loss"] is None for sample in before["samples"]] == [False] * 4
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["step-000001.ckpt", "step-000002.ckpt"], "nothing bad is saved"


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_both_ranks_skip_the_same_step(manifest, tmp_path, trainer):
    run_dir = tmp_path / "run"
    settings = small(manifest, run_dir, "guard.on_nonfinite=skip", "callbacks.receipt=null")
    forked.run_ranks(trainer, *settings, output=tmp_path / "out", first=Spoil(5, tmp_path))
    one, other = (json.loads((tmp_path / f"told-{rank}").read_text()) for rank in range(2))
    assert one["report"] == other["report"] == {"skipped_steps": 1, "skipped": [3], "loss_spikes": 0}
    assert one["steps"] == other["steps"] == 4
    if trainer == "ddp":
        assert one["sums"] == other["sums"], "the ranks' weights are the same still"
    assert json.loads((run_dir / "report.json").read_text())["losses"]["skipped"] == [3]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(run_dir / "hf" / "model.safetensors").values())


class FullDisk:
    """No file of a rank may grow beyond a limit from the moment it touches a file whose name ends in some words."""

    def __init__(self, rank: int, ending: str, limit: int) -> None:
        self.rank = rank
        self.ending = ending
        self.limit = limit

    def __call__(self) -> None:
        if int(os.environ["LOCAL_RANK"]) == self.rank:
            sys.addaudithook(self._watch)

    def _watch(self, event: str, args: tuple) -> None:
        if event in ("open", "os.mkdir", "os.rename") and any(str(arg).endswith(self.ending) for arg in args[:2]):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))


FULL = {
    "ddp": ("ddp", FullDisk(0, "checkpoints/step-000002.ckpt", 1_000_000)),
    "fsdp, the first rank's part": ("fsdp", FullDisk(0, "checkpoints/step-000002.ckpt", 1_000_000)),
    "fsdp, another rank's part": ("fsdp", FullDisk(1, ".step-000004.ckpt.writing/__1_0.distcp", 1_000_000)),
    "fsdp, what is not shared": ("fsdp", FullDisk(0, ".step-000004.ckpt.writing/.metadata", 500)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_ends_both_ranks_and_leaves_the_last_good_checkpoint(manifest, tmp_path, name):
    trainer, disk = FULL[name]
    run_dir = tmp_path / "run"
    settings = small(manifest, run_dir, "save.every_n_steps=2")
    started = time.monotonic()
    told = forked.run_ranks(trainer, *settings, output=tmp_path / "out", first=disk, status=1)
    assert time.monotonic() - started < 90
    both, good = "\n".join(told), run_dir / "checkpoints" / "step-000002.ckpt"
    assert "step-000004.ckpt: could not be written" in both
    assert f"The newest good checkpoint is {good}." in both
    assert "continue with resume_from=auto" in both
    assert "Traceback" not in both
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [good.name]
    forked.run_ranks(trainer, *settings, "resume_from=auto", output=tmp_path / "again")
    assert [line["step"] for line in lines(run_dir)] == [1, 2, 3, 4]
    assert (run_dir / "hf" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_the_held_out_loss_of_two_ranks_is_that_of_one(manifest, unseen, cache, tmp_path, trainer):
    """At every validation, between steps that are saved; the best model is exported by the ranks together."""
    looked = [
        f"data.validation={unseen}", "validate.every_n_steps=1", "save.best=val/loss", "save.every_n_steps=2",
        "validate.samples=0", "callbacks=average", "callbacks.average.decay=0.5", "optim.lr=0.3",
        "optim.optimizer={_target_: torch.optim.SGD}",
    ]  # fmt: skip
    run_dir = tmp_path / "run"
    told = forked.run_ranks(trainer, *small(manifest, run_dir, *looked), output=tmp_path / "out")
    alone = tmp_path / "alone"
    forked.run(*small(manifest, alone, *looked, "trainer.accumulate_grad_batches=2"), output=tmp_path / "alone-out")
    found, wanted = (
        [json.loads(line)["metrics"]["val/loss"] for line in (place / "validation.jsonl").read_text().splitlines()]
        for place in (run_dir, alone)
    )
    assert len(found) == 4
    assert found == pytest.approx(wanted, rel=1e-5)
    best = json.loads((run_dir / "report.json").read_text())["best"]
    assert best["step"] == wanted.index(min(wanted)) + 1
    assert loss_of_export(run_dir / "checkpoints" / "hf_best", unseen, cache) == pytest.approx(best["value"], rel=1e-5)
    assert loss_of_export(run_dir / "hf", unseen, cache) == pytest.approx(found[-1], rel=1e-5)
    proved = [line for line in told[0].splitlines() if "collected from 2 ranks" in line]
    assert len(proved) == (2 if trainer == "fsdp" else 0)


@pytest.mark.slow
def test_adapters_of_a_shared_model_are_merged_and_proved(manifest, tmp_path):
    settings = small(manifest, tmp_path / "run", "model.lora.rank=4", "freeze=vision_frozen", "trainer.max_steps=2")
    told = forked.run_ranks("fsdp", *settings, output=tmp_path / "out")
    assert "so the assembly is not proved here: vlmkit-assemble proves it" in told[0]
    (proved,) = [line for line in told[0].splitlines() if "collected from 2 ranks" in line]
    assert float(proved.rstrip(".").split()[-1]) < 1e-4
    assert not [name for name in load_file(tmp_path / "run" / "hf" / "model.safetensors") if "lora" in name]


@pytest.mark.slow
def test_a_shared_model_can_be_compiled(manifest, tmp_path):
    for name, more in (("eager", []), ("compiled", ["model.compile=true"])):
        settings = small(manifest, tmp_path / name, "trainer.max_steps=2", *more)
        forked.run_ranks("fsdp", *settings, output=tmp_path / f"{name}-out")
    eager, compiled = ([line["loss"] for line in lines(tmp_path / name)] for name in ("eager", "compiled"))
    assert len(eager) == 2
    assert compiled == pytest.approx(eager, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["single", "ddp"])
def test_a_signal_to_the_whole_group_with_its_loaders_saves_once(manifest, tmp_path, trainer):
    """As a scheduler ends a job: every process gets SIGTERM, those that load data too; none is left behind."""
    run_dir = tmp_path / "run"
    more = ["trainer.max_epochs=60", "save.every_n_steps=null", "data.num_workers=1", f"trainer={trainer}"]
    devices = ["trainer.devices=2", "trainer.accelerator=cpu"] if trainer == "ddp" else []
    settings = [*(one for one in small(manifest, run_dir) if "num_workers" not in one), *more, *devices]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmkit.cli.train", *settings], env=environment(), cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and len(lines_so_far(run_dir)) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    try:
        told, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 75, told
    assert told.count("SIGTERM: saved after step") == 1
    assert "Traceback" not in told
    (saved,) = (run_dir / "checkpoints").iterdir()
    step = lines(run_dir)[-1]["step"]
    assert saved.name == f"step-{step:06d}.ckpt"
    until = time.monotonic() + 10
    while alive_in(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert alive_in(process.pid) == []
    ended = [f"trainer.max_steps={step + 1}", "resume_from=auto", "resume_allow=[schedule]"]
    if trainer == "ddp":
        forked.run_ranks("ddp", *settings, *ended, output=tmp_path / "out")
    else:
        forked.run(*settings, *ended, output=tmp_path / "out")
    assert lines(run_dir)[-1]["step"] == step + 1


def alive_in(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[2] == str(group) and fields[0] not in "ZX":
            found.append(int(place.parent.name))
    return found


def lines_so_far(run_dir: Path) -> list[str]:
    path = run_dir / "train.jsonl"
    return path.read_text().splitlines() if path.exists() else []
