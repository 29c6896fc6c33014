"""What a stage may expect of the one before: each difference is refused with both values and the way to allow it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.conftest import assembly
from vlmkit.cli.contract import check_allowed, check_contract, check_resumable
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.model.checkpoint import save_hf
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.processor import load_processor

BUDGET = PixelBudget(image_max_pixels=64 * 64 * 4, video_max_pixels=64 * 64 * 16, video_max_frames=6)


@pytest.fixture(scope="module")
def written(tiny, processor, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "hf"
    model = assembly(tiny).build(dtype=torch.float32).model
    return save_hf(model=model, processor=processor, directory=directory, provenance={"trained": {}})


@pytest.fixture
def trained(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "hf")


def check(directory: Path, *allowed: str, budget: PixelBudget = BUDGET) -> list[str]:
    return check_contract(directory, load_processor(directory, budget=budget), allowed)


def change(path: Path, name: str, value: object) -> None:
    content = json.loads(path.read_text())
    content[name] = value
    path.write_text(json.dumps(content))


def test_what_was_trained_fits_itself(trained):
    assert check(trained) == []


def test_another_pixel_limit_is_refused_and_can_be_allowed(trained):
    smaller = PixelBudget(image_max_pixels=64 * 64, video_max_pixels=64 * 64 * 16, video_max_frames=6)
    with pytest.raises(
        ConfigError,
        match=r"data\.image_max_pixels=4096, trained with was 16384\n.*init_allow=\[pixel_limits\]",
    ):
        check(trained, budget=smaller)
    assert check(trained, "pixel_limits", budget=smaller) == ["data.image_max_pixels=4096, trained with was 16384"]


def test_limits_of_a_model_that_was_only_assembled_bind_nobody(trained):
    change(trained / "vlmkit.json", "provenance", {})
    assert check(trained, budget=PixelBudget(image_max_pixels=64 * 64)) == []


def test_another_template_is_refused(trained):
    path = trained / "chat_template.jinja"
    path.write_text(path.read_text() + "\n{# edited #}")
    with pytest.raises(ConfigError, match=r"template: the chat template has hash \w{12}, trained with was \w{12}"):
        check(trained)
    assert len(check(trained, "template")) == 1


def test_another_tokenizer_is_refused(trained):
    path = trained / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"tokenizer: the tokenizer has hash"):
        check(trained)


def test_exchanged_weights_are_refused(trained):
    path = trained / "model.safetensors"
    tensors = load_file(path)
    name = "model.language_model.norm.weight"
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"assembly: tensor {name} is not the one that was written"):
        check(trained)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"1 tensors stand in the files or in vlmkit\.json only \(first: {name}\)"):
        check(trained)


def test_all_differences_are_told_at_once(trained):
    path = trained / "chat_template.jinja"
    path.write_text(path.read_text() + "\n{# edited #}")
    with pytest.raises(ConfigError, match=r"(?s)template: .*pixel_limits: .*init_allow=\[pixel_limits,template\]"):
        check(trained, budget=PixelBudget(image_max_pixels=64 * 64, video_max_pixels=64 * 64 * 16, video_max_frames=6))


def test_a_directory_of_others_promises_nothing(tiny):
    assert check(tiny.vision_language) == []


def test_tensors_named_by_another_library_are_told_by_version(trained):
    change(trained / "vlmkit.json", "key_layout", "transformers-9")
    with pytest.raises(CheckpointError, match=r"named as 'transformers-9' .*this vlmkit knows 'transformers-5'"):
        check(trained)


@pytest.mark.parametrize("names", [["pixels"], "template", None])
def test_init_allow_knows_its_words(names):
    with pytest.raises(ConfigError, match=r"assembly, template, tokenizer, pixel_limits"):
        check_allowed(names)


HELD = {
    "optim": {"optim._target_": "x.Plan", "optim.lr": 1e-3, "optim.beta2": 0.999, "optim.layer_decay": 1.0, "optim.optimizer": None, "optim.fp32_masters": True},
    "schedule": {"optim.schedule": "cosine", "trainer.max_steps": None},
    "average": {},
    "precision": {"trainer.precision": "32-true"},
    "lora": {"model.lora.rank": 0},
}  # fmt: skip


def resumable(*allowed: str, **changes: dict) -> dict[str, list[str]]:
    return check_resumable(
        Path("x.ckpt"), HELD, {kind: {**HELD[kind], **changes.get(kind, {})} for kind in HELD}, list(allowed)
    )


def test_the_same_settings_are_resumed():
    assert resumable() == {}
    assert check_resumable(Path("x.ckpt"), None, HELD, []) == {}, "older checkpoints say nothing"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("optim", {"optim.lr": 1e-6}, "optim.lr=1e-06, trained with was 0.001"),
        ("optim", {"optim.beta2": 0.95}, "optim.beta2=0.95, trained with was 0.999"),
        ("schedule", {"optim.schedule": "linear"}, "optim.schedule=linear, trained with was cosine"),
        ("schedule", {"trainer.max_steps": 9}, "trainer.max_steps=9, trained with was None"),
        ("average", {"callbacks.average.decay": 0.9}, "callbacks.average.decay=0.9, trained with was none"),
        ("precision", {"trainer.precision": "bf16-mixed"}, "trainer.precision=bf16-mixed, trained with was 32-true"),
    ],
)
def test_another_setting_is_refused_or_applied(kind, changes, message):
    pattern = rf"(?s)x\.ckpt was trained with other settings:\n  {kind}: {message}\nSet them back, .*resume_allow=\[{kind}\]\."
    with pytest.raises(ConfigError, match=pattern):
        resumable(**{kind: changes})
    others = [name for name in ("optim", "schedule", "average", "precision") if name != kind]
    with pytest.raises(ConfigError, match=rf"resume_allow=\[{','.join(sorted([*others, kind]))}\]"):
        resumable(*others, **{kind: changes})
    assert resumable(kind, **{kind: changes}) == {kind: [message]}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("optim", {"optim.layer_decay": 0.9}),
        ("optim", {"optim.optimizer": {"_target_": "torch.optim.SGD"}}),
        ("optim", {"optim.fp32_masters": False}),
        ("precision", {"trainer.precision": "bf16-true"}),
        ("lora", {"model.lora.rank": 8}),
    ],
)
def test_what_cannot_change_within_a_run_is_refused_whatever_is_allowed(kind, changes):
    with pytest.raises(ConfigError, match=rf"{kind}: .*\n.*Set {kind} back: it cannot change within a run.*init_from"):
        resumable("optim", "schedule", "average", "precision", **{kind: changes})


def test_all_changed_settings_are_listed_at_once():
    pattern = r"(?s)optim\.lr=1.*optim\.beta2=0\.9,.*optim\.schedule=linear.*resume_allow=\[optim,schedule\]"
    with pytest.raises(ConfigError, match=pattern):
        resumable(optim={"optim.lr": 1, "optim.beta2": 0.9}, schedule={"optim.schedule": "linear"})


@pytest.mark.parametrize("allowed", [["lr"], ["lora"], "optim", None])
def test_resume_allow_knows_its_words(allowed):
    with pytest.raises(
        ConfigError, match=r"resume_allow=.*: wanted a list of some of optim, schedule, average, precision"
    ):
        check_resumable(Path("x.ckpt"), HELD, HELD, allowed)
