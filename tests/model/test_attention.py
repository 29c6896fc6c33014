"""Attention kernels that need a GPU, called through stand-ins with their signatures and demands: see `kernels.py`."""

from __future__ import annotations

import copy
import inspect
from importlib.util import find_spec

import pytest
import torch
import torch.nn.attention.varlen as torch_varlen
from torch.nn.attention import current_flash_attention_impl
from torch.nn.functional import cross_entropy

from tests.families.fixtures import checkpoint, family, load_stock, of_every_family, stock_inputs
from tests.families.fixtures import family_processor as processor
from tests.model import kernels
from tests.model.test_packed import INFO, conversations
from vlmkit.data.collation import pack_samples
from vlmkit.errors import ConfigError
from vlmkit.model import attention
from vlmkit.model.attention import PartAttention, Segments, attend_segments, choose_kernel, describe_attention
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import PARTS, part_of
from vlmkit.processing.encode import encode_example

__all__ = ["checkpoint", "conversations", "family", "processor"]
KERNELS = ("flash4", "flash3", "flash", "varlen")
CAPABILITIES = {"flash4": (10, 0)}
LENGTHS = [130, 1, 7, 64, 200]
NOISE = 0.06
"""Twice what bf16 rounding makes of logits and gradients here (measured: 0.004 to 0.032); a scale that is off by half makes
0.14 and more, a wrong causal flag 0.55 and more."""


def on_gpu(monkeypatch, kernel):
    return kernels.install(monkeypatch, kernel, capability=CAPABILITIES.get(kernel, (9, 0)))


def queries_keys_values(kv_heads, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), heads, 16) for heads in (4, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def segments(kernel="auto"):
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return Segments(starts, LENGTHS, PartAttention(kernel))


def test_the_stand_in_has_the_signature_of_the_installed_pytorch():
    wanted = inspect.signature(torch_varlen.varlen_attn).parameters.values()
    found = inspect.signature(kernels.Stubs().varlen_attn).parameters.values()
    assert [(p.name, p.kind, p.default) for p in found] == [(p.name, p.kind, p.default) for p in wanted]


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_the_stand_in_has_the_signature_of_the_installed_flash_attn():
    from flash_attn import flash_attn_varlen_func

    wanted = inspect.signature(flash_attn_varlen_func).parameters.values()
    found = inspect.signature(kernels.Stubs().flash_attn_varlen_func).parameters.values()
    assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in wanted]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize("kv_heads", [2, 4], ids=["grouped", "equal heads"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_called_by_its_contract(kernel, kv_heads, causal, monkeypatch):
    """Under autocast, fp32 queries and keys beside bf16 values: as norms and rotary embeddings with fp32 weights make them."""
    calls, row = on_gpu(monkeypatch, kernel), segments()
    query, key, value = queries_keys_values(kv_heads)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_segments(query, key, value.bfloat16(), segments=row, causal=causal, scale=0.4)
    exact = [x.bfloat16() for x in (query, key, value)]
    wanted = kernels.attend_in_fp64(*exact, row.starts, causal=causal, scale=0.4)
    assert torch.equal(found, wanted)
    names = {"flash3": "FA3", "flash4": "FA4"}
    assert (calls.names, calls.longest) == ([names.get(kernel, kernel)], [200])
    assert row.attention.ran == {kernel: 1}
    monkeypatch.undo()
    with torch.autocast("cpu", torch.bfloat16):
        slow = attend_segments(query, key, value, segments=segments(), causal=causal, scale=0.4)
    torch.testing.assert_close(slow, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kernel", ["varlen", "flash3"])
def test_pytorchs_kernel_never_leaves_flash_attention_for_cudnn(kernel, monkeypatch):
    """Neither forward nor backward: cuDNN plans anew for each number and length of segments. A call without window would."""
    calls, row = on_gpu(monkeypatch, kernel), segments()
    inputs = queries_keys_values(4, torch.bfloat16)
    for causal in (True, False):
        attend_segments(*inputs, segments=row, causal=causal, scale=0.4)
    assert (len(calls.names), calls.cudnn) == (2, 0)
    torch_varlen.varlen_attn(*inputs, row.starts, row.starts, 200, 200, scale=0.4)
    assert calls.cudnn == 1
    torch_varlen.varlen_attn(*inputs, row.starts, row.starts, 200, 200, scale=0.4, enable_gqa=True)
    assert calls.cudnn == 2, "the backward is not told of enable_gqa: it does not pin"


def test_the_implementation_of_flash_attention_is_switched_and_restored(monkeypatch):
    on_gpu(monkeypatch, "flash3")
    inputs = queries_keys_values(4, torch.bfloat16)
    active = []
    for kernel in ("auto", "varlen", "flash3", "varlen"):
        attend_segments(*inputs, segments=segments(kernel), causal=True, scale=0.4)
        active.append(current_flash_attention_impl())
    assert active == ["FA3", None, "FA3", None]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"dtype": torch.float32}, "only supports fp16 and bf16"),
        ({"transposed": True}, "last dimension must be contiguous"),
        ({"starts": torch.int64}, "must be int32"),
        ({"short": True}, "must span the row"),
        ({"longest": 100}, "the longest segment"),
        ({"grouped": True}, "enable_gqa"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_stand_in_refuses_what_the_kernel_does_not_take(fault, message, monkeypatch):
    on_gpu(monkeypatch, "varlen")
    query, key, value = queries_keys_values(2 if "grouped" in fault else 4, fault.get("dtype", torch.bfloat16))
    if "transposed" in fault:
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    starts = segments().starts.to(fault.get("starts", torch.int32))
    if "short" in fault:
        starts = starts[:-1]
    longest = fault.get("longest", 200)
    with pytest.raises(AssertionError, match=message):
        torch_varlen.varlen_attn(query, key, value, starts, starts, longest, longest)


@of_every_family("kernel", KERNELS, quick=["varlen"])
def test_packed_on_a_kernel_equals_the_unpacked_stock_model(
    kernel, conversations, checkpoint, processor, family, monkeypatch
):
    """The code paths of a GPU, forward and backward, under autocast: one call a layer, whatever the segments."""
    stock = load_stock(checkpoint, torch.float32).train()
    for module in stock.modules():  # all experts for every token: rounding must not send one to another expert
        if hasattr(module, "top_k"):
            module.top_k = module.num_experts
    settings = {"pixel_mean": processor.pixel_mean, "pixel_std": processor.pixel_std}
    model = PackedVLM(copy.deepcopy(stock), **settings).train()
    samples = [encode_example(each, processor, pixels="uint8") for each in conversations.values()]
    batch = pack_samples(samples, processor, INFO)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = [stock(**stock_inputs(each, processor, torch.float32)).logits[0] for each in conversations.values()]
    losses = [
        cross_entropy(logits[:-1].float(), sample["labels"][1:], reduction="sum")
        for logits, sample in zip(wanted, samples, strict=True)
    ]
    sum(losses).backward()

    calls = on_gpu(monkeypatch, kernel)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(batch)[0]
        logits_calls = len(calls.names)
        model(batch).loss_sum.backward()
    assert calls.dtypes == {torch.bfloat16}
    assert calls.cudnn == 0
    assert logits_calls == sum(sum(part.ran.values()) for part in model.attention.values()) / 2
    assert {name for part in model.attention.values() for name in part.ran} == {kernel}
    blocks = sum(hasattr(layer, "self_attn") for layer in model.hf.model.language_model.layers)
    assert model.attention["language_model"].ran == {kernel: 2 * blocks}
    assert model.attention["vision_encoder"].ran == {kernel: 2 * len(model.hf.model.visual.blocks)}

    assert distance(logits.detach(), torch.cat(wanted).detach()) < NOISE
    ours, theirs = dict(model.hf.named_parameters()), dict(stock.named_parameters())
    for part in PARTS:
        names = [name for name in theirs if part_of(name) == part and theirs[name].grad is not None]
        assert names
        found, expected = (torch.cat([tensors[name].grad.flatten() for name in names]) for tensors in (ours, theirs))
        assert distance(found, expected) < NOISE, part


def distance(found, wanted):
    """Norm of the difference by the norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


CPU, GPU = torch.device("cpu"), torch.device("cuda")
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("capability", "installed", "kernel"),
    [
        ((9, 0), ["flash3", "flash4", "flash"], "flash3"),
        ((9, 0), ["flash"], "flash"),
        ((9, 0), [], "varlen"),
        ((10, 0), ["flash3", "flash4", "flash"], "flash4"),
        ((10, 0), ["flash3"], "varlen"),
        ((12, 0), ["flash3", "flash4"], "varlen"),
        ((8, 6), ["flash3", "flash4", "flash"], "flash"),
        ((8, 0), [], "varlen"),
        ((7, 5), ["flash"], "sdpa"),
    ],
)
def test_the_newest_kernel_that_runs_on_the_gpu_is_chosen(capability, installed, kernel, monkeypatch):
    monkeypatch.setattr(attention, "flash_fault", lambda: None if "flash" in installed else "missing.")
    monkeypatch.setattr(attention, "_load_fault", lambda package: None)
    modules = {"flash3": "flash_attn_interface", "flash4": "flash_attn.cute.interface"}
    there = {modules[name] for name in installed if name in modules}
    monkeypatch.setattr(attention, "find_spec", lambda name: name if name in there else None)
    attention.implementation_fault.cache_clear()
    try:
        assert choose_kernel("auto", GPU, BRAIN, capability) == kernel
        assert choose_kernel("auto", GPU, HALF, capability) == kernel
        assert choose_kernel("auto", GPU, FULL, capability) == "sdpa"
        assert choose_kernel("auto", CPU, BRAIN) == "sdpa"
        assert choose_kernel("sdpa", GPU, BRAIN, capability) == "sdpa"
    finally:
        attention.implementation_fault.cache_clear()


@pytest.mark.parametrize(
    ("wanted", "dtype", "capability", "message"),
    [
        ("banana", BRAIN, None, "must be one of auto, flash4, flash3, flash, varlen, sdpa; got 'banana'"),
        ("varlen", BRAIN, (7, 5), "varlen needs compute capability 8.0 or newer, found 7.5. Use model"),
        ("varlen", FULL, (9, 0), "varlen needs a CUDA device and bf16 or fp16, found cuda and torch.float32"),
        ("flash3", BRAIN, (8, 0), "flash3: FlashAttention 3 runs on compute capability 9.x, found 8.x"),
        ("flash4", BRAIN, (12, 0), r"flash4: FlashAttention 4 runs on compute capability 9.x and 10.x, found 12.x"),
        ("flash3", BRAIN, (9, 0), r"flash3: FlashAttention 3 is not installed \(no module flash_attn_interface\)"),
        ("flash4", BRAIN, (10, 0), r"flash4: FlashAttention 4 is not installed \(no module flash_attn.cute"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(wanted, dtype, capability, message):
    with pytest.raises(ConfigError, match=message):
        choose_kernel(wanted, GPU, dtype, capability)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", BRAIN), ("bf16-true", BRAIN), ("16-mixed", HALF), ("32-true", FULL), ("64-true", torch.float64)],
)
def test_attention_computes_in_the_type_of_the_precision(precision, dtype):
    assert attention.attention_dtype(precision) == dtype


def test_bf16_on_a_gpu_without_it_is_reported():
    fault = attention.precision_fault("bf16-mixed", (7, 5))
    assert fault is not None
    assert "compute capability 7.5 has no bf16" in fault
    assert fault.endswith("Use trainer.precision=16-mixed.")
    assert attention.precision_fault("16-mixed", (7, 5)) is None
    assert attention.precision_fault("bf16-mixed", (8, 0)) is None
    assert attention.precision_fault("bf16-mixed", None) is None


def test_what_ran_is_described():
    vision, language = PartAttention(), PartAttention()
    language.ran.update(["varlen", "sdpa", "varlen"])
    described = describe_attention({"vision_encoder": vision, "language_model": language})
    assert described == "sdpa and varlen in the language model"
