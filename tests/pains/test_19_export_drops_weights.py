"""An export that lost, gained or changed a tensor fails by its name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.conftest import assembly
from vlmkit.errors import CheckpointError
from vlmkit.model.checkpoint import prove_export, save_hf

NAME = "model.visual.deepstack_merger_list.0.linear_fc2.weight"


@pytest.fixture(scope="module")
def model(tiny):
    return assembly(tiny).build(dtype=torch.float32).model


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("dropped", rf"1 tensors are in the file or in the model only \(first: {NAME}\)\. Please report it\.$"),
        ("added", r"1 tensors are in the file or in the model only \(first: lora_A\.weight\)\. Please report it\.$"),
        ("changed", rf"tensor {NAME} in the file differs from the model's\. Write it again"),
    ],
)
def test_a_fault_of_one_tensor_is_named(model, processor, tmp_path, fault, message):
    export = save_hf(model=model, processor=processor, directory=tmp_path / "hf", provenance={})
    tensors = load_file(export / "model.safetensors")
    if fault == "dropped":
        del tensors[NAME]
    elif fault == "added":
        tensors["lora_A.weight"] = torch.zeros(2, 2)
    else:
        tensors[NAME] = tensors[NAME].clone()
        tensors[NAME].view(-1)[7] += 1e-6
    save_file(tensors, export / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        prove_export(export, model=model, processor=processor)
