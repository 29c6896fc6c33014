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
    backend = HFBackend(directory=checkpoint, device="cpu", dtype="float32")
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


def test_the_routers_loss_is_refused_rather_than_left_out(tmp_path):
    directory = write_checkpoint("qwen3_vl_moe", tmp_path, changes={"output_router_logits": True})
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
    from transformers import Qwen3_5MoeConfig

    Qwen3_5MoeConfig().save_pretrained(tmp_path)
    with pytest.raises(
        AssemblyError, match=r"is a qwen3_5_moe; supported: qwen3_vl, qwen3_vl_moe, qwen2_5_vl, qwen3_5\.$"
    ):
        WholeCheckpoint(path=Path(tmp_path), processor=None).config()
