"""Tensors read from files: the safetensors library's bytes, and an error that names a damaged file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlmkit.errors import CheckpointError
from vlmkit.model.tensors import TensorReader, align_parameters, tensor_hash

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).view(3, 4),
    "half": torch.linspace(-1, 1, 7).bfloat16(),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
}


def test_reads_what_was_written(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    reader = TensorReader(tmp_path)
    assert reader.names == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert reader.dtype(name) == tensor.dtype
        assert reader.shape(name) == list(tensor.shape)
        assert torch.equal(reader.read(name), tensor)
    assert dict(reader.reads) == dict.fromkeys(TENSORS, 1)


def test_reads_shards(tmp_path):
    save_file({"a": TENSORS["matrix"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["half"]}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    reader = TensorReader(tmp_path)
    assert (reader.file("a"), reader.file("b")) == ("one.safetensors", "two.safetensors")
    assert torch.equal(reader.read("b"), TENSORS["half"])
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks two\.safetensors"):
        TensorReader(tmp_path)


def test_other_formats_are_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors\. Weights must be safetensors"):
        TensorReader(tmp_path)


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"matrix": TENSORS["matrix"]}, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends within tensor matrix"):
        TensorReader(tmp_path).read("matrix")
    path.write_bytes(b"\x00" * 4)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
        TensorReader(tmp_path)


def test_experts_that_lie_one_by_one_are_one_tensor(tmp_path):
    """Over shards, in the order of their numbers, gate above up; some rows are some experts."""
    from safetensors.torch import save_file

    tensors = {
        f"layers.0.mlp.experts.{expert}.{matrix}.weight": torch.randn(*shape)
        for expert in range(11)
        for matrix, shape in (("gate_proj", (3, 2)), ("up_proj", (3, 2)), ("down_proj", (2, 3)))
    }
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"{number}.safetensors")
    places = {name: f"{place % 2}.safetensors" for place, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    reader = TensorReader(tmp_path)
    up, down = "layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.down_proj"
    assert reader.names == [down, up]
    assert (reader.shape(up), reader.shape(down)) == ([11, 6, 2], [11, 2, 3])
    assert reader.num_bytes(up) == 11 * 6 * 2 * 4
    one = [
        torch.cat([tensors[f"layers.0.mlp.experts.{expert}.{matrix}.weight"] for matrix in ("gate_proj", "up_proj")])
        for expert in range(11)
    ]
    assert torch.equal(reader.read(up), torch.stack(one))
    assert torch.equal(reader.read(up, (9, 11)), torch.stack(one[9:]))
    assert reader.read(up, (4, 4)).shape == (0, 6, 2)
    assert reader.reads == {up: 3}


def test_experts_of_which_one_is_missing_are_no_tensor(tmp_path):
    from safetensors.torch import save_file

    tensors = {f"experts.{expert}.down_proj.weight": torch.ones(2, 3) for expert in (0, 2)}
    tensors |= {f"mlp.experts.{expert}.down_proj.weight": torch.ones(2, 3) for expert in (0, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert TensorReader(tmp_path).names == sorted(tensors)


def test_a_hash_sees_every_bit():
    tensor = torch.tensor([0.0, 1.0])
    assert tensor_hash(tensor) == tensor_hash(tensor.clone())
    assert tensor_hash(tensor) != tensor_hash(torch.tensor([-0.0, 1.0]))
    assert tensor_hash(tensor.view(2, 1).expand(2, 2).t()) == tensor_hash(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def test_aligned_parameters_keep_their_values_and_ties():
    memory = torch.arange(64, dtype=torch.float32)
    start = next(offset for offset in range(1, 17) if memory[offset:].data_ptr() % 64)
    model = nn.ModuleDict({"one": nn.Linear(4, 2, bias=False), "two": nn.Linear(4, 2, bias=False)})
    model["one"].weight.data = memory[start : start + 8].view(2, 4)
    model["two"].weight = model["one"].weight
    align_parameters(model)
    assert model["one"].weight.data_ptr() % 64 == 0
    assert model["two"].weight is model["one"].weight
    assert torch.equal(model["one"].weight, memory[start : start + 8].view(2, 4))


@pytest.mark.parametrize("content", ["{", "[]", '{"weights": {}}'])
def test_a_damaged_index_of_shards_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json: not an index of shards"):
        TensorReader(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 16, b"\4\0\0\0\0\0\0\0{{{{"])
def test_a_file_that_is_no_safetensors_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
        TensorReader(tmp_path)
