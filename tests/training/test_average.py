"""Averaged weights: the formula, what is looked at and exported, and that a resume goes on with them bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from tests.training import forked
from tests.training.conftest import small, write_manifest
from tests.training.small_run import fit, prepared
from vlmkit.training.callbacks.average import WeightAverage, as_exported
from vlmkit.training.state import checkpoint_name

SETTINGS = [
    "callbacks=average", "callbacks.average.decay=0.5", "data.batch_size=3", "trainer.accumulate_grad_batches=2",
    "save.every_n_steps=1", "save.keep=0", "log.every_n_steps=100",
]  # fmt: skip
STEPS = 4
frozen = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # the frozen vision encoder, as it should be


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest"), 24, text_only=frozenset({1, 6, 11, 17}))


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory) -> Path:
    """A run of four steps whose averages are exported, and which is looked at."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    more = [f"data.validation={manifest}", "validate.every_n_steps=2", "validate.samples=0", "save.best=val/loss"]
    forked.run(*small(manifest, run_dir, *SETTINGS, *more), output=run_dir.parent / "out")
    return run_dir


def kept(run_dir: Path, step: int = STEPS) -> dict:
    return torch.load(run_dir / "checkpoints" / checkpoint_name(step), weights_only=True)


def exported(run_dir: Path, where: str = "hf") -> dict[str, torch.Tensor]:
    return load_file(run_dir / where / "model.safetensors")


def unequal(tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    """Names of the export whose tensor is not bit for bit the wanted one of a checkpoint."""
    assert {f"model.hf.{name}" for name in tensors} == {name for name in wanted if not name.endswith("lm_head.weight")}
    return [name for name, tensor in tensors.items() if not torch.equal(tensor, wanted[f"model.hf.{name}"])]


class Weights(Callback):
    """The trained weights at the start and after each step."""

    def __init__(self):
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer, pl_module):
        self.note(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == len(self.seen):
            self.note(pl_module)

    def note(self, module):
        self.seen.append({name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad})


@frozen
@pytest.mark.parametrize(("decay", "accumulate"), [(0.3, 1), (0.999, 1), (0.3, 2)])
def test_the_average_follows_the_formula(tiny, cache, tmp_path, manifest, decay, accumulate):
    """In fp64 and to its last bits, over the schedule's first steps and beyond, once a step however many micro-batches
    it has; what is frozen is not averaged.
    """
    data, weights = prepared(manifest, tiny.vision_language, cache, batch_size=4 // accumulate), Weights()
    average = WeightAverage(decay=decay, export=False)
    module = fit(
        data, tiny.vision_language, tmp_path, callbacks=[weights, average], precision="64-true", merger_only=True,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    assert len(weights.seen) == 7
    wanted = weights.seen[0]
    for step, seen in enumerate(weights.seen[1:], 1):
        share = min(decay, (1 + step) / (10 + step))
        wanted = {name: share * wanted[name] + (1 - share) * seen[name] for name in wanted}
    assert module.averages is not None
    assert module.averages.keys() == wanted.keys()
    assert all("merger" in name for name in wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(module.averages[name], tensor, rtol=1e-14, atol=1e-15, msg=name)
        assert not torch.equal(module.averages[name], weights.seen[-1][name]), "an average lags behind"


@frozen
def test_inside_the_weights_are_the_averages_and_afterwards_what_they_were(tiny, cache, tmp_path, manifest):
    data = prepared(manifest, tiny.vision_language, cache, batch_size=12)
    average = WeightAverage(decay=0.9, export=True)
    module = fit(data, tiny.vision_language, tmp_path, callbacks=[average], merger_only=True)
    name = next(iter(module.averages))
    weight = dict(module.named_parameters())[name]
    assert torch.equal(weight, module.averages[name]), "after training they are in the weights' place"
    before = weight.detach().mul_(3).clone()

    def look_and_fail():
        with as_exported(module):
            assert torch.equal(weight, module.averages[name])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_and_fail()
    assert torch.equal(weight, before)
    module.exports_averages = False
    with as_exported(module):
        assert torch.equal(weight, before)


def test_the_export_holds_the_averages_of_the_last_checkpoint(whole):
    content = kept(whole)
    assert unequal(exported(whole), content["averages"]) == []
    assert unequal(exported(whole), content["state_dict"]) != []
    assert {tensor.dtype for tensor in content["averages"].values()} == {torch.float32}


@pytest.mark.slow
def test_export_false_exports_the_last_weights(manifest, tmp_path):
    run_dir = tmp_path / "run"
    settings = [*SETTINGS, "callbacks.average.export=false", "trainer.max_steps=2", f"data.validation={manifest}"]
    forked.run(*small(manifest, run_dir, *settings, "validate.samples=0"), output=tmp_path / "out")
    assert unequal(exported(run_dir), kept(run_dir, 2)["state_dict"]) == []
    assert unequal(exported(run_dir), kept(run_dir, 2)["averages"]) != []


def test_a_resumed_run_ends_with_the_same_averages_bit_for_bit(manifest, whole, tmp_path):
    """And a finished one that is started once more exports them again, with what was counted."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    name = checkpoint_name(2)
    (run_dir / "checkpoints" / name).write_bytes((whole / "checkpoints" / name).read_bytes())
    forked.run(*small(manifest, run_dir, *SETTINGS, "resume_from=auto"), output=tmp_path / "out")
    one, other = kept(whole), kept(run_dir)
    for part in ("averages", "state_dict"):
        assert one[part].keys() == other[part].keys()
        assert [key for key in one[part] if not torch.equal(one[part][key], other[part][key])] == []
    assert unequal(exported(run_dir), one["averages"]) == []
    (run_dir / "hf" / "model.safetensors").unlink()
    told = forked.run(*small(manifest, run_dir, *SETTINGS, "resume_from=auto"), output=tmp_path / "again")
    assert "Nothing is left to train" in told
    assert unequal(exported(run_dir), one["averages"]) == []


def test_validation_looks_at_the_averages(whole, manifest, tiny, cache):
    """The last validation's loss is that of the export, to fp32 rounding, and the training did not notice."""
    from tests.cli.test_validating import loss_of_export

    lines = [json.loads(line) for line in (whole / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["metrics"]["val/loss"] == pytest.approx(loss_of_export(whole / "hf", manifest, cache), rel=1e-5)


@pytest.mark.slow
def test_averages_that_nobody_kept_on_are_not_taken_up_again(manifest, whole, tmp_path):
    """A run resumed without the callback drops them, so that none grow stale in its checkpoints."""
    run_dir = tmp_path / "run"
    plain = [setting for setting in SETTINGS if not setting.startswith("callbacks")]
    resumed = f"resume_from={whole / 'checkpoints' / checkpoint_name(3)}"
    assert "callbacks.average.decay=absent, trained with was 0.5" in forked.run(
        *small(manifest, run_dir, *plain, resumed), output=tmp_path / "out", status=1
    )
    forked.run(*small(manifest, run_dir, *plain, resumed, "resume_allow=[average]"), output=tmp_path / "out")
    assert "averages" not in kept(run_dir)
    assert unequal(exported(run_dir), kept(whole)["state_dict"]) == []


@pytest.mark.slow
def test_ranks_that_share_the_model_average_their_parts(manifest, whole, tmp_path):
    run_dir = tmp_path / "run"
    settings = [setting for setting in SETTINGS if "accumulate" not in setting]
    more = ["optim.optimizer={_target_: torch.optim.SGD}", "optim.lr=0.1", "save.every_n_steps=2", "data.batch_size=3"]
    forked.run_ranks("fsdp", *small(manifest, run_dir, *settings, *more), output=tmp_path / "out")
    again = tmp_path / "again"
    (again / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / checkpoint_name(2)).rename(again / "checkpoints" / checkpoint_name(2))
    forked.run_ranks("fsdp", *small(manifest, again, *settings, *more, "resume_from=auto"), output=tmp_path / "out2")
    alone = tmp_path / "alone"
    forked.run(*small(manifest, alone, *SETTINGS, *more), output=tmp_path / "out3")
    one, other, third = (exported(place) for place in (run_dir, again, alone))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert max(float((one[name] - third[name]).abs().max()) for name in one) < 1e-5
    assert unequal(third, kept(alone)["averages"]) == []


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_that_cannot_work_is_refused(decay):
    with pytest.raises(ValueError, match=r"callbacks\.average\.decay must lie between 0 and 1"):
        WeightAverage(decay=decay, export=True)
