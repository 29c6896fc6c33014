"""Save, kill, resume: whatever trains the run, its end is bit for bit that of the run that nobody stopped."""

from __future__ import annotations

import os
import signal
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training import forked
from tests.training.conftest import lines, small, write_manifest
from vlmkit.training.shards import NAMED, read_whole
from vlmkit.training.state import read_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

SETTINGS = ["save.every_n_steps=1", "save.keep=2", "callbacks.forecast=null", "callbacks.receipt=null"]
OPTIMIZERS = {
    "adamw": ["optim.lr=0.001", "optim.weight_decay=0.1"],
    "sgd": ["optim.optimizer={_target_: torch.optim.SGD, momentum: 0.9}", "optim.lr=0.05"],
}
MATRIX = list(
    product(
        ("single", "ddp", "fsdp"),
        ("32-true", "bf16-mixed", "bf16-true"),
        ("whole", "lora"),
        ("last", "average"),
        OPTIMIZERS,
    )
)
QUICK = {("fsdp", "bf16-true", "whole", "average", "adamw"), ("single", "bf16-mixed", "lora", "last", "sgd")}
"""Between them every setting but ddp, whose resume `test_two_ranks.py` looks at."""
COMPARED = ("step", "epoch", "loss", "lr", "grad_norm", "supervised_tokens", "tokens", "patches", "samples")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """16 rows, three of them text only: 4 steps of two packs."""
    return write_manifest(tmp_path_factory.mktemp("manifest"), 16, text_only=frozenset({1, 6, 11}))


class KillAtStep:
    """Kill each process of a run as the checkpoint of a step begins to be written; ranks that write nothing wait there."""

    def __init__(self, step: int) -> None:
        self.name = f"step-{step:06d}"

    def __call__(self) -> None:
        def watch(event: str, args: tuple) -> None:
            if event in ("open", "os.mkdir") and self.name in str(args[0]):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)


def overrides(manifest: Path, run_dir: Path, precision: str, lora: str, average: str, optimizer: str) -> list[str]:
    return [
        *small(manifest, run_dir, *SETTINGS, f"trainer.precision={precision}"),
        *OPTIMIZERS[optimizer],
        *(["model.lora.rank=2"] if lora == "lora" else []),
        *(["callbacks=average", "callbacks.average.decay=0.5"] if average == "average" else []),
    ]


def finish(trainer: str, settings: list[str], output: Path, *more: str) -> None:
    if trainer == "single":
        forked.run(*settings, *more, "trainer.accelerator=cpu", "trainer.accumulate_grad_batches=2", output=output)
    else:
        forked.run_ranks(trainer, *settings, *more, output=output)


def kill(trainer: str, settings: list[str], output: Path, step: int) -> None:
    """Start a run and kill it as it writes the checkpoint of a step."""
    if trainer == "single":
        more = ["trainer.accelerator=cpu", "trainer.accumulate_grad_batches=2"]
        ranks = [forked.start(*settings, *more, output=output, first=KillAtStep(step))]
    else:
        ranks = forked.start_ranks(trainer, *settings, output=output, first=KillAtStep(step))
    ranks[0].join(240)
    for rank in ranks:
        rank.kill()
        rank.join()
    assert ranks[0].exitcode == -signal.SIGKILL


def content_of(path: Path) -> dict[str, Any]:
    """Weights, averages, optimisers and schedules of a checkpoint of either form."""
    content = read_whole(path) if path.is_dir() else torch.load(path, weights_only=True)
    return {
        key: content.get(key)
        for key in ("state_dict", "averages", "optimizer_states", NAMED, "lr_schedulers", "callbacks")
    }


def unequal(one: Any, other: Any, where: str = "") -> list[str]:
    """Places where two contents differ in a bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return [where]
        return [place for key in one for place in unequal(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(one) != len(other):
            return [where]
        return [
            place for n, pair in enumerate(zip(one, other, strict=True)) for place in unequal(*pair, f"{where}.{n}")
        ]
    return [] if one == other else [where]


@pytest.mark.parametrize(
    ("trainer", "precision", "lora", "average", "optimizer"),
    [pytest.param(*corner, marks=[] if corner in QUICK else pytest.mark.slow) for corner in MATRIX],
)
def test_a_killed_run_ends_as_the_whole_one(manifest, tmp_path, trainer, precision, lora, average, optimizer):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {place: overrides(manifest, place, precision, lora, average, optimizer) for place in (whole, killed)}
    finish(trainer, settings[whole], tmp_path / "out")
    kill(trainer, settings[killed], tmp_path / "out", step=3)
    assert [path.name for path in sorted(killed.glob("checkpoints/step-*"))] == ["step-000001.ckpt", "step-000002.ckpt"]
    finish(trainer, settings[killed], tmp_path / "again", "resume_from=auto")
    last = [content_of(place / "checkpoints" / "step-000004.ckpt") for place in (whole, killed)]
    assert last[0]["state_dict"]
    assert (last[0]["averages"] is not None) == (average == "average")
    assert unequal(*last) == []
    exports = [load_file(place / "hf" / "model.safetensors") for place in (whole, killed)]
    assert unequal(*exports) == []
    written = [[[line[key] for key in COMPARED] for line in lines(place)] for place in (whole, killed)]
    assert written[0] == written[1]
    assert len(written[0]) == 4


def test_the_matrix_is_whole():
    assert len(MATRIX) == 72
    assert set(MATRIX) >= QUICK


@pytest.mark.parametrize("trainer", ["single", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_another_rate_is_refused_or_applied_and_the_log_shows_it(manifest, tmp_path, trainer):
    """As the guard advises after a step that is not finite: `resume_from=auto resume_allow=[optim] optim.lr=...`."""
    run_dir, precision = tmp_path / "run", "bf16-true" if trainer == "fsdp" else "32-true"
    settings = overrides(manifest, run_dir, precision, "whole", "last", "adamw")
    kill(trainer, settings, tmp_path / "out", step=3)
    changed = [*settings, "resume_from=auto", "optim.lr=1e-6", "optim.beta2=0.9"]
    if trainer == "single":
        told = forked.run(*changed, output=tmp_path / "out", status=1)
        assert "optim.lr=1e-06, trained with was 0.001" in told
        assert "optim.beta2=0.9, trained with was 0." in told
        assert "resume_allow=[optim]" in told
        assert "Traceback" not in told
        assert sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))[-1] == "step-000002.ckpt"
    finish(trainer, changed, tmp_path / "again", "resume_allow=[optim]")
    if trainer == "single":
        assert "Applied by resume_allow: optim.lr=1e-06, trained with was 0.001" in (tmp_path / "again").read_text()
    rates = [line["lr"]["language_model"] for line in lines(run_dir)]
    assert [rate < 1e-6 + 1e-12 for rate in rates] == [False, False, True, True]
    last = run_dir / "checkpoints" / "step-000004.ckpt"
    content = content_of(last)
    if trainer == "single":
        groups = content["optimizer_states"][0]["param_groups"]
    else:
        groups = list(content[NAMED][0]["settings"].values())
    assert {group["initial_lr"] for group in groups} == {1e-6}
    assert {group["betas"] for group in groups} == {(0.9, 0.9)}
    assert content["lr_schedulers"][0]["base_lrs"] == [1e-6] * len(content["lr_schedulers"][0]["base_lrs"])
    assert read_state(last).contract["optim"]["optim.lr"] == 1e-6
