"""Adapters change nothing at first, are all that is trained of their parts, and merge into plain weights exactly."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("peft", reason="adapters need PEFT: pip install 'vlmkit[lora]'")

from transformers import AutoConfig

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.families import on_meta
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.lora import Lora, is_adapter, prove_merge
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import part_of
from vlmkit.processing.encode import encode_example
from vlmkit.training.shards import gather_model

VISION_FROZEN = FreezePolicy(vision_encoder=True, merger=False, language_model=False)


def lora(**changes):
    settings = {
        "rank": 4, "alpha": 8, "dropout": 0.0, "vision_encoder": ["qkv", "linear_fc1"], "merger": [],
        "language_model": ["q_proj", "down_proj"],
    }  # fmt: skip
    return Lora(**settings | changes)


@pytest.fixture(scope="module")
def stock(tiny):
    return WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float64).model.train()


@pytest.fixture(scope="module")
def batch(processor, pictures):
    said = (Turn("user", (ImagePart(pictures[0]), TextPart("what?"))), Turn("assistant", (TextPart("two things"),)))
    info = PackInfo(pack=0, rows=(0,), sources=(0,), step_supervised_tokens=1)
    return pack_samples([encode_example(Conversation(said), processor, pixels="uint8")], processor, info)


def adapted(stock, processor, chosen):
    hf = copy.deepcopy(stock)
    chosen.inject(hf)
    chosen.choose(hf, VISION_FROZEN)
    return PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)


def test_adapters_are_trained_beside_frozen_weights_and_merge_exactly(stock, processor, batch):
    chosen = lora()
    plain = PackedVLM(copy.deepcopy(stock), pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    model = adapted(stock, processor, chosen)
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    start = model(batch).loss_sum
    torch.testing.assert_close(start, plain(batch).loss_sum, rtol=0, atol=0)
    trained = {name for name, p in model.hf.named_parameters() if p.requires_grad}
    assert trained == {name for name in before if is_adapter(name) or part_of(name) == "merger"}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch).loss_sum.backward()
        optimizer.step()
    after = dict(model.hf.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    assert model(batch).loss_sum < 0.7 * start

    merged = gather_model(model.hf, merge=chosen.merge)
    assert set(dict(merged.named_parameters())) == set(dict(stock.named_parameters()))
    prove_merge(model.hf, merged)
    ours = PackedVLM(copy.deepcopy(merged), pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    torch.testing.assert_close(ours(batch).loss_sum, model(batch).loss_sum, rtol=0, atol=1e-10)
    with torch.no_grad():
        merged.model.language_model.layers[0].mlp.down_proj.weight.mul_(2)
    with pytest.raises(CheckpointError, match="merged model's logits differ"):
        prove_merge(model.hf, merged)


def test_ranks_that_share_the_model_read_the_base_and_draw_the_adapters(tiny):
    chosen, source = lora(), WholeCheckpoint(path=tiny.vision_language, processor=None)
    whole, sketch = source.build(dtype=torch.float32).model, source.sketch(dtype=torch.float32)
    chosen.inject(sketch.model)
    read = chosen.reader(sketch.read, sketch.model, seed=0)
    names = [name for name, _ in sketch.model.named_parameters()]
    state = {name: read(name, 0, len(sketch.model.get_parameter(name))) for name in names}
    merged = chosen.merge(state.items())
    for name, parameter in whole.named_parameters():
        assert torch.equal(merged[name], parameter), "the second matrix is zero at first"
    first = next(name for name in names if ".lora_A." in name)
    assert torch.equal(torch.cat([read(first, 0, 1), read(first, 1, 4)]), state[first])
    assert state[first].abs().max() > 0


def test_no_two_of_196_adapters_begin_alike_on_ranks_that_share_the_model(tiny):
    """28 layers of seven matrices; what is drawn depends on the seed and the whole name."""
    config = AutoConfig.from_pretrained(tiny.vision_language)
    config.text_config.num_hidden_layers = 28
    config.text_config.layer_types = ["full_attention"] * 28
    hf = on_meta(config)
    matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    chosen = lora(vision_encoder=[], language_model=matrices)
    chosen.inject(hf)
    names = [name for name, _ in hf.named_parameters() if ".lora_A." in name]
    assert len(names) == 196

    def draw(name, seed):
        """The first numbers of a matrix, its bound taken away: equal where two generators are."""
        read = chosen.reader(lambda *_: torch.empty(0), hf, seed=seed)
        rows = read(name, 0, chosen.rank)
        return tuple((rows[0, :8] * rows.shape[1] ** 0.5).tolist())

    drawn = [draw(name, seed) for seed in (0, 1) for name in names]
    assert len({tuple(round(number, 5) for number in numbers) for numbers in drawn}) == 2 * 196
    assert all(-1 <= number <= 1 for numbers in drawn for number in numbers)
    assert draw(names[0], 0) == drawn[0], "every rank draws the same"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"vision_encoder": [], "language_model": []}, "no part has targets"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lora(**changes)


def test_a_target_that_is_not_there_is_told_with_what_is(stock):
    with pytest.raises(
        ConfigError, match=r"model.lora.language_model: no linear layer is named 'qkv'. There are: down_proj"
    ):
        lora(language_model=["qkv"]).inject(copy.deepcopy(stock))
