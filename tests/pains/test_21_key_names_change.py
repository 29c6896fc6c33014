"""Tensors named by another library version: told with the versions and what to do, instead of missing keys."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from tests.model.conftest import assembly
from vlmkit.errors import CheckpointError
from vlmkit.model.checkpoint import read_provenance, save_hf


def test_another_layout_is_refused_by_version(tiny, processor, tmp_path):
    model = assembly(tiny).build(dtype=torch.float32).model
    path = save_hf(model=model, processor=processor, directory=tmp_path / "hf", provenance={}) / "vlmkit.json"
    told = json.loads(path.read_text())
    assert told["key_layout"] == "transformers-5"
    assert told["versions"]["transformers"] == transformers.__version__
    told["key_layout"], told["versions"]["transformers"] = "transformers-4", "4.51.0"
    path.write_text(json.dumps(told))
    with pytest.raises(CheckpointError) as caught:
        read_provenance(path.parent)
    assert str(caught.value) == (
        f"{path}: its tensors are named as 'transformers-4' names them (written with transformers 4.51.0); this vlmkit knows "
        "'transformers-5'. Export them again with the versions that wrote them, or read them with a vlmkit that knows this layout."
    )
