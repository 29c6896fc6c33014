"""`vlmkit-export` and exports while training: the right weights, of the right type, with adapters or without."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.training import forked
from tests.training.conftest import lines, run, small, write_manifest
from vlmkit.cli import checkpoints
from vlmkit.cli.checkpoints import exported, locate_checkpoint, locate_model
from vlmkit.cli.exporting import export_checkpoint, export_directory
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.model.checkpoint import probe_inputs
from vlmkit.training.callbacks.average import WeightAverage

QUICK = ["callbacks.forecast=null", "save.every_n_steps=2", "save.keep=0"]
AVERAGED = ["callbacks=average", "callbacks.average.decay=0.5", *QUICK, "data.validation=0.25", "validate.samples=0"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("manifest"), 16)


def trained(manifest, folder, *more):
    forked.run(*small(manifest, folder / "run", *more), output=folder / "out")
    return folder / "run"


@pytest.fixture(scope="module")
def averaged(manifest, tmp_path_factory):
    """Four or more steps with running averages, a best checkpoint, and exports at even steps."""
    best = ["save.best=val/loss", "validate.every_n_steps=2", "save.export_every_n_steps=2"]
    return trained(manifest, tmp_path_factory.mktemp("averaged"), *AVERAGED, *best)


def weights(directory):
    return load_file(directory / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def held(checkpoint, key):
    content = torch.load(checkpoint, weights_only=True)[key]
    tensors = {name.removeprefix("model.hf."): tensor for name, tensor in content.items()}
    tensors.pop("lm_head.weight", None)  # tied
    return tensors


# --- which weights ----------------------------------------------------------------------------------------------------


def test_a_run_exports_as_it_goes_what_its_checkpoints_hold(averaged, tmp_path):
    steps = [line["step"] for line in lines(averaged)]
    even = [step for step in steps if step % 2 == 0]
    assert sorted(path.name for path in averaged.glob("checkpoints/hf_step-*")) == [f"hf_step-{n:06d}" for n in even]
    checkpoint = averaged / "checkpoints" / "step-000002.ckpt"
    out = export_checkpoint(checkpoint, tmp_path / "auto")
    assert same(weights(out), weights(averaged / "checkpoints" / "hf_step-000002"))
    assert same(weights(out), held(checkpoint, "averages"))
    provenance = json.loads((out / "vlmkit.json").read_text())["provenance"]["trained"]
    assert (provenance["step"], provenance["average"], provenance["checkpoint"]) == (2, True, "step-000002.ckpt")


def test_the_last_weights_the_average_and_the_best_can_be_asked_for(averaged, tmp_path):
    checkpoint = averaged / "checkpoints" / "step-000002.ckpt"
    last = weights(export_checkpoint(checkpoint, tmp_path / "last", weights="last"))
    assert same(last, held(checkpoint, "state_dict"))
    average = weights(export_checkpoint(checkpoint, tmp_path / "average", weights="average"))
    assert same(average, held(checkpoint, "averages"))
    assert not same(last, average)
    best = export_checkpoint(checkpoint, tmp_path / "best", weights="best")
    assert same(weights(best), weights(averaged / "checkpoints" / "hf_best"))


def test_training_does_not_notice_an_export(averaged, manifest, tmp_path):
    plain = trained(manifest, tmp_path, *AVERAGED)
    assert [line["loss"] for line in lines(plain)] == [line["loss"] for line in lines(averaged)]
    newest = max(path.name for path in plain.glob("checkpoints/step-*.ckpt"))
    places = [run_dir / "checkpoints" / newest for run_dir in (plain, averaged)]
    assert same(*(held(place, "state_dict") for place in places))
    assert "callbacks" in torch.load(places[0], weights_only=True)


def test_what_an_average_is_named_by_is_where_it_is():
    """The config of a run names the class; a move of it would export the last weights instead."""
    assert (
        f"{WeightAverage.__module__}.{WeightAverage.__qualname__}" == "vlmkit.training.callbacks.average.WeightAverage"
    )


# --- the type ---------------------------------------------------------------------------------------------------------


def test_a_model_that_came_in_bf16_leaves_in_bf16(manifest, tiny, tmp_path):
    """Of fp32 weights in mixed precision the last export was fp32: twice the size, and another type than was published."""
    source = export_directory(tiny.vision_language, tmp_path / "published", dtype="bfloat16")
    mixed = ["model=qwen3_vl", f"model.path={source}", "trainer.precision=bf16-mixed", "trainer.max_steps=2"]
    run_dir = trained(manifest, tmp_path, *mixed, "callbacks.forecast=null", "save.every_n_steps=1")
    checkpoint = max(run_dir.glob("checkpoints/step-*.ckpt"))
    trained_weights = held(checkpoint, "state_dict")
    assert {tensor.dtype for tensor in trained_weights.values()} == {torch.float32}
    written = weights(run_dir / "hf")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert same(written, {name: tensor.bfloat16() for name, tensor in trained_weights.items()})
    config = json.loads((run_dir / "hf" / "config.json").read_text())
    sections = (config, config["text_config"], config["vision_config"])
    assert [section.get("dtype", "bfloat16") for section in sections] == ["bfloat16"] * 3
    reopened = AutoModelForImageTextToText.from_pretrained(run_dir / "hf")
    assert {parameter.dtype for parameter in reopened.parameters()} == {torch.bfloat16}
    assert same(weights(export_checkpoint(checkpoint, tmp_path / "again")), written)
    wide = weights(export_checkpoint(checkpoint, tmp_path / "wide", dtype="float32"))
    assert same(wide, trained_weights)


def test_numbers_that_the_type_cannot_hold_are_refused(averaged, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(averaged / "config.yaml", folder)
    content = torch.load(averaged / "checkpoints" / "step-000002.ckpt", weights_only=True)
    content["state_dict"]["model.hf.model.language_model.norm.weight"][3] = 1e5
    torch.save(content, folder / "checkpoints" / "step-000002.ckpt")
    checkpoint = folder / "checkpoints" / "step-000002.ckpt"
    with pytest.raises(
        CheckpointError, match=r"language_model\.norm\.weight holds numbers too large for float16 \(up to"
    ):
        export_checkpoint(checkpoint, tmp_path / "out", weights="last", dtype="float16")


# --- adapters ---------------------------------------------------------------------------------------------------------

ADAPTED = [
    "callbacks.forecast=null",
    "model.lora.rank=4",
    "model.lora.language_model=[q_proj,down_proj]",
    "optim.lr=1e-2",
]


def logits(model, directory):
    inputs = probe_inputs(AutoProcessor.from_pretrained(directory))
    with torch.no_grad():
        return torch.cat([model(**each, use_cache=False).logits.flatten() for each in inputs])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("published", [True, False], ids=["published base", "assembled, merger trained"])
def test_adapters_are_read_by_peft_and_compute_what_the_merged_model_does(published, manifest, tiny, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need PEFT: pip install 'vlmkit[lora]'")
    model = (
        ["model=qwen3_vl", f"model.path={tiny.vision_language}", "freeze.vision_encoder=true", "freeze.merger=true"]
        if published
        else ["freeze=vision_frozen"]
    )
    run_dir = trained(manifest, tmp_path, *model, *ADAPTED, "trainer.max_steps=2")
    out = export_checkpoint(max(run_dir.glob("checkpoints/step-*.ckpt")), tmp_path / "adapter", adapter=True)
    base = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny.vision_language if published else out / "base")
    plain = AutoModelForImageTextToText.from_pretrained(base)
    before = logits(plain, out)
    adapted = peft.PeftModel.from_pretrained(plain, out).eval()
    merged = AutoModelForImageTextToText.from_pretrained(run_dir / "hf").eval()
    torch.testing.assert_close(logits(adapted, out), logits(merged, out), rtol=1e-4, atol=1e-4)
    assert (logits(adapted, out) - before).abs().max() > 1e-2, "the adapters do something"


def test_a_run_without_adapters_has_none_to_export(averaged, tmp_path):
    with pytest.raises(ConfigError, match=r"^lora=adapter: .* was trained without adapters\. Use lora=merged\.$"):
        export_checkpoint(averaged / "checkpoints" / "step-000002.ckpt", tmp_path / "out", adapter=True)


# --- where a model is looked for --------------------------------------------------------------------------------------


def test_places_by_what_they_hold(averaged, tmp_path):
    folder = averaged / "checkpoints"
    assert locate_model(averaged, key="ckpt").directory == averaged / "hf"
    newest = max(folder.glob("step-*.ckpt"))
    assert locate_checkpoint(averaged).checkpoint == newest
    assert locate_model(folder / "hf_best", key="ckpt").checkpoint is None
    unfinished = tmp_path / "run"
    shutil.copytree(folder, unfinished / "checkpoints")
    assert locate_model(unfinished, key="ckpt").checkpoint == unfinished / "checkpoints" / newest.name
    for path in (unfinished / "checkpoints").glob("step-*.ckpt"):
        path.unlink()
    last = max((unfinished / "checkpoints").glob("hf_step-*"))
    assert locate_model(unfinished, key="ckpt").directory == last
    assert locate_model(last, key="ckpt").checkpoint is None


def test_a_checkpoint_outside_its_run_is_refused(averaged, tmp_path):
    alone = shutil.copy(averaged / "checkpoints" / "step-000002.ckpt", tmp_path / "step-000002.ckpt")
    with pytest.raises(
        CheckpointError, match=r"no config\.yaml in the directories around it.* Keep it in its run directory"
    ):
        export_checkpoint(tmp_path / "step-000002.ckpt", tmp_path / "out")
    assert os.path.exists(alone)


@pytest.fixture
def copied(averaged, tmp_path):
    """A run of one checkpoint, to be changed."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(averaged / "config.yaml", tmp_path / "run")
    return Path(shutil.copy(averaged / "checkpoints" / "step-000002.ckpt", tmp_path / "run" / "checkpoints"))


def test_an_export_older_than_its_checkpoint_is_written_again(copied, tmp_path):
    location = locate_model(copied, key="ckpt")
    directory = exported(location, otherwise=tmp_path / "elsewhere")
    first = (directory / "vlmkit.json").stat()
    assert exported(location, otherwise=tmp_path / "elsewhere") == directory
    assert (directory / "vlmkit.json").stat().st_ino == first.st_ino
    later = first.st_mtime + 10
    os.utime(copied, (later, later))
    exported(location, otherwise=tmp_path / "elsewhere")
    assert (directory / "vlmkit.json").stat().st_ino != first.st_ino


def test_other_processes_wait_for_the_export_of_the_first(copied, tmp_path, monkeypatch):
    location = locate_model(copied, key="ckpt")
    monkeypatch.setenv("RANK", "1")
    seen = []
    waiting = threading.Thread(target=lambda: seen.append(exported(location, otherwise=tmp_path / "elsewhere")))
    waiting.start()
    time.sleep(0.2)
    assert not seen
    export_checkpoint(location.checkpoint, location.directory)
    waiting.join(60)
    assert seen == [location.directory]
    shutil.rmtree(location.directory)
    monkeypatch.setattr(checkpoints, "EXPORT_WAIT_SECONDS", 0.0)
    with pytest.raises(CheckpointError, match="Export it first: vlmkit-export ckpt="):
        exported(location, otherwise=tmp_path / "elsewhere")


def test_nothing_is_called_that_a_run_s_config_names(copied, tmp_path):
    """A run may come from anybody; its model would be made by what its config says."""
    config = copied.parent.parent / "config.yaml"
    saved = config.read_text()
    for target in ("vlmkit.demo.tiny_assembly", "vlmkit.model.freeze.FreezePolicy"):
        config.write_text(saved.replace(f"_target_: {target}", "_target_: builtins.print"))
        with pytest.raises(ConfigError, match=r"has builtins\.print, which is not vlmkit's, so it is not called"):
            export_checkpoint(copied, tmp_path / "out")
    config.write_text(saved.replace("    rank: 0", "    rank: 1\n    _target_: builtins.print"))
    with pytest.raises(ConfigError, match=r"has builtins\.print"):
        export_checkpoint(copied, tmp_path / "out")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_exports_a_run_and_what_it_wrote_is_exported_again(averaged, tmp_path):
    output = run("export", f"ckpt={averaged}", f"out={tmp_path / 'one'}", "weights=last")
    newest = max(averaged.glob("checkpoints/step-*.ckpt"))
    assert f"{tmp_path / 'one'}: the model of {newest}, reopened with plain transformers" in output
    assert same(weights(tmp_path / "one"), held(newest, "state_dict"))
    run("export", f"ckpt={tmp_path / 'one'}", f"out={tmp_path / 'two'}", "dtype=bfloat16")
    rounded = {name: tensor.bfloat16() for name, tensor in weights(tmp_path / "one").items()}
    assert same(weights(tmp_path / "two"), rounded)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "ckpt must be given: there is no default. Add ckpt=RUN or ckpt=RUN/checkpoints/step-N.ckpt."),
        (["ckpt=RUN", "weights=best_one"], "weights=best_one: choose one of auto, last, average, best."),
        (["ckpt=RUN/hf", "weights=average"], "holds one set of plain weights. Name a checkpoint of the run."),
        (["ckpt=RUN/hf", "out=RUN/hf"], "this is the model itself. Name another directory."),
        (["ckpt=RUN", "out=RUN"], "not empty and not written by vlmkit"),
        (["ckpt=nowhere"], "ckpt=nowhere: no model there. Name a run directory, a checkpoint of one"),
    ],
)
def test_wrong_turns(averaged, overrides, message):
    output = run("export", *(override.replace("RUN", str(averaged)) for override in overrides), status=1)
    assert message in output
    assert "Traceback" not in output
