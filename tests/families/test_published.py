"""The published sizes: what the yaml files tell is so, and models with the traits of each assemble, pack and export exactly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.families.published import (
    LANGUAGE_MODELS,
    QWEN2_5,
    QWEN2_5_VL,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN3_VL,
    VALUE_HEADS,
    WHOLE,
    Text,
)
from tests.families.tiny import MROPE, VISION, make_processor
from vlmkit.config import conf_dir
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.demo import checkpoints as demo
from vlmkit.errors import CheckpointError
from vlmkit.model.assembly import Assembly, WholeCheckpoint
from vlmkit.model.checkpoint import prove_export, save_hf
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example
from vlmkit.processing.processor import load_processor

YAMLS = {path.stem: path for path in (conf_dir() / "model").glob("[!_]*.yaml")}
NODES = {name: yaml.safe_load(path.read_text()) for name, path in YAMLS.items()}
BASES = {
    name: yaml.safe_load((conf_dir() / "model" / f"_{name}.yaml").read_text())
    for name in ("qwen3_vl", "vision2b_llm0_6b")
}
SETTINGS = {
    name: {**BASES[base[1:]], **node}
    for name, node in NODES.items()
    if (base := node.get("defaults", [""])[0])[1:] in BASES
}
PAIRS = {
    name: (node["vision_encoder"], node["language_model"])
    for name, node in SETTINGS.items()
    if "language_model" in node
}
SIZES = {name: node["path"] for name, node in SETTINGS.items() if node.get("path", "???") != "???"}
QUICK = {
    "vision8b_llm4b",
    "vision32b_llm14b",
    "qwen2_5_vision3b_llm1_5b",
    "Qwen/Qwen3-VL-32B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3.5-27B",
}
"""Tied and untied, rows lost, gained and kept, both depths of vision encoders: the rest takes its time."""
HEAD = 32
INFO = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=1)


def test_every_known_size_has_a_yaml_and_every_yaml_a_known_size():
    assert set(SIZES.values()) == set(WHOLE)
    assert {vision for vision, _ in PAIRS.values()} <= set(WHOLE)
    assert {language for _, language in PAIRS.values()} == set(LANGUAGE_MODELS)
    assert set(NODES) == {*SIZES, *PAIRS, "qwen3_vl", "tiny"}


@pytest.mark.parametrize("name", [*SIZES, *PAIRS])
def test_the_head_of_a_yaml_tells_the_facts(name):
    told = [line for line in YAMLS[name].read_text().splitlines() if line.startswith("#")]
    vision, text = WHOLE[SIZES[name]] if name in SIZES else (WHOLE[PAIRS[name][0]][0], LANGUAGE_MODELS[PAIRS[name][1]])
    assert f"# Language model: {text.told}." in told
    assert any(line.startswith(f"# Vision encoder: {vision.told}") for line in told)


@pytest.mark.parametrize("name", PAIRS)
def test_the_head_of_a_pair_tells_what_becomes_of_the_merger(name):
    had, wanted = WHOLE[PAIRS[name][0]][1].width, LANGUAGE_MODELS[PAIRS[name][1]].width
    (told,) = re.findall(r"made for a width of (\d+), (.*)\.\n", YAMLS[name].read_text())
    assert int(told[0]) == had
    assert ("whole" in told[1], "lose" in told[1], "gain" in told[1]) == (had == wanted, had > wanted, had < wanted)


def test_a_hub_id_that_cannot_be_had_says_what_to_do():
    source = WholeCheckpoint(path="Qwen/Qwen3-VL-8B-Instruct", processor=None)
    with pytest.raises(
        CheckpointError, match=r"^model\.path: 'Qwen/Qwen3-VL-8B-Instruct' is neither a directory here nor"
    ) as caught:
        source.build(dtype=torch.float32)
    assert str(caught.value).endswith("Download it on a machine with access and give the directory.")


# --- stand-ins -------------------------------------------------------------------------------------------------------


def small(text: Text) -> dict:
    """A text config with the same ratios of width, heads and heads of keys and values, tying and rope base."""
    kv_heads = 1 if text.heads % 2 or text.heads // text.kv_heads > 2 else 2
    heads = kv_heads * text.heads // text.kv_heads
    return {
        "vocab_size": demo.VOCABULARY_ROWS,
        "hidden_size": heads * HEAD * text.width // (text.heads * text.head),
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": text.tied,
        "initializer_range": 0.06,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def make_language_model(hub_id: str, directory: Path, tokenizer) -> Path:
    """A stand-in for a published language model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    settings = small(LANGUAGE_MODELS[hub_id])
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": LANGUAGE_MODELS[hub_id].rope}
    torch.manual_seed(1)
    if hub_id in QWEN2_5:
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
        for layer in model.model.layers:
            for part in "qkv":
                torch.nn.init.normal_(getattr(layer.self_attn, f"{part}_proj").bias, std=0.5)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**settings, head_dim=HEAD))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_vision_language_model(hub_id: str, directory: Path, tokenizer) -> Path:
    """A stand-in for a published vision-language model: as many taps, all but the last blocks tapped, its own head size."""
    from transformers import Qwen2_5_VLConfig, Qwen3_5Config, Qwen3_5MoeConfig, Qwen3VLConfig

    from vlmkit.model.families import FAMILIES

    shape, text = WHOLE[hub_id]
    settings = small(text)
    family, kind = {
        **dict.fromkeys(QWEN3_VL, ("qwen3_vl", Qwen3VLConfig)),
        **dict.fromkeys(QWEN2_5_VL, ("qwen2_5_vl", Qwen2_5_VLConfig)),
        **dict.fromkeys(QWEN3_5, ("qwen3_5", Qwen3_5Config)),
        **dict.fromkeys(QWEN3_5_MOE, ("qwen3_5_moe", Qwen3_5MoeConfig)),
    }[hub_id]
    depth = shape.depth * 4 // shape.taps[-1] if shape.taps else shape.depth // 6
    taps = [tap * depth // shape.depth for tap in shape.taps]
    vision = {**VISION, "depth": depth, "hidden_size": {768: 48, 1152: 72}.get(shape.width, 64)}
    vision |= {"out_hidden_size": settings["hidden_size"]}
    rope = {**MROPE, "rope_theta": text.rope}
    if hub_id in VALUE_HEADS:
        settings |= {"head_dim": HEAD, "layer_types": ["linear_attention", "linear_attention", "full_attention"]}
        settings |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2}
        settings |= {"linear_num_value_heads": 2 * VALUE_HEADS[hub_id]}
        settings |= {"num_experts": 8, "num_experts_per_tok": 2} if hub_id in QWEN3_5_MOE else {}
        rope |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    elif family == "qwen2_5_vl":
        del vision["num_position_embeddings"]
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": taps, "tokens_per_second": 2}
    else:
        vision |= {"deepstack_visual_indexes": taps}
        settings |= {"head_dim": HEAD}
        rope |= {"mrope_interleaved": True}
    tokens = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    tokens |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    config = kind(
        vision_config=vision,
        text_config={**settings, "rope_parameters": rope},
        tie_word_embeddings=text.tied,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )
    torch.manual_seed(0)
    FAMILIES[family].make(config).save_pretrained(directory)
    make_processor(family, tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Makes the stand-in of a hub id, once."""
    root, tokenizer = tmp_path_factory.mktemp("hub"), demo.train_tokenizer()
    made: dict[str, Path] = {}

    def make(hub_id: str) -> Path:
        if hub_id not in made:
            kind = make_vision_language_model if hub_id in WHOLE else make_language_model
            with torch.random.fork_rng(devices=[]):
                made[hub_id] = kind(hub_id, root / hub_id.replace("/", "--"), tokenizer)
        return made[hub_id]

    return make


def samples(processor, pictures):
    """A text and an image, to be packed."""
    asked = [(TextPart("How many?"),), (ImagePart(pictures[0]), TextPart("What is it?"))]
    told = [Conversation((Turn("user", parts), Turn("assistant", (TextPart("one"),)))) for parts in asked]
    return [encode_example(one, processor, pixels="uint8") for one in told]


def prove_packing(hf, processor, pictures):
    """A packed row gives what its samples give alone."""
    model = PackedVLM(hf.double(), pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    each = samples(processor, pictures)
    with torch.no_grad():
        packed = model.logits(pack_samples(each, processor, INFO))[0]
        alone = [model.logits(pack_samples([one], processor, INFO))[0] for one in each]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-12)


def unhurried(names):
    """All of them, those marked slow that are not in `QUICK`."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", unhurried(PAIRS))
def test_a_pair_with_the_traits_of_each_size_assembles_packs_and_exports(name, stand_in, pictures, tmp_path):
    vision, language = (stand_in(hub_id) for hub_id in PAIRS[name])
    source = Assembly(
        vision_encoder=vision,
        language_model=language,
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
    facts, config = LANGUAGE_MODELS[PAIRS[name][1]], vlm.model.config
    assert config.tie_word_embeddings == config.text_config.tie_word_embeddings == facts.tied
    assert config.text_config.rope_parameters["rope_theta"] == facts.rope
    assert (vlm.model.lm_head.weight is vlm.model.model.language_model.embed_tokens.weight) == facts.tied
    processor = load_processor(vision)
    directory = save_hf(model=vlm.model, processor=processor, directory=tmp_path / "hf", provenance={})
    prove_export(directory, model=vlm.model, processor=processor)
    prove_packing(vlm.model, processor, pictures)


@pytest.mark.parametrize("hub_id", unhurried([*QWEN3_VL, *QWEN2_5_VL, *QWEN3_5, *QWEN3_5_MOE]))
def test_a_whole_model_with_the_traits_of_each_size_packs_and_exports(hub_id, stand_in, pictures, tmp_path):
    directory = stand_in(hub_id)
    model = WholeCheckpoint(path=directory, processor=None).build(dtype=torch.float32).model
    processor = load_processor(directory)
    export = save_hf(model=model, processor=processor, directory=tmp_path / "hf", provenance={})
    prove_export(export, model=model, processor=processor)
    prove_packing(model, processor, pictures)
