"""A packed row equals its samples one by one, and both equal the stock model: logits, loss and gradients in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.families.fixtures import GRADIENTS, checkpoint, family, load_stock, of_every_family, stock_inputs
from tests.families.fixtures import family_processor as processor
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import blocks_of, set_checkpointing
from vlmkit.processing.encode import encode_example

__all__ = ["checkpoint", "family", "processor"]  # fixtures: every test here runs once for each family
INFO = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=1)


def conversation(*parts, answer="yes it is"):
    said = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return Conversation((Turn("user", said), Turn("assistant", (TextPart(answer),))))


@pytest.fixture(scope="module")
def conversations(pictures, clip):
    images = [ImagePart(picture) for picture in pictures]
    return {
        "text": conversation("hello there, how are you?"),
        "image": conversation(images[0], "what is it?"),
        "three": conversation("a", images[0], "b", images[1], images[2], answer="three of them"),
        "video": conversation(VideoPart(clip), "what happens?"),
        "mixture": conversation("first", VideoPart(clip), images[1], "then", images[0], answer="no"),
    }


@pytest.fixture(scope="module")
def stock(checkpoint):
    return load_stock(checkpoint, torch.float64).train()


@pytest.fixture
def model(stock, processor):
    return PackedVLM(
        copy.deepcopy(stock), pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std, head_chunk=3
    ).train()


def stock_logits(stock, told, processor):
    """What the unpatched model says of one sample, called as its users call it."""
    return stock(**stock_inputs(told, processor, torch.float64)).logits[0]


EVERYTHING = ["text", "image", "three", "video", "mixture"]


@of_every_family(
    "names",
    [
        ["text"],
        ["image"],
        ["three"],
        ["video"],
        ["mixture"],
        EVERYTHING,
        ["video", "text", "text"],
    ],
    quick=[EVERYTHING],
)
def test_packed_equals_stock_sample_by_sample(names, conversations, stock, model, processor, family):
    told = [conversations[name] for name in names]
    samples = [encode_example(one, processor, pixels="uint8") for one in told]
    batch = pack_samples(samples, processor, INFO)
    wanted = [stock_logits(stock, one, processor) for one in told]
    torch.testing.assert_close(model.logits(batch)[0], torch.cat(wanted), rtol=0, atol=1e-12)

    loss = sum(
        cross_entropy(logits[:-1], sample["labels"][1:], reduction="sum")
        for logits, sample in zip(wanted, samples, strict=True)
    )
    out = model(batch)
    torch.testing.assert_close(out.loss_sum, loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.token_losses.sum(), loss.detach(), rtol=0, atol=1e-10)
    stock.zero_grad()
    loss.backward()
    out.loss_sum.backward()
    ours, theirs = dict(model.hf.named_parameters()), dict(stock.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        grad = ours[name].grad
        assert grad is not None, name
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        atol = GRADIENTS[family.name]
        torch.testing.assert_close(grad, expected, rtol=0, atol=atol, msg=lambda told, name=name: f"{name}: {told}")


def test_a_sample_does_not_see_its_neighbours(conversations, model, processor):
    samples = {name: encode_example(told, processor, pixels="uint8") for name, told in conversations.items()}
    alone = model.logits(pack_samples([samples["image"]], processor, INFO))[0]
    for neighbour in ("text", "three", "video"):
        batch = pack_samples([samples[neighbour], samples["image"]], processor, INFO)
        torch.testing.assert_close(model.logits(batch)[0, -len(alone) :], alone, rtol=0, atol=1e-12)


def test_the_stand_in_image_changes_neither_loss_nor_gradients(conversations, stock, model, processor):
    sample = encode_example(conversations["text"], processor, pixels="uint8")
    batch = pack_samples([sample], processor, INFO)
    assert batch["dummy_visual"]
    out = model(batch)
    out.loss_sum.backward()
    assert all(p.grad is not None for p in model.parameters()), "a rank without media must not leave a parameter out"
    visual = [p.grad for name, p in model.hf.named_parameters() if ".visual." in name]
    assert all(not grad.count_nonzero() for grad in visual)


def test_an_idle_slot_has_no_loss_but_all_gradients(model, processor):
    out = model(pack_samples([], processor, PackInfo(pack=-1, rows=(), sources=(), step_supervised_tokens=5)))
    assert out.loss_sum.item() == 0.0
    out.loss_sum.backward()
    assert all(p.grad is not None and not p.grad.count_nonzero() for p in model.parameters())


def test_a_frozen_vision_encoder_keeps_nothing_for_autograd(conversations, model, processor, family):
    batch = pack_samples([encode_example(conversations["three"], processor, pixels="uint8")], processor, INFO)
    model.hf.model.visual.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t):
        merged, deepstack = model._see(batch)
    assert sum(kept) == 0
    assert not merged.requires_grad
    assert len(deepstack) == (2 if family.deepstack else 0)


def test_a_frozen_language_model_recomputes_when_checkpointed(conversations, model, processor):
    calls = []
    layers = blocks_of(model.hf, "language_model")
    layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.hf.model.language_model.requires_grad_(False)
    batch = pack_samples([encode_example(conversations["image"], processor, pixels="uint8")], processor, INFO)

    def grads():
        calls.clear()
        model.zero_grad()
        model(batch).loss_sum.backward()
        return [p.grad.clone() for p in model.hf.model.visual.merger.parameters()], len(calls)

    plain, once = grads()
    set_checkpointing(model.hf, vision_encoder=False, language_model=True)
    recomputed, twice = grads()
    assert (once, twice) == (1, 2)
    for first, second in zip(plain, recomputed, strict=True):
        assert torch.equal(first, second)


def test_vision_checkpointing_gives_the_same_gradients(conversations, model, processor):
    batch = pack_samples([encode_example(conversations["mixture"], processor, pixels="uint8")], processor, INFO)
    model(batch).loss_sum.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    set_checkpointing(model.hf, vision_encoder=True, language_model=True)
    model(batch).loss_sum.backward()
    assert all(torch.equal(plain[name], p.grad) for name, p in model.named_parameters())


def test_the_stock_forward_still_works_and_masks_padding(conversations, stock, model, processor):
    """`generate` on the training model: left padding must not change a row."""
    ids = encode_example(conversations["text"], processor, pixels="uint8")["input_ids"][None]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.int64), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.int64), torch.ones_like(ids)], dim=1)
    model.eval()
    single = model.hf(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
    torch.testing.assert_close(model.hf(input_ids=padded, attention_mask=mask).logits[0, -1], single, rtol=0, atol=1e-6)


def test_bf16_autocast_is_close(conversations, checkpoint, processor):
    hf = load_stock(checkpoint, torch.float32)
    model = PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    samples = [encode_example(told, processor, pixels="uint8") for told in conversations.values()]
    batch = pack_samples(samples, processor, INFO)
    exact = model(batch).loss_sum.item()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    out.loss_sum.backward()
    assert abs(out.loss_sum.item() - exact) < 0.05 * exact
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_forward_never_asks_the_device_for_a_number(conversations, model, processor, family, monkeypatch):
    """Segment lengths come as host integers, made in the workers: on CUDA, nothing waits in any layer."""
    samples = [encode_example(told, processor, pixels="uint8") for told in conversations.values()]
    batch = pack_samples(samples, processor, INFO)
    assert all(isinstance(length, int) for key in ("seqlens", "vision_seqlens") for length in batch[key])
    if family.experts:  # in fp64 experts run one by one, and ask; as they are trained they do not
        model.float().hf.set_experts_implementation("grouped_mm")

    def asked(tensor, *_):
        raise AssertionError("a tensor was read on the host")

    for name in ("tolist", "item", "__int__", "__float__", "__bool__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, asked)
    model.hidden_states(batch)
