"""A validation holds nobody up: what is due is saved before it, signals are heard in it, ranks share its questions, and a run
that was ended in one makes up for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.training import forked
from tests.training.conftest import lines, small, write_manifest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest"), 24, text_only=frozenset({1, 6}))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("unseen"), 5, text_only=frozenset({2}))


def settings(manifest: Path, run_dir: Path, unseen: Path, *more: str) -> list[str]:
    """Six steps, validated at every second."""
    return small(
        manifest, run_dir, f"data.validation={unseen}", "validate.every_n_steps=2", "validate.samples=0",
        "save.best=val/loss", "data.batch_size=4", "freeze=vision_frozen", *more,
    )  # fmt: skip


class Endless:
    """Held-out packs never end from a step on, and a file says that they have begun."""

    def __init__(self, step: int, mark: Path) -> None:
        self.step = step
        self.mark = mark

    def __call__(self) -> None:
        from vlmkit.training.callbacks.validator import Validator

        losses = Validator._losses

        def endless(validator, trainer, module, loader):
            def repeat():
                batch = next(iter(loader))
                self.mark.touch()
                while True:
                    time.sleep(0.05)
                    yield batch

            return losses(validator, trainer, module, repeat() if validator.step == self.step else loader)

        Validator._losses = endless


def await_mark(mark: Path, processes: list[BaseProcess]) -> None:
    until = time.monotonic() + 120
    while not mark.exists():
        assert time.monotonic() < until
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def outcome(run_dir: Path) -> tuple[list, object, list[float]]:
    """What was measured and judged, and the losses of training."""
    measured = [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]
    best = json.loads((run_dir / "report.json").read_text())["best"]
    told = [(line["step"], line["metrics"]) for line in measured]
    return told, (best["step"], best["value"]), [line["loss"] for line in lines(run_dir)]


@pytest.fixture(scope="module")
def whole(manifest, unseen, tmp_path_factory):
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    forked.run(*settings(manifest, folder / "run", unseen), output=folder / "out")
    return outcome(folder / "run")


def test_a_signal_in_a_validation_is_heard_and_the_run_goes_on_as_if_it_had_not_come(manifest, unseen, whole, tmp_path):
    """No checkpoint is due at that step: the signal itself makes the run save."""
    run_dir, mark = tmp_path / "run", tmp_path / "mark"
    process = forked.start(
        *settings(manifest, run_dir, unseen), output=tmp_path / "out", first=Endless(step=4, mark=mark)
    )
    await_mark(mark, [process])
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    process.kill()  # an endless validation would outlive the tests
    process.join()
    assert process.exitcode == 75, (tmp_path / "out").read_text()
    assert "SIGTERM: saved after step 4" in (tmp_path / "out").read_text()
    assert (run_dir / "checkpoints" / "step-000004.ckpt").is_file()
    assert [json.loads(line)["step"] for line in (run_dir / "validation.jsonl").read_text().splitlines()] == [2]
    forked.run(*settings(manifest, run_dir, unseen, "resume_from=auto"), output=tmp_path / "again")
    assert outcome(run_dir) == whole


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 6])
def test_a_kill_in_a_validation_costs_the_validation_only(manifest, unseen, whole, tmp_path, step):
    """What is due is saved before; after the last step too, where nothing is left to train."""
    run_dir, mark = tmp_path / "run", tmp_path / "mark"
    more = ["save.every_n_steps=2", "save.keep=0"]
    process = forked.start(
        *settings(manifest, run_dir, unseen, *more), output=tmp_path / "out", first=Endless(step=step, mark=mark)
    )
    await_mark(mark, [process])
    process.kill()
    process.join()
    assert (run_dir / "checkpoints" / f"step-{step:06d}.ckpt").is_file()
    told = forked.run(*settings(manifest, run_dir, unseen, *more, "resume_from=auto"), output=tmp_path / "again")
    assert ("Nothing is left to train" in told) == (step == 6)
    assert outcome(run_dir) == whole
    assert (run_dir / "checkpoints" / "hf_best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_validation_that_is_known_is_not_measured_again(manifest, unseen, whole, tmp_path):
    """The last checkpoint was written before its validation, whose line is there."""
    run_dir, mark = tmp_path / "run", tmp_path / "mark"
    more = ["save.every_n_steps=2", "save.keep=0"]
    forked.run(*settings(manifest, run_dir, unseen, *more), output=tmp_path / "out")
    again = [*settings(manifest, run_dir, unseen, *more), "resume_from=auto"]
    (run_dir / "checkpoints" / "step-000006.ckpt").unlink()
    process = forked.start(*again, output=tmp_path / "again", first=Endless(step=4, mark=mark))
    process.join(120)
    process.kill()
    assert process.exitcode == 0, (tmp_path / "again").read_text()
    assert not mark.exists()
    assert outcome(run_dir) == whole


def test_a_signal_to_one_of_two_ranks_ends_the_validation_of_both(manifest, unseen, tmp_path):
    run_dir, mark = tmp_path / "run", tmp_path / "mark"
    ranks = forked.start_ranks(
        "ddp", *settings(manifest, run_dir, unseen), output=tmp_path / "out", first=Endless(step=2, mark=mark)
    )
    await_mark(mark, ranks)
    os.kill(ranks[1].pid, signal.SIGTERM)
    told = forked.end_ranks(ranks, output=tmp_path / "out", status=75)
    assert "SIGTERM: saved after step 2" in told[0]
    assert (run_dir / "checkpoints" / "step-000002.ckpt").is_file()


class SlowAnswers:
    """A rank answers late; each writes down how many cases it answers."""

    def __init__(self, rank: int, seconds: float, out: Path) -> None:
        self.rank = rank
        self.seconds = seconds
        self.out = out

    def __call__(self) -> None:
        from vlmkit.evaluation import callback

        answer = callback.answer_benchmark

        def late(benchmark, backend, how):
            if how.share.rank == self.rank:
                (self.out / "waiting").touch()
                until = time.monotonic() + self.seconds
                while time.monotonic() < until:
                    backend.heed()
                    time.sleep(0.05)
            answer(benchmark, backend, how)
            own = how.share.own(how.path(benchmark))
            (self.out / f"answered-{how.share.rank}").write_text(str(len(own.read_text().splitlines())))

        callback.answer_benchmark = late


SHAPES = ["validate.benchmarks=[shapes]", "validate.max_samples=5", "validate.max_new_tokens=4", "trainer.max_steps=2"]
LIMIT = "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, timeout: {_target_: datetime.timedelta, seconds: 12}}"


@pytest.mark.slow
def test_ranks_share_the_questions_and_no_collective_waits_for_the_slowest(manifest, unseen, tmp_path):
    """Longer than the limit of a collective, which is half an hour by default and twelve seconds here."""
    run_dir, alone = tmp_path / "run", tmp_path / "alone"
    forked.run_ranks(
        "ddp", *settings(manifest, run_dir, unseen, *SHAPES, LIMIT), output=tmp_path / "out", first=SlowAnswers(0, 20, tmp_path)
    )  # fmt: skip
    assert [(tmp_path / f"answered-{rank}").read_text() for rank in range(2)] == ["3", "2"]
    forked.run(
        *settings(manifest, alone, unseen, *SHAPES, "trainer.accumulate_grad_batches=2"), output=tmp_path / "alone-out"
    )
    place = Path("validation", "step-000002", "shapes")
    ours, theirs = (
        [json.loads(line) for line in (where / place / "records.jsonl").read_text().splitlines()]
        for where in (run_dir, alone)
    )
    assert [record["id"] for record in ours] == [record["id"] for record in theirs]
    assert [record["answer"] for record in ours] == [record["answer"] for record in theirs]
    assert not list((run_dir / place).glob("records.rank-*"))
    found, wanted = (
        json.loads((where / "validation.jsonl").read_text())["metrics"]["eval/shapes/exact_match"]
        for where in (run_dir, alone)
    )
    assert found == wanted


def test_a_signal_ends_the_questions_of_all_ranks(manifest, unseen, tmp_path):
    run_dir = tmp_path / "run"
    ranks = forked.start_ranks(
        "ddp", *settings(manifest, run_dir, unseen, *SHAPES), output=tmp_path / "out", first=SlowAnswers(0, 100, tmp_path)
    )  # fmt: skip
    await_mark(tmp_path / "waiting", ranks)
    os.kill(ranks[0].pid, signal.SIGUSR1)
    told = forked.end_ranks(ranks, output=tmp_path / "out", status=75)
    assert "SIGUSR1: saved after step 2" in told[0]
    assert not (run_dir / "validation.jsonl").exists()
