"""Assembly of real (tiny) checkpoints: what comes from where, what is proved, what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.conftest import assembly, edited
from vlmkit.errors import AssemblyError, CheckpointError
from vlmkit.model import assembly as assembly_module
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.parts import restore_rotary_buffers
from vlmkit.model.tensors import TensorReader, tensor_hash

FC2 = "linear_fc2.weight"


def weights(directory):
    return load_file(directory / "model.safetensors")


def built(tiny, *, dtype=torch.float32, prove=True, **settings):
    made = assembly(tiny, **settings)
    vlm = made.build(dtype=dtype)
    if prove:
        made.prove(vlm)
        assert vlm.report.proved
    return vlm


def leaves(node, prefix=""):
    for name, value in node.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


@pytest.fixture
def readers(monkeypatch):
    """The readers that an assembly makes, for a look at what they read."""
    made: list[TensorReader] = []

    class Kept(TensorReader):
        def __init__(self, directory):
            super().__init__(directory)
            made.append(self)

    monkeypatch.setattr(assembly_module, "TensorReader", Kept)
    return made


def test_every_tensor_is_its_sources(tiny):
    state = built(tiny).model.state_dict()
    template, language = weights(tiny.vision_language), weights(tiny.language_model)
    for name, tensor in language.items():
        assert torch.equal(state[name.replace("model.", "model.language_model.", 1)], tensor), name
    for name, tensor in template.items():
        if name.startswith("model.visual."):
            expected = tensor[:128] if "linear_fc2" in name and "merger" in name else tensor
            assert torch.equal(state[name], expected), name


def test_every_field_and_tensor_is_told(tiny, tmp_path):
    vlm = built(tiny, dtype=torch.bfloat16)
    vlm.model.save_pretrained(tmp_path)
    told = {field.name: field.value for field in vlm.report.fields}
    saved = dict(leaves(json.loads((tmp_path / "config.json").read_text())))
    del saved["transformers_version"]
    assert {name: told.get(name, "not told") for name in saved} == saved
    state = vlm.model.state_dict()
    del state["lm_head.weight"]  # tied
    assert {tensor.name: tensor.sha256 for tensor in vlm.report.tensors} == {
        name: tensor_hash(tensor) for name, tensor in state.items()
    }
    assert Counter(tensor.origin for tensor in vlm.report.tensors) == {"copied": len(state) - 6, "cropped": 6}
    assert all(tensor.source.count(":") == 2 for tensor in vlm.report.tensors)


def test_nothing_is_read_twice_and_nothing_for_nothing(tiny, readers):
    vlm = built(tiny, prove=False)
    reads = Counter()
    for reader in readers:
        reads += Counter({(reader.directory.name, name): count for name, count in reader.reads.items()})
    assert set(reads.values()) == {1}
    assert len(reads) == len(vlm.report.tensors)
    assert vlm.report.unused == {"vision_encoder": {"model.language_model": 35}}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [96, 160, 192])
def test_narrower_equal_and_wider_language_models(tiny, make_language_model, width, tied):
    vlm = built(tiny, language_model=make_language_model(width=width, tied=tied))
    old = weights(tiny.vision_language)
    for name in (
        "model.visual.merger.",
        "model.visual.deepstack_merger_list.0.",
        "model.visual.deepstack_merger_list.1.",
    ):
        new, kept = vlm.model.state_dict()[name + FC2], min(width, 160)
        assert len(new) == width
        assert torch.equal(new[:kept], old[name + FC2][:kept])
        assert bool((new[kept:].abs().sum(1) > 0).all()), "a wider model's further rows are drawn, not zero"
    origins = Counter(tensor.origin for tensor in vlm.report.tensors if tensor.origin != "copied")
    assert origins == {96: {"cropped": 6}, 160: {}, 192: {"extended": 6}}[width]
    assert vlm.model.config.tie_word_embeddings is vlm.model.config.text_config.tie_word_embeddings is tied
    assert (vlm.model.lm_head.weight is vlm.model.model.language_model.embed_tokens.weight) is tied


def test_a_random_merger_is_drawn_from_the_seed(tiny, make_language_model, readers):
    same_width = make_language_model(width=160, tied=True)
    first, again, other = (
        built(tiny, language_model=same_width, merger_init="random", seed=seed, prove=False).model.model.visual
        for seed in (0, 0, 1)
    )
    drawn = [merger.linear_fc2.weight for merger in (first.merger, *first.deepstack_merger_list)]
    drawn += [merger.linear_fc2.weight for merger in (other.merger, *other.deepstack_merger_list)]
    assert len({tensor_hash(tensor) for tensor in drawn}) == 6, "each layer and each seed has its own numbers"
    assert torch.equal(first.merger.linear_fc2.weight, again.merger.linear_fc2.weight)
    assert not first.merger.linear_fc2.bias.any()
    assert not any(reader.reads[f"model.visual.merger.{FC2}"] for reader in readers)


def test_a_random_merger_is_told_and_proved(tiny):
    vlm = built(tiny, merger_init="random")
    new = {tensor.name for tensor in vlm.report.tensors if tensor.origin == "new"}
    assert len(new) == 6
    assert all("linear_fc2" in name and "merger" in name for name in new)
    assert "new      model.visual.merger.linear_fc2.weight [128, 512] from the seed" in vlm.report.to_text()


def test_shards_give_the_same_model(tiny, make_language_model):
    whole, parts = make_language_model(width=96, tied=True), make_language_model(width=96, tied=True, shard="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 3
    one, other = (built(tiny, language_model=source) for source in (whole, parts))
    assert [tensor.sha256 for tensor in one.report.tensors] == [tensor.sha256 for tensor in other.report.tensors]


def test_only_the_vision_encoder_is_swapped(tiny, tmp_path):
    other = shutil.copytree(tiny.vision_language, tmp_path / "other")
    save_file(
        {name: tensor + 1 for name, tensor in weights(other).items()}, other / "model.safetensors", {"format": "pt"}
    )
    state = built(tiny, vision_encoder=other, template=tiny.vision_language, language_model=None).model.state_dict()
    for name, tensor in weights(tiny.vision_language).items():
        assert torch.equal(state[name], tensor + 1 if name.startswith("model.visual.") else tensor), name


def test_nothing_swapped_is_the_template(tiny):
    state = built(tiny, vision_encoder=None, template=tiny.vision_language, language_model=None).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(tiny.vision_language).items())


def test_a_whole_checkpoint_is_loaded_as_it_is(tiny, readers):
    vlm = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32)
    state = vlm.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(tiny.vision_language).items())
    assert set(readers[0].reads.values()) == {1}
    with pytest.raises(AssemblyError, match=r"^model\.path: .* is a qwen3; supported: qwen3_vl"):
        WholeCheckpoint(path=tiny.language_model, processor=None).build(dtype=torch.float32)


def test_the_proof_leaves_the_weights_alone(tiny):
    made = assembly(tiny)
    vlm = made.build(dtype=torch.bfloat16)
    before = {name: tensor_hash(tensor) for name, tensor in vlm.model.state_dict().items()}
    made.prove(vlm)
    assert {name: tensor_hash(tensor) for name, tensor in vlm.model.state_dict().items()} == before
    assert vlm.model.lm_head.weight is vlm.model.model.language_model.embed_tokens.weight
    assert vlm.model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def spoil_rope(model):
    model.model.language_model.rotary_emb.config.rope_parameters["rope_theta"] = 5e6
    restore_rotary_buffers(model)


def round_rope(model):
    rotary = model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.bfloat16().float()


def lose_rope(model):
    rotary = model.model.visual.rotary_pos_emb
    rotary.inv_freq = rotary.inv_freq.to("meta")


def spoil_language_model(model):
    model.model.language_model.layers[3].mlp.down_proj.weight[0, 0] += 1e-3


def spoil_vision_encoder(model):
    model.model.visual.blocks[3].mlp.linear_fc2.weight[0, 0] += 1e-3


@pytest.mark.parametrize(
    ("spoil", "claim"),
    [
        (spoil_rope, "text-only logits equal the language model's"),
        (round_rope, "text-only logits equal the language model's"),
        (lose_rope, "every tensor is filled and its origin told"),
        (spoil_language_model, "text-only logits equal the language model's"),
        (spoil_vision_encoder, "vision features before the merger equal the source's"),
    ],
)
def test_the_proof_notices(tiny, spoil, claim):
    made = assembly(tiny)
    vlm = made.build(dtype=torch.float32)
    with torch.no_grad():
        spoil(vlm.model)
    with pytest.raises(AssemblyError, match=f"failed its proof: {claim}"):
        made.prove(vlm)
    assert not vlm.report.proved
    assert "FAILS  " + claim in vlm.report.to_text()


def test_the_report_reads_well(tiny):
    report = built(tiny).report
    text = report.to_text()
    assert text.startswith(
        f"""\
Assembled from
  template        {tiny.vision_language}
  vision_encoder  {tiny.vision_language}
  language_model  {tiny.language_model}

Proof
  holds  text-only logits equal the language model's bit for bit in fp32 (texts of 1, 17, 160 tokens, largest difference 0)
  holds  vision features before the merger equal the source's (3 random images and videos, largest difference 0)
  holds  every tensor is filled and its origin told (115 tensors)

Config fields, and where each came from
"""
    )
    assert text.endswith(
        """\
Tensors, by origin
     109 copied
       6 cropped
    cropped  model.visual.merger.linear_fc2.weight [128, 512] from vision_encoder:model.safetensors:model.visual.merger.linear_fc2.weight
    cropped  model.visual.merger.linear_fc2.bias [128] from vision_encoder:model.safetensors:model.visual.merger.linear_fc2.bias
    cropped  model.visual.deepstack_merger_list.0.linear_fc2.weight [128, 512] from vision_encoder:model.safetensors:model.visual.deepstack_merger_list.0.linear_fc2.weight
    cropped  model.visual.deepstack_merger_list.0.linear_fc2.bias [128] from vision_encoder:model.safetensors:model.visual.deepstack_merger_list.0.linear_fc2.bias
    cropped  model.visual.deepstack_merger_list.1.linear_fc2.weight [128, 512] from vision_encoder:model.safetensors:model.visual.deepstack_merger_list.1.linear_fc2.weight
    cropped  model.visual.deepstack_merger_list.1.linear_fc2.bias [128] from vision_encoder:model.safetensors:model.visual.deepstack_merger_list.1.linear_fc2.bias
  not used from vision_encoder: 35 of model.language_model
"""
    )
    rope = next(line for line in text.splitlines() if "rope_theta" in line)
    assert rope.split() == [
        "text_config.rope_parameters.rope_theta",
        "language_model",
        "1000000.0",
        "(trained",
        "with",
        "it)",
    ]
    content = json.loads(report.to_json())
    assert (content["schema"], content["proved"], len(content["tensors"])) == ("vlmkit.assembly/1", True, 115)


def test_a_config_that_leaves_tensors_over_is_refused(tiny, tmp_path):
    short = edited(tiny.language_model, tmp_path / "short", num_hidden_layers=3)
    with pytest.raises(
        AssemblyError, match=r"short holds 11 tensors that the model has no place for \(first: model\.layers\.3\."
    ):
        built(tiny, language_model=short)
    short = edited(tiny.vision_language, tmp_path / "whole", vision_config={**_vision(tiny), "depth": 3})
    with pytest.raises(
        AssemblyError, match=r"^model\.path: .*whole holds \d+ tensors .*first: model\.visual\.blocks\.3\."
    ):
        WholeCheckpoint(path=short, processor=None).build(dtype=torch.float32)


def _vision(tiny):
    return json.loads((tiny.vision_language / "config.json").read_text())["vision_config"]


def test_a_config_that_wants_more_tensors_is_refused(tiny, tmp_path):
    headless = edited(tiny.language_model, tmp_path / "headless", tie_word_embeddings=False)
    with pytest.raises(AssemblyError, match=r"^model\.language_model: .*headless has no tensor for lm_head\.weight"):
        built(tiny, language_model=headless)
    wide = edited(tiny.language_model, tmp_path / "wide", intermediate_size=400)
    with pytest.raises(AssemblyError, match=r"gate_proj\.weight has shape \[384, 128\], the model needs \[400, 128\]"):
        built(tiny, language_model=wide)


def test_pairs_that_do_not_fit_are_refused(tiny, tmp_path):
    with pytest.raises(AssemblyError, match=r"^model\.vision_encoder: .* is a qwen3, which has no vision encoder"):
        built(tiny, vision_encoder=tiny.language_model, template=tiny.vision_language)
    with pytest.raises(AssemblyError, match=r"^model\.template: .* is a qwen3, not a vision-language model"):
        built(tiny, template=tiny.language_model)
    few = edited(tiny.language_model, tmp_path / "few", vocab_size=900)
    with pytest.raises(AssemblyError, match=r"the tokenizer has ids up to 961, the embeddings 900 rows"):
        built(tiny, language_model=few)


def test_another_tokenizer_is_refused_by_token(tiny, tmp_path):
    other = shutil.copytree(tiny.language_model, tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<|video_pad|>", "<|film_pad|>"))
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|video_pad|>", "<|film_pad|>"))
    with pytest.raises(
        AssemblyError, match=r"1 special tokens are missing in the language model \(first: '<\|video_pad\|>'\)"
    ):
        built(tiny, language_model=other)
    for file in other.glob("*token*"):
        file.unlink()
    with pytest.raises(AssemblyError, match=r"other holds no tokenizer \(tokenizer\.json\)"):
        built(tiny, language_model=other)


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("/nowhere/at/all", r"^model\.language_model: '/nowhere/at/all' is no directory"),
        ("no-such-owner/no-such-model", r"neither a directory here nor to be had from the hub"),
    ],
)
def test_a_source_that_is_not_there(tiny, source, finding):
    with pytest.raises(CheckpointError, match=finding):
        built(tiny, language_model=source)


def test_settings_are_checked_before_anything_is_read(tiny):
    with pytest.raises(ValueError, match="merger_init must be crop or random, got 'pad'"):
        assembly(tiny, merger_init="pad")
    with pytest.raises(ValueError, match=r"model\.template or model\.vision_encoder must name"):
        assembly(tiny, vision_encoder=None)


def test_the_stored_type_is_the_language_models(tiny, make_language_model):
    assert assembly(tiny).stored_dtype() == torch.float32
    half = make_language_model(width=96, tied=True, dtype=torch.bfloat16)
    assert assembly(tiny, language_model=half).stored_dtype() == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"vision_encoder": "./nowhere"}, "vision_encoder"),
        ({"vision_encoder": None, "template": "./nowhere"}, "template"),
        ({"vision_encoder": "./nowhere", "language_model": None}, "vision_encoder"),
        ({"language_model": "./nowhere"}, "language_model"),
    ],
)
def test_a_path_that_is_not_there_is_told_with_the_setting_that_named_it(tiny, settings, key):
    with pytest.raises(CheckpointError, match=rf"^model\.{key}: '\./nowhere' is no directory"):
        assembly(tiny, **settings).build(dtype=torch.float32)


def test_paths_may_begin_with_a_tilde(tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny.vision_language.parent))
    vlm = built(tiny, vision_encoder="~/vision_language", language_model="~/language_model")
    assert vlm.processor_source == str(tiny.vision_language)
    whole = WholeCheckpoint(path="~/vision_language", processor=None).build(dtype=torch.float32)
    assert whole.processor_source == str(tiny.vision_language)


@pytest.mark.parametrize("part", ["visual.deepstack_merger_list.1", "visual.merger"])
def test_the_proof_notices_a_merger_that_changed_after_the_report(tiny, part):
    made = assembly(tiny)
    vlm = made.build(dtype=torch.bfloat16)
    name = f"model.{part}.linear_fc1.weight"
    with torch.no_grad():
        vlm.model.get_parameter(name)[3, 5] += 0.5
    with pytest.raises(AssemblyError, match=rf"1 changed since \(first: {name}\)"):
        made.prove(vlm)


def test_what_is_saved_tells_every_field_and_tensor(tiny):
    vlm = built(tiny)
    assert vlm.provenance["fields"] == {field.name: field.source for field in vlm.report.fields}
    assert vlm.provenance["tensors"] == {tensor.name: tensor.origin for tensor in vlm.report.tensors}
    assert vlm.provenance["fields"]["text_config.rope_parameters.rope_theta"] == "language_model"


def test_neighbouring_seeds_and_mergers_draw_nothing_alike(tiny):
    """Layers that differ by a digit in their name, drawn with seeds that differ by one."""
    drawn = [
        tensor.sha256
        for seed in (0, 1)
        for tensor in built(tiny, merger_init="random", seed=seed, prove=False).report.tensors
        if tensor.origin == "new" and len(tensor.shape) == 2
    ]
    assert len(set(drawn)) == len(drawn) == 6
