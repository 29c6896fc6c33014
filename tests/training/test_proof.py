"""A model collected from ranks is held against what they trained."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from vlmkit.errors import CheckpointError
from vlmkit.training.proof import probe_losses, probe_pack, prove_collected


@pytest.fixture(scope="module")
def trained(tiny, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = prepared(write_manifest(folder, 4), tiny.vision_language, cache)
    return fit(data, tiny.vision_language, folder, callbacks=[]), data.processor


def test_the_probe_has_a_text_and_an_image_and_is_always_the_same(trained):
    one, other = (probe_pack(trained[1]) for _ in range(2))
    assert (len(one["seqlens"]), one["num_media"]) == (2, 1)
    assert len(one["targets"]) > 10
    assert all(torch.equal(one[key], other[key]) for key in ("input_ids", "still_patches", "targets"))


def test_the_same_weights_pass_and_leave_training_as_it_was(trained):
    module, processor = trained
    modes = [part.training for part in module.modules()]
    losses = probe_losses(module, processor, nullcontext())
    assert losses.shape == probe_pack(processor)["targets"].shape
    assert [part.training for part in module.modules()] == modes
    assert prove_collected(copy.deepcopy(module.packed.hf), losses, processor, rounded=False) < 1e-6


@pytest.mark.parametrize("name", ["model.visual.merger.linear_fc2.weight", "model.language_model.norm.weight"])
@pytest.mark.parametrize(("how", "rounded"), [("halved", False), ("lost", False), ("lost", True)])
def test_a_wrong_tensor_is_found(trained, name, how, rounded):
    module, processor = trained
    losses = probe_losses(module, processor, nullcontext())
    other = copy.deepcopy(module.packed.hf)
    with torch.no_grad():
        other.get_parameter(name).mul_(0.5 if how == "halved" else float("nan"))
    with pytest.raises(CheckpointError, match=r"is not the one they trained: losses of a probe differ by"):
        prove_collected(other, losses, processor, rounded=rounded)


def test_rounding_of_the_shared_model_is_no_fault(trained):
    module, processor = trained
    losses = probe_losses(module, processor, torch.autocast("cpu", dtype=torch.bfloat16))
    worst = prove_collected(copy.deepcopy(module.packed.hf), losses, processor, rounded=True)
    assert 0 < worst < 0.1
