"""The exported directory: whole or not at all, told, proved, and read by plain transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.model.conftest import assembly
from vlmkit.errors import CheckpointError
from vlmkit.model.checkpoint import check_replaceable, prove_export, read_provenance, save_hf, weights_hash
from vlmkit.model.tensors import tensor_hash

PROVENANCE = {"sources": {"path": "somewhere"}, "steps": 3}


@pytest.fixture(scope="module")
def model(tiny):
    return assembly(tiny).build(dtype=torch.float32).model


@pytest.fixture
def export(model, processor, tmp_path):
    return save_hf(model=model, processor=processor, directory=tmp_path / "hf", provenance=PROVENANCE)


def test_an_export_is_proved(export, model, processor):
    prove_export(export, model=model, processor=processor)
    assert sorted(path.name for path in export.parent.iterdir()) == ["hf"], "nothing is left beside it"


def test_a_bf16_export_is_proved_and_says_its_type(tiny, processor, tmp_path):
    model = assembly(tiny).build(dtype=torch.bfloat16).model
    export = save_hf(model=model, processor=processor, directory=tmp_path / "hf", provenance={})
    prove_export(export, model=model, processor=processor)
    config = json.loads((export / "config.json").read_text())
    assert (config["dtype"], config["text_config"]["dtype"]) == ("bfloat16", "bfloat16")


def test_proving_leaves_the_modes_alone(export, model, processor):
    model.train()
    model.model.visual.eval()
    prove_export(export, model=model, processor=processor)
    assert model.model.language_model.training
    assert not model.model.visual.training
    model.eval()


def test_what_vlmkit_json_tells(export, model, processor):
    told = read_provenance(export)
    assert set(told) == {
        "schema",
        "key_layout",
        "provenance",
        "tensors",
        "processor",
        "template",
        "tokenizer",
        "pixel_limits",
        "versions",
    }
    assert told["schema"] == "vlmkit.model/1"
    assert told["provenance"] == PROVENANCE
    assert told["pixel_limits"] == processor.limits()
    assert told["pixel_limits"]["image_max_pixels"] == 64 * 64 * 4
    assert told["processor"] == processor.fingerprint
    assert set(told["versions"]) == {"vlmkit", "transformers", "torch"}
    saved = load_file(export / "model.safetensors")
    assert told["tensors"] == {name: tensor_hash(tensor) for name, tensor in saved.items()}
    assert "lm_head.weight" not in saved, "a tied head is saved once"


def test_the_pixel_budget_is_saved(export):
    processor = AutoProcessor.from_pretrained(export)
    assert processor.image_processor.size["longest_edge"] == 64 * 64 * 4


def test_runtime_settings_are_not_saved(tiny, processor, tmp_path):
    model = assembly(tiny).build(dtype=torch.float32).model
    model.set_attn_implementation("eager")
    export = save_hf(model=model, processor=processor, directory=tmp_path / "hf", provenance={})
    assert "attn_implementation" not in (export / "config.json").read_text()


def test_a_changed_tensor_is_named(export, model, processor):
    tensors = load_file(export / "model.safetensors")
    name = "model.visual.merger.linear_fc2.weight"
    tensors[name][3, 5] += 1e-6
    save_file(tensors, export / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor model\.visual\.merger\.linear_fc2\.weight in the file differs"):
        prove_export(export, model=model, processor=processor)
    del tensors[name]
    save_file(tensors, export / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"1 tensors are in the file or in the model only \(first: model\.visual\.merger"
    ):
        prove_export(export, model=model, processor=processor)


def test_a_config_that_changes_the_logits_is_noticed(export, model, processor):
    path = export / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 5e6
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="logits differ by"):
        prove_export(export, model=model, processor=processor)


def test_lost_pixel_limits_are_noticed(export, model, processor):
    path = export / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["size"]["longest_edge"] *= 2
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its pixel limits read back as"):
        prove_export(export, model=model, processor=processor)


class FullDisk:
    """A processor on a disk that fills up while it is written."""

    def __init__(self, processor):
        self.hf, self.fingerprint, self.limits = processor.hf, processor.fingerprint, processor.limits

    def save(self, directory):
        raise OSError(28, "No space left on device")


def test_a_failed_export_leaves_the_former_one(export, model, processor):
    before = {path.name: path.read_bytes() for path in export.iterdir()}
    with pytest.raises(CheckpointError, match=r"hf: could not be written \(.*No space left on device"):
        save_hf(model=model, processor=FullDisk(processor), directory=export, provenance={})
    assert {path.name: path.read_bytes() for path in export.iterdir()} == before
    assert sorted(path.name for path in export.parent.iterdir()) == ["hf"]


def test_a_former_export_is_put_back_where_the_new_one_cannot_take_its_place(export, model, processor, monkeypatch):
    before = {path.name: path.read_bytes() for path in export.iterdir()}
    rename = Path.rename

    def refuse(self, target):
        if self.name.endswith(".writing"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_hf(model=model, processor=processor, directory=export, provenance={})
    assert {path.name: path.read_bytes() for path in export.iterdir()} == before
    assert sorted(path.name for path in export.parent.iterdir()) == ["hf"]


def test_an_export_replaces_a_former_one_and_nothing_else(export, model, processor, tmp_path):
    (export / "stale.txt").write_text("from the former one")
    save_hf(model=model, processor=processor, directory=export, provenance={"steps": 4})
    assert read_provenance(export)["provenance"] == {"steps": 4}
    assert not (export / "stale.txt").exists()

    precious = tmp_path / "home"
    precious.mkdir()
    check_replaceable(precious)
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"home: not empty and not written by vlmkit \(it has 'thesis\.tex'"):
        save_hf(model=model, processor=processor, directory=precious, provenance={})
    assert (precious / "thesis.tex").read_text() == "years of work"
    with pytest.raises(CheckpointError, match="is a file"):
        save_hf(model=model, processor=processor, directory=precious / "thesis.tex", provenance={})


def test_a_relative_directory_is_written_where_one_stands(model, processor, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    from pathlib import Path

    assert save_hf(model=model, processor=processor, directory=Path(), provenance={}) == tmp_path / "here"
    assert (tmp_path / "here" / "vlmkit.json").is_file()


def test_other_weights_have_another_hash(export, tiny):
    first = weights_hash(export)
    assert first == weights_hash(export)
    tensors = load_file(export / "model.safetensors")
    tensors["model.language_model.norm.weight"][0] += 1
    save_file(tensors, export / "model.safetensors", {"format": "pt"})
    assert weights_hash(export) != first


def test_provenance_of_others_and_of_other_versions(export, tiny):
    assert read_provenance(tiny.vision_language) is None
    (export / "vlmkit.json").write_text('{"schema": "vlmkit.model/9"}')
    with pytest.raises(CheckpointError, match=r"vlmkit\.json: its schema is 'vlmkit\.model/9', this version reads"):
        read_provenance(export)


PLAIN = """\
import sys
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])
said = [{"role": "user", "content": [{"type": "image", "path": sys.argv[2]}, {"type": "text", "text": "What is it?"}]}]
inputs = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
assert not [name for name in sys.modules if name.startswith("vlmkit")]
print(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist())
"""


def test_a_process_without_vlmkit_says_the_same(export, pictures, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", PLAIN, str(export), str(pictures[0])]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = AutoModelForImageTextToText.from_pretrained(export).eval()
    processor = AutoProcessor.from_pretrained(export)
    said = [{"type": "image", "path": str(pictures[0])}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": said}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    here = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == here
