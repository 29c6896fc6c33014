"""What holds for every family: parts, freezing, export, training, and what plain transformers makes of the result."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.families.fixtures import GRADIENTS, NAMES, checkpoint, family, family_processor, load_stock, stock_inputs
from tests.families.tiny import write_checkpoint
from tests.training.conftest import lines, run, write_manifest
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.errors import AssemblyError
from vlmkit.generation.backend import GenerationParams
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.model.assembly import Assembly, WholeCheckpoint
from vlmkit.model.checkpoint import prove_export, save_hf
from vlmkit.model.families import FAMILIES
from vlmkit.model.fit import misfits, sizes, without_weights
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import PARTS, blocks_of, mergers_of, part_of
from vlmkit.processing.encode import encode_example

__all__ = ["checkpoint", "family", "family_processor"]
MERGER_ONLY = FreezePolicy(vision_encoder=True, merger=False, language_model=True)


@pytest.fixture(scope="module")
def model(checkpoint):
    return WholeCheckpoint(path=checkpoint, processor=None).build(dtype=torch.float32).model


def test_a_family_is_known_by_the_name_in_its_config(family, checkpoint):
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == family.name
    assert set(NAMES) == set(FAMILIES), "every family has a tiny checkpoint, and so every test here"


def test_it_is_loaded_as_transformers_loads_it(model, checkpoint):
    stock = dict(load_stock(checkpoint, torch.float32).named_parameters())
    ours = dict(model.named_parameters())
    assert ours.keys() == stock.keys()
    assert [name for name in ours if not torch.equal(ours[name], stock[name])] == []


def test_every_parameter_has_a_part_and_every_part_its_own(model, family):
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert {part_of(name) for name in names} == set(PARTS)
    mergers = {id(parameter) for merger in mergers_of(model) for parameter in merger.parameters()}
    assert {name for name, p in model.named_parameters() if id(p) in mergers} == {
        n for n in names if part_of(n) == "merger"
    }
    assert len(blocks_of(model, "vision_encoder")) == model.config.vision_config.depth
    assert len(blocks_of(model, "language_model")) == model.config.text_config.num_hidden_layers
    assert hasattr(model.model.visual, "pos_embed") == family.learned_positions
    assert hasattr(model.model.visual, "deepstack_merger_list") == family.deepstack
    assert hasattr(model.model.visual, "fullatt_block_indexes") == family.windows
    assert any("linear_attn" in name for name in names) == family.linear_attention
    assert any("experts" in name for name in names) == family.experts


def test_the_table_of_parts_counts_each_parameter_once(model):
    found = without_weights(model.config)
    MERGER_ONLY.apply(found)
    told = sizes(found)
    assert sum(told.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert told.trained == {"vision_encoder": 0, "merger": told.parameters["merger"], "language_model": 0}


def test_modes_of_a_frozen_vision_encoder(model):
    MERGER_ONLY.set_modes(model)
    assert not any(module.training for module in model.model.visual.blocks.modules())
    assert all(module.training for merger in mergers_of(model) for module in merger.modules())
    assert all(module.training for module in model.model.language_model.modules())
    model.eval()


def test_processor_and_config_fit(model, family_processor):
    assert misfits(model.config, family_processor) == []


def test_an_export_is_proved_and_has_the_names_of_its_source(model, family_processor, checkpoint, tmp_path):
    export = save_hf(model=model, processor=family_processor, directory=tmp_path / "hf", provenance={})
    prove_export(export, model=model, processor=family_processor)
    theirs, ours = load_file(checkpoint / "model.safetensors"), load_file(export / "model.safetensors")
    assert ours.keys() == theirs.keys()


def test_it_is_assembled_of_itself_and_proved(checkpoint, model):
    """Each part read on its own way: every tensor copied, none left over."""
    source = Assembly(
        vision_encoder=checkpoint,
        language_model=None,
        template=None,
        merger_init="crop",
        processor=None,
        seed=0,
        prove=True,
    )
    vlm = source.build(dtype=torch.float32)
    source.prove(vlm)
    assert vlm.report is not None
    assert vlm.report.proved
    assert {tensor.origin for tensor in vlm.report.tensors} == {"copied"}
    assembled = dict(vlm.model.named_parameters())
    assert [name for name, parameter in model.named_parameters() if not torch.equal(parameter, assembled[name])] == []


def test_merger_rows_are_cut_for_a_narrower_language_model(family):
    """The layer that gives features of the language model's width is known by its name."""
    config = without_weights(tiny_config(family)).config
    config.vision_config.out_hidden_size += 32
    wider, plain = (dict(family_model.named_parameters()) for family_model in (meta(config), meta(tiny_config(family))))
    changed = {name for name in plain if wider[name].shape != plain[name].shape}
    assert changed == {n for n in plain if part_of(n) == "merger" and family.layout.merger_output in n}
    assert changed


def tiny_config(family):
    from tests.families.tiny import CONFIGS

    if family.name in CONFIGS:
        return CONFIGS[family.name]()
    from vlmkit.demo import checkpoints as demo

    return demo.make_vision_language_model(demo.train_tokenizer()).config


def meta(config):
    return without_weights(copy.deepcopy(config))


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_a_training_step_changes_what_is_trained(checkpoint, cache, tmp_path):
    """A real Trainer: every trained tensor has a finite gradient, and the frozen ones stand still."""
    from tests.training.small_run import fit, prepared
    from vlmkit.training.callbacks.receipt import GradientReceipt

    data = prepared(write_manifest(tmp_path, 4), checkpoint, cache)
    module = fit(data, checkpoint, tmp_path, callbacks=[GradientReceipt(steps_with_media=2)], merger_only=True)
    before = dict(WholeCheckpoint(path=checkpoint, processor=None).build(dtype=torch.float32).model.named_parameters())
    changed = {name for name, p in module.packed.hf.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in changed} == {"merger"}
    assert all(torch.isfinite(parameter).all() for parameter in module.packed.hf.parameters())


def test_left_padded_batches_are_answered_as_single_prompts(checkpoint, pictures, clip):
    """Two prompts of unlike lengths in one batch, on the backend that evaluates."""
    backend = HFBackend(directory=checkpoint, device="cpu", dtype="float32", workers=1)
    asked = [
        Conversation((Turn("user", (ImagePart(pictures[0]), TextPart("What is it?"))),)),
        Conversation((Turn("user", (VideoPart(clip), TextPart("what happens in all of this, please?"))),)),
        Conversation((Turn("user", (TextPart("hello"),)),)),
    ]
    together = backend.generate(asked, GenerationParams(max_new_tokens=5, batch_size=3))
    alone = [backend.generate([one], GenerationParams(max_new_tokens=5, batch_size=1))[0] for one in asked]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


# --- whole runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_check_train_export_and_evaluate(checkpoint, family, tmp_path, pictures):
    """On the drawn shapes, from the command line to a score; the export answers as the stock classes do."""
    run_dir = tmp_path / "run"
    model = ["model=qwen3_vl", f"model.path={checkpoint}"]
    data = [
        "data=shapes",
        "data.limit=8",
        "data.batch_size=2",
        f"run_dir={run_dir}",
        "log.every_n_steps=1",
        "log.progress=false",
    ]
    checked = run("check", *model, *data)
    assert "tokenizer, special tokens, template and image patches are those of the model" in checked
    run("train", *model, *data, "trainer.max_steps=2", "validate.every_n_steps=null")
    told = lines(run_dir)
    assert [line["step"] for line in told] == [1, 2]
    assert all(0 < line["loss"] < 20 for line in told)
    run(
        "eval",
        f"ckpt={run_dir}",
        "benchmarks=[shapes]",
        "max_samples_per_benchmark=4",
        "batch_size=2",
        f"output_dir={tmp_path / 'eval'}",
    )
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["benchmarks"]["shapes"]["n"] == 4
    exported = load_stock(run_dir / "hf", torch.float32).eval()
    assert exported.config.model_type == family.name
    changed = load_file(run_dir / "hf" / "model.safetensors")
    assert any(not torch.equal(changed[n], t) for n, t in load_file(checkpoint / "model.safetensors").items())


@pytest.mark.slow
def test_two_ranks_share_it_and_give_the_mean(checkpoint, family, family_processor, pictures, clip, tmp_path):
    """FSDP2: unlike batches on two ranks, each block a unit, every rank reading its rows of each tensor."""
    from tests.training.two_ranks import start_two

    asked = {"text": (), "still": (ImagePart(pictures[0]),), "video": (VideoPart(clip), ImagePart(pictures[1]))}
    batches = {
        kind: pack_samples([sample_of(media, family_processor)], family_processor, info(8))
        for kind, media in asked.items()
    }
    torch.save(batches, tmp_path / "batches.pt")
    start_two("tests.families.two_ranks", str(checkpoint), str(tmp_path))
    found = torch.load(tmp_path / "found.pt")
    assert set(found) == {"text with still", "text with video", "still with video"}
    assert max(found.values()) < GRADIENTS[family.name]


def sample_of(media, processor):
    said = (Turn("user", (*media, TextPart("what?"))), Turn("assistant", (TextPart("nothing much"),)))
    return encode_example(Conversation(said), processor, pixels="uint8")


def info(step_supervised_tokens):
    return PackInfo(pack=0, rows=(0,), sources=(0,), step_supervised_tokens=step_supervised_tokens)


# --- what sets families apart -------------------------------------------------------------------------------------------


def test_a_packed_row_of_windows_has_the_order_of_the_stock_encoder(tmp_path, pictures, clip):
    """Windows cut off at the edges of images of any shape, in stills and in frames."""
    from vlmkit.processing.media import PixelBudget
    from vlmkit.processing.processor import load_processor

    directory = write_checkpoint("qwen2_5_vl", tmp_path)
    processor = load_processor(directory, budget=PixelBudget(image_min_pixels=140 * 140))
    stock = load_stock(directory, torch.float64)
    told = Conversation(
        (Turn("user", (*map(ImagePart, pictures), VideoPart(clip))), Turn("assistant", (TextPart("x"),)))
    )
    batch = pack_samples([encode_example(told, processor, pixels="uint8")], processor, info(1))
    assert max(batch["vision_seqlens"]) > max(batch["vision_window_seqlens"]) == 16  # type: ignore[typeddict-item]
    assert min(batch["vision_window_seqlens"]) < 16, "windows at an edge"  # type: ignore[typeddict-item]
    with torch.no_grad():
        wanted = stock(**stock_inputs(told, processor, torch.float64)).logits
        model = PackedVLM(stock, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
        torch.testing.assert_close(model.logits(batch), wanted, rtol=0, atol=1e-12)
        batch["vision_window_order"] = torch.arange(len(batch["vision_window_order"]))  # type: ignore[typeddict-item]
        assert (model.logits(batch) - wanted).abs().max() > 1e-3, (
            "an order that is not that of the windows is seen here"
        )


def test_experts_lie_in_files_as_published_and_either_form_is_read(tmp_path):
    """vLLM knows the published form only; transformers writes the model's own, and reads both."""
    from vlmkit.processing.processor import load_processor

    directory = write_checkpoint("qwen3_vl_moe", tmp_path / "as transformers writes it")
    model = WholeCheckpoint(path=directory, processor=None).build(dtype=torch.float32).model
    processor = load_processor(directory)
    export = save_hf(model=model, processor=processor, directory=tmp_path / "published", provenance={})
    prove_export(export, model=model, processor=processor)
    stored = load_file(export / "model.safetensors")
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert list(stored[name].shape) == [8, 64, 96], "(experts, width, 2 x their width), as on the hub"
    assert torch.equal(model.get_parameter(name), stored[name].transpose(1, 2))
    again = WholeCheckpoint(path=export, processor=None).build(dtype=torch.float32).model
    stock = load_stock(export, torch.float32)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(key)), key
        assert torch.equal(parameter, stock.get_parameter(key)), key


def test_experts_that_lie_one_by_one_are_read_as_one_tensor(tmp_path):
    """As `save_pretrained` writes Qwen3.5's; what is published, and what other readers are given, has one tensor for all."""
    apart = write_checkpoint("qwen3_5_moe", tmp_path / "apart", experts_apart=True)
    together = write_checkpoint("qwen3_5_moe", tmp_path / "together")
    names = {directory: set(load_file(directory / "model.safetensors")) for directory in (apart, together)}
    assert "model.language_model.layers.0.mlp.experts.7.up_proj.weight" in names[apart]
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in names[together]
    ours, theirs = (WholeCheckpoint(path=each, processor=None).build(dtype=torch.float32).model for each in names)
    stock = load_stock(apart, torch.float32)
    for key, parameter in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(key), parameter), key
        assert torch.equal(ours.get_parameter(key), stock.get_parameter(key)), key


@pytest.mark.parametrize("family_name", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_the_routers_loss_is_refused_rather_than_left_out(tmp_path, family_name):
    directory = write_checkpoint(family_name, tmp_path, changes={"output_router_logits": True})
    with pytest.raises(
        AssemblyError, match=r"^model\.path: .* asks for the routers' balancing loss .* Set it to false"
    ):
        WholeCheckpoint(path=directory, processor=None).config()


def test_what_no_model_takes_is_not_a_leftover(tmp_path):
    """The weights of multi-token prediction lie in Qwen3.5's files; a stray tensor of a name like that is refused."""
    from safetensors.torch import save_file

    directory = write_checkpoint("qwen3_5", tmp_path)
    stored = load_file(directory / "model.safetensors")
    save_file({**stored, "mtp.fc.weight": torch.zeros(2, 2)}, directory / "model.safetensors", {"format": "pt"})
    WholeCheckpoint(path=directory, processor=None).build(dtype=torch.float32)
    save_file({**stored, "more.fc.weight": torch.zeros(2, 2)}, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(AssemblyError, match=r"holds 1 tensors that the model has no place for \(first: more\.fc"):
        WholeCheckpoint(path=directory, processor=None).build(dtype=torch.float32)


def test_other_families_are_refused_by_name(tmp_path):
    from transformers import Qwen2VLConfig

    Qwen2VLConfig().save_pretrained(tmp_path)
    with pytest.raises(
        AssemblyError, match=r"is a qwen2_vl; supported: qwen3_vl, qwen3_vl_moe, qwen2_5_vl, qwen3_5, qwen3_5_moe\.$"
    ):
        WholeCheckpoint(path=Path(tmp_path), processor=None).config()


PUBLISHED = {
    "qwen2_5_vl": {"hidden_size": 2048, "num_attention_heads": 16, "rope": {"mrope_section": [16, 24, 24]}},
    "qwen3_vl": {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "head_dim": 128,
        "rope": {"mrope_section": [24, 20, 20]},
    },
    "qwen3_vl_moe": {
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "head_dim": 128,
        "rope": {"mrope_section": [24, 20, 20]},
    },
    "qwen3_5": {
        "hidden_size": 4096,
        "num_attention_heads": 16,
        "head_dim": 256,
        "rope": {"mrope_section": [11, 11, 10]},
    },
    "qwen3_5_moe": {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "head_dim": 256,
        "rope": {"mrope_section": [11, 11, 10]},
    },
}
LANGUAGE_MODELS = {
    "qwen3": {"head_dim": 128, "hidden_size": 1024, "num_attention_heads": 16},
    "qwen2": {"hidden_size": 1536, "num_attention_heads": 12},
    "qwen2_small": {"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14},
    "qwen3_moe": {"head_dim": 128, "hidden_size": 2048, "num_attention_heads": 32},
    "qwen3_5_text": {"head_dim": 256, "hidden_size": 4096, "num_attention_heads": 16, "partial": 0.25},
    "qwen3_5_moe_text": {"head_dim": 256, "hidden_size": 2048, "num_attention_heads": 16, "partial": 0.25},
    "llama": {"head_dim": 128, "hidden_size": 4096, "num_attention_heads": 32},
}
FITS = {
    ("qwen3_vl", "qwen3"),
    ("qwen2_5_vl", "qwen2"),
    ("qwen3_5", "qwen3_5_text"),
    ("qwen3_5_moe", "qwen3_5_moe_text"),
}
REASONS = {
    (
        "qwen3_vl",
        "qwen2",
    ): r"does not fit a qwen3_vl template: its queries and keys are not normalised.*Use a Qwen2\.5-VL",
    ("qwen3_vl", "qwen2_small"): "its queries and keys are not normalised",
    ("qwen3_vl", "qwen3_moe"): r"its layers hold many MLPs.*trained whole: model=qwen3_vl_30b_a3b",
    ("qwen2_5_vl", "qwen3"): r"its queries and keys are normalised.*Use a Qwen3-VL",
    (
        "qwen2_5_vl",
        "qwen2_small",
    ): r"its head size 64 does not fit the template's mrope_section \[16, 24, 24\], which makes 128",
    ("qwen3_vl_moe", "qwen3"): r"its layers hold one MLP.*Use a dense Qwen3-VL",
    ("qwen3_5", "qwen3_5_moe_text"): r"its layers hold many MLPs.*trained whole: model=qwen3_5_35b_a3b",
    ("qwen3_5_moe", "qwen3_5_text"): r"its layers hold one MLP.*Use a dense Qwen3\.5",
}
PAIRS = [(template, language) for template in PUBLISHED for language in LANGUAGE_MODELS]


@pytest.mark.parametrize(("template", "language"), PAIRS, ids="-".join)
def test_a_pair_fits_or_is_refused_with_the_reason(template, language):
    """Every template with every kind of language model, by their configs alone."""
    from vlmkit.model.merge import check_fit

    def config(settings, kind):
        rope = {"rope_type": "default", "rope_theta": 1e6, **settings.get("rope", {})}
        rope |= {"partial_rotary_factor": settings["partial"]} if "partial" in settings else {}
        return {"model_type": kind, "num_hidden_layers": 28, **settings, "rope_parameters": rope}

    vision = {"model_type": f"{template}_vision", "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}
    whole = {
        "model_type": template,
        "vision_config": vision,
        "text_config": config(PUBLISHED[template], f"{template}_text"),
    }
    if (template, language) in FITS:
        check_fit(whole, vision, config(LANGUAGE_MODELS[language], language))
        return
    reason = REASONS.get((template, language), "it is another architecture than the template's language model")
    with pytest.raises(AssemblyError, match=rf"^model\.language_model: .*{reason}"):
        check_fit(whole, vision, config(LANGUAGE_MODELS[language], language))


def test_a_width_that_the_heads_do_not_fill_is_refused_where_their_size_is_no_setting():
    from vlmkit.model.merge import check_fit

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"model_type": "v", "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
    language = {"model_type": "qwen2", "head_dim": 128, "hidden_size": 1024, "num_attention_heads": 16}
    whole = {"model_type": "qwen2_5_vl", "vision_config": vision, "text_config": {"rope_parameters": rope}}
    with pytest.raises(AssemblyError, match=r"16 heads of 128 do not make its width 1024"):
        check_fit(whole, vision, {**language, "rope_parameters": rope, "num_hidden_layers": 2})


def test_liger_is_refused_for_language_models_that_it_does_not_know(model, family):
    from vlmkit.errors import ConfigError
    from vlmkit.model.liger import refuse_other_families

    if family.liger:
        refuse_other_families(model)
        return
    with pytest.raises(ConfigError, match=rf"its kernels are those of qwen3_vl, and this is a {family.name}"):
        refuse_other_families(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_blocks_on_filled_rows_give_what_eager_ones_give(checkpoint, family, family_processor, pictures, clip):
    """The filler is a segment, a window and a piece of a row with a state of its own."""
    media = {"stills": (ImagePart(pictures[0]), ImagePart(pictures[1])), "video": (VideoPart(clip),)}
    samples = [sample_of(each, family_processor) for each in ((), *media.values())]
    batch = pack_samples(samples, family_processor, info(8))
    mean = {"pixel_mean": family_processor.pixel_mean, "pixel_std": family_processor.pixel_std}
    plain, compiled = (
        PackedVLM(load_stock(checkpoint, torch.float64).train(), **mean, **settings)
        for settings in ({}, {"compiled": True, "compiler": "eager"})
    )
    losses = []
    for model in (plain, compiled):
        out = model(batch)
        out.loss_sum.backward()
        losses.append(out.loss_sum.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-10)
    grads = dict(plain.named_parameters())
    for name, parameter in compiled.named_parameters():
        atol = 10 * GRADIENTS[family.name]
        torch.testing.assert_close(parameter.grad, grads[name].grad, rtol=0, atol=atol, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_30b_a3b", "qwen3_5_9b", "qwen3_5_35b_a3b", "qwen2_5_vl_7b"])
def test_adapters_of_the_yaml_find_their_layers_and_merge(name, tmp_path, tiny):
    """What a published size adapts by default exists in its family, and the merged model is a plain one."""
    pytest.importorskip("peft")
    import yaml

    from vlmkit.config import conf_dir
    from vlmkit.model.lora import Lora, is_adapter

    folder = conf_dir() / "model"
    base, own = (yaml.safe_load((folder / f"{each}.yaml").read_text()) for each in ("_qwen3_vl", name))
    settings = {**base["lora"], **own.get("lora", {}), "rank": 2}
    kind = {
        "qwen3_vl": "qwen3_vl",
        "qwen3_vl_30b_a3b": "qwen3_vl_moe",
        "qwen3_5_9b": "qwen3_5",
        "qwen3_5_35b_a3b": "qwen3_5_moe",
        "qwen2_5_vl_7b": "qwen2_5_vl",
    }[name]
    directory = tiny.vision_language if kind == "qwen3_vl" else write_checkpoint(kind, tmp_path)
    model = WholeCheckpoint(path=directory, processor=None).build(dtype=torch.float32).model
    plain = {key: parameter.clone() for key, parameter in model.named_parameters()}
    lora = Lora(**settings)
    lora.inject(model)
    adapters = {key for key, _ in model.named_parameters() if is_adapter(key)}
    assert {key.split(".lora_")[0].rpartition(".")[2] for key in adapters} == set(settings["language_model"])
    merged = lora.merge(model.named_parameters())
    assert merged.keys() == plain.keys()
    assert all(torch.equal(merged[key], plain[key]) for key in plain), "the second matrix begins at zero"
